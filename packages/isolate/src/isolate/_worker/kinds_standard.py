"""Types of the standard library beyond the wire's own."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from types import EllipsisType, SimpleNamespace
from typing import Any

from .errors import UnsupportedTypeError, WireError

_DIVIDED_BITS = 1 << 14
"""Dividing larger numbers, as a Fraction and a range do at once, would take the receiver too long."""
_FACTORIES: dict[str, type] = {kind.__name__: kind for kind in (list, dict, set, int, float, str, tuple, bytes, bool)}
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,3}\Z")
_PATHS = ("PurePosixPath", "PureWindowsPath")
_ADDRESSES = ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface")
_FORMATS = frozenset("cbB?hHiIlLqQfd")


def wanted(good: bool, what: str) -> None:
    """Raise WireError unless the condition holds."""
    if not good:
        raise WireError(f"{what} is malformed")


# Time zones


def zone_parts(zone: tzinfo | None) -> list[Any] | None:
    """Return the parts of a time zone; None for none.

    Raises:
        UnsupportedTypeError: It is neither a fixed offset nor a zone with a name of the time zone database.
    """
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        plain = timezone(offset).tzname(None) == name
        return ["offset", *_delta_parts(offset), None if plain else name]
    if type(zone).__module__.partition(".")[0] == "zoneinfo" and type(zone).__qualname__ == "ZoneInfo":
        key = getattr(zone, "key", None)
        if key is not None and _ZONE.match(key):
            return ["zone", key]
    raise UnsupportedTypeError(
        f"the time zone {zone!r:.60} does not travel; use zoneinfo.ZoneInfo(name), or value.astimezone(timezone.utc)"
    )


def zone_of(parts: Any) -> tzinfo | None:
    """Return the time zone for its parts."""
    if parts is None:
        return None
    wanted(type(parts) is list and len(parts) > 1, "a time zone")
    if parts[0] == "offset":
        _, days, seconds, microseconds, name = parts
        offset = timedelta(days, seconds, microseconds)
        if name is None:
            return timezone(offset) if offset else UTC
        wanted(type(name) is str and len(name) < 100, "a time zone's name")
        return timezone(offset, name)
    # The pattern has no dots and no leading slash: the key can neither leave the database's folder nor its package.
    wanted(parts[0] == "zone" and type(parts[1]) is str and _ZONE.match(parts[1]) is not None, "a time zone")
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(parts[1])
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise UnsupportedTypeError(
            f"a time in the zone {parts[1]} came, and the time zone database here does not have it; install tzdata"
        ) from None


def _delta_parts(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _datetime_parts(value: datetime) -> list[Any]:
    parts = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
    return [*parts, value.fold, zone_parts(value.tzinfo)]


def _time_parts(value: time) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold, zone_parts(value.tzinfo)]


def _datetime_of(parts: Any) -> datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = parts
    return datetime(year, month, day, hour, minute, second, microsecond, zone_of(zone), fold=fold)


def _time_of(parts: Any) -> time:
    hour, minute, second, microsecond, fold, zone = parts
    return time(hour, minute, second, microsecond, zone_of(zone), fold=fold)


# Numbers


def _fraction_parts(value: Any) -> list[int]:
    return _short([value.numerator, value.denominator], "Fraction")


def _short(numbers: list[int], what: str) -> list[int]:
    """Return the numbers that a value divides, if that is quick."""
    if max(number.bit_length() for number in numbers) > _DIVIDED_BITS:
        raise UnsupportedTypeError(f"a {what} of numbers above {_DIVIDED_BITS} bits does not travel; send the numbers")
    return numbers


def _fraction_of(parts: Any) -> Any:
    from fractions import Fraction

    top, bottom = _short(_integers(parts), "Fraction")
    return Fraction(top, bottom)


def _decimal_of(parts: Any) -> Any:
    from decimal import Decimal

    wanted(type(parts) is str, "a Decimal")
    return Decimal(parts)


def _uuid_parts(value: Any) -> list[Any]:
    return [value.bytes, value.is_safe.value]


def _uuid_of(parts: Any) -> Any:
    from uuid import UUID, SafeUUID

    data, safe = parts
    return UUID(bytes=data, is_safe=SafeUUID(safe))


def _address_of(tag: str, parts: Any) -> Any:
    import ipaddress

    wanted(type(parts) is str and len(parts) < 200, "an address")
    return getattr(ipaddress, tag)(parts)  # the tag is one of _ADDRESSES


def _path_of(tag: str, parts: Any) -> Any:
    import pathlib

    wanted(type(parts) is str, "a path")
    return pathlib.PurePosixPath(parts) if tag == "PurePosixPath" else pathlib.PureWindowsPath(parts)


def _complex_of(parts: Any) -> complex:
    real, imaginary = parts
    wanted(type(real) is float and type(imaginary) is float, "a complex")
    return complex(real, imaginary)


# Containers and bytes


def _default_parts(value: defaultdict[Any, Any]) -> list[Any]:
    factory = value.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        raise UnsupportedTypeError(f"a defaultdict of {factory!r:.60} does not travel; send dict(value)")
    return [name, list(value.items())]


def _default_of(parts: Any) -> defaultdict[Any, Any]:
    name, items = parts
    return defaultdict(None if name is None else _FACTORIES[name], _pairs(items))


def _pairs(items: Any) -> dict[Any, Any]:
    from .wire import check_hashes

    wanted(type(items) is list and all(type(item) is tuple and len(item) == 2 for item in items), "a dict")
    check_hashes([key for key, _ in items])
    return dict(items)


def _counter_of(parts: Any) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    dict.update(counter, _pairs(parts))
    return counter


def _deque_of(parts: Any) -> deque[Any]:
    items, most = parts
    wanted(type(items) is list and (most is None or type(most) is int), "a deque")
    return deque(items, most)


def _namespace_of(parts: Any) -> SimpleNamespace:
    wanted(type(parts) is dict, "a namespace")
    return SimpleNamespace(**parts)


def _view_parts(value: memoryview) -> list[Any]:
    if value.format.lstrip("@") not in _FORMATS:
        raise UnsupportedTypeError(f"a memoryview of format {value.format!r} does not travel; send bytes(value)")
    return [value.tobytes(), value.format, list(value.shape or ())]


def _view_of(parts: Any) -> memoryview:
    data, form, shape = parts
    wanted(type(data) is bytes and type(form) is str and form.lstrip("@") in _FORMATS, "a memoryview")
    view = memoryview(data)
    return view.cast(form, shape) if shape and len(shape) > 1 else view.cast(form)


def _array_of(parts: Any) -> Any:
    from array import array

    code, data = parts
    made = array(code)
    made.frombytes(data)
    return made


def _array_parts(value: Any) -> list[Any]:
    if value.typecode in "uw":  # its width differs between systems and versions
        raise UnsupportedTypeError("an array of characters does not travel; send value.tounicode()")
    return [value.typecode, value.tobytes()]


def _buffer_of(parts: Any) -> Any:
    from io import BytesIO

    data, position = parts
    made = BytesIO(data)
    made.seek(position)
    return made


def _integers(parts: Any) -> Any:
    wanted(type(parts) is list and all(type(part) is int for part in parts), "a list of numbers")
    return parts


_EXACT: dict[type, tuple[str, Callable[[Any], Any]]] = {
    complex: ("complex", lambda value: [value.real, value.imag]),
    bytearray: ("bytearray", bytes),
    memoryview: ("memoryview", _view_parts),
    range: ("range", lambda value: _short([value.start, value.stop, value.step], "range")),
    slice: ("slice", lambda value: [value.start, value.stop, value.step]),
    EllipsisType: ("ellipsis", lambda _: None),
    datetime: ("datetime", _datetime_parts),
    date: ("date", date.toordinal),
    time: ("time", _time_parts),
    timedelta: ("timedelta", _delta_parts),
    timezone: ("zone", zone_parts),
    OrderedDict: ("OrderedDict", lambda value: list(value.items())),
    defaultdict: ("defaultdict", _default_parts),
    Counter: ("Counter", lambda value: list(value.items())),
    deque: ("deque", lambda value: [list(value), value.maxlen]),
    SimpleNamespace: ("SimpleNamespace", lambda value: dict(vars(value))),
}
# By module and name, so that a worker does not import what its extension does not use.
_NAMED: dict[tuple[str, str], tuple[str, Callable[[Any], Any]]] = {
    ("decimal", "Decimal"): ("Decimal", str),
    ("fractions", "Fraction"): ("Fraction", _fraction_parts),
    ("uuid", "UUID"): ("UUID", _uuid_parts),
    ("array", "array"): ("array", _array_parts),
    ("_io", "BytesIO"): ("BytesIO", lambda value: [value.getvalue(), value.tell()]),
    ("zoneinfo", "ZoneInfo"): ("zone", zone_parts),
    **{("ipaddress", name): (name, str) for name in _ADDRESSES},
    **{(module, name): (name, str) for module in ("pathlib", "pathlib._local") for name in _PATHS},
}
_BUILD: dict[str, Callable[[Any], Any]] = {
    "complex": _complex_of,
    "bytearray": bytearray,
    "memoryview": _view_of,
    "range": lambda parts: range(*_short(_integers(parts), "range")),
    "slice": lambda parts: slice(*parts),
    "ellipsis": lambda _: ...,
    "datetime": _datetime_of,
    "date": date.fromordinal,
    "time": _time_of,
    "timedelta": lambda parts: timedelta(*_integers(parts)),
    "zone": zone_of,
    "OrderedDict": lambda parts: OrderedDict(_pairs(parts)),
    "defaultdict": _default_of,
    "Counter": _counter_of,
    "deque": _deque_of,
    "SimpleNamespace": _namespace_of,
    "Decimal": _decimal_of,
    "Fraction": _fraction_of,
    "UUID": _uuid_of,
    "array": _array_of,
    "BytesIO": _buffer_of,
}


def knows(kind: type) -> bool:
    """Return whether values of a type travel."""
    return kind in _EXACT or (kind.__module__, kind.__qualname__) in _NAMED


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts of a value of the standard library; None for any other."""
    found = _EXACT.get(kind) or _NAMED.get((kind.__module__, kind.__qualname__))
    if found is None:
        return None
    tag, parts = found
    return tag, parts(value)


def build(tag: str, parts: Any) -> Any:
    """Return the value for a tag and its parts."""
    if tag in _ADDRESSES:
        return _address_of(tag, parts)
    if tag in _PATHS:
        return _path_of(tag, parts)
    make = _BUILD.get(tag)
    if make is None:
        raise WireError(f"there is no type {tag!r:.40} in the protocol")
    if tag == "bytearray" and type(parts) is not bytes:
        raise WireError("a bytearray is malformed")
    return make(parts)
