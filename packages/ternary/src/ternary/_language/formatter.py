"""Rewrite a program in its one canonical form: two-space indents, comments kept, long lists broken."""

from __future__ import annotations

from pathlib import Path

from ternary._language import syntax as s
from ternary._language.compiler import read_source
from ternary._language.diagnostics import Diagnostics, SourceText
from ternary._language.expression_parser import BINARY_LEVELS
from ternary._language.lexer import Comment, string_literal
from ternary._language.parser import parse
from ternary.errors import CompileError

WIDTH = 100
_CONDITIONAL, _UNARY = 0, 8


def format_source(source: str | Path, *, name: str = "") -> str:
    """Return a program in its one canonical form; formatting that again changes nothing.

    Args:
        source: Text in the ternary language, or a `Path` to a file.
        name: What messages call the source.

    Returns:
        The formatted text, with every comment.

    Raises:
        CompileError: The program has syntax errors.

    Example:
        >>> import ternary
        >>> print(ternary.format_source("model M{forward(x:float[N])->float[N]{return x}}"), end="")
        model M {
          forward(x: float[N]) -> float[N] {
            return x
          }
        }
    """
    text = read_source(source, name)
    diagnostics = Diagnostics()
    program, comments = parse(text, diagnostics)
    if diagnostics:
        raise CompileError(text, diagnostics.sorted())
    return _Printer(text, comments).program(program)


