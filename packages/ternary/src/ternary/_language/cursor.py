"""A position in the tokens: look ahead, track open brackets, report errors and resume after one."""

from __future__ import annotations

from ternary._language.diagnostics import Diagnostics, SourceText, Span, did_you_mean
from ternary._language.lexer import Token, Tokens


class AbandonError(Exception):
    """The statement being parsed cannot be saved."""


class Cursor:
    """What a recursive-descent parser with one token of lookahead stands on."""

    def __init__(self, source: SourceText, tokens: Tokens, diagnostics: Diagnostics):
        self.source, self.tokens, self.kinds, self.diagnostics = source, tokens, tokens.kinds, diagnostics
        self.at = 0
        self.started = 0  # where the statement at hand began
        self.brackets: list[int] = []  # where they were opened
        self.lost: set[str] = set()  # first words and names before '=' in the gaps of the definition at hand

    # --- tokens -------------------------------------------------------------------------------------------------

    def peek(self) -> str:
        """The kind of the next token; inside brackets line ends do not count."""
        kind = self.kinds[self.at]
        if kind == "newline" and self.brackets:
            while kind == "newline" and self.tokens.texts[self.at] != ";":
                self.at += 1
                kind = self.kinds[self.at]
        return kind

    def here(self) -> Token:
        """The next token, left where it is."""
        self.peek()
        return self.tokens[self.at]

    def take(self) -> Token:
        token = self.here()
        if token.kind != "end":
            self.at += 1
        return token

    def accept(self, kind: str) -> bool:
        if self.peek() != kind:
            return False
        self.at += 1
        return True

    def expect(self, kind: str, wanted: str = "") -> None:
        if not self.accept(kind):
            raise self.unexpected(wanted or f"'{kind}'")

    def name(self, wanted: str) -> Token:
        if self.peek() != "name":
            raise self.unexpected(wanted)
        return self.take()

    def skip_lines(self) -> None:
        while self.kinds[self.at] == "newline":
            self.at += 1

    def previous_end(self) -> int:
        at = self.at - 1
        while at > 0 and self.kinds[at] == "newline":
            at -= 1
        return self.tokens.ends[at] if at >= 0 else 0

    def since(self, start: int) -> Span:
        return Span(start, self.previous_end())

    # --- errors -------------------------------------------------------------------------------------------------

    def unexpected(self, wanted: str) -> AbandonError:
        """Report the next token as unexpected, at the end of the line before if that is where something is missing."""
        token = self.here()
        if token.kind == "bad":  # reported already
            return AbandonError()
        notes: tuple[str, ...] = ()
        if self.brackets:
            opened = self.tokens[self.brackets[-1]]
            line, column = self.source.position(opened.span.start)
            notes = (f"the '{opened.text}' at line {line}, column {column} is still open",)
        before = self.previous_end()
        first = self.at == self.started
        if not first and (token.kind in ("newline", "end") or "\n" in self.source.text[before : token.span.start]):
            at = max(0, before)
            what = "end of file" if token.kind == "end" else "end of line"
            opened = self.tokens[self.brackets[-1]] if self.brackets else token
            if "\n" in self.source.text[opened.span.start : at]:
                self.diagnostics.add("syntax", f"this '{opened.text}' is never closed", opened.span)
            else:
                self.diagnostics.add("syntax", f"unexpected {what}", Span(at, at + 1), expected=wanted, notes=notes)
            while self.at > 0 and self.kinds[self.at - 1] == "newline":
                self.at -= 1
        else:
            shown = token.text if len(token.text) <= 40 else token.text[:40] + "…"
            hint = did_you_mean(token.text, [w.strip("'") for w in wanted.replace(" or ", ",").split(", ")])
            self.diagnostics.add("syntax", f"unexpected '{shown}'", token.span, expected=wanted, hint=hint, notes=notes)
        return AbandonError()

    def next_statement(self) -> None:
        """After an error: forget open brackets, go to the next line (past whole blocks) or the closing brace."""
        self.brackets.clear()
        open_braces = 0
        while True:
            kind = self.kinds[self.at]
            if kind == "end" or (kind == "newline" and open_braces == 0) or self.at_definition():
                break
            if kind == "{":
                open_braces += 1
            elif kind == "}":
                if open_braces == 0:
                    break
                open_braces -= 1
            self.at += 1
        self.lost.add(self.tokens.texts[self.started])
        names = (i for i in range(self.started, self.at) if self.kinds[i] == "name")
        self.lost.update(self.tokens.texts[i] for i in names if self.kinds[i + 1] == "=")

    def next_definition(self) -> None:
        """After an error between definitions: go to the next line that begins one."""
        self.brackets.clear()
        while self.kinds[self.at] != "end" and (self.at == self.started or not self.at_definition()):
            self.at += 1
        self.lost.update(self.names(self.started, self.at))

    def at_definition(self) -> bool:
        """Whether a definition begins here: on a line of its own, or with a name and what follows one."""
        if self.kinds[self.at] not in ("model", "layer"):
            return False
        after = self.kinds[self.at + 1 : self.at + 3]
        return self.kinds[self.at - 1] == "newline" or (after[:1] == ["name"] and after[1:] in (["("], ["{"], ["="]))

    def names(self, start: int, end: int) -> set[str]:
        return {self.tokens.texts[i] for i in range(start, end) if self.kinds[i] == "name"}
