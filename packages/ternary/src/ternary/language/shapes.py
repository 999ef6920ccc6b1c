"""Evaluates a checked program for each set of arguments: constants, requirements, shapes.

Knows nothing of PyTorch.
"""

# ruff: noqa: D102 - the steps of a visitor are told by their names; what others call has a docstring
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ternary.language import syntax as s
from ternary.language.diagnostics import Diagnostics, SourceText, Span
from ternary.language.dims import Dim, dim, symbol
from ternary.language.library import (
    CHOICES,
    FUNCTIONS,
    LAYERS,
    REQUIRED,
    TERNARY_OPTIONS,
    LayerSpec,
    ShapeError,
    Tensor,
    Values,
    broadcast,
    matmul,
    same,
)
from ternary.language.names import NameChecker, bind, definition_args

MAX_LAYERS = 1_000_000
MAX_NESTING = 50
MAX_SIZE = 2**31 - 1


class _Unknown:
    """The value of something already reported or not decidable: fits everywhere."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = _Unknown()


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in layer with its arguments."""

    spec: LayerSpec
    values: Values
    size: int = 1
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Sequence:
    """Layers in a row, each with how often it is repeated."""

    items: tuple[tuple[Any, int], ...]
    size: int
    depth: int


@dataclass(frozen=True, slots=True)
class Either:
    """One of two layers; which one depends on a parameter without a value."""

    then: Any
    otherwise: Any
    size: int
    depth: int


@dataclass(slots=True)
class Instance:
    """A definition with its arguments, evaluated once and shared by all uses."""

    definition: s.Definition
    label: str
    env: dict[str, Any]
    size: int = 1
    depth: int = 1
    body: Any = UNKNOWN
    results: dict[tuple[Tensor, ...], Tensor | None] = field(default_factory=dict)


