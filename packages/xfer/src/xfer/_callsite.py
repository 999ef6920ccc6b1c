"""Finds the line of the user's code that called xfer, for leak reports."""

from __future__ import annotations

import os
import sys

_PACKAGE = os.path.dirname(__file__)


def calling_line() -> str:
    """Return "file:line" of the innermost frame outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
