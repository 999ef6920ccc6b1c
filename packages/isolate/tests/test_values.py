"""Values come back equal and of the same type, or are refused with their place and what to send instead."""

from __future__ import annotations

import array
import collections
import contextlib
import datetime as dt
import decimal
import enum
import fractions
import io
import ipaddress
import math
import os
import pathlib
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integration_test_base import OLD_NUMPY, IntegrationTestBase

import isolate
from isolate._worker import kinds
from isolate._worker.codec import Codec
from isolate._worker.outgoing import Outgoing
from isolate.errors import UnsupportedTypeError, WireError

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
RECORDS = np.array([(1, 2.5, b"x"), (2, -0.0, b"")], dtype=[("a", "i4"), ("b", ">f8"), ("c", "S3")])


def view(form: str) -> memoryview:
    """A memoryview of some bytes."""
    return memoryview(bytes(range(8))).cast(form)


STANDARD: dict[str, Any] = {
    "complex": complex(-0.0, math.inf),
    "Decimal": decimal.Decimal("1.10"),
    "Decimal NaN": decimal.Decimal("-sNaN12"),
    "Fraction": fractions.Fraction(-1, 3),
    "UUID": uuid.UUID(int=7),
    "date": dt.date(2020, 2, 29),
    "time": dt.time(1, 2, 3, 4, tzinfo=dt.UTC, fold=1),
    "timedelta": dt.timedelta(-1, 3, 5),
    "datetime in a zone": dt.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    "datetime with a named offset": dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2), "CEST")),
    "datetime at an odd offset": dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=-61, microseconds=3))),
    "timezone": dt.timezone(dt.timedelta(hours=-3), "BRT"),
    "ZoneInfo": BERLIN,
    "Path": pathlib.Path("/a b/ü"),
    "PurePosixPath": pathlib.PurePosixPath("a/b"),
    "PureWindowsPath": pathlib.PureWindowsPath("c:\\x"),
    "range": range(1, 10, 3),
    "slice": slice(1, None, 2),
    "Ellipsis": ...,
    "bytearray": bytearray(b"xy"),
    "large bytearray": bytearray(os.urandom(100_000)),
    "memoryview": view("B"),
    "memoryview of numbers": view("H"),
    "OrderedDict": collections.OrderedDict([("b", 1), ((1,), 2)]),
    "defaultdict": collections.defaultdict(list, {1: [2]}),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, (2,)], maxlen=5),
    "SimpleNamespace": types.SimpleNamespace(a=1, b=[2]),
    "array": array.array("d", [1, 2]),
    "BytesIO": io.BytesIO(b"abc"),
    **{
        kind.__name__: kind(text)
        for kind, text in (
            (ipaddress.IPv4Address, "1.2.3.4"),
            (ipaddress.IPv6Address, "::1%lo"),
            (ipaddress.IPv4Network, "1.2.3.0/24"),
            (ipaddress.IPv6Network, "fe80::/10"),
            (ipaddress.IPv4Interface, "1.2.3.4/24"),
            (ipaddress.IPv6Interface, "::1/64"),
        )
    },
}
NUMPY: dict[str, Any] = {
    **{
        name: getattr(np, name)(3)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    **{
        name: getattr(np, name)(0.1)
        for name in ("float16", "float32", "float64", "longdouble", "complex64", "complex128")
    },
    "bool_": np.bool_(True),
    "NaN": np.float64(np.nan),
    "str_": np.str_("a\0"),
    "bytes_": np.bytes_(b"q\0"),
    "datetime64": np.datetime64("2020-01-01T00:00:00.123456789"),
    "timedelta64": np.timedelta64(5, "ns"),
    "NaT": np.datetime64("NaT", "s"),
    "void": RECORDS[0],
    "dtype": RECORDS.dtype,
    "structured array": RECORDS,
    "aligned, nested and with a subarray": np.zeros(
        2, np.dtype([("x", "i1"), ("y", [("z", "f8", (2, 3))])], align=True)
    ),
    "raw array": np.arange(6, dtype="u1").view("V3"),
    "record array": RECORDS.view(np.recarray),
    "matrix": np.array([[1, 2], [3, 4]]).view(np.matrix),
    "masked array": np.ma.MaskedArray([1.0, 2, 3], mask=[0, 1, 0], fill_value=7),
    "hard mask": np.ma.MaskedArray([1, 2], mask=[True, False], hard_mask=True),
    "no mask": np.ma.MaskedArray([1, 2]),
    "masked": np.ma.masked,
    "Fortran order": np.asfortranarray(np.arange(20_000.0).reshape(100, 200)),
    "another order": np.arange(60).reshape(3, 4, 5).transpose(2, 0, 1),
    "big endian": np.arange(3, dtype=">i2"),
    "text": np.array(["a", "bcd"]),
}


def canonical(value: Any) -> Any:
    """What two values share only if they are equal, of the same type, and so are all their parts."""
    kind = type(value)
    if kind is list:
        return [canonical(item) for item in value]
    if kind is dict:
        return {key: canonical(item) for key, item in value.items()}
    name = f"{kind.__module__}.{kind.__qualname__}"
    if value is np.ma.masked:
        return name
    if isinstance(value, np.ma.MaskedArray):
        return (
            name,
            canonical(value.filled()),
            str(value.fill_value),
            canonical(np.ma.getmaskarray(value)),
            value.hardmask,
        )
    if isinstance(value, np.ndarray):
        order = value.flags.c_contiguous, value.flags.f_contiguous, np.argsort(value.strides).tolist()
        return name, str(value.dtype), value.dtype.isalignedstruct, value.shape, order, value.tobytes()
    if isinstance(value, np.generic):
        return name, str(value.dtype), value.tobytes(), [ord(c) for c in value] if isinstance(value, str) else None
    if isinstance(value, io.BytesIO):
        return name, value.getvalue(), value.tell()
    if isinstance(value, memoryview):
        return name, value.format, value.shape, value.tobytes()
    if isinstance(value, dt.datetime | dt.time):
        return name, repr(value), value.fold, str(value.tzname())
    if isinstance(value, collections.Counter):
        return name, list(value.items())
    return name, repr(value)


def kind_of(value: Any) -> list[str]:
    """Package and name of a value's type, without what differs between numpy 1 and 2."""
    name = "dtype" if isinstance(value, np.dtype) else type(value).__qualname__.rstrip("_")
    return [type(value).__module__.partition(".")[0], name]


Codecs = Callable[[Any], Any]


ECHO = """
import numpy
class Extension:
    def __init__(self, host): self.host = host
    def echo(self, value): return value
    def kind(self, value):
        name = "dtype" if isinstance(value, numpy.dtype) else type(value).__qualname__.rstrip("_")
        return [type(value).__module__.partition(".")[0], name]
    def total(self, array): return array.sum()
    def version(self): return numpy.__version__
    def make(self, code): return eval(code, {"numpy": numpy})
"""


class TestTable(IntegrationTestBase):
    """Every type of the table, to an extension with an older numpy and back."""

    def test_every_type_comes_back(self) -> None:
        """Equal, of the same type, with masks, nanoseconds, zone names and memory order."""
        self.create_extension("old", ECHO, dependencies=[OLD_NUMPY])
        host, loaded = self.load_extensions()
        assert not loaded.errors
        call = host["old"].call
        assert call.version() != np.__version__
        changed = {}
        for name, value in {**STANDARD, **NUMPY}.items():
            sent = canonical([value, {"k": value}])
            got = call.echo([value, {"k": value}])
            if canonical(got) != sent:
                changed[name] = (got[0], value)
            if call.kind(value) != kind_of(value):
                changed[f"{name} arrives as"] = (call.kind(value), kind_of(value))
        assert changed == {}
        assert len(STANDARD) + len(NUMPY) >= 60
        assert canonical(call.total(np.arange(4))) == canonical(np.int64(6))
        mask = call.make("numpy.ma.masked_array([1, 2], [False, True])")
        assert canonical(mask) == canonical(np.ma.masked_array([1, 2], [False, True]))


class Unequal:
    """A class that no side declares."""


class Text(str):
    """A subclass of a built-in type."""

    __slots__ = ()


class Pixels(np.ndarray):
    """A subclass of an array."""


REFUSED: dict[str, tuple[Any, str]] = {
    "subclass of str": (Text("a"), r"send str\(value\)"),
    "defaultdict with a function": (collections.defaultdict(lambda: 1), r"send dict\(value\)"),
    "object": (Unequal(), r"isolate\.converter\(Unequal"),
    "type": (int, r"isolate\.converter"),
    "iterator": (iter([1]), r"send list\(value\)"),
    "subclass of an array": (np.zeros(3).view(Pixels), r"send numpy\.array\(value\)"),
    "array of objects": (np.array([object()]), r"value\.tolist\(\)"),
    "large fraction": (fractions.Fraction(1, 1 << 70_000), "send the numbers"),
    "large range": (range(1 << 70_000), "send the numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_travel_is_refused_with_its_place(travel: Codecs, name: str) -> None:
    """The message has the place and the remedy, however deep the value lies."""
    value, remedy = REFUSED[name]
    for wrapped, place in (({"k": [1, value]}, r"value\['k'\]\[1\] is a "), (value, r"value is a ")):
        with pytest.raises(UnsupportedTypeError, match=place) as caught:
            travel(wrapped)
        assert re.search(remedy, str(caught.value)), str(caught.value)


@given(
    value=st.decimals() | st.fractions() | st.complex_numbers() | st.times() | st.dates() | st.timedeltas() | st.uuids()
)
@settings(max_examples=100, deadline=None)
def test_any_number_or_time_comes_back(value: Any) -> None:
    """Whatever the value, NaNs and signed zeros among them."""
    codec = Codec(lambda *_: None, lambda *_: None, lambda *_: None)
    assert repr(codec.decode(codec.encode(value))) == repr(value)


FAMILIES = {
    "numpy": "structured scalar order array_masked dtype records matrix text",
    "pandas": "DataFrame Series Index Array Timestamp",
    "pyarrow": "Table Array Schema",
    "PIL": "Image",
    "declared": "enum dataclass namedtuple",
}
PLAIN = "zone array datetime time Fraction Decimal deque Counter memoryview converted UUID slice range BytesIO nothing"
TAGS = st.sampled_from(
    [f"{family}.{name}" for family, names in FAMILIES.items() for name in names.split()] + PLAIN.split()
)
PARTS = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.binary(max_size=20) | st.floats(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(tag=TAGS, parts=PARTS)
@settings(max_examples=100, deadline=None)
def test_forged_parts_are_refused(tag: str, parts: Any) -> None:
    """Whatever the other side claims about a value, it becomes a value or one of three errors."""
    with contextlib.suppress(WireError, UnsupportedTypeError):
        kinds.build([tag, parts])


@pytest.mark.parametrize(
    ("tag", "parts"),
    [
        ("zone", ["zone", "../../etc/passwd"]),
        ("zone", ["zone", "os.path"]),
        ("numpy.scalar", ["|O8", b"12345678"]),
        ("numpy.dtype", ["fields", ["a"], ["<f8"], [1 << 40], 8, False]),
        ("numpy.structured", [["fields", ["a"], ["|O8"], [0], 8, False], [1], None]),
        ("PIL.Image", ["RGB", [60_000, 60_000], b"", None, {}]),
        ("Fraction", [1, 1 << 70_000]),
        ("range", [0, 1 << (1 << 24), (1 << (1 << 23)) + 1]),
        ("OrderedDict", [((0,) * 50_000 + (number * (2**61 - 1),), 0) for number in range(60)]),
        ("defaultdict", ["eval", []]),
        ("IPv4Address", "1.2.3.4.5"),
    ],
)
def test_attacks_by_description(tag: str, parts: Any) -> None:
    """No file outside the zones, no objects, no memory that was not sent, no quadratic work, no other callables."""
    with pytest.raises((WireError, UnsupportedTypeError)):
        kinds.build([tag, parts])


# Declared types


class Shade(enum.Enum):
    """An enum of the host."""

    DARK = "dark"
    LIGHT = "light"


class Spot(NamedTuple):
    """A named tuple of the host."""

    x: int
    y: float


@dataclass
class Job:
    """A dataclass of the host, with a field that its constructor does not take."""

    shade: Shade
    spots: list[Spot]
    size: int = 1
    seen: int = field(default=0, init=False)


DECLARING = """
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

class Shade(enum.Enum):
    DARK = "dark"
    LIGHT = "light"

class Spot(NamedTuple):
    x: int
    y: float

@dataclass
class Job:
    shade: Shade
    spots: list[Spot]
    size: int = 1
    seen: int = field(default=0, init=False)

def same(job: Job) -> Job:
    assert type(job) is Job and type(job.shade) is Shade and type(job.spots[0]) is Spot, job
    return job

def each(jobs: Sequence[Job], *more: Spot, **named: Shade):
    yield from jobs
    yield from more
    yield from named.values()

def undeclared(value):
    return 1
"""


class Doing(Protocol):
    """What the host expects of the extension."""

    def same(self, job: Job) -> Job:
        """The same."""
        ...

    def each(self, jobs: Sequence[Job], *more: Spot, **named: Shade) -> Iterator[Job | Spot | Shade]:
        """One after the other."""
        ...


class TestDeclared(IntegrationTestBase):
    """Dataclasses, enums and named tuples, by the annotations of the two sides."""

    def test_both_ways(self) -> None:
        """The extension's annotations rebuild arguments, the host's contract rebuilds results; else both refuse."""
        folder = self.create_extension("jobs", DECLARING)
        host = self.make_host()
        jobs = host.load(folder, contract=Doing)
        job = Job(Shade.DARK, [Spot(1, 2.5)], 3)
        job.seen = 9
        got = jobs.call.same(job)
        assert got == job
        assert (type(got.shade), type(got.spots[0]), got.seen) == (Shade, Spot, 9)
        assert list(jobs.call.each([job], Spot(1, 2.0), last=Shade.LIGHT)) == [job, Spot(1, 2.0), Shade.LIGHT]
        for value, place in (([job], r"argument 0\[0\] is a dataclass Job"), ({"k": Shade.DARK}, r"\['k'\] is a enum")):
            with pytest.raises(UnsupportedTypeError, match=place):
                jobs.call.undeclared(value)
        jobs.stop()
        bare = host.load(folder)
        with pytest.raises(UnsupportedTypeError, match="the result is a dataclass Job of the other side"):
            bare.call.same(job)

    def test_converters(self) -> None:
        """A type of one's own travels where both sides have registered its name, and is refused elsewhere."""
        code = """
        class Money:
            def __init__(self, cents): self.cents = cents
        class Extension:
            def __init__(self, host):
                self.host = host
                host.converter(Money, to=lambda money: money.cents, back=Money)
            def double(self, money): return [Money(2 * money.cents)]
            def again(self):
                import isolate
                isolate.converter(Money, to=lambda money: -money.cents, back=Money)
        """
        call = self.make_host().load(self.create_extension("bank", code)).call

        class Money:
            def __init__(self, cents: int) -> None:
                self.cents = int(cents)

        with pytest.raises(UnsupportedTypeError, match=r"isolate\.converter\(Money"):
            call.double(Money(2))
        remove = isolate.converter(Money, to=lambda money: money.cents, back=Money)
        try:
            assert call.double(Money(2))[0].cents == 4
            call.again()
            assert call.double(Money(2))[0].cents == -4
        finally:
            remove()
        with pytest.raises(UnsupportedTypeError):
            call.double(Money(2))


def test_a_library_that_another_thread_is_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is there without its classes: values travel, or are refused, as without it."""

    class Odd:
        pass

    for name in ("torch", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    outgoing = Outgoing(lambda *_: None, lambda: None)
    assert outgoing.describe([1, 2]) is None
    outgoing.close()
    assert "send built-in values" in kinds.remedy(Odd())
