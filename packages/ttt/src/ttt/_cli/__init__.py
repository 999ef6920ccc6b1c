"""The command line."""

from __future__ import annotations

from ttt._cli.main import main

__all__ = ["main"]
