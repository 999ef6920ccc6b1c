"""Tokens to a syntax tree, reporting every syntax error it can recover from. Knows nothing of meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ternary.language import syntax as s
from ternary.language.diagnostics import Diagnostics, SourceText, Span, did_you_mean
from ternary.language.lexer import Comment, Token, string_value, tokenize

MAX_SOURCE = 1024 * 1024
MAX_DEPTH = 40
_BINARY = {
    "or": 1,
    "and": 2,
    "==": 4,
    "!=": 4,
    "<": 4,
    "<=": 4,
    ">": 4,
    ">=": 4,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "//": 6,
    "%": 6,
    "@": 6,
}
_TYPES = ("int", "float", "bool", "str")
_COMPARE, _NOT, _NEGATE = 4, 3, 7
T = TypeVar("T")


class _Abandon(Exception):
    """The statement being parsed cannot be saved."""


def parse(source: SourceText, diagnostics: Diagnostics) -> tuple[s.Program, list[Comment]]:
    """Parse a source.

    Args:
        source: The text.
        diagnostics: Collects every syntax error; the tree then holds what could be understood.

    Returns:
        The tree and the comments (for the formatter), both in source order.
    """
    if len(source.text) > MAX_SOURCE:
        message = f"the source has {len(source.text):,} characters"
        diagnostics.add("too-large", message, Span(0, 1), expected=f"at most {MAX_SOURCE:,}")
        return s.Program(()), []
    tokens, comments = tokenize(source.text, diagnostics)
    return _Parser(source, tokens, diagnostics).program(), comments


class _Parser:
    def __init__(self, source: SourceText, tokens: list[Token], diagnostics: Diagnostics):
        self.source, self.tokens, self.diagnostics = source, tokens, diagnostics
        self.at = 0
        self.depth = 0
        self.started = 0
        self.brackets: list[Token] = []
        self.heights: dict[int, int] = {}

    # --- tokens -------------------------------------------------------------------------------------------------

    def peek(self) -> Token:
        """The next token; inside brackets line ends do not count."""
        if self.brackets:
            while self.tokens[self.at].kind == "newline" and self.tokens[self.at].text != ";":
                self.at += 1
        return self.tokens[self.at]

    def next(self) -> Token:
        token = self.peek()
        if token.kind != "end":
            self.at += 1
        return token

    def accept(self, kind: str) -> Token | None:
        return self.next() if self.peek().kind == kind else None

    def previous_end(self) -> int:
        at = self.at - 1
        while at > 0 and self.tokens[at].kind == "newline":
            at -= 1
        return self.tokens[at].span.end if at >= 0 else 0

    def expect(self, kind: str, wanted: str = "") -> Token:
        token = self.peek()
        if token.kind == kind:
            return self.next()
        raise self.unexpected(wanted or f"'{kind}'")

    def unexpected(self, wanted: str) -> _Abandon:
        """Report the next token as unexpected, at the end of the line before if that is where something is missing."""
        token = self.peek()
        notes: tuple[str, ...] = ()
        if self.brackets:
            opened = self.brackets[-1]
            line, column = self.source.position(opened.span.start)
            notes = (f"the '{opened.text}' at line {line}, column {column} is still open",)
        before = self.previous_end()
        first = self.at == self.started
        if not first and (token.kind in ("newline", "end") or "\n" in self.source.text[before : token.span.start]):
            at = max(0, before)
            what = "end of file" if token.kind == "end" else "end of line"
            opened_at = self.brackets[-1].span if self.brackets else Span(at, at)
            if "\n" in self.source.text[opened_at.start : at]:
                self.diagnostics.add("syntax", f"this '{self.brackets[-1].text}' is never closed", opened_at)
            else:
                self.diagnostics.add("syntax", f"unexpected {what}", Span(at, at + 1), expected=wanted, notes=notes)
            while self.at > 0 and self.tokens[self.at - 1].kind == "newline":
                self.at -= 1
        else:
            shown = token.text if len(token.text) <= 40 else token.text[:40] + "…"
            hint = did_you_mean(token.text, [w.strip("'") for w in wanted.replace(" or ", ",").split(", ")])
            self.diagnostics.add("syntax", f"unexpected '{shown}'", token.span, expected=wanted, hint=hint, notes=notes)
        return _Abandon()

    def skip_lines(self) -> None:
        while self.tokens[self.at].kind == "newline":
            self.at += 1

    def resume(self, braces: int) -> None:
        """After an error: forget open brackets, go to the next statement (past whole blocks) or the closing brace."""
        self.brackets.clear()
        self.depth = 0
        open_braces = 0
        while True:
            kind = self.tokens[self.at].kind
            if kind == "end" or (kind == "newline" and open_braces == 0):
                return
            if kind == "{":
                open_braces += 1
            elif kind == "}":
                if open_braces == 0 and braces:
                    return
                open_braces = max(0, open_braces - 1)
            elif kind in ("model", "layer") and open_braces == 0 and not braces:
                return
            self.at += 1

    def bracketed(self, opening: str, closing: str, item: Callable[[], T]) -> tuple[T, ...]:
        """Parse `opening item, item, closing`, a trailing comma allowed."""
        self.brackets.append(self.expect(opening))
        items: list[T] = []
        while self.peek().kind != closing:
            items.append(item())
            if self.peek().kind == ",":
                self.next()
            elif self.peek().kind != closing:
                raise self.unexpected(f"',' or '{closing}'")
        self.brackets.pop()  # before the closing token, so that a line end after it counts again
        self.next()
        return tuple(items)

    # --- definitions --------------------------------------------------------------------------------------------

    def program(self) -> s.Program:
        definitions: list[s.Definition] = []
        while not self.diagnostics.full:
            self.skip_lines()
            self.started = self.at
            if self.peek().kind == "end":
                break
            try:
                if self.peek().kind not in ("model", "layer"):
                    raise self.unexpected("'model' or 'layer'")
                definitions.append(self.definition())
                if self.peek().kind not in ("newline", "end"):
                    raise self.unexpected("the end of the line")
            except _Abandon:
                start = self.at
                self.resume(0)
                if self.at == start and self.tokens[self.at].kind not in ("newline", "model", "layer"):
                    self.at = min(self.at + 1, len(self.tokens) - 1)
        return s.Program(tuple(definitions), span=Span(0, len(self.source.text)))

    def definition(self) -> s.Definition:
        keyword = self.next()
        name = self.expect("name", "a name")
        parameters = self.parameters() if self.peek().kind == "(" else ()
        statements: tuple[s.Let | s.Require | s.Member, ...] = ()
        forward: s.Forward | None = None
        sequence: s.ListExpr | None = None
        if self.accept("="):
            value = self.list_expr()
            sequence = value
        elif self.peek().kind == "{":
            statements, forward = self.block()
        else:
            raise self.unexpected("'(', '{' or '='")
        span = Span(keyword.span.start, self.previous_end())
        return s.Definition(
            keyword.kind, name.text, parameters, statements, forward, sequence, span=span, name_span=name.span
        )

    def parameters(self) -> tuple[s.Parameter, ...]:
        try:
            return self.bracketed("(", ")", self.parameter)
        except _Abandon:  # the body may still be looked at, if it begins on this line
            at = self.at
            while self.tokens[at].kind not in ("newline", "end", "{"):
                at += 1
            if self.tokens[at].kind != "{":
                raise
            self.at = at
            self.brackets.clear()
            return ()

    def parameter(self) -> s.Parameter:
        name = self.expect("name", "a parameter name")
        self.expect(":", "':' and a type")
        if self.peek().kind not in _TYPES:
            raise self.unexpected("'int', 'float', 'bool' or 'str'")
        kind = self.next().kind
        default = self.expression() if self.accept("=") else None
        return s.Parameter(name.text, kind, default, span=Span(name.span.start, self.previous_end()))

    def lines(self, statement: Callable[[Token], None]) -> None:
        """Parse `{ statement... }`, going on with the next line after a bad statement."""
        opened = self.expect("{")
        while True:
            self.skip_lines()
            self.started = self.at
            token = self.peek()
            if token.kind == "}":
                self.next()
                return
            if token.kind in ("end", "model", "layer") or self.diagnostics.full:
                line, column = self.source.position(opened.span.start)
                at = max(0, self.previous_end())
                message = f"the '{{' at line {line}, column {column} is never closed"
                self.diagnostics.add("syntax", message, Span(at, at + 1), expected="'}'")
                raise _Abandon
            try:
                statement(token)
                if self.peek().kind not in ("newline", "}"):
                    raise self.unexpected("the end of the line")
            except _Abandon:
                self.resume(1)

    def block(self) -> tuple[tuple[s.Let | s.Require | s.Member, ...], s.Forward | None]:
        statements: list[s.Let | s.Require | s.Member] = []
        forwards: list[s.Forward] = []

        def statement(token: Token) -> None:
            if token.kind == "forward":
                forwards.append(self.forward())
                if len(forwards) > 1:
                    self.diagnostics.add("duplicate", "a second 'forward'", token.span, expected="one per definition")
            elif token.kind == "let":
                self.next()
                name = self.expect("name", "a name")
                self.expect("=")
                value = self.expression()
                statements.append(s.Let(name.text, value, span=Span(name.span.start, self.previous_end())))
            elif token.kind == "require":
                self.next()
                condition = self.expression()
                message = string_value(self.expect("string", "a message in quotes").text) if self.accept(",") else ""
                statements.append(s.Require(condition, message, span=Span(token.span.start, self.previous_end())))
            elif token.kind == "name":
                self.next()
                self.expect("=")
                value = self.expression()
                span = Span(token.span.start, self.previous_end())
                statements.append(s.Member(token.text, value, span=span, name_span=token.span))
            else:
                raise self.unexpected("'name = Layer(...)', 'let', 'require', 'forward' or '}'")

        self.lines(statement)
        return tuple(statements), forwards[0] if forwards else None

    def forward(self) -> s.Forward:
        keyword = self.expect("forward")
        inputs = self.bracketed("(", ")", self.input)
        self.expect("->", "'->' and the type of the result")
        output = self.tensor_type()
        body: list[s.Assign | s.Return] = []

        def statement(token: Token) -> None:
            if token.kind == "return":
                self.next()
                value = self.expression()
                body.append(s.Return(value, span=Span(token.span.start, self.previous_end())))
            elif token.kind == "name":
                self.next()
                self.expect("=")
                value = self.expression()
                body.append(s.Assign(token.text, value, span=Span(token.span.start, self.previous_end())))
            else:
                raise self.unexpected("'name = ...', 'return' or '}'")

        self.lines(statement)
        return s.Forward(inputs, output, tuple(body), span=Span(keyword.span.start, self.previous_end()))

    def input(self) -> s.Input:
        name = self.expect("name", "an input name")
        self.expect(":", "':' and a type such as float[N, 3]")
        kind = self.tensor_type()
        return s.Input(name.text, kind, span=Span(name.span.start, self.previous_end()))

    def tensor_type(self) -> s.TensorType:
        token = self.peek()
        if token.kind not in ("float", "int"):
            raise self.unexpected("'float' or 'int' with dimensions, such as float[N, 3, H, W]")
        self.next()
        dims = self.bracketed("[", "]", self.dimension)
        return s.TensorType(token.kind, dims, span=Span(token.span.start, self.previous_end()))

    def dimension(self) -> s.Expr | None:
        if self.peek() is not None and self.peek().text == "_":
            self.next()
            return None
        return self.expression()

    # --- expressions --------------------------------------------------------------------------------------------

    def made(self, expr: T, *parts: s.Expr) -> T:
        """Note the height of a new node and refuse trees that later passes could not walk."""
        height = 1 + max((self.heights.get(id(p), 1) for p in parts), default=0)
        if height > MAX_DEPTH:
            self.too_deep(expr.span)  # type: ignore[attr-defined] # only nodes come here
        self.heights[id(expr)] = height
        return expr

    def too_deep(self, span: Span) -> None:
        at = Span(span.start, min(span.end, span.start + 1))
        hint = "give parts of it a name with 'let' or a layer of its own"
        self.diagnostics.add("too-deep", f"more than {MAX_DEPTH} levels in one expression", at, hint=hint)
        raise _Abandon

    def expression(self) -> s.Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.too_deep(self.peek().span)
        then = self.operators(1)
        if self.accept("if"):
            condition = self.operators(1)
            otherwise = self.expression() if self.accept("else") else None
            parts = (then, condition) if otherwise is None else (then, condition, otherwise)
            span = Span(then.span.start, parts[-1].span.end)
            then = self.made(s.Conditional(then, condition, otherwise, span=span), *parts)
        self.depth -= 1
        return then

    def operators(self, lowest: int) -> s.Expr:
        left = self.unary(lowest)
        while True:
            token = self.peek()
            level = _BINARY.get(token.kind, 0)
            if level < lowest:
                return left
            self.next()
            right = self.operators(level + 1)
            span = Span(left.span.start, right.span.end)
            if level == _COMPARE and isinstance(left, s.Binary) and _BINARY[left.op] == _COMPARE:
                hint = "join two comparisons with 'and'"
                self.diagnostics.add("syntax", "a chained comparison", token.span, hint=hint)
            left = self.made(s.Binary(token.kind, left, right, span=span), left, right)

    def unary(self, lowest: int = _NEGATE) -> s.Expr:
        token = self.peek()
        if token.kind == "not" and lowest > _NOT:
            raise self.unexpected("an expression (put 'not ...' in parentheses here)")
        if token.kind in ("-", "not"):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.too_deep(token.span)
            self.next()
            operand = self.operators(_NOT if token.kind == "not" else _NEGATE)
            self.depth -= 1
            span = Span(token.span.start, operand.span.end)
            return self.made(s.Unary(token.kind, operand, span=span), operand)
        if token.kind == "ternary":
            self.next()
            options = self.arguments() if self.peek().kind == "(" else ()
            layer = self.prefixed()
            span = Span(token.span.start, layer.span.end)
            return self.made(s.Ternary(options, layer, span=span), layer, *(a.value for a in options))
        if token.kind == "repeat":
            self.next()
            counts = self.bracketed("(", ")", self.expression)
            if len(counts) != 1:
                found = Span(token.span.start, self.previous_end())
                self.diagnostics.add("syntax", f"repeat with {len(counts)} counts", found, expected="repeat(n) Layer()")
                raise _Abandon
            layer = self.prefixed()
            span = Span(token.span.start, layer.span.end)
            return self.made(s.Repeat(counts[0], layer, span=span), counts[0], layer)
        return self.atom()

    def prefixed(self) -> s.Expr:
        """The layer after `ternary` or `repeat(n)`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.too_deep(self.peek().span)
        if self.peek().kind not in ("name", "ternary", "repeat", "["):
            raise self.unexpected("a layer such as Linear(64, 10)")
        layer = self.unary()
        self.depth -= 1
        return layer

    def atom(self) -> s.Expr:
        token = self.peek()
        match token.kind:
            case "integer":
                return s.Literal(int(self.next().text), span=token.span)
            case "decimal":
                return s.Literal(float(self.next().text), span=token.span)
            case "string":
                return s.Literal(string_value(self.next().text), span=token.span)
            case "true" | "false":
                return s.Literal(self.next().kind == "true", span=token.span)
            case "[":
                return self.list_expr()
            case "(":
                self.brackets.append(self.next())
                inner = self.expression()
                if self.peek().kind != ")":
                    raise self.unexpected("')'")
                self.brackets.pop()
                self.next()
                return inner
            case "name" | "int" | "float":
                name = s.Name(self.next().text, span=token.span)
                if self.peek().kind != "(":
                    return name
                arguments = self.arguments()
                span = Span(token.span.start, self.previous_end())
                return self.made(s.Call(name, arguments, span=span), *(a.value for a in arguments))
        raise self.unexpected("an expression")

    def list_expr(self) -> s.ListExpr:
        start = self.peek().span.start
        items = self.bracketed("[", "]", self.expression)
        return self.made(s.ListExpr(items, span=Span(start, self.previous_end())), *items)

    def arguments(self) -> tuple[s.Argument, ...]:
        return self.bracketed("(", ")", self.argument)

    def argument(self) -> s.Argument:
        value = self.expression()
        if isinstance(value, s.Name) and self.peek().kind == "=":
            self.next()
            given = self.expression()
            return s.Argument(value.name, given, span=Span(value.span.start, given.span.end))
        return s.Argument("", value, span=value.span)
