"""The objects inside a model or pipeline, by dotted path; knows nothing of bytes, segments or processes."""

from __future__ import annotations

import types
from collections.abc import Iterator

import torch
from torch import nn

# What an nn.Module keeps for itself; its tensors and children are listed without these prefixes.
_MODULE_TABLES = ("_parameters", "_buffers", "_modules")
MODULE_PRIVATE = frozenset(nn.Module().__dict__) - {"training"}
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, torch.Tensor)
_ATOMS = (str, bytes, bytearray, int, float, complex, bool, type(None), torch.dtype, torch.device)


def children(obj: object) -> Iterator[tuple[str, object]]:
    """Yield (name, value) of everything that an object holds directly."""
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
        for table in _MODULE_TABLES:
            yield from attributes.get(table, {}).items()
        yield from ((name, value) for name, value in list(attributes.items()) if name not in MODULE_PRIVATE)
        return
    yield from list(attributes.items())
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield name, getattr(obj, name)


def walk(root: object, *, enter_modules: bool = True) -> Iterator[tuple[str, object]]:
    """Yield (dotted path, object) for everything reachable from an object.

    A container is entered once, however often it is met; what is not a container is yielded every time it is met, so
    that a tensor tied under two names comes up under both.

    Args:
        root: a module, a pipeline or any nesting of lists, dicts, tuples and objects.
        enter_modules: whether to look inside nn.Modules, or to treat each as one thing.

    Returns:
        An iterator over paths and objects, the root (path "") first.
    """
    stack: list[tuple[str, object]] = [("", root)]
    entered: set[int] = set()
    alive: list[object] = []  # ids stay unique only while the objects live
    while stack:
        path, obj = stack.pop()
        yield path, obj
        if id(obj) in entered or (isinstance(obj, nn.Module) and not enter_modules):
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
