"""The wire format: every type comes back as itself, and nothing else gets in."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolate._worker.codec import Codec, is_plain
from isolate._worker.convert import arguments
from isolate._worker.wire import MAX_DEPTH, pack, unpack
from isolate.errors import UnsupportedTypeError, WireError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**64) - 2, max_value=2**64 + 2)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=5, minutes=30))))
    | st.just(Path("/a b/ü"))
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
    ),
    max_leaves=20,
)


def refuse(code: int, payload: Any) -> Any:
    """No arrays or callables in these tests."""
    raise WireError(f"extension {code}")


def forget(code: int, payload: bytes) -> None:
    """Nothing was made that could be taken back."""


def codecs() -> list[Codec]:
    """One that uses msgspec, and the one that a worker without msgspec has."""
    slow = Codec(lambda *_: None, refuse, forget)
    slow._fast = None
    return [Codec(lambda *_: None, refuse, forget), slow]


def canonical(value: Any) -> str:
    """A text that two values share only if they and all their parts are equal and of the same types."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(canonical, value))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{list(map(canonical, value))}"
    if isinstance(value, dict):
        return f"dict{[(canonical(key), canonical(item)) for key, item in value.items()]}"
    return f"{type(value).__name__} {value!r}"


def same(left: Any, right: Any) -> bool:
    """Equal, of the same types all the way down, NaN being itself."""
    return canonical(left) == canonical(right)


@pytest.mark.parametrize("writer", [0, 1])
@pytest.mark.parametrize("reader", [0, 1])
@given(value=VALUES)
@settings(max_examples=60, deadline=None)
def test_round_trip(writer: int, reader: int, value: Any) -> None:
    """Each of the two encoders is understood by each of the two decoders, and types are kept."""
    assert same(value, codecs()[reader].decode(codecs()[writer].encode(value)))


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_value_or_a_wire_error(data: bytes) -> None:
    """Arbitrary bytes never raise anything but a wire error."""
    for codec in codecs():
        with contextlib.suppress(WireError):
            codec.decode(data)


@pytest.mark.parametrize("size", [2**31, 2**32 - 1])
@pytest.mark.parametrize("tag", [0xC6, 0xC9, 0xDB, 0xDD, 0xDF])
def test_huge_lengths_are_refused_before_allocation(tag: int, size: int) -> None:
    """A length that passes its frame is an error, whatever it announces."""
    for codec in codecs():
        with pytest.raises(WireError):
            codec.decode(bytes([tag]) + size.to_bytes(4, "big") + b"\x01abc")


@pytest.mark.parametrize("unit", [b"\x91", b"\x81\xa1k", b"\xc7\xff\x02"])
def test_depth_is_bounded(unit: bytes) -> None:
    """Nesting far beyond the limit is an error and no crash."""
    for codec in codecs():
        with pytest.raises(WireError):
            codec.decode(unit * 50_000 + b"\xc0")


def test_self_containing_value_is_refused() -> None:
    """A list that contains itself cannot be sent."""
    value: list[Any] = []
    value.append(value)
    for codec in codecs():
        with pytest.raises((WireError, UnsupportedTypeError), match="itself"):
            codec.encode(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([1, {"a": (2, object())}], r"value\[1\]\['a'\]\[1\] is a builtins.object"),
        ({"k": len.__class__}, r"value\['k'\] is a builtins.type"),
    ],
)
def test_unsupported_type_names_its_path(value: Any, path: str) -> None:
    """What does not travel is named with the way to it."""
    for codec in codecs():
        with pytest.raises(UnsupportedTypeError, match=path):
            codec.encode(value)


