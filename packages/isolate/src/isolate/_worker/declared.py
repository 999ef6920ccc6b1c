"""Dataclasses, enums and named tuples: their content travels, and the receiver's annotation says what it becomes.

Until then it is a `Declared`. One that no annotation has claimed is refused before the receiver's code sees it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .errors import UnsupportedTypeError
from .kinds_standard import wanted

LIVE: set[int] = set()
"""The `Declared` that exist; empty nearly always, so that nothing has to be searched for them."""


class Declared:
    """The content of a dataclass, an enum or a named tuple of the other side.

    Args:
        form: `dataclass`, `enum` or `namedtuple`.
        name: The name of the class there; a text for messages.
        content: The fields by name, or the enum's value.
    """

    __slots__ = ("content", "form", "name")

    def __init__(self, form: str, name: str, content: Any) -> None:
        self.form, self.name, self.content = form, name, content
        LIVE.add(id(self))

    def __del__(self) -> None:
        LIVE.discard(id(self))

    def __hash__(self) -> int:
        content = self.content
        return hash(tuple(content.values()) if type(content) is dict else content)

    def __eq__(self, other: object) -> bool:
        return type(other) is Declared and (self.form, self.content) == (other.form, other.content)


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts of a dataclass, an enum's member or a named tuple; None for anything else."""
    if hasattr(kind, "__dataclass_fields__"):
        names = [name for name in kind.__dataclass_fields__ if hasattr(value, name)]
        extra = vars(value).keys() - kind.__dataclass_fields__.keys() if hasattr(value, "__dict__") else ()
        if extra or _built_in_base(kind):
            return None
        return "declared.dataclass", [kind.__qualname__, {name: getattr(value, name) for name in names}]
    if hasattr(kind, "_member_map_"):
        return "declared.enum", [kind.__qualname__, value.value]
    fields: Any = getattr(kind, "_fields", None)
    if isinstance(value, tuple) and type(fields) is tuple and len(fields) == len(value) == len(set(fields)):
        return "declared.namedtuple", [kind.__qualname__, dict(zip(fields, value, strict=True))]
    return None


def _built_in_base(kind: type) -> bool:
    return issubclass(kind, (int, float, str, bytes, tuple, list, dict, set, frozenset))


def build(tag: str, parts: Any) -> Declared:
    """Return what stands for a declared value until an annotation claims it."""
    name, content = parts
    form = tag.partition(".")[2]
    wanted(type(name) is str and len(name) < 1000 and form in ("dataclass", "enum", "namedtuple"), "a declared value")
    wanted(form == "enum" or type(content) is dict, "a declared value")
    return Declared(form, name, content)


def refuse(value: Any, where: str) -> None:
    """Raise UnsupportedTypeError if a value has a part that no annotation has claimed."""
    waiting: list[tuple[Any, str]] = [(value, where)]
    while waiting:
        part, path = waiting.pop()
        kind = type(part)
        if kind is Declared:
            instead = "its .value" if part.form == "enum" else f"a {'dict' if part.form == 'dataclass' else 'tuple'}"
            raise UnsupportedTypeError(
                f"{path} is a {part.form} {part.name:.80} of the other side, and nothing here says what it becomes; "
                f"annotate {path.partition('[')[0]} with its type, send {instead}, or register an isolate.converter on "
                "both sides"
            )
        if kind in (list, tuple, set, frozenset, deque):
            waiting += [(item, f"{path}[{index}]") for index, item in enumerate(part)]
        elif isinstance(part, dict):
            waiting += [(item, f"{path}[{key!r:.40}]") for key, item in part.items()]
            waiting += [(key, f"{path} key") for key in part]


def arguments(args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse the arguments of a call that hold what no annotation has claimed."""
    if LIVE:
        for index, value in enumerate(args):
            refuse(value, f"argument {index}")
        for name, value in kwargs.items():
            refuse(value, name)


def result(value: Any, returns: Any = None) -> Any:
    """Return a result as its annotation wants it.

    Args:
        value: As it came.
        returns: What rebuilds it, see `convert.converter`; None where nothing is declared.
    """
    if returns is not None:
        value = returns(value, "the result")
    if LIVE:
        refuse(value, "the result")
    return value
