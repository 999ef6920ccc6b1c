"""One module per command: what it is for (its docstring), its options, and what it does."""

from __future__ import annotations

from ternary._cli.commands import bench, check, compile, doctor, export, fmt, inspect, pack, quantize, train

__all__ = ["COMMANDS"]

COMMANDS = {
    "check": check,
    "fmt": fmt,
    "compile": compile,
    "train": train,
    "quantize": quantize,
    "pack": pack,
    "inspect": inspect,
    "bench": bench,
    "export": export,
    "doctor": doctor,
}
"""Every command, in the order of the help."""
