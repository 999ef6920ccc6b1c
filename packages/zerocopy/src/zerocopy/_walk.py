"""Find the objects inside a model or pipeline, by dotted path."""

from __future__ import annotations

import types
from collections.abc import Iterator

import torch
from torch import nn

from zerocopy._torch_private import MODULE_PRIVATE, buffers_of, children_of, parameters_of

_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, torch.Tensor)
_ATOMS = (str, bytes, bytearray, int, float, complex, bool, type(None), torch.dtype, torch.device)


def children(obj: object) -> Iterator[tuple[str, object]]:
    """Yield (name, value) for everything that an object holds directly."""
    if isinstance(obj, _ATOMS + _OPAQUE):
        return
    if isinstance(obj, dict):
        yield from ((str(key), value) for key, value in list(obj.items()))
        return
    if isinstance(obj, list | tuple | set | frozenset):
        yield from ((str(index), value) for index, value in enumerate(obj))
        return
    attributes = getattr(obj, "__dict__", {})
    if isinstance(obj, nn.Module):
        if "_parameters" in attributes:  # else its __init__ has not run yet
            for table in (parameters_of(obj), buffers_of(obj), children_of(obj)):
                yield from table.items()
        yield from ((name, value) for name, value in list(attributes.items()) if name not in MODULE_PRIVATE)
        return
    yield from list(attributes.items())
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield name, getattr(obj, name)


def walk(root: object) -> Iterator[tuple[str, object]]:
    """Yield (dotted path, object) for everything reachable from an object.

    A container is entered once, however often it is met. Anything else is yielded every time, so a tensor that is tied
    under two names is yielded under both.

    Args:
        root: A module, a pipeline or any nesting of lists, dicts, tuples and objects.

    Yields:
        Paths and objects, the root (path "") first.
    """
    stack: list[tuple[str, object]] = [("", root)]
    entered: set[int] = set()
    alive: list[object] = []  # ids are unique only while the objects live
    while stack:
        path, obj = stack.pop()
        yield path, obj
        if id(obj) in entered:
            continue
        inside = list(children(obj))
        if inside:
            entered.add(id(obj))
            alive.append(obj)
            stack.extend((f"{path}.{name}" if path else name, value) for name, value in reversed(inside))


def tensor_names(root: object) -> dict[int, tuple[str, ...]]:
    """Return the dotted names of every tensor inside an object, keyed by the tensor's id."""
    names: dict[int, list[str]] = {}
    for path, obj in walk(root):
        if isinstance(obj, torch.Tensor):
            names.setdefault(id(obj), []).append(path)
    return {key: tuple(dict.fromkeys(paths)) for key, paths in names.items()}
