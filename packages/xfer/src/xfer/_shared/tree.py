"""Trees of arrays as one block of bytes: what they look like, where each array lies, and the arrays themselves.

The block starts with the lengths of two JSON texts and the texts: the structure, which is the same for each message of
a stream and is cached, and the plain values. The arrays follow, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from xfer import _compiled
from xfer._convert.interchange import (
    Library,
    device_of,
    dlpack_kind,
    host_array,
    is_array,
    tensor_interface,
    tensors,
)
from xfer._convert.move import move
from xfer._plans import Plans
from xfer._shared import dtypes
from xfer._shared.handle import Signature, signature
from xfer.errors import HandleError, UnsupportedDtypeError

_LENGTHS = struct.Struct("<II")
_ALIGN = 64
_DEEPEST = 100
_LONG_BITS = 1000
_KEPT, _KEPT_BYTES = 256, 2 << 20  # plans of each side; in memory they are about ten times as large as their texts
_EXTENT = struct.Struct("<QQ")
_PLAIN = (type(None), bool, int, float, str, bytes, complex)
_KEYS = {kind: kind.__name__ for kind in (str, int, float, bool, type(None))}


class Leaf(NamedTuple):
    """How an array of a tree looks."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> Leaf:
        """Return how an array looks."""
        return cls(array.dtype, array.shape, array.flags.fnc)


def is_tree(value: Any, depth: int = 0) -> bool:
    """Return whether a value is sent as a tree: a mapping, dataclass or named tuple, or a list or tuple with arrays.

    So is an empty list or tuple: one of arrays may be empty, while no numbers are an array of no known dtype.
    """
    if isinstance(value, dict):
        return True
    if isinstance(value, list | tuple):
        if not value or hasattr(value, "_fields") or dataclasses.is_dataclass(value):
            return True
        if depth > _DEEPEST:  # `pack` refuses it
            return True
        return any(is_array(item) or is_tree(item, depth + 1) for item in value)
    if is_array(value) or isinstance(value, type):
        return False
    return dataclasses.is_dataclass(value) or isinstance(value, Mapping)


class Packed:
    """A tree that is ready to be written.

    Args:
        structure: The nested structure, hashable, whose arrays and values are numbered in order.
        leaves: The arrays and tensors.
        values: The plain values.

    Raises:
        UnsupportedDtypeError: An array holds something that means nothing elsewhere.
    """

    def __init__(self, structure: Any, leaves: list[Any], values: list[Any]) -> None:
        self._leaves = leaves
        self._tensors = tensor_interface() if _compiled.module is not None else None
        look, self._others = b"", list(range(len(leaves)))  # the leaves that the core does not copy
        if self._tensors is not None:
            look, self._others = _compiled.module.look(leaves, *self._tensors)
        for index in self._others:
            leaves[index] = _plain(leaves[index])
        kinds = tuple([Leaf.of(leaves[index]) for index in self._others])
        self._plan = _plan_of((structure, look, kinds), leaves)
        self._values = json.dumps([_encode(value) for value in values]).encode() if values else b""
        self._start = _aligned(_LENGTHS.size + len(self._plan.text) + len(self._values))
        self._nbytes = self._start + self._plan.nbytes

    def signature(self) -> Signature:
        """Return the signature of the block of bytes."""
        return signature(np.dtype(np.uint8), (self._nbytes,), False)

    def write(self, memory: Any, offset: int) -> None:
        """Write the tree to memory."""
        text, places = self._plan.text, self._plan.places
        head = _LENGTHS.pack(len(text), len(self._values)) + text + self._values
        memory[offset : offset + len(head)] = head
        start = offset + self._start
        if self._tensors is not None and len(self._others) < len(self._leaves):
            _compiled.module.write(memory, start, places, self._leaves, *self._tensors, self._nbytes)
        for index in self._others:
            leaf, place = self._leaves[index], start + _EXTENT.unpack_from(places, index * _EXTENT.size)[0]
            if _compiled.module is not None and leaf.flags.forc:
                _compiled.module.copy(memory, place, leaf, self._nbytes)
            else:
                order: Literal["C", "F"] = "F" if leaf.flags.fnc else "C"
                np.ndarray(leaf.shape, leaf.dtype, memory, place, None, order)[...] = leaf


def pack(value: Any) -> Packed:
    """Take a tree apart.

    Args:
        value: A dict, list, tuple, named tuple or dataclass of arrays, plain values, and more of these.

    Raises:
        UnsupportedDtypeError: It holds something else, is too deep, or has a class that no other process can import.
    """
    leaves: list[Any] = []
    values: list[Any] = []
    torch = sys.modules.get("torch")
    kinds = frozenset((np.ndarray, getattr(torch, "Tensor", np.ndarray)))
    return Packed(_take_apart(value, leaves, values, kinds, 0), leaves, values)


