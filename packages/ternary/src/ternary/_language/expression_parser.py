"""Expressions of the language: operators by precedence, calls, lists, layers behind `ternary` and `repeat`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ternary._language import syntax as s
from ternary._language.cursor import AbandonError, Cursor
from ternary._language.diagnostics import Diagnostics, SourceText, Span
from ternary._language.lexer import Tokens, string_value

MAX_DEPTH = 40
BINARY_LEVELS = {
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
"""How tightly each binary operator binds."""
_PREFIXES = ("-", "not", "ternary", "repeat")
_COMPARE, _NOT, _NEGATE = 4, 3, 7
T = TypeVar("T")


class ExpressionParser(Cursor):
    """Recursive descent over expressions; nesting is bounded, so that later passes can walk every tree."""

    def __init__(self, source: SourceText, tokens: Tokens, diagnostics: Diagnostics):
        super().__init__(source, tokens, diagnostics)
        self.depth = 0
        self.heights: dict[int, int] = {}

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

    def made(self, expr: T, *parts: s.Expr) -> T:
        """Note the height of a new node and refuse trees that later passes could not walk."""
        height = 1 + max((self.heights.get(id(p), 1) for p in parts), default=0)
        if height > MAX_DEPTH:
            self.too_deep(expr.span)  # type: ignore[attr-defined] # only nodes come here
        self.heights[id(expr)] = height
        return expr

    def too_deep(self, span: Span) -> None:
        at = Span(span.start, min(span.end, span.start + 1))
        hint = "name parts of it with 'let', or move them into a layer of their own"
        self.diagnostics.add("too-deep", f"more than {MAX_DEPTH} levels in one expression", at, hint=hint)
        raise AbandonError

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
            level = BINARY_LEVELS.get(self.peek(), 0)
            if level < lowest:
                return left
            token = self.take()
            right = self.operators(level + 1)
            span = Span(left.span.start, right.span.end)
            if level == _COMPARE and isinstance(left, s.Binary) and BINARY_LEVELS[left.op] == _COMPARE:
                hint = "join two comparisons with 'and'"
                self.diagnostics.add("syntax", "a chained comparison", token.span, hint=hint)
                raise AbandonError
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
            raise AbandonError
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
