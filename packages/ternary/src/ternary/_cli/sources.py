"""What a command is given: a source, a model file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ternary import zoo
from ternary._language import syntax as s
from ternary.errors import UnknownModelError


def locate(name: str) -> tuple[str | Path, str]:
    """Return a source (text or path) and what to call it: a file, a zoo network, or standard input."""
    if name == "-":
        return sys.stdin.read(), "<stdin>"
    if not Path(name).exists() and name.removesuffix(".tri") in zoo.names():
        return zoo.source(name.removesuffix(".tri")), name
    if not Path(name).exists():
        raise UnknownModelError(f"{name!r} is neither a file nor in the zoo ({', '.join(zoo.names())})")
    return Path(name), name


def shape_of(program: Any) -> tuple[int, ...]:
    """Return the sample shape that the model's signature fixes, or () if it is not all numbers."""
    models = [d for d in program.definitions if d.kind == "model" and d.forward is not None]
    if len(models) != 1:
        return ()
    dims = models[0].forward.inputs[0].type.dims[1:]
    sizes = [d.value for d in dims if isinstance(d, s.Literal) and isinstance(d.value, int)]
    return tuple(sizes) if len(sizes) == len(dims) else ()
