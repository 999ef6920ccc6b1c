"""Split source text into tokens with exact offsets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from ternary._language.diagnostics import Diagnostics, Span

KEYWORDS = frozenset(
    [
        "model",
        "layer",
        "let",
        "require",
        "forward",
        "return",
        "if",
        "else",
        "and",
        "or",
        "not",
        "true",
        "false",
        "ternary",
        "repeat",
        "int",
        "float",
        "bool",
        "str",
    ]
)
MAX_NUMBER_DIGITS = 18
MAX_NAME = 100

_TOKEN = re.compile(
    r"""[ \t\f\v]*(?:
    (?P<newline>\n|;)
    |(?P<comment>\#[^\n]*)
    |(?P<decimal>(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)
    |(?P<integer>[0-9]+)
    |(?P<name>[^\W0-9]\w*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<op>->|//|==|!=|<=|>=|[-+*/%@<>=(){}\[\],:])
    |(?P<end>\Z))""",
    re.VERBOSE,
)
_BLANK = re.compile(r"[ \t\f\v]*")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


class Token(NamedTuple):
    """A token; its kind is name, integer, decimal, string, newline, end, bad, or the operator or keyword itself."""

    kind: str
    text: str
    span: Span


@dataclass(slots=True)
class Tokens:
    """The tokens of a source, as columns: half a million small objects would keep the garbage collector busy."""

    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, kind: str, text: str, start: int, end: int) -> None:
        """Append one."""
        self.kinds.append(kind)
        self.texts.append(text)
        self.starts.append(start)
        self.ends.append(end)

    def __getitem__(self, at: int) -> Token:
        return Token(self.kinds[at], self.texts[at], Span(self.starts[at], self.ends[at]))


class Comment(NamedTuple):
    """A comment from `#` to the end of its line."""

    text: str
    span: Span


def tokenize(text: str, diagnostics: Diagnostics) -> tuple[Tokens, list[Comment]]:
    """Split a source into tokens (always ended by one of kind 'end') and comments.

    What fits neither is reported and becomes a token of kind 'bad', so that the grammar need not complain as well.
    """
    tokens = Tokens()
    comments: list[Comment] = []
    add = tokens.add
    at, size = 0, len(text)
    while at < size and not diagnostics.full:
        for found in _TOKEN.finditer(text, at):
            kind = str(found.lastgroup)
            start, end = found.span(kind)
            if found.start() != at or kind == "end":  # finditer steps over what it cannot read
                break
            word = text[start:end]
            if kind == "op":
                kind = word
            elif kind == "name":
                if word in KEYWORDS:
                    kind = word
                elif len(word) > MAX_NAME or not word.isascii():
                    _bad_name(word, start, diagnostics)
                    kind, word = "bad", word[:MAX_NAME]
            elif kind == "comment":
                comments.append(Comment(word.rstrip(), Span(start, end)))
                at = end
                continue
            elif len(word) > MAX_NUMBER_DIGITS and kind in ("integer", "decimal"):
                place = Span(start, end)
                wanted = f"at most {MAX_NUMBER_DIGITS}"
                diagnostics.add("bad-number", f"a number of {len(word)} characters", place, expected=wanted)
                word = "1"
            add(kind, word, start, end)
            at = end
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr] # it matches the empty string too
        if at < size:
            start, at = at, _skip_bad(text, at, diagnostics)
            if text[start] == '"':  # the place of the string
                add("string", '""', start, at)
            else:
                add("bad", text[start:at], start, at)
    add("end", "", size, size)
    return tokens, comments


def _bad_name(word: str, start: int, diagnostics: Diagnostics) -> None:
    if not word.isascii():
        at = next(i for i, char in enumerate(word) if not char.isascii())
        hint = "names are made of the letters a-z and A-Z, digits and _; strings and comments may hold any text"
        place = Span(start + at, start + at + 1)
        diagnostics.add("bad-character", f"unexpected character {word[at]!r} in a name", place, hint=hint)
    else:
        place = Span(start, start + len(word))
        diagnostics.add("bad-name", f"a name of {len(word)} characters", place, expected=f"at most {MAX_NAME}")


def _skip_bad(text: str, at: int, diagnostics: Diagnostics) -> int:
    """Report what starts no token at `at`, one error for a run of such characters, and return where to go on."""
    char = text[at]
    if char == '"':
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop
        diagnostics.add("syntax", "this string never ends", Span(at, stop), expected='a closing " on the same line')
        return stop
    hint = "strings are written with double quotes" if char == "'" else ""
    diagnostics.add("bad-character", f"unexpected character {char!r}", Span(at, at + 1), hint=hint)
    end = at + 1
    closing = text.find("'", end) if char == "'" else -1
    if closing >= 0 and "\n" not in text[end:closing]:
        return closing + 1
    while end < len(text) and (text[end] == char or not (char.isascii() or text[end].isascii())):
        end += 1
    return end


def string_value(literal: str) -> str:
    """Return the value of a string literal."""
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m.group(1), m.group(1)), literal[1:-1])


def string_literal(value: str) -> str:
    """Write a text as a string literal of the language."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