def _take_apart(value: Any, leaves: list[Any], values: list[Any], kinds: frozenset[type], depth: int) -> Any:
    kind = type(value)
    if kind in kinds:
        leaves.append(value)
        return "a"
    if kind in _PLAIN:
        values.append(value)
        return "v"
    if isinstance(value, np.generic):
        if isinstance(value, str | bytes):  # an array of text loses what it ends with, and torch has none
            values.append(str.__str__(value) if isinstance(value, str) else bytes(value))
            return "v"
        leaves.append(np.asarray(value))
        return "a"
    if depth > _DEEPEST:
        raise UnsupportedDtypeError(f"the tree is more than {_DEEPEST} levels deep, or contains itself")

    def all_of(items: Iterable[Any]) -> Any:
        items = list(items)
        if kinds.issuperset(map(type, items)):  # a container may have many arrays, which need no step each
            leaves.extend(items)
            return len(items)
        return tuple([_take_apart(item, leaves, values, kinds, depth + 1) for item in items])

    _check_fields_are_items(value)
    if isinstance(value, Mapping):
        letter = "o" if isinstance(value, OrderedDict) else "d"
        if set(map(type, value)) == {str}:
            return letter, "str", tuple(value), all_of(value.values())
        return letter, None, tuple([_key(key) for key in value]), all_of(value.values())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "n", _class_name(kind), all_of(value)
    if isinstance(value, list | tuple):
        return "l" if isinstance(value, list) else "t", all_of(value)
    if is_array(value):
        leaves.append(value)
        return "a"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = _field_names(value)
        return "c", _class_name(kind), names, all_of([_field(value, name) for name in names])
    raise UnsupportedDtypeError(
        f"a tree may hold arrays, plain values, dicts, lists, tuples and dataclasses, not {kind.__qualname__}"
    )


def _field_names(value: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(value))


def _check_fields_are_items(value: Any) -> None:
    """Refuse a container that is a dataclass as well and whose fields would be lost: only its items are sent.

    Outputs of transformers are mappings and dataclasses, and each of their fields with a value is an item.
    """
    if not isinstance(value, Mapping | list | tuple) or not dataclasses.is_dataclass(value):
        return
    filled = {name: found for name in _field_names(value) if (found := getattr(value, name, None)) is not None}
    items = value if isinstance(value, Mapping) else {}
    lost = [name for name, found in filled.items() if items.get(name) is not found]
    if lost:
        raise UnsupportedDtypeError(
            f"a {type(value).__qualname__} has fields that are not among its items ({', '.join(lost)}): put a dict or "
            "a dataclass that is no container"
        )


