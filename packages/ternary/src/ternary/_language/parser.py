"""Tokens to a syntax tree, reporting every syntax error it can recover from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ternary._language import syntax as s
from ternary._language.cursor import AbandonError
from ternary._language.diagnostics import Diagnostics, SourceText, Span
from ternary._language.expression_parser import ExpressionParser
from ternary._language.lexer import Comment, Token, string_value, tokenize

MAX_SOURCE = 1024 * 1024
_TYPES = ("int", "float", "bool", "str")


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


class _Parser(ExpressionParser):
    """Recursive descent; after an error the parser skips to the next statement."""

    # --- blocks -------------------------------------------------------------------------------------------------

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
            except AbandonError:
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
            except AbandonError:
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
        except AbandonError:
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
