"""Checks what callers pass: whole numbers, shapes, and the bytes of handles and ends.

NumPy's integers count as whole numbers. `True` becomes 1, because a cache would take the two for the same shape.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

from xfer.errors import HandleError


def whole(value: Any, what: str, least: int = 1) -> int:
    """Return a whole number.

    Args:
        value: What the caller passed.
        what: Its name, for the message.
        least: The smallest that makes sense.

    Raises:
        ValueError: It is no whole number, or too small.
    """
    number = _index(value)
    if number is None or number < least:
        raise ValueError(f"got {what} {value!r}, want a whole number of at least {least}")
    return number


def lengths(shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple of plain integers.

    Args:
        shape: One length, or a sequence of them.

    Raises:
        ValueError: A length is negative or no whole number.
    """
    one = _index(shape)
    if one is not None:
        found: Sequence[int | None] = (one,)
    elif isinstance(shape, str | bytes) or not hasattr(shape, "__iter__") or getattr(shape, "ndim", 1) != 1:
        found = (None,)
    else:
        found = [_index(length) for length in shape]
    plain = tuple(length for length in found if length is not None and length >= 0)
    if len(plain) != len(found):
        raise ValueError(f"got the shape {shape!r}, want lengths of 0 and more")
    return plain


def token_bytes(token: Any, what: str) -> bytes:
    """Return the bytes of a handle or an end.

    Args:
        token: The object, or its bytes.
        what: The object's name, for the message.

    Raises:
        HandleError: It is neither.
    """
    if isinstance(token, bytes):
        return token
    if hasattr(type(token), "__bytes__"):
        return bytes(token)
    with contextlib.suppress(TypeError):  # `bytes` alone would make as many zeros as an integer says
        return bytes(memoryview(token))
    hint = "; text such as `bytes(it).hex()` goes back by bytes.fromhex" if isinstance(token, str) else ""
    raise HandleError(f"got a {type(token).__name__}, want {what}, or its bytes{hint}")


def _index(value: Any) -> int | None:
    try:
        return int(operator.index(value))
    except TypeError:
        return None