class ShapeChecker:
    """Evaluates every definition that can be, reporting what does not fit."""

    def __init__(self, names: NameChecker, source: SourceText, diagnostics: Diagnostics):
        self.definitions, self.bad = names.definitions, names.bad
        self.source, self.diagnostics = source, diagnostics
        self.instances: dict[tuple[str, tuple[Any, ...]], Instance] = {}
        self.context: list[tuple[str, Span]] = []
        self.used: set[str] = set()

    def run(self) -> None:
        """Evaluate models with their defaults first, then what none of them used, with symbols for parameters."""
        complete = [d for d in self.definitions.values() if all(p.default is not None for p in d.parameters)]
        ordered = sorted(complete, key=lambda d: d.kind != "model")
        rest = [d for d in self.definitions.values() if any(p.default is None for p in d.parameters)]
        for d in [*ordered, *rest]:
            if self.diagnostics.full:
                return
            if d.name not in self.used or all(p.default is not None for p in d.parameters):
                self.root(d)

    def root(self, d: s.Definition) -> None:
        env: dict[str, Any] = {}
        for p in d.parameters:
            env[p.name] = UNKNOWN if p.default is None else self.default(p, env)
            if p.default is None and p.type == "int" and not p.name[0].isupper():
                env[p.name] = symbol(p.name)
        instance = self.instance(d, env)
        if d.forward is not None:
            inputs = []
            for i in d.forward.inputs:
                scope = dict(instance.env)
                for expr in i.type.dims:
                    if isinstance(expr, s.Name) and expr.name not in scope:
                        scope[expr.name] = symbol(expr.name)
                inputs.append(Tensor(i.type.dtype, tuple(self.size(e, scope) for e in i.type.dims)))
            self.apply_instance(instance, tuple(inputs), d.name_span)

    def error(self, code: str, message: str, span: Span, expected: str = "", hint: str = "") -> None:
        notes = []
        for label, at in reversed(self.context[-4:]):
            line, column = self.source.position(at.start)
            notes.append(f"in {label}, used at line {line}, column {column}")
        self.diagnostics.add(code, message, span, expected=expected, hint=hint, notes=tuple(notes))

    # --- constants ----------------------------------------------------------------------------------------------

    def default(self, p: s.Parameter, env: dict[str, Any]) -> Any:
        value = self.constant(p.default, env) if p.default is not None else UNKNOWN
        return float(value) if p.type == "float" and isinstance(value, int) else value

    def size(self, expr: s.Expr | None, env: dict[str, Any]) -> Dim | None:
        value = UNKNOWN if expr is None else self.constant(expr, env)
        return dim(value) if isinstance(value, int | Dim) else None

    def constant(self, expr: s.Expr, env: dict[str, Any]) -> Any:
        if id(expr) in self.bad:
            return UNKNOWN
        try:
            return self.evaluate(expr, env)
        except ZeroDivisionError:
            self.error("bad-value", "division by zero (or by a negative size)", expr.span)
        except OverflowError:
            self.error("bad-value", "the result is too large", expr.span)
        return UNKNOWN

    def evaluate(self, expr: s.Expr, env: dict[str, Any]) -> Any:
        match expr:
            case s.Literal(value):
                return value
            case s.Name(name):
                return env.get(name, UNKNOWN)
            case s.Unary(op, operand):
                value = self.evaluate(operand, env)
                if value is UNKNOWN:
                    return UNKNOWN
                return (not value) if op == "not" else -value
            case s.Conditional(then, condition, otherwise):
                chosen = self.evaluate(condition, env)
                if chosen is UNKNOWN or otherwise is None:
                    return UNKNOWN
                return self.evaluate(then if chosen else otherwise, env)
            case s.Binary():
                return self.arithmetic(expr, env)
            case s.Call(callee, arguments):
                values = [self.evaluate(a.value, env) for a in arguments]
                return constant_function(callee.name, values)
        return UNKNOWN

    def arithmetic(self, expr: s.Binary, env: dict[str, Any]) -> Any:
        a = self.evaluate(expr.left, env)
        if expr.op == "and" and a is False:
            return False
        if expr.op == "or" and a is True:
            return True
        b = self.evaluate(expr.right, env)
        if a is UNKNOWN or b is UNKNOWN:
            return UNKNOWN
        value = combine(expr.op, a, b)
        if isinstance(value, int | float) and abs(value) > 2**63:
            raise OverflowError
        return value

    # --- layers -------------------------------------------------------------------------------------------------

    def instance(self, d: s.Definition, env: dict[str, Any]) -> Instance:
        self.used.add(d.name)
        key = (d.name, tuple((type(v).__name__, v) for v in env.values()))
        found = self.instances.get(key)
        if found is not None:
            return found
        label = f"{d.name}({', '.join(f'{k}={v}' for k, v in env.items() if v is not UNKNOWN)})"
        made = self.instances[key] = Instance(d, label, dict(env))
        for statement in d.statements:
            match statement:
                case s.Let():
                    made.env[statement.name] = self.constant(statement.value, made.env)
                case s.Require():
                    if self.constant(statement.condition, made.env) is False:
                        message = statement.message or "this requirement does not hold"
                        self.error("requirement", message, statement.condition.span, hint=f"for {label}")
                case s.Member():
                    made.env[statement.name] = layer = self.layer(statement.value, made.env)
                    made.size += size_of(layer)
                    made.depth = max(made.depth, 1 + depth_of(layer))
        if d.sequence is not None:
            made.body = self.layer(d.sequence, made.env)
            made.size += size_of(made.body)
            made.depth = max(made.depth, 1 + depth_of(made.body))
        if made.depth > MAX_NESTING:
            self.error("too-deep", f"definitions nested more than {MAX_NESTING} deep", d.name_span)
        if made.size > MAX_LAYERS:
            message = f"'{d.name}' has {made.size:,} layers"
            self.error("too-large", message, d.name_span, expected=f"at most {MAX_LAYERS:,}")
        return made

    def layer(self, expr: s.Expr, env: dict[str, Any]) -> Any:
        if id(expr) in self.bad:
            return UNKNOWN
        match expr:
            case s.Ternary(options, layer):
                self.arguments(TERNARY_OPTIONS, options, env)
                return self.layer(layer, env)
            case s.Repeat():
                return self.sequence((expr,), env)
            case s.ListExpr(items):
                return self.sequence(items, env)
            case s.Conditional(then, condition, otherwise):
                chosen = self.constant(condition, env)
                if chosen is UNKNOWN:
                    first = self.layer(then, env)
                    second = UNKNOWN if otherwise is None else self.layer(otherwise, env)
                    return Either(first, second, size_of(first) + size_of(second), max(map(depth_of, (first, second))))
                if otherwise is None:
                    return self.sequence((then,), env) if chosen else Sequence((), 0, 0)
                return self.layer(then if chosen else otherwise, env)
            case s.Call():
                return self.create(expr, env)
        return UNKNOWN

    def sequence(self, items: tuple[s.Expr, ...], env: dict[str, Any]) -> Any:
        out: list[tuple[Any, int]] = []
        for item in items:
            if isinstance(item, s.Repeat):
                count = self.constant(item.count, env)
                layer = self.layer(item.layer, env)
                if isinstance(count, int) and count < 0:
                    self.error("bad-value", f"repeat({count})", item.count.span, expected="0 or more")
                    count = 0
                out.append((layer, count) if isinstance(count, int) else (UNKNOWN, 1))
            else:
                out.append((self.layer(item, env), 1))
        size = sum(size_of(layer) * n for layer, n in out)
        return Sequence(tuple(out), size, max((depth_of(layer) for layer, _ in out), default=0))

    def create(self, call: s.Call, env: dict[str, Any]) -> Any:
        name = call.callee.name
        if name == "Parameter":
            return Tensor("float", tuple(self.size(a.value, env) for a in call.arguments))
        if name in LAYERS:
            spec = LAYERS[name]
            values = self.arguments(spec.args, call.arguments, env)
            try:
                spec.check(values)
            except ShapeError as e:
                self.error("bad-value", e.message, call.span, e.expected, e.hint)
            return Builtin(spec, values)
        d = self.definitions[name]
        if len(self.context) >= MAX_NESTING:
            self.error("too-deep", f"definitions nested more than {MAX_NESTING} deep", call.callee.span)
            return UNKNOWN
        bound, _ = bind(definition_args(d), call.arguments)
        values = {}
        for p in d.parameters:
            given = bound.get(p.name)
            values[p.name] = self.default(p, values) if given is None else self.constant(given, env)
            if p.type == "float" and isinstance(values[p.name], int):
                values[p.name] = float(values[p.name])
        self.context.append((name, call.span))
        made = self.instance(d, values)
        self.context.pop()
        return made

    def arguments(self, args: Any, given: tuple[s.Argument, ...], env: dict[str, Any]) -> Values:
        bound, _ = bind(args, given)
        values: Values = {}
        for arg in args:
            expr = bound.get(arg.name)
            if expr is None:
                values[arg.name] = UNKNOWN if arg.default is REQUIRED else arg.default
                continue
            value = values[arg.name] = self.constant(expr, env)
            if arg.type == "int" and isinstance(value, int) and not isinstance(value, bool):
                lowest = 1 if arg.positive else 0
                if args is not TERNARY_OPTIONS and not lowest <= value <= MAX_SIZE and arg.name not in ("dim", "start"):
                    wanted = f"{lowest} or more" if value < lowest else f"at most {MAX_SIZE:,}"
                    self.error("bad-value", f"{arg.name} = {value}", expr.span, expected=wanted)
                    values[arg.name] = UNKNOWN
            if args is TERNARY_OPTIONS and isinstance(value, str) and value not in CHOICES.get(arg.name, (value,)):
                self.error("bad-value", f"unknown {arg.name} '{value[:40]}'", expr.span, ", ".join(CHOICES[arg.name]))
        return values

    # --- tensors ------------------------------------------------------------------------------------------------

    def apply(self, layer: Any, inputs: tuple[Tensor, ...], span: Span) -> Tensor | None:
        """Return the shape that a layer gives, None if not known; raises ShapeError."""
        match layer:
            case Builtin(spec, values):
                if len(inputs) != 1:
                    raise ShapeError(f"{spec.name} got {len(inputs)} tensors", "one")
                return spec.shape(values, inputs[0])
            case Sequence(items):
                return self.apply_sequence(items, inputs, span)
            case Either(then, otherwise):
                first, second = self.apply(then, inputs, span), self.apply(otherwise, inputs, span)
                if first is None or second is None or len(first.dims) != len(second.dims):
                    return None
                return Tensor(
                    first.dtype,
                    tuple(a if same(a, b) else None for a, b in zip(first.dims, second.dims, strict=True)),
                )
            case Instance():
                return self.apply_instance(layer, inputs, span)
        return None

    def apply_sequence(
        self, items: tuple[tuple[Any, int], ...], inputs: tuple[Tensor, ...], span: Span
    ) -> Tensor | None:
        if len(inputs) != 1:
            raise ShapeError(f"a list of layers got {len(inputs)} tensors", "one")
        x: Tensor | None = inputs[0]
        for layer, count in items:
            for _ in range(min(count, MAX_LAYERS)):
                if x is None:
                    return None
                before = x
                x = self.apply(layer, (x,), span)
                if x == before:
                    break
        return x

    def apply_instance(self, instance: Instance, inputs: tuple[Tensor, ...], span: Span) -> Tensor | None:
        if inputs in instance.results:
            return instance.results[inputs]
        instance.results[inputs] = None
        d = instance.definition
        self.context.append((instance.label, span))
        try:
            if d.forward is None:
                place = d.sequence.span if d.sequence else d.name_span
                try:
                    result = self.apply(instance.body, inputs, place)
                except ShapeError as e:
                    self.error("shape-mismatch", e.message, Span(place.start, place.start + 1), e.expected, e.hint)
                    result = None
            else:
                scope = self.bind_inputs(instance, d.forward, inputs)
                result = None if scope is None else self.forward(d.forward, scope)
        finally:
            self.context.pop()
        instance.results[inputs] = result
        return result

    def bind_inputs(self, instance: Instance, f: s.Forward, inputs: tuple[Tensor, ...]) -> dict[str, Any] | None:
        """Match what is given with the signature; a mismatch is the caller's error."""
        name = instance.definition.name
        if len(inputs) != len(f.inputs):
            raise ShapeError(f"{name} got {len(inputs)} tensors", f"{len(f.inputs)}")
        scope = dict(instance.env)
        for declared, x in zip(f.inputs, inputs, strict=True):
            shown = f"{declared.type.dtype}[{', '.join(self.show(e, scope) for e in declared.type.dims)}]"
            if x.dtype != declared.type.dtype or len(x.dims) != len(declared.type.dims):
                raise ShapeError(f"{name} got {x} as '{declared.name}'", shown)
            for expr, actual in zip(declared.type.dims, x.dims, strict=True):
                if expr is None or id(expr) in self.bad:
                    continue
                if isinstance(expr, s.Name) and expr.name not in scope:
                    scope[expr.name] = UNKNOWN if actual is None else actual
                elif same(self.size(expr, scope), actual) is False:
                    raise ShapeError(
                        f"{name} got {x} as '{declared.name}': {actual} is not {self.size(expr, scope)}", shown
                    )
        for declared, x in zip(f.inputs, inputs, strict=True):
            scope[declared.name] = x
        return scope

    def show(self, expr: s.Expr | None, scope: dict[str, Any]) -> str:
        if isinstance(expr, s.Name) and expr.name not in scope:
            return expr.name
        size = self.size(expr, scope)
        return "_" if size is None else str(size)

    def forward(self, f: s.Forward, scope: dict[str, Any]) -> Tensor | None:
        for statement in f.body:
            value = None if id(statement.value) in self.bad else self.tensor_root(statement.value, scope)
            if isinstance(statement, s.Assign):
                scope[statement.name] = UNKNOWN if value is None else value
            else:
                return self.result(f, statement, value, scope)
        return None

    def result(self, f: s.Forward, statement: s.Return, value: Any, scope: dict[str, Any]) -> Tensor | None:
        dims = tuple(self.size(e, scope) for e in f.output.dims)
        declared = Tensor(f.output.dtype, dims)
        if not isinstance(value, Tensor):
            return declared
        fits = value.dtype == declared.dtype and len(value.dims) == len(dims)
        if not fits or any(same(a, b) is False for a, b in zip(value.dims, dims, strict=True)):
            message = f"forward returns {value}"
            self.error("shape-mismatch", message, statement.value.span, expected=f"{declared}, as declared")
            return declared
        return Tensor(value.dtype, tuple(a if b is None else b for a, b in zip(value.dims, dims, strict=True)))

    def tensor_root(self, expr: s.Expr, scope: dict[str, Any]) -> Any:
        value = self.tensor(expr, scope)
        return value if isinstance(value, Tensor) else None

    def tensor(self, expr: s.Expr, scope: dict[str, Any]) -> Any:
        """Return the Tensor (or number) that an expression of forward stands for, UNKNOWN after an error."""
        try:
            return self.infer(expr, scope)
        except ShapeError as e:
            self.error("shape-mismatch", e.message, expr.span, e.expected, e.hint)
        return UNKNOWN

    def infer(self, expr: s.Expr, scope: dict[str, Any]) -> Any:
        match expr:
            case s.Call(callee, arguments) if callee.name in scope:
                inputs = [self.tensor(a.value, scope) for a in arguments]
                if any(not isinstance(x, Tensor) for x in inputs):
                    return UNKNOWN
                result = self.apply(scope[callee.name], tuple(inputs), expr.span)
                return UNKNOWN if result is None else result
            case s.Call(callee, arguments) if callee.name in FUNCTIONS:
                return self.call_function(callee.name, arguments, scope)
            case s.Binary(op, left, right):
                a, b = self.tensor(left, scope), self.tensor(right, scope)
                if a is UNKNOWN or b is UNKNOWN:
                    return UNKNOWN
                if isinstance(a, Tensor) and isinstance(b, Tensor):
                    return matmul(a, b) if op == "@" else broadcast(a, b, op)
                if isinstance(a, Tensor) or isinstance(b, Tensor):
                    return a if isinstance(a, Tensor) else b
            case s.Unary(_, operand):
                value = self.tensor(operand, scope)
                if isinstance(value, Tensor):
                    return value
            case s.Conditional(then, condition, otherwise) if otherwise is not None:
                chosen = self.constant(condition, scope)
                if chosen is UNKNOWN:
                    self.tensor(then, scope)
                    self.tensor(otherwise, scope)
                    return UNKNOWN
                return self.tensor(then if chosen else otherwise, scope)
        return self.constant(expr, scope)

    def call_function(self, name: str, given: tuple[s.Argument, ...], scope: dict[str, Any]) -> Any:
        spec = FUNCTIONS[name]
        bound, _ = bind(spec.args, given)
        values: Values = {}
        for arg in spec.args:
            expr = bound.get(arg.name)
            if expr is None:
                values[arg.name] = arg.default
            elif arg.type == "tensor":
                values[arg.name] = self.tensor(expr, scope)
            elif arg.type == "tensors" and isinstance(expr, s.ListExpr):
                values[arg.name] = [self.tensor(item, scope) for item in expr.items]
                if any(not isinstance(t, Tensor) for t in values[arg.name]):
                    return UNKNOWN
            elif arg.type == "dims" and isinstance(expr, s.ListExpr):
                values[arg.name] = tuple(self.size(item, scope) for item in expr.items)
            else:
                values[arg.name] = self.constant(expr, scope)
                lowest = 1 if arg.positive else 0 if arg.name == "padding" else None
                if lowest is not None and isinstance(values[arg.name], int) and values[arg.name] < lowest:
                    raise ShapeError(f"{name}: {arg.name} = {values[arg.name]}", f"{lowest} or more")
            if arg.type == "tensor" and not isinstance(values[arg.name], Tensor):
                return UNKNOWN
        return spec.shape(values)