class _Printer:
    def __init__(self, source: SourceText, comments: list[Comment]):
        self.source, self.comments = source, comments
        self.next_comment = 0
        self.out: list[str] = []
        self.last_end = 0

    # --- comments and blank lines -------------------------------------------------------------------------------

    def before(self, offset: int, indent: str) -> None:
        """Write the comments in front of `offset`, and a blank line where the source has one."""
        while self.next_comment < len(self.comments) and self.comments[self.next_comment].span.start < offset:
            comment = self.comments[self.next_comment]
            self.next_comment += 1
            self.gap(comment.span.start)
            self.out.append(indent + comment.text)
            self.last_end = comment.span.end
        self.gap(offset)

    def gap(self, offset: int) -> None:
        between = self.source.text[self.last_end : offset]
        if between.count("\n") > 1 and self.out and self.out[-1] and not self.out[-1].endswith("{"):
            self.out.append("")

    def after(self, end: int) -> None:
        """Put a comment that follows on the same line behind what was just written."""
        self.last_end = end
        if self.next_comment < len(self.comments):
            comment = self.comments[self.next_comment]
            between = self.source.text[end : comment.span.start]
            if comment.span.start >= end and "\n" not in between and not between.strip(" \t,;"):
                self.out[-1] += "  " + comment.text
                self.next_comment += 1
                self.last_end = comment.span.end

    # --- statements ---------------------------------------------------------------------------------------------

    def program(self, program: s.Program) -> str:
        for at, d in enumerate(program.definitions):
            self.before(d.span.start, "")
            if at and self.out and self.out[-1] and not self.out[-1].startswith("#"):
                self.out.append("")
            self.definition(d)
        self.before(len(self.source.text), "")
        while self.out and not self.out[-1]:
            self.out.pop()
        return "\n".join(self.out) + "\n" if self.out else ""

    def header_end(self, start: int) -> int:
        at = self.source.text.find("{", start)
        return len(self.source.text) if at < 0 else at

    def definition(self, d: s.Definition) -> None:
        head = f"{d.kind} {d.name}"
        params = [f"{p.name}: {p.type}" + ("" if p.default is None else f" = {flat(p.default)}") for p in d.parameters]
        tail = " = [" if d.sequence is not None else " {"
        start = d.parameters[-1].span.end if d.parameters else d.name_span.end
        end = d.sequence.span.start if d.sequence is not None else self.header_end(start)
        self.before_inside(d.span.start, end, "")
        line = f"{head}({', '.join(params)})" if params else head
        if len(line + tail) > WIDTH:
            packed = f"  {', '.join(params)}"
            self.out += [f"{head}(", *([packed] if len(packed) <= WIDTH else [f"  {p}," for p in params])]
            line = ")"
        elif not params and d.sequence is not None:
            line = f"{head}()"
        if d.sequence is not None:
            rows = self.lines(d.sequence, "", len(line) + 3)
            self.out.append(f"{line} = {rows[0]}")
            self.out += rows[1:]
            self.after(d.span.end)
            return
        self.out.append(line + " {")
        self.after(end + 1)
        items: list[s.Node] = [*d.statements, *([d.forward] if d.forward else [])]
        for node in sorted(items, key=lambda n: n.span.start):
            self.statement(node)
        self.close(d.span.end, "")

    def before_inside(self, start: int, end: int, indent: str) -> None:
        """Write comments found inside a header in front of it."""
        while self.next_comment < len(self.comments) and start <= self.comments[self.next_comment].span.start < end:
            self.out.append(indent + self.comments[self.next_comment].text)
            self.next_comment += 1

    def close(self, end: int, indent: str) -> None:
        self.before(end - 1, indent + "  ")
        if self.out and not self.out[-1]:
            self.out.pop()
        self.out.append(indent + "}")
        self.after(end)

    def statement(self, node: s.Node) -> None:
        indent = "  "
        start = node.span.start if not isinstance(node, s.Let) else node.span.start - 4
        self.before(start, indent)
        match node:
            case s.Forward():
                self.forward(node)
            case s.Let(name, value):
                self.assignment(f"let {name} = ", value, node.span.end, indent)
            case s.Member(name, value):
                self.assignment(f"{name} = ", value, node.span.end, indent)
            case s.Require(condition, message):
                suffix = f", {string_literal(message)}" if message else ""
                self.before_inside(start, node.span.end, indent)
                self.out.append(f"{indent}require {flat(condition)}{suffix}")
                self.after(node.span.end)

    def forward(self, f: s.Forward) -> None:
        indent = "  "
        inputs = ", ".join(f"{i.name}: {tensor_type(i.type)}" for i in f.inputs)
        end = self.header_end(f.output.span.end)
        self.before_inside(f.span.start, end, indent)
        self.out.append(f"{indent}forward({inputs}) -> {tensor_type(f.output)} {{")
        self.after(end + 1)
        for statement in f.body:
            self.before(statement.span.start, "    ")
            prefix = "return " if isinstance(statement, s.Return) else f"{statement.name} = "
            self.assignment(prefix, statement.value, statement.span.end, "    ")
        self.close(f.span.end, indent)

    def assignment(self, prefix: str, value: s.Expr, end: int, indent: str) -> None:
        homeless = [c for c in self.pending(end) if not _has_home(value, c)]
        for comment in homeless:
            self.out.append(indent + comment.text)
            self.comments.remove(comment)
        rows = self.lines(value, indent, len(indent) + len(prefix))
        self.out.append(indent + prefix + rows[0])
        self.out += rows[1:]
        self.after(end)

    def pending(self, end: int) -> list[Comment]:
        found = []
        for comment in self.comments[self.next_comment :]:
            if comment.span.start >= end:
                break
            found.append(comment)
        return found

    # --- expressions over several lines -------------------------------------------------------------------------

    def lines(self, expr: s.Expr, indent: str, used: int) -> list[str]:
        """Return an expression as lines; the first goes behind what is already there (`used` columns)."""
        text = flat(expr)
        if not self.pending(expr.span.end) and used + len(text) + 1 <= WIDTH:
            return [text]
        match expr:
            case s.ListExpr(items) if items or self.pending(expr.span.end):
                return self.broken("[", list(items), [""] * len(items), "]", expr.span.end, indent)
            case s.Call(callee, arguments) if arguments:
                names = [f"{a.name}=" if a.name else "" for a in arguments]
                values = [a.value for a in arguments]
                packed = f"{indent}  {_arguments(arguments)}"
                if not self.pending(expr.span.end) and len(packed) <= WIDTH:
                    return [f"{callee.name}(", packed, f"{indent})"]
                return self.broken(f"{callee.name}(", values, names, ")", expr.span.end, indent)
            case s.Ternary(_, layer) | s.Repeat(_, layer):
                prefix = text[: len(text) - len(flat(layer))]
                rows = self.lines(layer, indent, used + len(prefix))
                return [prefix + rows[0], *rows[1:]]
            case s.Conditional(then, condition, otherwise):
                tail = f" if {flat(condition)}" + ("" if otherwise is None else f" else {flat(otherwise)}")
                rows = self.lines(then, indent, used + len(tail))
                rows[-1] += f" if {flat(condition)}"
                if otherwise is not None:
                    more = self.lines(otherwise, indent, len(rows[-1]) + 6)
                    rows[-1] += f" else {more[0]}"
                    rows += more[1:]
                return rows
        return [text]

    def broken(
        self, opening: str, items: list[s.Expr], prefixes: list[str], closing: str, end: int, indent: str
    ) -> list[str]:
        inner = indent + "  "
        out, self.out = self.out, [opening]
        for item, prefix in zip(items, prefixes, strict=True):
            self.last_end = item.span.start  # blank lines inside brackets are not kept
            self.comments_inside(item.span.start, inner)
            rows = self.lines(item, inner, len(inner) + len(prefix))
            self.out.append(inner + prefix + rows[0])
            self.out += rows[1:]
            self.out[-1] += ","
            self.after(item.span.end)
        self.comments_inside(end - 1, inner)
        self.out.append(indent + closing)
        out, self.out = self.out, out
        return out

    def comments_inside(self, offset: int, indent: str) -> None:
        while self.next_comment < len(self.comments) and self.comments[self.next_comment].span.start < offset:
            self.out.append(indent + self.comments[self.next_comment].text)
            self.next_comment += 1


