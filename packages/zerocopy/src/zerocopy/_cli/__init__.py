"""The command line `zerocopy`."""

from __future__ import annotations

from zerocopy._cli.commands import main

__all__ = ["main"]