def size_of(layer: Any) -> int:
    """Return how many layers a layer is made of."""
    return int(getattr(layer, "size", 1))


def depth_of(layer: Any) -> int:
    """Return how many definitions lie inside one another in a layer."""
    return int(getattr(layer, "depth", 0))


def combine(op: str, a: Any, b: Any) -> Any:
    """Evaluate a binary operation on constants, of which some may be symbolic sizes."""
    if isinstance(a, Dim) or isinstance(b, Dim):
        if op in ("==", "!="):
            equal = same(a, b) if not isinstance(a, float) and not isinstance(b, float) else None
            return UNKNOWN if equal is None else equal == (op == "==")
        if isinstance(a, float) or isinstance(b, float) or op not in ("+", "-", "*", "//", "%"):
            return UNKNOWN
        a, b = dim(a), dim(b)
    match op:
        case "+":
            value = a + b
        case "-":
            value = a - b
        case "*":
            value = a * b
        case "/":
            value = a / b
        case "//":
            value = a // b
        case "%":
            value = a % b
        case "==":
            return a == b
        case "!=":
            return a != b
        case "<":
            return a < b
        case "<=":
            return a <= b
        case ">":
            return a > b
        case ">=":
            return a >= b
        case "and":
            return a and b
        case _:
            return a or b
    if isinstance(value, Dim):
        return value if value.constant is None else value.constant
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    return value


def constant_function(name: str, values: list[Any]) -> Any:
    """Evaluate a function on constants."""
    if any(not isinstance(v, int | float) for v in values):
        return UNKNOWN
    match name:
        case "max":
            return max(values)
        case "min":
            return min(values)
        case "round":
            return round(values[0])
        case "int":
            return int(values[0])
        case "float":
            return float(values[0])
    from ternary.nn.divisible import make_divisible

    return make_divisible(values[0], values[1])
