"""Build the layers that a program describes, one instance per set of arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ternary._language import syntax as s
from ternary._language.arguments import bind, definition_args
from ternary._language.constants import UNKNOWN, evaluate
from ternary._language.diagnostics import Diagnostics, SourceText, Span
from ternary._language.dims import Dim, dim
from ternary._language.library import (
    LAYERS,
    REQUIRED,
    TERNARY_OPTIONS,
    LayerSpec,
    ShapeError,
    Tensor,
    Values,
)
from ternary._language.names import NameChecker
from ternary._options import CHOICES, RANGES, in_range

MAX_LAYERS = 1_000_000
MAX_NESTING = 50
MAX_SIZE = 2**31 - 1


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


class Instances:
    """Evaluates constants, requirements and layers, each definition once per set of arguments."""

    def __init__(self, names: NameChecker, source: SourceText, diagnostics: Diagnostics):
        self.definitions, self.bad = names.definitions, names.bad
        self.source, self.diagnostics = source, diagnostics
        self.made: dict[tuple[str, tuple[Any, ...]], Instance] = {}
        self.context: list[tuple[str, Span]] = []
        self.used: set[str] = set()
        self.undecided = False  # a number of repetitions or a choice of layers has no value

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
            return evaluate(expr, env)
        except ZeroDivisionError:
            self.error("bad-value", "division by zero (or by a negative size)", expr.span)
        except OverflowError:
            self.error("bad-value", "the result is too large", expr.span)
        return UNKNOWN

    # --- layers -------------------------------------------------------------------------------------------------

    def instance(self, d: s.Definition, env: dict[str, Any]) -> Instance:
        self.used.add(d.name)
        key = (d.name, tuple((type(v).__name__, v) for v in env.values()))
        found = self.made.get(key)
        if found is not None:
            return found
        label = f"{d.name}({', '.join(f'{k}={v}' for k, v in env.items() if v is not UNKNOWN)})"
        made = self.made[key] = Instance(d, label, {k: UNKNOWN if k in d.lost else v for k, v in env.items()})
        for statement in d.statements:
            match statement:
                case s.Let():
                    value = self.constant(statement.value, made.env)
                    made.env.setdefault(statement.name, UNKNOWN if statement.name in d.lost else value)
                case s.Require():
                    if self.constant(statement.condition, made.env) is False:
                        message = statement.message or "this requirement does not hold"
                        self.error("requirement", message, statement.condition.span, hint=f"for {label}")
                case s.Member():
                    layer = self.layer(statement.value, made.env)
                    made.env.setdefault(statement.name, UNKNOWN if statement.name in d.lost else layer)
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
                self.ternary_options(options, layer, env)
                return self.layer(layer, env)
            case s.Repeat():
                return self.sequence((expr,), env)
            case s.ListExpr(items):
                return self.sequence(items, env)
            case s.Conditional(then, condition, otherwise):
                chosen = self.constant(condition, env)
                if chosen is UNKNOWN:
                    self.undecided = True
                    first = self.layer(then, env)
                    second = UNKNOWN if otherwise is None else self.layer(otherwise, env)
                    return Either(first, second, size_of(first) + size_of(second), max(map(depth_of, (first, second))))
                if otherwise is None:
                    return self.sequence((then,), env) if chosen else Sequence((), 0, 0)
                return self.layer(then if chosen else otherwise, env)
            case s.Call():
                return self.create(expr, env)
        return UNKNOWN

    def ternary_options(self, options: tuple[s.Argument, ...], layer: s.Expr, env: dict[str, Any]) -> None:
        values = self.arguments(TERNARY_OPTIONS, options, env)
        places = {name: expr.span for name, expr in bind(TERNARY_OPTIONS, options)[0].items()}
        group = values["group"]
        if type(group) is int and group < 1:
            self.error("bad-value", f"group = {group}", places["group"], expected="1 or more")
        if values["per"] != "group":
            return
        at, name = places["per"], layer.callee.name if isinstance(layer, s.Call) else "Linear"
        if name != "Linear":
            hint = "'channel' and 'tensor' are for every layer"
            self.error("bad-value", f"{name} has no scales per group", at, expected="Linear", hint=hint)
        if values["quantizer"] == "ttq":
            hint = 'take another quantizer, or per="channel"'
            self.error("bad-value", "'ttq' has no scales per group", at, expected="channel, tensor", hint=hint)

    def sequence(self, items: tuple[s.Expr, ...], env: dict[str, Any]) -> Any:
        out: list[tuple[Any, int]] = []
        for item in items:
            if isinstance(item, s.Repeat):
                count = self.constant(item.count, env)
                layer = self.layer(item.layer, env)
                if isinstance(count, int) and count < 0:
                    self.error("bad-value", f"repeat({count})", item.count.span, expected="0 or more")
                    count = 0
                self.undecided |= not isinstance(count, int)
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
        d = self.definitions.get(name)
        if d is None or not d.known_parameters:  # hidden by a syntax error
            return UNKNOWN
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
            if isinstance(value, tuple) and arg.type == "sizes" and len(value) != 2:
                self.error("bad-value", f"{arg.name} has {len(value)} sizes", expr.span, "one, or a list of two")
                values[arg.name] = UNKNOWN
            lowest = 1 if arg.positive else 0
            bounded = args is not TERNARY_OPTIONS and arg.type in ("int", "sizes") and arg.name not in ("dim", "start")
            for size in value if isinstance(value, tuple) else (value,):
                if bounded and type(size) is int and not lowest <= size <= MAX_SIZE:
                    wanted = f"{lowest} or more" if size < lowest else f"at most {MAX_SIZE:,}"
                    self.error("bad-value", f"{arg.name} = {size}", expr.span, expected=wanted)
                    values[arg.name] = UNKNOWN
            if args is TERNARY_OPTIONS and isinstance(value, str) and value not in CHOICES.get(arg.name, (value,)):
                self.error("bad-value", f"unknown {arg.name} '{value[:40]}'", expr.span, ", ".join(CHOICES[arg.name]))
            is_number = arg.name in RANGES and isinstance(value, int | float)
            if args is TERNARY_OPTIONS and is_number and not in_range(arg.name, value):
                self.error("bad-value", f"{arg.name} = {value}", expr.span, expected=RANGES[arg.name][2])
        return values


def size_of(layer: Any) -> int:
    """Return how many layers a layer is made of."""
    return int(getattr(layer, "size", 1))


def depth_of(layer: Any) -> int:
    """Return how many definitions lie inside one another in a layer."""
    return int(getattr(layer, "depth", 0))
