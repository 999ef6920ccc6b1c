"""Checks of arguments that a program passes: a text in place of a list, or a number of another type, is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_type_hints

import msgspec


def texts(values: Any, name: str) -> tuple[str, ...]:
    """Return the texts of any iterable, paths as texts.

    Args:
        values: The texts. One text alone is refused: its letters would be taken for the texts.
        name: What they are, for messages.

    Raises:
        TypeError: It is one text or no iterable, or an item is no text.
    """
    if isinstance(values, str | bytes | os.PathLike):
        raise TypeError(f"{name} is {values!r:.80}, one text; wanted a list of texts, as [{values!r:.80}]")
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} is {values!r:.80}; wanted a list of texts")
    found = tuple(os.fspath(value) if isinstance(value, os.PathLike) else value for value in values)
    for value in found:
        if not isinstance(value, str):
            raise TypeError(f"{name} has {value!r:.80}, which is no text")
    return found


def whole(value: Any, name: str, least: int) -> int:
    """Return a whole number that is no smaller than `least`, also one of numpy.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r:.80}; wanted a whole number")
    number = int(value.__index__())
    if number < least:
        raise ValueError(f"{name} is {number}; wanted {least} or more")
    return number


def checked_fields(instance: Any) -> None:
    """Compare the attributes of a frozen dataclass with their annotations; set sequences as tuples.

    Raises:
        TypeError: One has another type.
        ValueError: A number is NaN or, unless it is `nice`, negative.
    """
    kind = type(instance).__name__
    hints = get_type_hints(type(instance))
    for field in fields(instance):
        value, name = getattr(instance, field.name), f"{kind}: {field.name}"
        hint = hints[field.name]
        if "tuple[str" in str(hint) and value is not None:
            value = texts(value, name)
        elif hint is int:
            value = whole(value, name, -20 if field.name == "nice" else 0)
        try:
            value = msgspec.convert(value, hint)
        except msgspec.ValidationError as failure:
            raise TypeError(f"{name} is {value!r:.80}: {failure}") from None
        if isinstance(value, float) and not value >= 0:
            raise ValueError(f"{name} is {value}; wanted a positive number")
        object.__setattr__(instance, field.name, value)
