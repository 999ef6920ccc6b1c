"""The wire format: MessagePack with a closed set of extension types.

Nothing is constructed by a name from the wire. Every type has one form and comes back as itself:

| Python | on the wire |
|---|---|
| None, bool, float, str, bytes, list, int of 64 bits, dict with str keys | native MessagePack |
| int of any other size, tuple, set, frozenset, dict with other keys, plain datetime, Path | extension types 1 to 7 |
| arrays, tensors, large bytes | extension type 8, a description; see `outgoing` and `incoming` |
| handles of pentad-xfer | extension type 11, their bytes |
| arrays on a GPU that go by handle | extension type 13; see `devices` |
| callables | extension types 9 (owned by the sender) and 10 (owned by the receiver) |
| everything else that travels | extension type 12: a tag of a closed table and parts; see `kinds` |

A value that does not come back equal and of the same type is refused, with its place and what to send instead.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any

from . import kinds
from .errors import OverloadedError, UnsupportedTypeError, WireError

BIG_INT, TUPLE, SET, FROZENSET, DICT, DATETIME, PATH, BUFFER, HANDLE, HANDLE_BACK, XFER, KIND, DEVICE = range(1, 14)
_LONGEST_TIME = 64
MAX_DEPTH = 100
_EQUAL_HASHES = 64
_COMPARED = 1 << 20
"""Most parts of keys with one hash that a set or dict compares, a few milliseconds without a pause."""
_TURN = 300
_PAUSE = 1e-5
_F64, _I64, _U64 = struct.Struct(">Bd"), struct.Struct(">Bq"), struct.Struct(">BQ")
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")
_D = struct.Struct(">d")

Special = Callable[[Any], "tuple[int, bytes] | None"]
Hook = Callable[[int, Any], Any]


def pack(value: object, special: Special) -> bytes:
    """Encode a value.

    Args:
        value: Anything of the closed set of types.
        special: Returns `(extension code, payload)` for arrays and callables, None for anything else.

    Raises:
        UnsupportedTypeError: A part of the value has a type that does not travel; the message has its path.
    """
    out = bytearray()
    try:
        _put(out, value, special, 0)
    except RefusedError as failure:
        found, reason = failure.args
        where = _path_to(value, found, "value") or "a part of value"
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        if reason:
            raise UnsupportedTypeError(f"{where} is a {kind}: {reason}") from None
        raise UnsupportedTypeError(f"{where} is a {kind}, which does not travel; {kinds.remedy(found)}") from None
    return bytes(out)


class RefusedError(Exception):
    """Carries the part that does not travel, and why (or an empty text), up to `pack`, which finds its path."""


def describe(value: Any, special: Special) -> tuple[int, bytes] | None:
    """Return extension code and payload of a value of `kinds`; None for one of another type.

    Raises:
        RefusedError: The value cannot travel unchanged.
    """
    try:
        described = kinds.describe(value)
    except UnsupportedTypeError as failure:
        raise RefusedError(value, str(failure)) from None
    if described is None:
        return None
    out = bytearray()
    _put(out, list(described), special, 1)
    return KIND, bytes(out)


def _header(out: bytearray, size: int, fix: int, fix_limit: int, wide: tuple[int, int, int]) -> None:
    if size < fix_limit:
        out.append(fix | size)
    elif size < 256 and wide[0]:
        out.append(wide[0])
        out.append(size)
    elif size < 65536:
        out.append(wide[1])
        out += _U16.pack(size)
    elif size < 1 << 32:
        out.append(wide[2])
        out += _U32.pack(size)
    else:
        raise WireError(f"a part of {size} entries does not fit a frame (limit {2**32 - 1})")


def _put_ext(out: bytearray, code: int, payload: bytes | bytearray) -> None:
    _header(out, len(payload), 0, 0, (0xC7, 0xC8, 0xC9))
    out.append(code)
    out += payload


def _put_int(out: bytearray, value: int) -> None:
    if 0 <= value < 128:
        out.append(value)
    elif -32 <= value < 0:
        out.append(value & 0xFF)
    elif -(1 << 63) <= value < 1 << 63:
        out += _I64.pack(0xD3, value)
    elif 0 < value < 1 << 64:
        out += _U64.pack(0xCF, value)
    else:
        _put_ext(out, BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _put(out: bytearray, value: Any, special: Special, depth: int) -> None:
    kind = type(value)
    if kind is str:
        data = value.encode("utf-8", "surrogatepass")
        _header(out, len(data), 0xA0, 32, (0xD9, 0xDA, 0xDB))
        out += data
    elif kind is int:
        _put_int(out, value)
    elif value is None:
        out.append(0xC0)
    elif kind is bool:
        out.append(0xC3 if value else 0xC2)
    elif kind is float:
        out += _F64.pack(0xCB, value)
    elif depth > MAX_DEPTH:
        raise WireError(f"a value is nested deeper than {MAX_DEPTH} levels, or contains itself")
    elif kind is list:
        _header(out, len(value), 0x90, 16, (0, 0xDC, 0xDD))
        for item in value:
            _put(out, item, special, depth + 1)
    elif kind is dict:
        _put_dict(out, value, special, depth)
    elif kind is tuple or kind is set or kind is frozenset:
        inner = bytearray()
        _put(inner, list(value), special, depth + 1)
        _put_ext(out, TUPLE if kind is tuple else SET if kind is set else FROZENSET, inner)
    elif kind is bytes:
        made = special(value) if len(value) >= 65536 else None
        if made is not None:
            _put_ext(out, *made)
            return
        _header(out, len(value), 0, 0, (0xC4, 0xC5, 0xC6))
        out += value
    else:
        _put_other(out, value, special)


def _put_dict(out: bytearray, value: dict[Any, Any], special: Special, depth: int) -> None:
    if all(type(key) is str for key in value):
        _header(out, len(value), 0x80, 16, (0, 0xDE, 0xDF))
        for key, item in value.items():
            _put(out, key, special, depth)
            _put(out, item, special, depth + 1)
    else:
        inner = bytearray()
        _put(inner, [part for pair in value.items() for part in pair], special, depth + 1)
        _put_ext(out, DICT, inner)


def _put_other(out: bytearray, value: Any, special: Special) -> None:
    if type(value) is datetime and _plain_zone(value.tzinfo):
        _put_ext(out, DATETIME, value.isoformat().encode() + b"f" * value.fold)
    elif type(value) is _PATH:
        _put_ext(out, PATH, str(value).encode("utf-8", "surrogateescape"))
    else:
        made = special(value)
        if made is None:
            raise RefusedError(value, "")
        _put_ext(out, *made)


_PATH = type(Path())


def _plain_zone(zone: tzinfo | None) -> bool:
    """Whether ISO 8601 says all about a time zone: it is none, or an offset without a name of its own."""
    if zone is None:
        return True
    return type(zone) is timezone and zone.tzname(None) == timezone(zone.utcoffset(None)).tzname(None)


def _path_to(value: Any, target: object, path: str, depth: int = 0) -> str | None:
    if value is target:
        return path
    if depth > MAX_DEPTH:
        return None
    if hasattr(type(value), "__dataclass_fields__"):
        pairs = [(f"{path}.{name}", getattr(value, name, None)) for name in type(value).__dataclass_fields__]
    elif isinstance(value, dict):
        pairs = [(f"{path}[{key!r}]", item) for key, item in value.items()]
        pairs += [(f"{path} key {key!r}", key) for key in value]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        pairs = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None
    for where, item in pairs:
        found = _path_to(item, target, where, depth + 1)
        if found:
            return found
    return None


class Room:
    """What is left of the memory that one message may become, as an estimate in bytes.

    Args:
        size: Bytes.
    """

    __slots__ = ("_turn", "left", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size
        self._turn = _TURN

    def take(self, count: int) -> None:
        """Use some of it.

        Raises:
            OverloadedError: There is not so much left.
        """
        self.left -= count
        self._turn -= 1
        if not self._turn:  # the event loop's thread need not wait until the interpreter switches by itself
            self._turn = _TURN
            time.sleep(_PAUSE)
        if self.left < 0:
            raise OverloadedError(f"a message becomes more than {self.size} bytes when it is decoded")


def unpack(data: bytes, hook: Hook, room: Room | None = None) -> Any:
    """Decode one value; anything after it, before its end, or outside the format is a `WireError`.

    Args:
        data: The bytes.
        hook: Decodes extension types; called with code and payload.
        room: What the value may use; None for any amount.
    """
    try:
        value, end = _get(data, 0, hook, 0, room)
    except (IndexError, struct.error):
        raise WireError(f"a value of {len(data)} bytes ends early") from None
    except UnicodeDecodeError as failure:
        raise WireError(f"a string is not UTF-8: {failure}") from None
    if end != len(data):
        raise WireError(f"{len(data) - end} bytes follow a complete value")
    return value


_SIZES = {
    0xC4: 1,
    0xC5: 2,
    0xC6: 4,
    0xC7: 1,
    0xC8: 2,
    0xC9: 4,
    0xD9: 1,
    0xDA: 2,
    0xDB: 4,
    0xDC: 2,
    0xDD: 4,
    0xDE: 2,
    0xDF: 4,
}
_INTS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}


# Estimates of what values take: a number, a text, a list, a dict and each of its entries.
_SCALAR, _TEXT, _LIST, _MAP, _ENTRY = 32, 56, 72, 72, 104


def _get(data: bytes, at: int, hook: Hook, depth: int, room: Room | None) -> tuple[Any, int]:
    tag = data[at]
    at += 1
    if tag < 0x80:
        return tag, at
    if tag >= 0xE0:
        return tag - 256, at
    if 0xA0 <= tag < 0xC0:
        return _text(data, at, tag & 31, room)
    if tag == 0xC0:
        return None, at
    if tag == 0xC2 or tag == 0xC3:
        return tag == 0xC3, at
    if tag == 0xCB:
        if room is not None:
            room.take(_SCALAR)
        return _D.unpack_from(data, at)[0], at + 8
    if tag in _INTS:
        form = _INTS[tag]
        if room is not None:
            room.take(_SCALAR)
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if depth > MAX_DEPTH:
        raise WireError(f"a value is nested deeper than {MAX_DEPTH} levels")
    if tag < 0x90:
        return _map(data, at, tag & 15, hook, depth, room)
    if tag < 0xA0:
        return _array(data, at, tag & 15, hook, depth, room)
    if 0xD4 <= tag <= 0xD8:
        size = 1 << (tag - 0xD4)
        return _extension(data, at, size, hook, room)
    width = _SIZES.get(tag)
    if width is None:
        if tag == 0xCA:
            return struct.unpack_from(">f", data, at)[0], at + 4
        raise WireError(f"byte 0x{tag:02x} starts no value")
    size = int.from_bytes(data[at : at + width], "big")
    at += width
    if at > len(data) or size > len(data) - at:
        raise WireError(f"a length of {size} passes the end of its frame of {len(data)} bytes")
    if tag <= 0xC6:
        if room is not None:
            room.take(_SCALAR + size)
        return bytes(data[at : at + size]), at + size
    if tag <= 0xC9:
        return _extension(data, at, size, hook, room)
    if tag <= 0xDB:
        return _text(data, at, size, room)
    return _array(data, at, size, hook, depth, room) if tag <= 0xDD else _map(data, at, size, hook, depth, room)


def _text(data: bytes, at: int, size: int, room: Room | None) -> tuple[str, int]:
    end = at + size
    if end > len(data):
        raise WireError("a string passes the end of its frame")
    if room is not None:
        room.take(_TEXT + size)
    return str(data[at:end], "utf-8", "surrogatepass"), end


def _array(data: bytes, at: int, size: int, hook: Hook, depth: int, room: Room | None) -> tuple[list[Any], int]:
    if room is not None:
        room.take(_LIST + 8 * size)
    items: list[Any] = []
    for _ in range(size):
        tag = data[at]
        if tag < 0x80:  # the most frequent ones without a call
            items.append(tag)
            at += 1
        elif tag == 0xC0:
            items.append(None)
            at += 1
        elif tag == 0x80 and room is None:
            items.append({})
            at += 1
        else:
            item, at = _get(data, at, hook, depth + 1, room)
            items.append(item)
    return items, at


def _map(data: bytes, at: int, size: int, hook: Hook, depth: int, room: Room | None) -> tuple[dict[Any, Any], int]:
    if room is not None:
        room.take(_MAP + _ENTRY * size)
    items: dict[Any, Any] = {}
    for _ in range(size):
        key, at = _get(data, at, hook, depth + 1, room)
        if type(key) is not str:
            raise WireError(f"a plain map has a {type(key).__name__} key")
        items[key], at = _get(data, at, hook, depth + 1, room)
    return items, at


def _extension(data: bytes, at: int, size: int, hook: Hook, room: Room | None) -> tuple[Any, int]:
    code = data[at]
    end = at + 1 + size
    if end > len(data):
        raise WireError("an extension value passes the end of its frame")
    if room is not None:
        room.take(_LIST + size)
    return hook(code, data[at + 1 : end]), end


def revive(code: int, payload: bytes, decode: Callable[[bytes], Any]) -> Any:
    """Build the value of an extension type of this module; the caller handles arrays and callables."""
    if code == BIG_INT:
        return int.from_bytes(payload, "little", signed=True)
    try:
        if code == DATETIME:
            if len(payload) > _LONGEST_TIME:  # an error would repeat all of it
                raise WireError(f"a time of {len(payload)} bytes, at most {_LONGEST_TIME}")
            text = str(payload, "ascii")
            return datetime.fromisoformat(text.removesuffix("f")).replace(fold=int(text.endswith("f")))
        if code == PATH:
            return Path(str(payload, "utf-8", "surrogateescape"))
        if code not in (TUPLE, SET, FROZENSET, DICT):
            raise WireError(f"extension type {code} is not part of the protocol")
        items = decode(payload)
        if type(items) is not list:
            raise WireError(f"extension type {code} holds a {type(items).__name__}, not a list")
        if code == TUPLE:
            return tuple(items)
        check_hashes(items[::2] if code == DICT else items)
        if code == DICT:
            return dict(zip(items[::2], items[1::2], strict=True))
        return set(items) if code == SET else frozenset(items)
    except (ValueError, TypeError) as failure:
        if isinstance(failure, (WireError, UnsupportedTypeError)):
            raise
        raise WireError(f"extension type {code} is malformed: {failure}") from None


def check_hashes(keys: list[Any]) -> None:
    """Refuse keys that make a set or dict quadratic: many unequal or large ones with the same hash."""
    large = any(type(key) in (tuple, frozenset) and len(key) > _EQUAL_HASHES for key in keys)
    if len(keys) <= _EQUAL_HASHES and not large:
        return
    counts: dict[int, int] = {}
    for key in keys:
        number = hash(key)
        counts[number] = counts.get(number, 0) + 1
    most = max(counts.values())
    if most > _EQUAL_HASHES:
        raise UnsupportedTypeError(f"{most} keys of a set or dict have the same hash; send them as a list")
    if large and most > 1:
        alike = [key for key in keys if type(key) in (tuple, frozenset) and counts[hash(key)] > 1]
        if sum(map(_parts, alike)) * most > _COMPARED:
            raise UnsupportedTypeError(f"large keys of a set or dict have the same hash, {most} of them; send a list")


def _parts(key: Any) -> int:
    """Count what comparing a key with another may look at."""
    return 1 + sum(map(_parts, key)) if type(key) in (tuple, frozenset) else 1
