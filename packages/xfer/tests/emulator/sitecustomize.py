"""Ends the emulated devices after all exit handlers: Python imports this file first, so its handler is the last."""

from __future__ import annotations

import atexit
import sys


def _end() -> None:
    if "cupy.cuda" in sys.modules:
        sys.modules["cupy.cuda"]._end()


atexit.register(_end)
