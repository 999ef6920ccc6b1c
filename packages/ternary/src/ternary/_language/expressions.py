"""Check the type of every expression: names, calls, arguments, operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ternary._language import syntax as s
from ternary._language.arguments import bind, definition_args
from ternary._language.diagnostics import Diagnostics, Span, did_you_mean
from ternary._language.functions import FUNCTIONS
from ternary._language.habits import name_hint
from ternary._language.library import CONSTANT_FUNCTIONS, LAYERS, REQUIRED, TERNARY_OPTIONS, Arg
from ternary._options import CHOICES

NUMBERS = ("int", "float")


@dataclass
class Scope:
    """What names mean inside one definition: constants by type, members, tensors; and where we are.

    Nothing is known of the names in `lost`; one in `unclear` without a meaning here may have one in unreadable text.
    """

    constants: dict[str, str] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    place: str = "constant"
    lost: frozenset[str] = frozenset()
    unclear: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        return name in self.constants or name in self.members or name in self.tensors

    def forgives(self, name: str) -> bool:
        """Whether an unknown name may be known where a syntax error hides it."""
        return name in self.unclear or s.ANYTHING in self.unclear

    def names(self) -> Iterable[str]:
        """Return every name in sight."""
        return (*self.constants, *self.members, *self.tensors)


_IN_WORDS = {
    "number": "a number",
    "tensors": "a list of tensors",
    "dims": "a list of sizes",
    "sizes": "int, or a list of two",
}


class ExpressionChecker:
    """Types the expressions of a program; `bad` holds the ids of those that later passes must not evaluate."""

    def __init__(self, definitions: Mapping[str, s.Definition], diagnostics: Diagnostics):
        self.definitions, self.diagnostics = definitions, diagnostics
        self.bad: set[int] = set()

    def error(self, code: str, message: str, span: Span, expected: str = "", hint: str = "") -> str:
        self.diagnostics.add(code, message, span, expected=expected, hint=hint)
        return "any"

    def root(self, expr: s.Expr, scope: Scope, wanted: str) -> str:
        """Check one whole expression; mark it bad if anything was reported inside it."""
        before = len(self.diagnostics)
        kind = self.typed(expr, scope, wanted)
        if len(self.diagnostics) > before:
            self.bad.add(id(expr))
        return kind

    def typed(self, expr: s.Expr, scope: Scope, wanted: str) -> str:
        kind = self.kind(expr, scope, wanted)
        fits = (
            not wanted
            or "any" in (kind, wanted)
            or kind == wanted
            or (wanted in ("float", "number") and kind in NUMBERS)
            or (wanted == "sizes" and kind in ("int", "dims"))
            or (wanted == "layer" and kind == "dims" and isinstance(expr, s.ListExpr))
        )
        if not fits:
            what = _IN_WORDS.get(wanted, wanted)
            return self.error("type-mismatch", f"this is of type {kind}", expr.span, expected=what)
        return kind

    def kind(self, expr: s.Expr, scope: Scope, wanted: str) -> str:
        match expr:
            case s.Literal(value):
                return type(value).__name__
            case s.Name():
                return self.name(expr, scope)
            case s.Call():
                return self.call(expr, scope)
            case s.Unary(op, operand):
                kind = self.typed(operand, scope, "bool" if op == "not" else "")
                if op == "-" and kind not in (*NUMBERS, "tensor", "any"):
                    return self.error("type-mismatch", f"'-' of {kind}", operand.span, expected="a number or a tensor")
                return "bool" if op == "not" else kind
            case s.Binary():
                return self.binary(expr, scope)
            case s.Conditional(then, condition, otherwise):
                place, scope.place = scope.place, "constant"
                self.typed(condition, scope, "bool")
                scope.place = place
                inner = "layer" if wanted == "item" else wanted
                kind = self.typed(then, scope, inner)
                if otherwise is None:
                    if place != "layer" or wanted != "item":
                        end = Span(expr.span.end - 1, expr.span.end)
                        hint = "only an item of a list of layers may be left out"
                        return self.error("syntax", "'if' without 'else'", end, expected="else ...", hint=hint)
                    return kind
                other = self.typed(otherwise, scope, inner)
                if {kind, other} == {"int", "float"}:
                    return "float"
                if kind != other and "any" not in (kind, other):
                    return self.error("type-mismatch", f"{other} here but {kind} before 'if'", otherwise.span, kind)
                return kind
            case s.ListExpr(items):
                return self.list(items, scope)
            case s.Ternary(options, layer):
                self.arguments(TERNARY_OPTIONS, options, "ternary", expr.span, scope)
                if not (
                    isinstance(layer, s.Call) and layer.callee.name in LAYERS and LAYERS[layer.callee.name].ternary
                ):
                    able = ", ".join(sorted(n for n, spec in LAYERS.items() if spec.ternary))
                    return self.error("not-ternary", "this layer has no ternary form", layer.span, expected=able)
                return self.typed(layer, scope, "layer")
            case s.Repeat(count, layer):
                place, scope.place = scope.place, "constant"
                self.typed(count, scope, "int")
                scope.place = place
                return self.typed(layer, scope, "layer")
        raise AssertionError(expr)  # pragma: no cover - every node type is above

    def list(self, items: tuple[s.Expr, ...], scope: Scope) -> str:
        if scope.place == "layer":
            for item in items:
                kind = self.kind(item, scope, "item")
                if kind not in ("layer", "any"):
                    self.error("type-mismatch", f"this is of type {kind}", item.span, expected="a layer")
            return "layer"
        kinds = [self.kind(item, scope, "") for item in items]
        if kinds and all(k in ("tensor", "any") for k in kinds):
            return "tensors"
        for item, kind in zip(items, kinds, strict=True):
            if kind not in ("int", "any"):
                self.error("type-mismatch", f"this is of type {kind}", item.span, expected="int, or tensors only")
        return "dims"

    def name(self, expr: s.Name, scope: Scope) -> str:
        name = expr.name
        if name in scope.lost:
            return "any"
        if name in scope.constants:
            return scope.constants[name]
        if name in scope.tensors:
            return "tensor"
        if name in scope.members:
            if scope.place == "forward" and scope.members[name] == "tensor":
                return "tensor"
            hint = f"apply it: {name}(x)" if scope.place == "forward" else "members are used in forward"
            return self.error("type-mismatch", f"'{name}' is a layer, not a value", expr.span, hint=hint)
        if name in self.definitions or name in LAYERS or name in FUNCTIONS or name in CONSTANT_FUNCTIONS:
            return self.error("type-mismatch", f"'{name}' needs arguments", expr.span, expected=f"{name}(...)")
        if scope.forgives(name):
            return "any"
        known = set(scope.names())
        if scope.place == "layer":
            known |= self.definitions.keys() | LAYERS.keys()
        return self.error(
            "unknown-name", f"unknown name '{name}'", expr.span, hint=name_hint(name) or did_you_mean(name, known)
        )

    def call(self, expr: s.Call, scope: Scope) -> str:
        name, span = expr.callee.name, expr.callee.span
        if name in scope.lost:
            return self.unreadable(expr, scope)
        if name in scope.members:
            return self.apply_member(expr, scope)
        if name in scope.constants or name in scope.tensors:
            return self.error("type-mismatch", f"'{name}' is no layer or function", span)
        if name in CONSTANT_FUNCTIONS:
            return self.constant_call(expr, scope)
        if name in FUNCTIONS:
            if scope.place != "forward":
                hint = "functions on tensors are used in forward"
                return self.error("wrong-place", f"'{name}' is a function on tensors", span, hint=hint)
            self.arguments(FUNCTIONS[name].args, expr.arguments, name, expr.span, scope)
            return "tensor"
        if name in LAYERS or name in self.definitions or name == "Parameter":
            if scope.place != "layer":
                hint = "create it above forward: name = " + name + "(...)"
                self.unreadable(expr, scope)
                return self.error("wrong-place", f"'{name}' is a layer; it cannot be created here", span, hint=hint)
            if name == "Parameter":
                for argument in expr.arguments:
                    self.constant(argument.value, scope, "int")
                if not expr.arguments:
                    return self.error("bad-arguments", "Parameter without sizes", span, expected="Parameter(1, 64)")
                return "layer"
            if name in self.definitions and not self.definitions[name].known_parameters:
                self.unreadable(expr, scope)
                return "layer"
            args = LAYERS[name].args if name in LAYERS else definition_args(self.definitions[name])
            self.arguments(args, expr.arguments, name, expr.span, scope)
            return "layer"
        self.unreadable(expr, scope)
        if scope.forgives(name):
            return "any"
        known = {*scope.members}
        if scope.place == "forward":
            known |= FUNCTIONS.keys()
        else:
            known |= CONSTANT_FUNCTIONS.keys()
            known |= LAYERS.keys() | self.definitions.keys() if scope.place == "layer" else set()
        what = "layer" if scope.place == "layer" else "layer or function" if scope.place == "forward" else "function"
        return self.error(
            "unknown-name", f"unknown {what} '{name}'", span, hint=name_hint(name) or did_you_mean(name, known)
        )

    def unreadable(self, expr: s.Call, scope: Scope) -> str:
        """Check only the arguments by themselves: nothing is known of what they go to."""
        for argument in expr.arguments:
            self.constant(argument.value, scope, "")
        return "any"

    def apply_member(self, expr: s.Call, scope: Scope) -> str:
        name = expr.callee.name
        if scope.place != "forward":
            return self.error("wrong-place", f"'{name}' is a member; it is applied in forward", expr.callee.span)
        if scope.members[name] == "tensor":
            return self.error("type-mismatch", f"'{name}' is a Parameter, not a layer", expr.span, hint=f"write {name}")
        for argument in expr.arguments:
            if argument.name:
                self.error("bad-arguments", "layers take their tensors by position", argument.span)
            self.typed(argument.value, scope, "tensor")
        if not expr.arguments:
            self.error("bad-arguments", f"'{name}' is applied to nothing", expr.span, expected=f"{name}(x)")
        return "tensor"

    def constant_call(self, expr: s.Call, scope: Scope) -> str:
        types, result = CONSTANT_FUNCTIONS[expr.callee.name]
        if len(expr.arguments) != len(types) or any(a.name for a in expr.arguments):
            message = f"'{expr.callee.name}' takes {len(types)} argument{'s' if len(types) > 1 else ''} by position"
            return self.error("bad-arguments", message, expr.span)
        kinds = [self.constant(a.value, scope, t) for a, t in zip(expr.arguments, types, strict=True)]
        if "any" in kinds:
            return "any" if result == "same" else result
        return ("float" if "float" in kinds else "int") if result == "same" else result

    def constant(self, expr: s.Expr, scope: Scope, wanted: str) -> str:
        place, scope.place = scope.place, "constant" if scope.place == "layer" else scope.place
        kind = self.typed(expr, scope, wanted)
        scope.place = place
        return kind

    def arguments(
        self, args: tuple[Arg, ...], given: tuple[s.Argument, ...], name: str, span: Span, scope: Scope
    ) -> None:
        bound, problems = bind(args, given)
        for message, at, hint in problems:
            self.error("bad-arguments", f"{name}: {message}", at, hint=hint)
        missing = [a.name for a in args if a.default is REQUIRED and a.name not in bound]
        if missing and not problems:
            listed = ", ".join(f"'{m}'" for m in missing)
            self.error("bad-arguments", f"{name}: missing {listed}", span, expected=", ".join(a.name for a in args))
        for arg in args:
            value = bound.get(arg.name)
            if value is None:
                continue
            self.constant(value, scope, arg.type)
            if isinstance(value, s.Literal) and args is TERNARY_OPTIONS and arg.name in CHOICES:
                choices = CHOICES[arg.name]
                if isinstance(value.value, str) and value.value not in choices:
                    hint = did_you_mean(value.value, choices)
                    wanted = ", ".join(choices)
                    self.error("bad-value", f"unknown {arg.name} '{value.value[:40]}'", value.span, wanted, hint)

    def binary(self, expr: s.Binary, scope: Scope) -> str:
        op = expr.op
        left = self.kind(expr.left, scope, "")
        right = self.kind(expr.right, scope, "")
        if "any" in (left, right):
            return "bool" if op in ("and", "or", "==", "!=", "<", "<=", ">", ">=") else "any"
        pair = {left, right}
        if op in ("and", "or"):
            result = "bool" if pair == {"bool"} else ""
        elif op in ("==", "!="):
            result = "bool" if pair <= set(NUMBERS) or (left == right and left in ("str", "bool")) else ""
        elif op in ("<", "<=", ">", ">="):
            result = "bool" if pair <= set(NUMBERS) else ""
        elif op == "@":
            result = "tensor" if pair == {"tensor"} else ""
        elif "tensor" in pair:
            result = "tensor" if pair <= {"tensor", *NUMBERS} and op in ("+", "-", "*", "/") else ""
        elif pair <= set(NUMBERS):
            result = "float" if op == "/" or "float" in pair else "int"
        else:
            result = ""
        if not result:
            return self.error(
                "type-mismatch", f"'{op}' of {left} and {right}", expr.span, hint="see the language guide"
            )
        return result
