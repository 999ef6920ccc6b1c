"""Handles of pentad-xfer as values on the wire; knows their bytes, and neither pools nor what they refer to."""

from __future__ import annotations

import sys
from typing import Any

from .errors import UnsupportedTypeError, WireError


def to_bytes(value: Any) -> bytes | None:
    """A handle as bytes; None for anything else, which costs no import."""
    kind = getattr(sys.modules.get("xfer"), "Handle", None)
    if not isinstance(kind, type) or not isinstance(value, kind):
        return None
    made: Any = value
    return bytes(made)


def from_bytes(raw: bytes) -> Any:
    """The handle, its checksum verified; what it refers to is looked at only by who opens it.

    Raises:
        UnsupportedTypeError: pentad-xfer is not installed on this side.
        WireError: The bytes are no handle.
    """
    try:
        from xfer import Handle, XferError
    except ImportError:
        raise UnsupportedTypeError(
            "an xfer.Handle came and pentad-xfer is not installed here; a host installs pentad-isolate[xfer], "
            "an extension adds pentad-xfer to its dependencies"
        ) from None
    try:
        return Handle.from_bytes(raw)
    except XferError as failure:
        raise WireError(f"a handle of xfer is malformed: {failure}") from None
