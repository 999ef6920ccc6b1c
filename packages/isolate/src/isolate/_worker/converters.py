"""Converters that a program registers for types of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import UnsupportedTypeError
from .kinds_standard import wanted


class _Converter(NamedTuple):
    kind: type
    name: str
    to: Callable[[Any], Any]
    back: Callable[[Any], Any]


_BY_TYPE: dict[type, _Converter] = {}
_BY_NAME: dict[str, _Converter] = {}


def converter(
    kind: type, *, to: Callable[[Any], Any], back: Callable[[Any], Any], name: str | None = None
) -> Callable[[], None]:
    """Let values of a type travel: register the same name on both sides, each with its own class.

    An extension does the same with `self.host.converter`, or with `import isolate` where its environment has no other
    package of that name. The other side sends only the name; it selects among the converters registered here.

    Args:
        kind: The type; subclasses need converters of their own.
        to: Makes something that travels out of a value.
        back: Makes a value out of that; it gets what the other side has sent, so it must check it.
        name: What the two sides call the type; the class's name if not given. Registering a name again replaces it.

    Returns:
        A function that removes the converter.

    Example:
        >>> class Point:
        ...     def __init__(self, x, y):
        ...         self.x, self.y = x, y
        >>> remove = converter(Point, to=lambda p: [p.x, p.y], back=lambda parts: Point(*map(float, parts)))
        >>> remove()
    """
    entry = _Converter(kind, name or kind.__name__, to, back)
    before = _BY_NAME.get(entry.name)
    if before is not None:
        _BY_TYPE.pop(before.kind, None)
    _BY_TYPE[kind] = _BY_NAME[entry.name] = entry

    def remove() -> None:
        if _BY_NAME.get(entry.name) is entry:
            del _BY_NAME[entry.name]
        if _BY_TYPE.get(kind) is entry:
            del _BY_TYPE[kind]

    return remove


def knows(kind: type) -> bool:
    """Return whether a type has a converter."""
    return kind in _BY_TYPE


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts of a value whose type has a converter; None for any other."""
    entry = _BY_TYPE.get(kind)
    return None if entry is None else ("converted", [entry.name, entry.to(value)])


def build(_tag: str, parts: Any) -> Any:
    """Return the value that a converter makes."""
    name, content = parts
    wanted(type(name) is str, "a converted value")
    entry = _BY_NAME.get(name)
    if entry is None:
        raise UnsupportedTypeError(
            f"a {name:.80} came and has no converter here; register isolate.converter({name:.80}, to=…, back=…)"
        )
    try:
        return entry.back(content)
    except Exception as failure:
        raise UnsupportedTypeError(f"the converter {name:.80} failed: {type(failure).__name__}: {failure}") from failure