def _field(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except AttributeError as error:
        raise UnsupportedDtypeError(f"the field {name!r} of a {type(value).__qualname__} has no value yet") from error


def _plain(leaf: Any) -> np.ndarray[Any, Any]:
    """Return NumPy's array of a leaf, or a copy where it is on a device."""
    if type(leaf) is np.ndarray:
        return leaf
    array: np.ndarray[Any, Any] = host_array(leaf) if device_of(leaf) == "cpu" else move(leaf, "numpy")
    return array


def _key(key: Any) -> tuple[str, Any]:
    name = _KEYS.get(type(key))
    if name is None:
        raise UnsupportedDtypeError(f"got the key {key!r}, want keys of type str, int, float, bool or None")
    if isinstance(key, int) and key.bit_length() > _LONG_BITS:
        raise UnsupportedDtypeError(f"got an integer key of {key.bit_length()} bits, want at most {_LONG_BITS}")
    return name, key


def _class_name(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    try:
        found = _class_of(name)
    except HandleError:
        found = None
    if found is not kind:
        raise UnsupportedDtypeError(f"another process cannot import {name}: define the class at the top of a module")
    return name


class Plan(NamedTuple):
    """What the trees of one structure and of the same kinds of arrays have in common."""

    text: bytes  # the structure, as it is written
    places: bytes  # for each array, where it lies and its bytes
    nbytes: int  # of all arrays


_plans: Plans[Plan] = Plans(_KEPT, _KEPT_BYTES)


def _plan_of(key: Any, leaves: list[Any]) -> Plan:
    """Return the plan of a key: the structure, what the core says of its tensors, and the kinds of all other leaves.

    Raises:
        UnsupportedDtypeError: A dtype means nothing elsewhere.
    """
    plan = _plans.get(key)
    if plan is None:
        plan = _plan(key[0], [Leaf.of(_plain(leaf)) for leaf in leaves])
        _plans.keep(key, plan, len(plan.text))
    return plan


def _plan(structure: Any, kinds: list[Leaf]) -> Plan:
    places, described, size = bytearray(), [], 0
    for leaf in kinds:
        count = leaf.dtype.itemsize * math.prod(leaf.shape)
        described.append([dtypes.encode(leaf.dtype).decode(), list(leaf.shape), int(leaf.fortran), size])
        places += _EXTENT.pack(size, count)
        size = _aligned(size + count)
    return Plan(json.dumps([structure, described]).encode(), bytes(places), size)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, int) and value.bit_length() > _LONG_BITS:  # Python refuses to write thousands of digits
        return {"int": hex(value)}
    return value


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "int" in value:
        return int(value["int"], 16)
    return bytes.fromhex(value["bytes"]) if "bytes" in value else complex(*value["complex"])


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
        plan = _read_plan(block[_LENGTHS.size : start].tobytes())
        plain = [_decode(value) for value in json.loads(block[start : start + values].tobytes())] if values else []
        return plan.build(iter(_arrays(block, _aligned(start + values), plan, as_)), iter(plain))
    except dtypes.MISFITS as error:
        if isinstance(error, HandleError | UnsupportedDtypeError):
            raise
        raise HandleError(f"the tree behind this handle cannot be read: {error}") from error


Builder = Callable[[Any, Any], Any]


class _ReadPlan(NamedTuple):
    """What a text of a tree says."""

    build: Builder
    leaves: tuple[tuple[Leaf, int], ...]  # how each array looks, and where it lies
    description: bytes  # the same for the core, where it makes tensors
    all_tensors: bool  # whether the core makes all of them


_read_plans: Plans[_ReadPlan] = Plans(_KEPT, _KEPT_BYTES)


def _read_plan(text: bytes) -> _ReadPlan:
    plan = _read_plans.get(text)
    if plan is None:
        plan = _decode_plan(text)
        _read_plans.keep(text, plan, len(text))
    return plan


def _decode_plan(text: bytes) -> _ReadPlan:
    structure, described = json.loads(text)
    leaves = tuple(
        (Leaf(dtypes.decode(token.encode()), tuple(shape), bool(fortran)), offset)
        for token, shape, fortran, offset in described
    )
    description, all_tensors = bytearray(), True
    for leaf, offset in leaves:
        kind = 0 if leaf.fortran else dlpack_kind(leaf.dtype)
        all_tensors = all_tensors and kind != 0
        description += struct.pack(f"<IIQ{len(leaf.shape)}q", kind, len(leaf.shape), offset, *leaf.shape)
    return _ReadPlan(_builder(structure), leaves, bytes(description), all_tensors)


def _arrays(block: np.ndarray[Any, Any], start: int, plan: _ReadPlan, as_: Library) -> list[Any]:
    """Return the arrays or tensors over a block."""
    made: list[Any] = [None] * len(plan.leaves)
    if as_ == "torch":
        import torch  # noqa: F401 - the caller wants tensors

        interface = tensor_interface()
        if interface is not None and _compiled.module is not None and block.flags.writeable:
            made = _compiled.module.tensors(block, start, plan.description, interface[1])
            if plan.all_tensors:
                return made
    others = [index for index, tensor in enumerate(made) if tensor is None]  # what the core did not make
    arrays = []
    for index in others:
        leaf, offset = plan.leaves[index]
        order: Literal["C", "F"] = "F" if leaf.fortran else "C"
        arrays.append(np.ndarray(leaf.shape, leaf.dtype, block, start + offset, None, order))
    for index, array in zip(others, tensors(arrays) if as_ == "torch" else arrays, strict=True):
        made[index] = array
    return made


def _builder(node: Any) -> Builder:
    """Return a function that makes the tree from its arrays and values in order."""
    if node == "a":
        return lambda arrays, _: next(arrays)
    if node == "v":
        return lambda _, values: next(values)
    letter, items = node[0], _items(node[-1])
    if letter in "do":
        keys = node[2] if node[1] else [key for _, key in node[2]]
        make: Any = OrderedDict if letter == "o" else dict
        return lambda arrays, values: make(zip(keys, items(arrays, values), strict=True))
    if letter in "lt":
        kind: Any = list if letter == "l" else tuple
        return lambda arrays, values: kind(items(arrays, values))
    found: Any = _class_of(node[1]) if letter in "cn" else None
    if letter == "n":
        return lambda arrays, values: found._make(items(arrays, values))
    if letter != "c":
        raise HandleError(f"the tree has a container {letter!r}, which this release does not know: use the producer's")
    names = node[2]

    def revive(arrays: Any, values: Any) -> Any:
        made = object.__new__(found)
        for name, item in zip(names, items(arrays, values), strict=True):
            object.__setattr__(made, name, item)
        return made

    return revive


def _items(nodes: list[Any] | int) -> Builder:
    """Return a function that makes the items of a container, or takes as many arrays as it has items."""
    if isinstance(nodes, list):
        children = [_builder(node) for node in nodes]
        return lambda arrays, values: [child(arrays, values) for child in children]

    def take(arrays: Any, _: Any) -> list[Any]:
        found = list(islice(arrays, nodes))
        if len(found) != nodes:
            raise ValueError(f"got {len(found)} arrays, want {nodes}")
        return found

    return take


def _class_of(name: str) -> type:
    """Return a dataclass or a named tuple by its name.

    Raises:
        HandleError: There is no such class here.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)  # which waits for a thread that imports it now
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise HandleError(f"the tree has the class {name}, which cannot be imported here: {error}") from error
    if not isinstance(found, type) or not (dataclasses.is_dataclass(found) or issubclass(found, tuple)):
        raise HandleError(f"the tree names {name}, which is neither a dataclass nor a named tuple")
    return found