def test_malformed_extensions() -> None:
    """Extension values of the wrong inner form, unknown codes and trailing bytes are wire errors."""
    for codec in codecs():
        for data in (
            b"\xc7\x01\x02\x05",  # a tuple that holds a number
            b"\xc7\x02\x03\x91\x90",  # a set of a list
            b"\xc7\x02\x05\x91\x01",  # a dict of odd length
            b"\xc7\x01\x06x",  # a datetime that is none
            b"\xc7\x01\x63\xc0",  # an unknown code
            b"\xc0\xc0",
            b"\xc1",
            b"\xa2\xff\xff",
        ):
            with pytest.raises(WireError):
                codec.decode(data)
        with pytest.raises(WireError) as caught:
            codec.decode(b"\xc9" + (1 << 20).to_bytes(4, "big") + b"\x06" + b"x" * (1 << 20))
        assert len(str(caught.value)) < 200  # it does not repeat what came


def test_plain_values_are_recognised() -> None:
    """Only what comes back as itself from native MessagePack takes the fast way."""
    assert is_plain({"a": [1, None, {"b": b"c"}]})
    for value in ((1,), [(1,)], {1: 2}, {"a": {3}}, b"x" * 70_000, [[b"x" * 70_000]]):
        assert not is_plain(value)


def test_depth_limit_is_the_same_both_ways() -> None:
    """What can be sent can be received."""
    value: Any = None
    for _ in range(MAX_DEPTH):
        value = [value]
    assert unpack(pack(value, lambda item: None), refuse) == value


class Shade(Enum):
    """Travels as its value."""

    DARK = "dark"
    LIGHT = "light"


@dataclass
class Spot:
    """Travels as its fields."""

    shade: Shade
    size: float = 1.0
    inner: list[Spot] | None = None


def paint(
    one: Spot,
    pair: tuple[Shade, int],
    many: tuple[Shade, ...],
    named: dict[str, Spot],
    keyed: dict[Shade, int],
    some: Annotated[set[Shade], "note"],
    either: Spot | int | None = None,
) -> None:
    """Everything that is rebuilt by annotation."""


GIVEN: dict[str, Any] = {
    "one": {"shade": "dark", "size": 2, "inner": [{"shade": "light"}]},
    "pair": ("dark", 1),
    "many": ("dark", "light"),
    "named": {"a": {"shade": "dark"}},
    "keyed": {"light": 3},
    "some": {"dark"},
    "either": 4,
}


def test_annotations_rebuild_values() -> None:
    """Dataclasses and enums inside lists, tuples, sets, dicts and unions; by position and by name."""
    convert = arguments(paint)
    assert convert is not None
    wanted = {
        "one": Spot(Shade.DARK, 2.0, [Spot(Shade.LIGHT)]),
        "pair": (Shade.DARK, 1),
        "many": (Shade.DARK, Shade.LIGHT),
        "named": {"a": Spot(Shade.DARK)},
        "keyed": {Shade.LIGHT: 3},
        "some": {Shade.DARK},
        "either": 4,
    }
    assert convert([], GIVEN) == ([], wanted)
    assert convert(list(GIVEN.values()), {}) == (list(wanted.values()), {})
    assert convert([wanted["one"]], {"either": None}) == ([wanted["one"]], {"either": None})
    assert convert([], {"either": {"shade": "light"}})[1] == {"either": Spot(Shade.LIGHT)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("one", 3, "one is a int, wanted the fields of Spot"),
        ("one", {}, "one is no Spot"),
        ("one", {"shade": "dark", "size": "2"}, r"one\.size is a str, wanted float"),
        ("one", {"shade": "dark", "hue": 1}, r"\['hue'\]"),
        ("pair", ("dark",), "wanted a tuple of 2"),
        ("many", ["dark"], "wanted a tuple"),
        ("many", ("dim",), r"many\[0\] is 'dim', wanted a Shade: 'dark', 'light'"),
        ("named", [], "wanted dict"),
        ("named", {"a": 1}, r"named\['a'\] is a int"),
        ("keyed", {"dim": 1}, "keyed key 'dim'"),
        ("some", ["dark"], "wanted set"),
    ],
)
def test_values_that_do_not_fit_their_annotations(name: str, value: Any, message: str) -> None:
    """The message has the path to the part that does not fit, what it is, and what was wanted."""
    convert = arguments(paint)
    assert convert is not None
    with pytest.raises((TypeError, ValueError), match=message):
        convert([], {name: value})
