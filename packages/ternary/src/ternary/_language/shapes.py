"""Infer symbolic shapes through the layers and expressions of a program."""

from __future__ import annotations

from typing import Any

from ternary._language import syntax as s
from ternary._language.arguments import bind
from ternary._language.constants import UNKNOWN
from ternary._language.diagnostics import Diagnostics, SourceText, Span
from ternary._language.dims import Dim, dim, symbol
from ternary._language.functions import FUNCTIONS, broadcast, matmul
from ternary._language.instances import MAX_LAYERS, Builtin, Either, Instance, Instances, Sequence
from ternary._language.library import (
    CONSTANT_FUNCTIONS,
    Arg,
    LayerSpec,
    ShapeError,
    Tensor,
    UndecidedError,
    Values,
    same,
)
from ternary._language.names import NameChecker

STEPS = 4_000
"""Layers of which the shapes are inferred one by one, besides one for each character of the source. Repetitions that
change no shape count once."""


class ShapeChecker:
    """Evaluates every definition that can be, reporting what does not fit."""

    def __init__(self, names: NameChecker, source: SourceText, diagnostics: Diagnostics):
        self.diagnostics, self.bad = diagnostics, names.bad
        self.steps = STEPS + len(source.text)
        self.instances = Instances(names, source, diagnostics)
        self.error, self.constant, self.size = self.instances.error, self.instances.constant, self.instances.size

    def run(self) -> None:
        """Evaluate models with their defaults first, then the unused ones, with symbols for parameters."""
        complete = [d for d in self.instances.definitions.values() if all(p.default is not None for p in d.parameters)]
        ordered = sorted(complete, key=lambda d: d.kind != "model")
        rest = [d for d in self.instances.definitions.values() if any(p.default is None for p in d.parameters)]
        for d in [*ordered, *rest]:
            if self.diagnostics.full:
                return
            if d.name not in self.instances.used or all(p.default is not None for p in d.parameters):
                self.root(d)

    def root(self, d: s.Definition) -> None:
        env: dict[str, Any] = {}
        for p in d.parameters:
            env[p.name] = UNKNOWN if p.default is None else self.instances.default(p, env)
            if p.default is None and p.type == "int" and not p.name[0].isupper():
                env[p.name] = symbol(p.name)
        instance = self.instances.instance(d, env)
        if d.forward is not None:
            inputs = []
            for i in d.forward.inputs:
                scope = dict(instance.env)
                for expr in i.type.dims:
                    if isinstance(expr, s.Name) and expr.name not in scope:
                        scope[expr.name] = symbol(expr.name)
                inputs.append(Tensor(i.type.dtype, tuple(self.size(e, scope) for e in i.type.dims)))
            self.apply_instance(instance, tuple(inputs), d.name_span)

    # --- tensors ------------------------------------------------------------------------------------------------

    def apply(self, layer: Any, inputs: tuple[Tensor, ...], span: Span) -> Tensor | None:
        """Return the output of a layer, None if unknown; raises ShapeError."""
        self.steps -= 1
        if self.steps == 0:
            message = "repetitions that change the shape make too many different layers to check"
            self.error("too-large", message, span, expected=f"at most {STEPS:,} besides those written out")
        if self.steps <= 0:
            return None
        match layer:
            case Builtin(spec, values):
                if len(inputs) != 1:
                    raise ShapeError(f"{spec.name} got {len(inputs)} tensors", "one")
                try:
                    return spec.shape(values, inputs[0])
                except OverflowError as e:
                    raise ShapeError(str(e)) from None
                except ShapeError as e:
                    e.assumed = self.assume(spec, values, inputs[0])
                    raise
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

    def assume(self, spec: LayerSpec, values: Values, x: Tensor) -> Tensor | None:
        """Return what a layer would give for the size that it declares, so that errors behind it are found too."""
        wanted = values.get("inputs", values.get("features"))
        at = -1 if spec.name in ("Linear", "LayerNorm", "RMSNorm") else 1
        if not isinstance(wanted, int | Dim) or len(x.dims) < 2:
            return None
        dims = list(x.dims)
        dims[at] = dim(wanted)
        try:
            return spec.shape(values, Tensor(x.dtype, tuple(dims)))
        except (ShapeError, UndecidedError, OverflowError):
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
                try:
                    x = self.apply(layer, (x,), span)
                except ShapeError as e:
                    if e.assumed is None:
                        raise
                    self.error("shape-mismatch", e.message, span, e.expected, e.hint)
                    x = e.assumed
                if x == before:
                    break
        return x

    def apply_instance(self, instance: Instance, inputs: tuple[Tensor, ...], span: Span) -> Tensor | None:
        if inputs in instance.results:
            return instance.results[inputs]
        instance.results[inputs] = None
        d = instance.definition
        self.instances.context.append((instance.label, span))
        try:
            if d.forward is None:
                place = d.sequence.span if d.sequence else d.name_span
                try:
                    result = self.apply(instance.body, inputs, place)
                except ShapeError as e:
                    self.error("shape-mismatch", e.message, Span(place.start, place.start + 1), e.expected, e.hint)
                    result = None
                except UndecidedError:
                    result = None
            else:
                scope = self.bind_inputs(instance, d.forward, inputs)
                result = None if scope is None else self.forward(d.forward, scope, d.lost)
        finally:
            self.instances.context.pop()
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
            scope[declared.name] = UNKNOWN if declared.name in instance.definition.lost else x
        return scope

    def show(self, expr: s.Expr | None, scope: dict[str, Any]) -> str:
        if isinstance(expr, s.Name) and expr.name not in scope:
            return expr.name
        size = self.size(expr, scope)
        return "_" if size is None else str(size)

    def forward(self, f: s.Forward, scope: dict[str, Any], lost: frozenset[str]) -> Tensor | None:
        for statement in f.body:
            value = None if id(statement.value) in self.bad else self.tensor_root(statement.value, scope)
            if isinstance(statement, s.Assign):
                scope[statement.name] = UNKNOWN if value is None or statement.name in lost else value
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
        """Return the Tensor or number of an expression in forward, UNKNOWN after an error."""
        try:
            return self.infer(expr, scope)
        except ShapeError as e:
            self.error("shape-mismatch", e.message, expr.span, e.expected, e.hint)
            return UNKNOWN if e.assumed is None else e.assumed
        except OverflowError as e:
            self.error("shape-mismatch", str(e), expr.span)
        except UndecidedError:
            pass
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
            case s.Call(callee, arguments) if callee.name not in CONSTANT_FUNCTIONS:  # hidden by a syntax error
                for a in arguments:
                    self.tensor(a.value, scope)
                return UNKNOWN
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
                _check_sizes(name, arg, values[arg.name])
            if arg.type == "tensor" and not isinstance(values[arg.name], Tensor):
                return UNKNOWN
        return spec.shape(values)


def _check_sizes(name: str, arg: Arg, value: Any) -> None:
    """Refuse a window of no size, and a list of other than two."""
    if isinstance(value, tuple) and arg.type == "sizes" and len(value) != 2:
        raise ShapeError(f"{name}: {arg.name} has {len(value)} sizes", "one, or a list of two")
    lowest = 1 if arg.positive else 0 if arg.name == "padding" else None
    for size in value if isinstance(value, tuple) else (value,):
        if lowest is not None and isinstance(size, int) and size < lowest:
            raise ShapeError(f"{name}: {arg.name} = {size}", f"{lowest} or more")
