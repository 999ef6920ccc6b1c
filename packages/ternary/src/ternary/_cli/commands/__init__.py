"""One module per command: what it is for (its docstring), its options, and what it does."""

from __future__ import annotations

from ternary._cli.commands import (
    bench,
    chat,
    check,
    compile,
    convert,
    doctor,
    export,
    fmt,
    generate,
    inspect,
    pack,
    quantize,
    serve,
    share,
    train,
)

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
    "convert": convert,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "share": share,
    "doctor": doctor,
}
"""Every command, in the order of the help."""
