"""Finds the line of the user's code that called xfer, for leak reports."""

from __future__ import annotations

import inspect
import os

_PACKAGE = os.path.dirname(__file__)


def calling_line() -> str:
    """Return "file:line" of the innermost frame outside this package."""
    frame = inspect.currentframe()
    assert frame is not None
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
