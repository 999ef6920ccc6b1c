"""Checks names, arguments and types of every statement, taken or not. Knows nothing of sizes."""

# ruff: noqa: D102 - the steps of a visitor are told by their names; what others call has a docstring
from __future__ import annotations

import keyword
from collections.abc import Iterable
from dataclasses import dataclass, field

from ternary.language import syntax as s
from ternary.language.diagnostics import Diagnostics, Span, did_you_mean
from ternary.language.library import (
    CHOICES,
    CONSTANT_FUNCTIONS,
    FUNCTIONS,
    LAYERS,
    REQUIRED,
    TERNARY_OPTIONS,
    Arg,
)

# Words that generated code uses itself; a program's own names may not hide them.
GENERATED = frozenset(
    [
        "self",
        "torch",
        "nn",
        "functional",
        "Tensor",
        "super",
        "range",
        "int",
        "float",
        "bool",
        "str",
        "max",
        "min",
        "round",
        "make_divisible",
        "ValueError",
        "None",
        "True",
        "False",
        "tuple",
        "list",
        "len",
    ]
)
# Attributes of torch.nn.Module, fixed here so that checking needs no torch and gives the same answer everywhere.
MODULE_ATTRIBUTES = frozenset(
    [
        "T_destination",
        "add_module",
        "apply",
        "bfloat16",
        "buffers",
        "call_super_init",
        "children",
        "compile",
        "cpu",
        "cuda",
        "double",
        "dump_patches",
        "eval",
        "extra_repr",
        "float",
        "forward",
        "get_buffer",
        "get_extra_state",
        "get_parameter",
        "get_submodule",
        "half",
        "ipu",
        "load_state_dict",
        "modules",
        "mtia",
        "named_buffers",
        "named_children",
        "named_modules",
        "named_parameters",
        "parameters",
        "register_backward_hook",
        "register_buffer",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_module",
        "register_parameter",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "requires_grad_",
        "set_extra_state",
        "set_submodule",
        "share_memory",
        "state_dict",
        "to",
        "to_empty",
        "train",
        "training",
        "type",
        "xpu",
        "zero_grad",
    ]
)
NUMBERS = ("int", "float")


@dataclass
class Scope:
    """What names mean inside one definition: constants by type, members, tensors; and where we are."""

    constants: dict[str, str] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    place: str = "constant"

    def __contains__(self, name: str) -> bool:
        return name in self.constants or name in self.members or name in self.tensors

    def names(self) -> Iterable[str]:
        """Return every name in sight."""
        return (*self.constants, *self.members, *self.tensors)


def bind(args: tuple[Arg, ...], given: tuple[s.Argument, ...]) -> tuple[dict[str, s.Expr], list[tuple[str, Span, str]]]:
    """Match given arguments with declared ones; the problems are (message, place, hint)."""
    bound: dict[str, s.Expr] = {}
    problems: list[tuple[str, Span, str]] = []
    names = [a.name for a in args]
    keyword_seen = False
    for at, argument in enumerate(given):
        name = argument.name
        if not name:
            if keyword_seen:
                problems.append(("a positional argument after a named one", argument.span, "give this one a name too"))
                continue
            if at >= len(names):
                problems.append((f"argument {at + 1} is one too many", argument.span, f"there are {len(names)}"))
                continue
            name = names[at]
        else:
            keyword_seen = True
        if name not in names:
            hint = did_you_mean(name, names) or f"the arguments are {', '.join(names) or 'none'}"
            problems.append((f"unknown argument '{name}'", argument.span, hint))
        elif name in bound:
            problems.append((f"argument '{name}' is given twice", argument.span, ""))
        else:
            bound[name] = argument.value
    return bound, problems


def definition_args(definition: s.Definition) -> tuple[Arg, ...]:
    """Return the declared arguments of a definition in the form of the built-in ones."""
    return tuple(Arg(p.name, p.type, REQUIRED if p.default is None else p.default) for p in definition.parameters)


