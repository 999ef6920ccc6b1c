"""Trees of arrays as one block of bytes: what they look like, where each array lies, and the arrays themselves.

The block starts with the lengths of two JSON texts and the texts: the structure, which is the same for each message of
a stream and is cached, and the plain values. The arrays follow, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from xfer import _compiled
from xfer._convert.interchange import Library, device_of, host_array, is_array, on_host, tensors
from xfer._convert.move import move
from xfer._shared import dtypes
from xfer._shared.handle import Signature, signature
from xfer.errors import HandleError, UnsupportedDtypeError

_LENGTHS = struct.Struct("<II")
_ALIGN = 64
_DEEPEST = 100
_PLAIN = (type(None), bool, int, float, str, bytes, complex)
_KEYS = (str, int, float, bool, type(None))


class Leaf(NamedTuple):
    """How an array of a tree looks."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


def is_tree(value: Any) -> bool:
    """Return whether a value is sent as a tree: a dict, a dataclass, a named tuple, or a list or tuple with arrays."""
    if isinstance(value, dict):
        return True
    if isinstance(value, list | tuple):
        return hasattr(value, "_fields") or any(is_array(item) or is_tree(item) for item in value)
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and not is_array(value)


class Packed:
    """A tree that is ready to be written.

    Args:
        structure: The nested structure, hashable, whose arrays and values are numbered in order.
        leaves: The arrays.
        values: The plain values.
    """

    def __init__(self, structure: Any, leaves: list[np.ndarray[Any, Any]], values: list[Any]) -> None:
        self._leaves = leaves
        kinds = tuple([Leaf(leaf.dtype, leaf.shape, leaf.flags.fnc) for leaf in leaves])
        self._text, self._offsets, size = _plan(structure, kinds)
        self._values = json.dumps([_encode(value) for value in values]).encode() if values else b""
        self._start = _aligned(_LENGTHS.size + len(self._text) + len(self._values))
        self._nbytes = self._start + size

    def signature(self) -> Signature:
        """Return the signature of the block of bytes."""
        return signature(np.dtype(np.uint8), (self._nbytes,), False)

    def write(self, memory: Any, offset: int) -> None:
        """Write the tree to memory."""
        head = _LENGTHS.pack(len(self._text), len(self._values)) + self._text + self._values
        memory[offset : offset + len(head)] = head
        start = offset + self._start
        for leaf, place in zip(self._leaves, self._offsets, strict=True):
            if _compiled.module is not None and leaf.flags.forc:
                _compiled.module.copy(memory, start + place, leaf, self._nbytes)
            else:
                order: Literal["C", "F"] = "F" if leaf.flags.fnc else "C"
                np.ndarray(leaf.shape, leaf.dtype, memory, start + place, None, order)[...] = leaf


def pack(value: Any) -> Packed:
    """Take a tree apart.

    Args:
        value: A dict, list, tuple, named tuple or dataclass of arrays, plain values, and more of these.

    Raises:
        UnsupportedDtypeError: It holds something else, is too deep, or has a class that no other process can import.
    """
    leaves: list[np.ndarray[Any, Any]] = []
    values: list[Any] = []
    return Packed(_take_apart(value, leaves, values, 0), leaves, values)


def _take_apart(value: Any, leaves: list[np.ndarray[Any, Any]], values: list[Any], depth: int) -> Any:
    kind = type(value)
    if kind is np.ndarray:
        dtypes.encode(value.dtype)
        leaves.append(value)
        return "a"
    if kind in _PLAIN:
        values.append(value)
        return "v"
    if depth > _DEEPEST:
        raise UnsupportedDtypeError(f"the tree is more than {_DEEPEST} levels deep, or contains itself")

    if isinstance(value, dict):
        letter = "o" if isinstance(value, OrderedDict) else "d"
        return letter, tuple([_key(key) for key in value]), _all_of(value.values(), leaves, values, depth)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "n", _class_name(kind), _all_of(value, leaves, values, depth)
    if isinstance(value, list | tuple):
        return "l" if isinstance(value, list) else "t", _all_of(value, leaves, values, depth)
    if is_array(value):
        array = host_array(value) if device_of(value) == "cpu" else move(value, "numpy")
        dtypes.encode(array.dtype)
        leaves.append(array)
        return "a"
    if dataclasses.is_dataclass(value):
        names = tuple(field.name for field in dataclasses.fields(value))
        parts = [getattr(value, name) for name in names]
        return "c", _class_name(kind), names, _all_of(parts, leaves, values, depth)
    raise UnsupportedDtypeError(
        f"a tree may hold arrays, plain values, dicts, lists, tuples and dataclasses, not {kind.__qualname__}"
    )


