"""The command line."""

from __future__ import annotations

from ternary._cli.entry import main

__all__ = ["main"]