class NameChecker:
    """One pass over a program; `bad` then holds the ids of expressions that later passes must not evaluate."""

    def __init__(self, program: s.Program, diagnostics: Diagnostics):
        self.program, self.diagnostics = program, diagnostics
        self.bad: set[int] = set()
        self.definitions: dict[str, s.Definition] = {}

    def error(self, code: str, message: str, span: Span, expected: str = "", hint: str = "") -> str:
        self.diagnostics.add(code, message, span, expected=expected, hint=hint)
        return "any"

    def run(self) -> None:
        """Check the whole program."""
        for d in self.program.definitions:
            if d.name in self.definitions:
                self.error("duplicate", f"'{d.name}' is defined twice", d.name_span)
            elif d.name in LAYERS or d.name == "Parameter":
                self.error("duplicate", f"'{d.name}' is a built-in layer", d.name_span, hint="choose another name")
            else:
                self.declare(d.name, d.name_span, Scope())
                self.definitions[d.name] = d
        self.find_recursion()
        for d in self.program.definitions:
            self.definition(d)

    def declare(self, name: str, span: Span, scope: Scope, member: bool = False) -> None:
        if name in scope:
            self.error("duplicate", f"'{name}' already has a meaning here", span, hint="choose another name")
        elif name in GENERATED or keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in FUNCTIONS:
            self.error("reserved-name", f"'{name}' is reserved", span, hint="choose another name")
        elif name.startswith("_"):
            self.error("reserved-name", f"'{name}' starts with an underscore", span, hint="drop the underscore")
        elif member and name in MODULE_ATTRIBUTES:
            self.error("reserved-name", f"'{name}' is an attribute of every module", span, hint="choose another name")

    def find_recursion(self) -> None:
        """Report each definition that contains itself, walking without Python recursion."""
        edges = {name: self.references(d) for name, d in self.definitions.items()}
        state: dict[str, int] = {}
        for root in edges:
            if root in state:
                continue
            state[root] = 1
            path = [root]
            stack = [iter(edges[root])]
            while stack:
                step = next(stack[-1], None)
                if step is None:
                    state[path.pop()] = 2
                    stack.pop()
                    continue
                name, expr, span = step
                if state.get(name) == 1:
                    cycle = " -> ".join([*path[path.index(name) :], name][-6:])
                    self.error("recursion", f"'{path[-1]}' contains itself: {cycle}", span, hint="use repeat(n)")
                    self.bad.add(id(expr))
                elif name not in state:
                    state[name] = 1
                    path.append(name)
                    stack.append(iter(edges[name]))

    def references(self, d: s.Definition) -> list[tuple[str, s.Expr, Span]]:
        found: list[tuple[str, s.Expr, Span]] = []
        roots = [st.value for st in d.statements if isinstance(st, s.Member)]
        for root in [*roots, *([d.sequence] if d.sequence else [])]:
            todo: list[s.Expr] = [root]
            while todo:
                expr = todo.pop()
                if isinstance(expr, s.Call) and expr.callee.name in self.definitions:
                    found.append((expr.callee.name, root, expr.callee.span))
                todo.extend(s.children(expr))
        return found

    # --- one definition -----------------------------------------------------------------------------------------

    def definition(self, d: s.Definition) -> None:
        scope = Scope()
        optional = False
        for p in d.parameters:
            self.declare(p.name, p.span, scope, member=True)
            if optional and p.default is None:
                hint = "parameters without a default come first"
                self.error("bad-arguments", f"'{p.name}' needs a default, as the one before it has", p.span, hint=hint)
            optional = optional or p.default is not None
            if p.default is not None:
                self.root(p.default, scope, p.type)
            scope.constants.setdefault(p.name, p.type)
        for statement in d.statements:
            scope.place = "constant"
            match statement:
                case s.Let():
                    kind = self.root(statement.value, scope, "")
                    self.declare(statement.name, statement.span, scope, member=True)
                    scope.constants.setdefault(statement.name, kind)
                case s.Require():
                    self.root(statement.condition, scope, "bool")
                case s.Member():
                    scope.place = "layer"
                    value = statement.value
                    kind = self.root(value, scope, "layer")
                    self.declare(statement.name, statement.name_span, scope, member=True)
                    is_tensor = isinstance(value, s.Call) and value.callee.name == "Parameter"
                    scope.members.setdefault(statement.name, "tensor" if is_tensor else kind)
        if d.sequence is not None:
            scope.place = "layer"
            self.root(d.sequence, scope, "layer")
        elif d.forward is None:
            hint = "add forward(x: float[...]) -> float[...] { ... }"
            self.error("no-forward", f"'{d.name}' has no forward", d.name_span, hint=hint)
        else:
            self.forward(d.forward, scope)

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
            or (wanted == "layer" and kind == "dims" and isinstance(expr, s.ListExpr))
        )
        if not fits:
            what = {"number": "a number", "tensors": "a list of tensors", "dims": "a list of sizes"}.get(wanted, wanted)
            return self.error("type-mismatch", f"this is of type {kind}", expr.span, expected=what)
        return kind

    def forward(self, f: s.Forward, scope: Scope) -> None:
        scope.place = "constant"
        symbols: dict[str, str] = {}
        for i in f.inputs:
            for d in i.type.dims:
                if d is None:
                    continue
                for name in _names(d):
                    if name.name not in scope and name.name not in symbols and name.name[0].isupper():
                        if name is not d:
                            hint = f"an input needs the plain dimension '{name.name}' before it can be computed with"
                            self.error("unknown-name", f"unknown size '{name.name}'", name.span, hint=hint)
                        self.declare(name.name, name.span, scope)
                        symbols[name.name] = "int"
                scope.constants.update(symbols)
                self.root(d, scope, "int")
        if not f.inputs:
            self.error("no-input", "forward has no inputs", Span(f.span.start, f.span.start + 7))
        for d in f.output.dims:
            if d is not None:
                self.root(d, scope, "int")
        scope.place = "forward"
        for i in f.inputs:
            self.declare(i.name, i.span, scope)
            scope.tensors[i.name] = "tensor"
        returned = False
        for statement in f.body:
            if returned:
                self.error("unreachable", "nothing after 'return' is run", statement.span, hint="remove it")
                break
            value = statement.value
            self.root(value, scope, "tensor")
            if isinstance(statement, s.Assign):
                if statement.name not in scope.tensors:
                    self.declare(
                        statement.name, Span(statement.span.start, statement.span.start + len(statement.name)), scope
                    )
                scope.tensors[statement.name] = "tensor"
            else:
                returned = True
        if not returned:
            end = Span(f.span.end - 1, f.span.end)
            self.error("no-return", "forward ends without a result", end, expected="return ...")

    # --- expressions --------------------------------------------------------------------------------------------

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
        if name in scope.constants:
            return scope.constants[name]
        if name in scope.tensors:
            return "tensor"
        if name in scope.members:
            if scope.place == "forward" and scope.members[name] == "tensor":
                return "tensor"
            hint = f"apply it: {name}(x)" if scope.place == "forward" else "members are used in forward"
            return self.error("type-mismatch", f"'{name}' is a layer, not a value", expr.span, hint=hint)
        known = set(scope.names())
        if name in self.definitions or name in LAYERS or name in FUNCTIONS or name in CONSTANT_FUNCTIONS:
            return self.error("type-mismatch", f"'{name}' needs arguments", expr.span, expected=f"{name}(...)")
        if scope.place == "layer":
            known |= self.definitions.keys() | LAYERS.keys()
        return self.error("unknown-name", f"unknown name '{name}'", expr.span, hint=did_you_mean(name, known))

    def call(self, expr: s.Call, scope: Scope) -> str:
        name, span = expr.callee.name, expr.callee.span
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
                for argument in expr.arguments:
                    self.kind(argument.value, scope, "")
                return self.error("wrong-place", f"'{name}' is a layer; it cannot be created here", span, hint=hint)
            if name == "Parameter":
                for argument in expr.arguments:
                    self.constant(argument.value, scope, "int")
                if not expr.arguments:
                    return self.error("bad-arguments", "Parameter without sizes", span, expected="Parameter(1, 64)")
                return "layer"
            args = LAYERS[name].args if name in LAYERS else definition_args(self.definitions[name])
            self.arguments(args, expr.arguments, name, expr.span, scope)
            return "layer"
        known = {*scope.members}
        if scope.place == "forward":
            known |= FUNCTIONS.keys()
        else:
            known |= CONSTANT_FUNCTIONS.keys()
            known |= LAYERS.keys() | self.definitions.keys() if scope.place == "layer" else set()
        what = "layer" if scope.place == "layer" else "layer or function" if scope.place == "forward" else "function"
        for argument in expr.arguments:
            self.kind(argument.value, scope, "")
        return self.error("unknown-name", f"unknown {what} '{name}'", span, hint=did_you_mean(name, known))

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


def _names(expr: s.Expr) -> list[s.Name]:
    found: list[s.Name] = []
    todo = [expr]
    while todo:
        e = todo.pop()
        if isinstance(e, s.Name):
            found.append(e)
        elif isinstance(e, s.Call):
            found.append(e.callee)
        todo.extend(s.children(e))
    return found
