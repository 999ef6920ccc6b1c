"""Find the objects inside a model or pipeline, by dotted path."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from zerocopy._torch_private import (
    MODULE_PRIVATE,
    buffers_of,
    children_of,
    is_traceable_wrapper_subclass,
    parameters_of,
)

_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_ATOMS = (str, bytes, bytearray, int, float, complex, bool, type(None), torch.dtype, torch.device)


_LEAVES = frozenset([*_ATOMS, type, types.ModuleType, types.BuiltinFunctionType])
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_WITHOUT_ATTRIBUTES = frozenset([dict, list, tuple, set, frozenset, deque, torch.Size])


def children(obj: object) -> Iterator[tuple[str, object]]:
    """Yield (name, value) for the items of a container, or the attributes of any other object."""
    if isinstance(obj, _ATOMS + _OPAQUE) or type(obj) is np.ndarray:
        return
    if isinstance(obj, dict):
        yield from ((str(key), value) for key, value in list(obj.items()))
        return
    if isinstance(obj, _CONTAINERS):
        yield from ((str(index), value) for index, value in enumerate(list(obj)))
        return
    attributes = getattr(obj, "__dict__", {})
    if isinstance(obj, torch.Tensor):
        if is_traceable_wrapper_subclass(obj):
            inner, _ = obj.__tensor_flatten__()
            yield from ((name, getattr(obj, name)) for name in inner)
            attributes = {name: value for name, value in attributes.items() if name not in inner}
        yield from list(attributes.items())
        return
    if isinstance(obj, nn.Module):
        if "_parameters" in attributes:  # else its __init__ has not run yet
            for table in (parameters_of(obj), buffers_of(obj), children_of(obj)):
                yield from table.items()
        yield from ((name, value) for name, value in list(attributes.items()) if name not in MODULE_PRIVATE)
        return
    yield from _attributes(obj)


def _attributes(obj: object) -> Iterator[tuple[str, object]]:
    yield from list(getattr(obj, "__dict__", {}).items())
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield name, getattr(obj, name)


def _hidden(obj: object) -> Iterator[tuple[str, object]]:
    """Yield what `children` leaves out and pickle takes along: a container's attributes, and what a callable holds."""
    kind = type(obj)
    if kind in _WITHOUT_ATTRIBUTES:
        return
    if isinstance(obj, _CONTAINERS):
        yield from obj.__dict__.items() if kind is OrderedDict else _attributes(obj)
        if isinstance(obj, defaultdict):
            yield "default_factory", obj.default_factory
    elif isinstance(obj, functools.partial):
        yield from (("func", obj.func), ("args", obj.args), ("keywords", obj.keywords))
    elif isinstance(obj, types.MethodType):
        yield "__self__", obj.__self__
    elif isinstance(obj, types.FunctionType) and obj.__closure__ and _goes_by_value(obj):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__, strict=True):
            with suppress(ValueError):  # it has no value yet
                yield name, cell.cell_contents


def _goes_by_value(function: types.FunctionType) -> bool:
    """Return whether pickle takes a function along, because no other process can import it."""
    return function.__module__ == "__main__" or "<locals>" in function.__qualname__


def walk(root: object) -> Iterator[tuple[str, object]]:
    """Yield (dotted path, object) for everything reachable from an object.

    A container is entered once, however often it is met. Anything else is yielded every time, so a tensor that is tied
    under two names is yielded under both. What a callable holds, and the attributes of a container, come last: what is
    found elsewhere as well gets its name there.

    Args:
        root: A module, a pipeline or any nesting of lists, dicts, tuples and objects.

    Yields:
        Paths and objects, the root (path "") first.
    """
    stack: list[tuple[str, object]] = [("", root)]
    later: deque[tuple[str, object]] = deque()
    entered: set[int] = set()
    alive: list[object] = []  # ids are unique only while the objects live
    while stack or later:
        path, obj = stack.pop() if stack else later.popleft()
        yield path, obj
        if type(obj) in _LEAVES or id(obj) in entered:
            continue
        inside, hidden = list(children(obj)), list(_hidden(obj))
        if inside or hidden:
            entered.add(id(obj))
            alive.append(obj)
            start = f"{path}." if path else ""
            stack.extend((start + name, value) for name, value in reversed(inside))
            later.extend((start + name, value) for name, value in hidden)


def tensor_names(root: object) -> dict[int, tuple[str, ...]]:
    """Return the dotted names of every tensor and numpy array inside an object, keyed by its id."""
    names: dict[int, list[str]] = {}
    for path, obj in walk(root):
        if isinstance(obj, torch.Tensor | np.ndarray):
            names.setdefault(id(obj), []).append(path)
    return {key: tuple(dict.fromkeys(paths)) for key, paths in names.items()}
