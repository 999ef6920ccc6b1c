"""Breaks the long lines of generated Python where its brackets allow, in the manner of the usual formatters."""

from __future__ import annotations

import re
from itertools import pairwise

WIDTH = 88
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_STRING = re.compile(r"'((?:[^'\"\\]|\\[nt\\])*)'|\"(?:[^\"\\]|\\.)*\"")


def layout(code: str) -> str:
    """Return the same Python with lines of at most `WIDTH` columns where possible, and double quotes."""
    lines: list[str] = []
    for line in code.splitlines():
        text = _STRING.sub(lambda m: f'"{m.group(1)}"' if m.group(1) is not None else m.group(0), line)
        if text.lstrip().startswith("def "):
            text = re.sub(r"(: (?:int|float|bool|str))=", r"\1 = ", text)
        lines.extend(_wrap(text))
        if lines[-1].startswith('    """') and lines[-1].endswith('"""'):
            lines.append("")
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(_single_blank_lines(lines))


def _single_blank_lines(lines: list[str]) -> list[str]:
    return [line for at, line in enumerate(lines) if line or not (at and not lines[at - 1])]


def _wrap(line: str, comma: str = "") -> list[str]:
    """Break one logical line; `comma` is put after its last character."""
    if len(line) + len(comma) <= WIDTH:
        return [line + comma]
    indent = line[: len(line) - len(line.lstrip())]
    inner = indent + "    "
    tail = re.search(r"[)\]}](?: -> \w+)?:?$", line)
    if tail is None:
        head = re.match(r"(\s*(?:return|[\w.]+ =) )(.*)$", line)
        if head is None or head.group(2).startswith("("):
            return [line + comma]
        return [f"{head.group(1)}(", *_operators(inner + head.group(2)), f"{indent})"]
    opening = _matching(line, tail.start())
    head_text, body, rest = line[: opening + 1], line[opening + 1 : tail.start()], line[tail.start() :]
    if not body or line.lstrip().startswith("from "):
        return [line + comma] if not line.lstrip().startswith("from ") else _import(line)
    parts = _split(body)
    one_line = inner + body
    is_call = not (len(parts) == 1 and (" for " in body or line[opening - 1 : opening] == "*"))
    if len(one_line) <= WIDTH:
        return [head_text, one_line, indent + rest + comma]
    out = [head_text]
    for part in parts:
        trailing = "" if len(parts) == 1 and not is_call else ","
        out.extend(_comprehension(inner + part) if not is_call else _wrap(inner + part, trailing))
    return [*out, indent + rest + comma]


def _import(line: str) -> list[str]:
    head, names = line.split(" import ")
    return [f"{head} import (", *(f"    {n.strip()}," for n in names.split(",")), ")"]


def _operators(line: str) -> list[str]:
    """Break an expression in front of its `if`, `else` or outermost operators."""
    if len(line) <= WIDTH:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    for pattern in (r" (?=if )| (?=else )", r" (?=or )", r" (?=and )", r" (?=[+-] )", r" (?=[*/@%] )"):
        cuts = [m for m in re.finditer(pattern, line) if _depth(line, m.start()) == 0 and m.start() > len(indent)]
        if cuts:
            edges = [len(indent), *(m.end() for m in cuts), len(line) + 1]
            pieces = [line[a : b - 1] for a, b in pairwise(edges)]
            return [row for piece in pieces for row in _wrap(indent + piece)]
    return _wrap(line)


def _comprehension(line: str) -> list[str]:
    """Break in front of `for` (or of `if` and `else`), outside brackets."""
    if len(line) <= WIDTH:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    for match in re.finditer(r" for | if ", line):
        if _depth(line, match.start()) == 0:
            rest = indent + line[match.start() + 1 :]
            return [*_wrap(line[: match.start()]), *(_operators(rest) if " else " in rest else [rest])]
    return _wrap(line)


def _depth(line: str, at: int) -> int:
    plain = _STRING.sub(lambda m: "x" * len(m.group(0)), line)[:at]
    return sum(plain.count(c) for c in "([{") - sum(plain.count(c) for c in ")]}")


def _matching(line: str, closing: int) -> int:
    """Return where the bracket that ends at `closing` opens."""
    plain = _STRING.sub(lambda m: "x" * len(m.group(0)), line)
    depth = 0
    for at in range(closing, -1, -1):
        if plain[at] in ")]}":
            depth += 1
        elif plain[at] in "([{":
            depth -= 1
            if depth == 0:
                return at
    raise AssertionError(line)  # pragma: no cover - generated code is balanced


def _split(body: str) -> list[str]:
    """Split at the commas outside brackets and strings."""
    plain = _STRING.sub(lambda m: "x" * len(m.group(0)), body)
    parts: list[str] = []
    depth = start = 0
    for at, char in enumerate(plain):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(body[start:at].strip())
            start = at + 1
    parts.append(body[start:].strip())
    return [p for p in parts if p]
