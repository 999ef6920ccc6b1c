"""Check the names and statements of a program: definitions, recursion, members, signatures."""

from __future__ import annotations

from ternary._language import syntax as s
from ternary._language.diagnostics import Diagnostics, Span
from ternary._language.expressions import ExpressionChecker, Scope
from ternary._language.library import LAYERS
from ternary._language.reserved import why_reserved


class NameChecker:
    """One pass over a program; `bad` then holds the ids of expressions that later passes must not evaluate."""

    def __init__(self, program: s.Program, diagnostics: Diagnostics):
        self.program, self.diagnostics = program, diagnostics
        self.definitions: dict[str, s.Definition] = {}
        self.expressions = ExpressionChecker(self.definitions, diagnostics)
        self.bad = self.expressions.bad
        self.error = self.expressions.error

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
            return
        message, hint = why_reserved(name, member=member)
        if message:
            self.error("reserved-name", message, span, hint=hint)

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
        scope = Scope(lost=d.lost, unclear=d.lost | self.program.lost)
        optional = False
        for p in d.parameters:
            self.declare(p.name, p.span, scope, member=True)
            if optional and p.default is None:
                hint = "parameters without a default come first"
                self.error("bad-arguments", f"'{p.name}' needs a default, as the one before it has", p.span, hint=hint)
            optional = optional or p.default is not None
            if p.default is not None:
                self.expressions.root(p.default, scope, p.type)
            scope.constants.setdefault(p.name, p.type)
        for statement in d.statements:
            scope.place = "constant"
            match statement:
                case s.Let():
                    kind = self.expressions.root(statement.value, scope, "")
                    self.declare(statement.name, statement.span, scope, member=True)
                    scope.constants.setdefault(statement.name, kind)
                case s.Require():
                    self.expressions.root(statement.condition, scope, "bool")
                case s.Member():
                    scope.place = "layer"
                    value = statement.value
                    kind = self.expressions.root(value, scope, "layer")
                    self.declare(statement.name, statement.name_span, scope, member=True)
                    is_tensor = isinstance(value, s.Call) and value.callee.name == "Parameter"
                    scope.members.setdefault(statement.name, "tensor" if is_tensor else kind)
        if d.sequence is not None:
            scope.place = "layer"
            self.expressions.root(d.sequence, scope, "layer")
        elif d.forward is not None:
            self.forward(d.forward, scope)
        elif not d.lost:
            hint = "add forward(x: float[...]) -> float[...] { ... }"
            self.error("no-forward", f"'{d.name}' has no forward", d.name_span, hint=hint)

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
                self.expressions.root(d, scope, "int")
        if not f.inputs:
            self.error("no-input", "forward has no inputs", Span(f.span.start, f.span.start + 7))
        for d in f.output.dims:
            if d is not None:
                self.expressions.root(d, scope, "int")
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
            self.expressions.root(value, scope, "tensor")
            if isinstance(statement, s.Assign):
                if statement.name not in scope.tensors:
                    self.declare(
                        statement.name, Span(statement.span.start, statement.span.start + len(statement.name)), scope
                    )
                scope.tensors[statement.name] = "tensor"
            else:
                returned = True
        if not returned and not scope.lost:
            end = Span(f.span.end - 1, f.span.end)
            self.error("no-return", "forward ends without a result", end, expected="return ...")


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