def _has_home(expr: s.Expr, comment: Comment) -> bool:
    """Whether a comment stands between the items of a list or the arguments of a call."""
    at = comment.span.start
    if not expr.span.start <= at < expr.span.end:
        return False
    inside = [c for c in s.children(expr) if c.span.start <= at < c.span.end]
    if inside:
        return _has_home(inside[0], comment)
    return isinstance(expr, s.ListExpr | s.Call)


def tensor_type(t: s.TensorType) -> str:
    """Write a tensor type."""
    return f"{t.dtype}[{', '.join('_' if d is None else flat(d) for d in t.dims)}]"


def flat(expr: s.Expr, level: int = _CONDITIONAL) -> str:
    """Write an expression on one line, with parentheses only where an operand of `level` needs them."""
    match expr:
        case s.Literal(value):
            if isinstance(value, bool):
                return "true" if value else "false"
            return string_literal(value) if isinstance(value, str) else _number(value)
        case s.Name(name):
            return name
        case s.Call(callee, arguments):
            return f"{callee.name}({_arguments(arguments)})"
        case s.ListExpr(items):
            return f"[{', '.join(flat(i) for i in items)}]"
        case s.Unary(op, operand):
            own = 3 if op == "not" else 7
            text = f"not {flat(operand, own)}" if op == "not" else f"-{flat(operand, own)}"
            return f"({text})" if level > own else text
        case s.Binary(op, left, right):
            own = BINARY_LEVELS[op]
            text = f"{flat(left, own + (own == 4))} {op} {flat(right, own + 1)}"
            return f"({text})" if level > own else text
        case s.Conditional(then, condition, otherwise):
            rest = "" if otherwise is None else f" else {flat(otherwise)}"
            text = f"{flat(then, 1)} if {flat(condition, 1)}{rest}"
            return f"({text})" if level > _CONDITIONAL else text
        case s.Ternary(options, layer):
            return (
                f"ternary({_arguments(options)}) {flat(layer, _UNARY)}" if options else f"ternary {flat(layer, _UNARY)}"
            )
        case s.Repeat(count, layer):
            return f"repeat({flat(count)}) {flat(layer, _UNARY)}"
    raise AssertionError(expr)  # pragma: no cover - every node type is above


def _arguments(arguments: tuple[s.Argument, ...]) -> str:
    return ", ".join(f"{a.name}={flat(a.value)}" if a.name else flat(a.value) for a in arguments)


def _number(value: float) -> str:
    text = repr(value)
    return text if isinstance(value, int) or any(c in text for c in ".e") else text + ".0"
