"""Source text to tokens with exact offsets. Knows nothing of grammar."""

from __future__ import annotations

import re
from typing import NamedTuple

from ternary.language.diagnostics import Diagnostics, Span

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
    |(?P<decimal>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
    |(?P<integer>\d+)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<op>->|//|==|!=|<=|>=|[-+*/%@<>=(){}\[\],:])
    |(?P<end>\Z))""",
    re.VERBOSE,
)
_BLANK = re.compile(r"[ \t\f\v]*")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


class Token(NamedTuple):
    """A token; its kind is name, integer, decimal, string, newline, end, or the operator or keyword itself."""

    kind: str
    text: str
    span: Span


class Comment(NamedTuple):
    """A comment from `#` to the end of its line."""

    text: str
    span: Span


def tokenize(text: str, diagnostics: Diagnostics) -> tuple[list[Token], list[Comment]]:
    """Split a source into tokens (always ended by one of kind 'end') and comments, reporting what fits neither."""
    tokens: list[Token] = []
    comments: list[Comment] = []
    at, size, match = 0, len(text), _TOKEN.match
    while at < size:
        found = match(text, at)
        if found is None:
            at = _BLANK.match(text, at).end()  # type: ignore[union-attr] # it matches the empty string too
            bad, at = at, _skip_bad(text, at, diagnostics)
            if text[bad] == '"':  # stands for the string, so that the grammar does not complain as well
                tokens.append(Token("string", '""', Span(bad, at)))
            if diagnostics.full:
                break
            continue
        kind, end = str(found.lastgroup), found.end()
        if kind == "end":
            break
        at = found.start(kind)
        span = Span(at, end)
        if kind == "comment":
            comments.append(Comment(text[at:end].rstrip(), span))
        else:
            word = text[at:end]
            if kind == "name":
                kind = word if word in KEYWORDS else kind
                if len(word) > MAX_NAME:
                    diagnostics.add("bad-name", f"a name of {len(word)} characters", span, expected=f"<= {MAX_NAME}")
                    word = word[:MAX_NAME]
            elif kind in ("integer", "decimal") and len(word) > MAX_NUMBER_DIGITS:
                diagnostics.add(
                    "bad-number", f"a number of {len(word)} characters", span, expected=f"at most {MAX_NUMBER_DIGITS}"
                )
                word = "1"
            elif kind == "op":
                kind = word
            tokens.append(Token(kind, word, span))
        at = end
    tokens.append(Token("end", "", Span(size, size)))
    return tokens, comments


def _skip_bad(text: str, at: int, diagnostics: Diagnostics) -> int:
    """Report the character at `at` that starts no token and return where to go on."""
    char = text[at]
    if char == '"':
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop
        diagnostics.add("syntax", "this string never ends", Span(at, stop), expected='a closing " on the same line')
        return stop
    end = at + 1
    if char.isidentifier() or not char.isascii():
        while end < len(text) and not text[end].isascii():
            end += 1
        hint = "names are made of the letters a-z and A-Z, digits and _; strings and comments may hold any text"
        diagnostics.add("bad-character", f"unexpected character {char!r}", Span(at, end), hint=hint)
        return end
    hint = "strings are written with double quotes" if char == "'" else ""
    diagnostics.add("bad-character", f"unexpected character {char!r}", Span(at, end), hint=hint)
    return end


def string_value(literal: str) -> str:
    """Return the text that a string literal stands for."""
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m.group(1), m.group(1)), literal[1:-1])


def string_literal(value: str) -> str:
    """Write a text as a string literal of the language."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
