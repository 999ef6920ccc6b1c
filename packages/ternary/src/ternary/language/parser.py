"""Tokens to a syntax tree, reporting every syntax error it can recover from. Knows nothing of meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ternary.language import syntax as s
from ternary.language.cursor import Abandon, Cursor
from ternary.language.diagnostics import Diagnostics, SourceText, Span
from ternary.language.lexer import Comment, Token, Tokens, string_value, tokenize

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
_PREFIXES = ("-", "not", "ternary", "repeat")
_COMPARE, _NOT, _NEGATE = 4, 3, 7
T = TypeVar("T")


def parse(source: SourceText, diagnostics: Diagnostics) -> tuple[s.Program, list[Comment]]:
    """Parse a source.

    Args:
        source: The text.
        diagnostics: Collects every syntax error; the tree then holds what could be understood, and the definitions
            with gaps name in `lost` what the gaps may have defined.

    Returns:
        The tree and the comments (for the formatter), both in source order.
    """
    if len(source.text) > MAX_SOURCE:
        message = f"the source has {len(source.text):,} characters"
        diagnostics.add("too-large", message, Span(0, 1), expected=f"at most {MAX_SOURCE:,}")
        return s.Program((), lost=frozenset([s.ANYTHING])), []
    tokens, comments = tokenize(source.text, diagnostics)
    return _Parser(source, tokens, diagnostics).program(), comments


class _Parser(Cursor):
    """Recursive descent; an error gives up one statement and goes on with the next."""

    def __init__(self, source: SourceText, tokens: Tokens, diagnostics: Diagnostics):
        super().__init__(source, tokens, diagnostics)
        self.depth = 0
        self.heights: dict[int, int] = {}

    # --- lists and blocks ---------------------------------------------------------------------------------------

    def bracketed(self, opening: str, closing: str, item: Callable[[], T]) -> tuple[T, ...]:
        """Parse `opening item, item, closing`, a trailing comma allowed."""
        self.expect(opening)
        self.brackets.append(self.at - 1)
        items: list[T] = []
        while self.peek() != closing:
            items.append(item())
            if not self.accept(",") and self.peek() != closing:
                raise self.unexpected(f"',' or '{closing}'")
        self.brackets.pop()  # before the closing token, so that a line end after it counts again
        self.at += 1
        return tuple(items)

    def block(self, statement: Callable[[Token], None]) -> None:
        """Parse `{ statement... }`, going on with the next line after a bad statement."""
        self.expect("{")
        opened = self.tokens[self.at - 1]
        while True:
            self.skip_lines()
            self.started = self.at
            kind = self.peek()
            if kind == "}":
                self.at += 1
                return
            if kind in ("end", "model", "layer") or self.diagnostics.full:
                line, column = self.source.position(opened.span.start)
                at = max(0, self.previous_end())
                message = f"the '{{' at line {line}, column {column} is never closed"
                self.diagnostics.add("syntax", message, Span(at, at + 1), expected="'}'")
                self.lost.add("}")
                return
            self.depth = 0
            self.heights.clear()
            try:
                statement(self.here())
                if self.peek() not in ("newline", "}", "end") and not self.at_definition():
                    raise self.unexpected("the end of the line")
            except Abandon:
                self.next_statement()

    # --- definitions --------------------------------------------------------------------------------------------

    def program(self) -> s.Program:
        definitions: list[s.Definition] = []
        lost: set[str] = set()
        while not self.diagnostics.full:
            self.skip_lines()
            self.started = self.at
            self.lost = set()
            self.depth = 0
            self.heights.clear()
            if self.peek() == "end":
                break
            try:
                if self.peek() not in ("model", "layer"):
                    raise self.unexpected("'model' or 'layer'")
                definitions.append(self.definition())
                self.started = self.at
                if self.peek() not in ("newline", "end") and not self.at_definition():
                    raise self.unexpected("the end of the line")
            except Abandon:
                self.next_definition()
                lost |= self.lost
                if definitions:  # a brace too many may have cut it short
                    definitions[-1] = replace(definitions[-1], lost=definitions[-1].lost | self.lost)
        return s.Program(tuple(definitions), lost=frozenset(lost), span=Span(0, len(self.source.text)))

    def definition(self) -> s.Definition:
        keyword = self.take()
        name = self.name("a name")
        parameters: tuple[s.Parameter, ...] | None = ()
        if self.peek() == "(":
            parameters = self.parameters()
        body: list[s.Let | s.Require | s.Member] = []
        forwards: list[s.Forward] = []
        sequence: s.ListExpr | None = None
        if self.accept("="):
            sequence = self.list_expr()
        elif self.peek() == "{":
            self.block(lambda token: self.statement(token, body, forwards))
        else:
            raise self.unexpected("'(', '{' or '='")
        return s.Definition(
            keyword.kind,
            name.text,
            parameters or (),
            tuple(body),
            forwards[0] if forwards else None,
            sequence,
            lost=frozenset(self.lost),
            known_parameters=parameters is not None,
            span=self.since(keyword.span.start),
            name_span=name.span,
        )

    def parameters(self) -> tuple[s.Parameter, ...] | None:
        """The parameters; None after an error if the body may still be looked at, because it begins on this line."""
        start = self.at
        try:
            return self.bracketed("(", ")", self.parameter)
        except Abandon:
            at = self.at
            while self.kinds[at] not in ("newline", "end", "{"):
                at += 1
            if self.kinds[at] != "{":
                raise
            self.at = at
            self.brackets.clear()
            self.lost |= self.names(start, at) | {s.ANYTHING}
            return None

    def parameter(self) -> s.Parameter:
        name = self.name("a parameter name")
        self.expect(":", "':' and a type")
        if self.peek() not in _TYPES:
            raise self.unexpected("'int', 'float', 'bool' or 'str'")
        kind = self.take().kind
        default = self.expression() if self.accept("=") else None
        return s.Parameter(name.text, kind, default, span=self.since(name.span.start))

    def statement(self, token: Token, body: list[s.Let | s.Require | s.Member], forwards: list[s.Forward]) -> None:
        start = token.span.start
        match token.kind:
            case "forward":
                forwards.append(self.forward())
                if len(forwards) > 1:
                    self.diagnostics.add("duplicate", "a second 'forward'", token.span, expected="one per definition")
            case "let":
                self.at += 1
                name = self.name("a name")
                self.expect("=")
                value = self.expression()
                body.append(s.Let(name.text, value, span=self.since(name.span.start)))
            case "require":
                self.at += 1
                condition = self.expression()
                message = ""
                if self.accept(","):
                    if self.peek() != "string":
                        raise self.unexpected("a message in quotes")
                    message = string_value(self.take().text)
                body.append(s.Require(condition, message, span=self.since(start)))
            case "name":
                self.at += 1
                self.expect("=")
                value = self.expression()
                body.append(s.Member(token.text, value, span=self.since(start), name_span=token.span))
            case _:
                raise self.unexpected("'name = Layer(...)', 'let', 'require', 'forward' or '}'")

    def forward(self) -> s.Forward:
        start = self.take().span.start
        inputs = self.bracketed("(", ")", self.input)
        self.expect("->", "'->' and the type of the result")
        output = self.tensor_type()
        body: list[s.Assign | s.Return] = []
        self.block(lambda token: self.step(token, body))
        return s.Forward(inputs, output, tuple(body), span=self.since(start))

    def step(self, token: Token, body: list[s.Assign | s.Return]) -> None:
        """One statement of forward."""
        start = token.span.start
        if token.kind == "return":
            self.at += 1
            body.append(s.Return(self.expression(), span=self.since(start)))
        elif token.kind == "name":
            self.at += 1
            self.expect("=")
            body.append(s.Assign(token.text, self.expression(), span=self.since(start)))
        else:
            raise self.unexpected("'name = ...', 'return' or '}'")

    def input(self) -> s.Input:
        name = self.name("an input name")
        self.expect(":", "':' and a type such as float[N, 3]")
        kind = self.tensor_type()
        return s.Input(name.text, kind, span=self.since(name.span.start))

    def tensor_type(self) -> s.TensorType:
        if self.peek() not in ("float", "int"):
            raise self.unexpected("'float' or 'int' with dimensions, such as float[N, 3, H, W]")
        token = self.take()
        dims = self.bracketed("[", "]", self.dimension)
        return s.TensorType(token.kind, dims, span=self.since(token.span.start))

    def dimension(self) -> s.Expr | None:
        if self.here().text == "_":
            self.at += 1
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
        raise Abandon

    def expression(self) -> s.Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.too_deep(self.here().span)
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
            level = _BINARY.get(self.peek(), 0)
            if level < lowest:
                return left
            token = self.take()
            right = self.operators(level + 1)
            span = Span(left.span.start, right.span.end)
            if level == _COMPARE and isinstance(left, s.Binary) and _BINARY[left.op] == _COMPARE:
                hint = "join two comparisons with 'and'"
                self.diagnostics.add("syntax", "a chained comparison", token.span, hint=hint)
                raise Abandon
            left = self.made(s.Binary(token.kind, left, right, span=span), left, right)

    def unary(self, lowest: int = _NEGATE) -> s.Expr:
        kind = self.peek()
        if kind not in _PREFIXES:
            return self.atom()
        token = self.here()
        if kind == "not" and lowest > _NOT:
            raise self.unexpected("an expression (put 'not ...' in parentheses here)")
        if kind in ("-", "not"):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.too_deep(token.span)
            self.at += 1
            operand = self.operators(_NOT if kind == "not" else _NEGATE)
            self.depth -= 1
            span = Span(token.span.start, operand.span.end)
            return self.made(s.Unary(kind, operand, span=span), operand)
        self.at += 1
        if kind == "ternary":
            options = self.arguments() if self.peek() == "(" else ()
            layer = self.prefixed()
            span = Span(token.span.start, layer.span.end)
            return self.made(s.Ternary(options, layer, span=span), layer, *(a.value for a in options))
        counts = self.bracketed("(", ")", self.expression)
        if len(counts) != 1:
            found = self.since(token.span.start)
            self.diagnostics.add("syntax", f"repeat with {len(counts)} counts", found, expected="repeat(n) Layer()")
            raise Abandon
        layer = self.prefixed()
        span = Span(token.span.start, layer.span.end)
        return self.made(s.Repeat(counts[0], layer, span=span), counts[0], layer)

    def prefixed(self) -> s.Expr:
        """The layer after `ternary` or `repeat(n)`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.too_deep(self.here().span)
        if self.peek() not in ("name", "ternary", "repeat", "["):
            raise self.unexpected("a layer such as Linear(64, 10)")
        layer = self.unary()
        self.depth -= 1
        return layer

    def atom(self) -> s.Expr:
        match self.peek():
            case "integer":
                token = self.take()
                return s.Literal(int(token.text), span=token.span)
            case "decimal":
                token = self.take()
                return s.Literal(float(token.text), span=token.span)
            case "string":
                token = self.take()
                return s.Literal(string_value(token.text), span=token.span)
            case "true" | "false":
                token = self.take()
                return s.Literal(token.kind == "true", span=token.span)
            case "[":
                return self.list_expr()
            case "(":
                self.brackets.append(self.at)
                self.at += 1
                inner = self.expression()
                if self.peek() != ")":
                    raise self.unexpected("')'")
                self.brackets.pop()
                self.at += 1
                return inner
            case "name" | "int" | "float":
                token = self.take()
                name = s.Name(token.text, span=token.span)
                if self.peek() != "(":
                    return name
                arguments = self.arguments()
                call = s.Call(name, arguments, span=self.since(token.span.start))
                return self.made(call, *(a.value for a in arguments))
        raise self.unexpected("an expression")

    def list_expr(self) -> s.ListExpr:
        start = self.here().span.start
        items = self.bracketed("[", "]", self.expression)
        return self.made(s.ListExpr(items, span=self.since(start)), *items)

    def arguments(self) -> tuple[s.Argument, ...]:
        return self.bracketed("(", ")", self.argument)

    def argument(self) -> s.Argument:
        value = self.expression()
        if isinstance(value, s.Name) and self.accept("="):
            given = self.expression()
            return s.Argument(value.name, given, span=Span(value.span.start, given.span.end))
        return s.Argument("", value, span=value.span)
