"""Handles of pentad-xfer as values on the wire."""

from __future__ import annotations

import sys
from typing import Any

from .errors import WireError
from .libraries import imported


def to_bytes(value: Any) -> bytes | None:
    """Return a handle as bytes; None for anything else, without importing xfer."""
    kind = getattr(sys.modules.get("xfer"), "Handle", None)
    if not isinstance(kind, type) or not isinstance(value, kind):
        return None
    made: Any = value
    return bytes(made)


def from_bytes(raw: bytes) -> Any:
    """Return the handle after its checksum is verified. Nothing is opened.

    Raises:
        UnsupportedTypeError: pentad-xfer cannot be imported on this side.
        WireError: The bytes are no handle.
    """
    remedy = "a host installs pentad-isolate[xfer], an extension adds pentad-xfer to its dependencies"
    xfer = imported("xfer", "an xfer.Handle", remedy)
    try:
        return xfer.Handle.from_bytes(raw)
    except xfer.XferError as failure:
        raise WireError(f"a handle of xfer is malformed: {failure}") from None
