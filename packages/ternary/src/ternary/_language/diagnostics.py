"""Diagnostics: where an error is in a source, and how it is printed."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_DIAGNOSTICS = 100
SHOWN_COLUMNS = 120


class Span(NamedTuple):
    """A half-open range of character offsets into a source."""

    start: int
    end: int


class SourceText:
    """A source with its name and line starts: turns offsets into lines and columns."""

    __slots__ = ("_starts", "name", "text")

    def __init__(self, text: str, name: str = "<source>"):
        self.name: str = name
        self.text: str = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        starts = [0]
        at = self.text.find("\n")
        while at >= 0:
            starts.append(at + 1)
            at = self.text.find("\n", at + 1)
        self._starts = starts

    def position(self, offset: int) -> tuple[int, int]:
        """Return the line and column of an offset, both counted from 1, columns in characters."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Return the text of a line (counted from 1) without its line end."""
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.text)
        return self.text[start:end]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One error in a source: a stable code, what is wrong, where, what was expected, and what to do."""

    code: str
    message: str
    span: Span
    expected: str = ""
    hint: str = ""
    notes: tuple[str, ...] = field(default=())

    def render(self, source: SourceText) -> str:
        """Show the error as text: place and message, the line itself, a caret under the place, then advice."""
        line, column = source.position(self.span.start)
        text = source.line(line)
        width = max(1, min(self.span.end, self.span.start + len(text) - column + 1) - self.span.start)
        first = max(0, column - 1 - SHOWN_COLUMNS // 2) if len(text) > SHOWN_COLUMNS else 0
        shown = text[first : first + SHOWN_COLUMNS].replace("\t", " ")
        shown = ("…" if first else "") + shown + ("…" if first + SHOWN_COLUMNS < len(text) else "")
        indent = column - 1 - first + bool(first)
        gutter = f"{line:5} | "
        rows = [
            f"{source.name}:{line}:{column}: error: {self.message} [{self.code}]",
            gutter + shown,
            " " * (len(gutter) - 2) + "| " + " " * indent + "^" * min(width, SHOWN_COLUMNS),
        ]
        if self.expected:
            rows.append(f"        expected: {self.expected}")
        if self.hint:
            rows.append(f"        hint: {self.hint}")
        rows.extend(f"        note: {note}" for note in self.notes)
        return "\n".join(rows)

    def as_dict(self, source: SourceText) -> dict[str, object]:
        """Return the error as plain values for JSON: lines and columns counted from 1, the end exclusive."""
        line, column = source.position(self.span.start)
        end_line, end_column = source.position(max(self.span.start + 1, self.span.end))
        return {
            "code": self.code,
            "severity": "error",
            "message": self.message,
            "file": source.name,
            "line": line,
            "column": column,
            "end_line": end_line,
            "end_column": end_column,
            "expected": self.expected,
            "hint": self.hint,
            "notes": list(self.notes),
        }


class Diagnostics:
    """Collects errors: the first one at a place and of a kind counts, and past `MAX_DIAGNOSTICS` none is added."""

    def __init__(self) -> None:
        self._found: dict[tuple[Span, str], Diagnostic] = {}

    def add(
        self, code: str, message: str, span: Span, *, expected: str = "", hint: str = "", notes: tuple[str, ...] = ()
    ) -> None:
        """Record one error."""
        if len(self._found) < MAX_DIAGNOSTICS:
            self._found.setdefault((span, code), Diagnostic(code, message, span, expected, hint, notes))

    @property
    def full(self) -> bool:
        """Whether so many errors were found that looking for more is no use."""
        return len(self._found) >= MAX_DIAGNOSTICS

    def sorted(self) -> tuple[Diagnostic, ...]:
        """Return all errors in source order."""
        return tuple(sorted(self._found.values(), key=lambda d: (d.span.start, d.span.end)))

    def __len__(self) -> int:
        return len(self._found)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known word, or an empty string."""
    if len(name) > 64:
        return ""
    names = sorted(set(known))
    by_fold = {n.lower(): n for n in names}
    close = [by_fold[name.lower()]] if name.lower() in by_fold else difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else ""