def _all_of(items: Iterable[Any], leaves: list[np.ndarray[Any, Any]], values: list[Any], depth: int) -> tuple[Any, ...]:
    """Take the items of a container apart; arrays and tensors on the host, of which there may be many, at once."""
    found: list[Any] = []
    checked = None
    for item in items:
        array = item if type(item) is np.ndarray else on_host(item)
        if type(array) is not np.ndarray:
            found.append(_take_apart(item, leaves, values, depth + 1))
            continue
        if array.dtype is not checked:
            checked = array.dtype
            dtypes.encode(checked)
        leaves.append(array)
        found.append("a")
    return tuple(found)


def _key(key: Any) -> tuple[str, Any]:
    if type(key) not in _KEYS:
        raise UnsupportedDtypeError(f"got the key {key!r}, want keys of type str, int, float, bool or None")
    return type(key).__name__, key


def _class_name(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    try:
        found = _class_of(name)
    except HandleError:
        found = None
    if found is not kind:
        raise UnsupportedDtypeError(f"another process cannot import {name}: define the class at the top of a module")
    return name


@lru_cache(maxsize=256)
def _plan(structure: Any, kinds: tuple[Leaf, ...]) -> tuple[bytes, tuple[int, ...], int]:
    """Return the text of a structure, where each array lies, and how many bytes they take."""
    offsets, size = [], 0
    for leaf in kinds:
        offsets.append(size)
        count = leaf.dtype.itemsize
        for length in leaf.shape:
            count *= length
        size = _aligned(size + count)
    described = [
        [dtypes.encode(leaf.dtype).decode(), list(leaf.shape), int(leaf.fortran), offset]
        for leaf, offset in zip(kinds, offsets, strict=True)
    ]
    return json.dumps([structure, described]).encode(), tuple(offsets), size


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes"]) if "bytes" in value else complex(*value["complex"])
    return value


def unpack(block: np.ndarray[Any, Any], as_: Library) -> Any:
    """Return the tree of a block of bytes; its arrays lie over the block.

    Args:
        block: The bytes.
        as_: The library of the arrays.

    Raises:
        HandleError: The bytes are not a tree.
    """
    try:
        text, values = _LENGTHS.unpack_from(block.data, 0)
        start = _LENGTHS.size + text
        build, leaves = _read_plan(block[_LENGTHS.size : start].tobytes())
        plain = [_decode(value) for value in json.loads(block[start : start + values].tobytes())] if values else []
        start = _aligned(start + values)
        arrays = [
            np.ndarray(leaf.shape, leaf.dtype, block, start + offset, None, "F" if leaf.fortran else "C")
            for leaf, offset in leaves
        ]
        if as_ == "torch":
            return build(iter(tensors(arrays)), iter(plain))
        return build(iter(arrays), iter(plain))
    except dtypes.MISFITS as error:
        if isinstance(error, HandleError | UnsupportedDtypeError):
            raise
        raise HandleError(f"the tree behind this handle cannot be read: {error}") from error


Builder = Callable[[Any, Any], Any]


@lru_cache(maxsize=256)
def _read_plan(text: bytes) -> tuple[Builder, tuple[tuple[Leaf, int], ...]]:
    structure, described = json.loads(text)
    leaves = tuple(
        (Leaf(dtypes.decode(token.encode()), tuple(shape), bool(fortran)), offset)
        for token, shape, fortran, offset in described
    )
    return _builder(structure), leaves


def _builder(node: Any) -> Builder:
    """Return a function that makes the tree from its arrays and values in order."""
    if node == "a":
        return lambda arrays, _: next(arrays)
    if node == "v":
        return lambda _, values: next(values)
    letter, children = node[0], [_builder(child) for child in node[-1]]
    if letter in "do":
        keys = [key for _, key in node[1]]
        make: Any = OrderedDict if letter == "o" else dict
        return lambda arrays, values: make(zip(keys, [child(arrays, values) for child in children], strict=True))
    if letter in "lt":
        kind: Any = list if letter == "l" else tuple
        return lambda arrays, values: kind([child(arrays, values) for child in children])
    found: Any = _class_of(node[1])
    if letter == "n":
        return lambda arrays, values: found._make([child(arrays, values) for child in children])
    names = node[2]

    def revive(arrays: Any, values: Any) -> Any:
        made = object.__new__(found)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(made, name, child(arrays, values))
        return made

    return revive


def _class_of(name: str) -> type:
    """Return a dataclass or a named tuple by its name.

    Raises:
        HandleError: There is no such class here.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise HandleError(f"the tree has the class {name}, which cannot be imported here: {error}") from error
    if not isinstance(found, type) or not (dataclasses.is_dataclass(found) or issubclass(found, tuple)):
        raise HandleError(f"the tree names {name}, which is neither a dataclass nor a named tuple")
    return found
