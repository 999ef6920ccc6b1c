"""Values of pandas, pyarrow, Pillow and torch come back equal, through shared memory."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from integration_test_base import IntegrationTestBase

from isolate.errors import UnsupportedTypeError, WireError

Travel = Callable[[Any], Any]


def wide(pd: Any) -> Any:
    """A frame with a column of every kind that travels."""
    frame = pd.DataFrame(
        {
            "i": np.arange(5),
            "f": [1.5, np.nan, 2, 3, 4],
            "o": ["a", None, 1, b"x", dt.date(2020, 1, 1)],
            "s": ["a", "b", None, "d", "e"],
            "c": pd.Categorical(["x", "y", "x", None, "y"], ordered=True),
            "t": pd.date_range("2020-01-01 00:00:00.000000001", periods=5, tz="Europe/Berlin"),
            "u": pd.date_range("2020-01-01", periods=5, tz=dt.timezone(dt.timedelta(hours=2))),
            "n": pd.array([1, None, 3, 4, 5], dtype="Int64"),
            "m": pd.array([1.5, None, 3, 4, 5], dtype="Float32"),
            "b": pd.array([True, None, False, True, True], dtype="boolean"),
            "st": pd.array(["a", None, "c", "d", "e"], dtype="string"),
            "p": pd.period_range("2020-01", periods=5, freq="M"),
            "iv": pd.interval_range(0, 5),
            "td": pd.to_timedelta(range(5), unit="ns"),
        },
        index=pd.MultiIndex.from_product([[1], list("abcde")], names=["u", ("v", 1)]),
    )
    frame.attrs = {"k": [1]}
    return frame


def test_frames(travel: Travel) -> None:
    """Every kind of column and index, names, attributes, duplicate and no columns, from a block and from a slice."""
    pd = pytest.importorskip("pandas")
    square = pd.DataFrame(np.random.default_rng(0).random((20_000, 4)), columns=pd.RangeIndex(4))
    frames = [
        wide(pd),
        square,
        square[::2],
        square.iloc[:0],
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame(),
    ]
    for frame in frames:
        got = travel([frame])[0]
        pd.testing.assert_frame_equal(got, frame, check_freq=True, check_exact=True)
        assert got.attrs == frame.attrs
    daily = pd.Series([1, 2], index=pd.date_range("2020", periods=2, freq="D"), name=("q", 1))
    pd.testing.assert_series_equal(travel(daily), daily)
    for index in (pd.Index(["a", "b"], name="z"), pd.RangeIndex(3, name="r"), wide(pd).index, daily.index):
        pd.testing.assert_index_equal(travel(index), index, exact=True)
    moment = pd.Timestamp("2020-10-25 01:30:00.123456789", tz="UTC").tz_convert("Europe/Berlin")
    for scalar in (moment, moment.tz_localize(None), pd.Timedelta(5, "ns")):
        assert (travel(scalar), type(travel(scalar)), str(travel(scalar))) == (scalar, type(scalar), str(scalar))
    assert travel(pd.NaT) is pd.NaT
    assert travel(pd.NA) is pd.NA


def test_a_host_imports_nothing_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of a library that the receiver has not imported is refused with what to do."""
    from isolate._worker import kinds

    for tag, module in (("pandas.NaT", "pandas"), ("pyarrow.Table", "pyarrow"), ("PIL.Image", "PIL.Image")):
        monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(UnsupportedTypeError, match=f"{module} is not imported here; import it before the call"):
            kinds.build([tag, b""])


def test_frames_that_would_change(travel: Travel) -> None:
    """A subclass, a sparse column and an object that does not travel are refused."""
    pd = pytest.importorskip("pandas")

    class Own(pd.DataFrame):  # type: ignore[misc]
        pass

    for frame in (Own({"a": [1]}), pd.DataFrame({"a": pd.arrays.SparseArray([0, 1])}), pd.DataFrame({"a": [object()]})):
        with pytest.raises(UnsupportedTypeError):
            travel(frame)


def test_arrow(travel: Travel) -> None:
    """Tables keep chunks, metadata, dictionaries and nested columns; their memory is read in place."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        {
            "a": pa.chunked_array([[1, 2], [None]]),
            "s": ["x", None, "z"],
            "l": [[1], [], None],
            "d": pa.array(["u", "v", "u"]).dictionary_encode(),
        }
    ).replace_schema_metadata({"k": "v"})
    large = pa.table({"x": np.arange(100_000.0)})
    for value in (table, table.slice(1), large, pa.table({}), table.to_batches()[0]):
        got = travel(value)
        assert type(got) is type(value)
        assert got.equals(value, check_metadata=True)
    got = travel(table)
    assert got.column("a").num_chunks == 2
    for array in (table.column("a"), pa.array([1.5, None]), pa.array([], pa.int8()), table.column("d").chunk(0)):
        assert travel(array).equals(array)
    assert travel(table.schema).equals(table.schema, check_metadata=True)


def test_arrow_attacks(travel: Travel) -> None:
    """Compressed buffers, offsets out of bounds, damaged and foreign streams are refused."""
    from isolate._worker import kinds

    pa = pytest.importorskip("pyarrow")

    def stream(batch: Any, **options: Any) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue())

    bomb = pa.record_batch({"a": np.zeros(1 << 20)})
    assert len(stream(bomb, compression="zstd")) < 100_000
    text = stream(pa.record_batch({"a": ["abc"]}))
    before, after = bytes([0, 0, 0, 0, 3, 0, 0, 0]) + b"abc", bytes([0, 0, 0, 0, 0, 0, 0, 0x40]) + b"abc"
    assert text.count(before) == 1
    wild = text.replace(before, after)
    good = stream(pa.record_batch({"a": [1, 2]}))
    for data in (stream(bomb, compression="zstd"), stream(bomb, compression="lz4"), wild, good[:50], b"x" * 99):
        with pytest.raises((WireError, UnsupportedTypeError)):
            kinds.build(["pyarrow.Table", data])
    for at in range(0, len(good), 3):
        with contextlib.suppress(WireError, UnsupportedTypeError):
            kinds.build(["pyarrow.Table", good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]])


def test_arrow_extension_types_are_neither_built_nor_sent(travel: Travel) -> None:
    """Pyarrow runs a registered type's code with the sender's bytes, and libraries that register some unpickle them."""
    from isolate._worker import kinds

    pa = pytest.importorskip("pyarrow")
    ran = []

    class Registered(pa.ExtensionType):  # type: ignore[misc]
        """As a library that the host has imported registers it."""

        def __init__(self) -> None:
            super().__init__(pa.int64(), "isolate.test")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Any:
            ran.append(serialized)
            return cls()

    named = {"ARROW:extension:name": "isolate.test", "ARROW:extension:metadata": "the sender's bytes"}
    field = pa.field("a", pa.int64(), metadata=named)
    schemas = [
        pa.schema([field]),
        pa.schema([pa.field("l", pa.list_(field))]),
        pa.schema([pa.field("s", pa.struct([field, pa.field("b", pa.int8())]))]),
        pa.schema([pa.field("a", pa.int64())], metadata=named),
    ]
    streams = []
    for schema in schemas:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema):
            pass
        streams.append(bytes(sink.getvalue()))
    pa.register_extension_type(Registered())
    try:
        for data in streams:
            for content in (data, np.frombuffer(data, np.uint8)):
                for trusted in (False, True):
                    with pytest.raises(UnsupportedTypeError, match="storage"):
                        kinds.build(["pyarrow.Schema", content], trusted)
        for schema in schemas:
            with pytest.raises(UnsupportedTypeError, match=r"ARROW:extension:name|extension type"):
                travel(schema)
        assert ran == []
    finally:
        pa.unregister_extension_type("isolate.test")


def test_memory_that_is_rewritten_after_the_check() -> None:
    """The sender can still write to shared memory: offsets that have been checked are in the receiver's own."""
    from isolate._worker import kinds

    pa = pytest.importorskip("pyarrow")
    texts = [f"text {number}" for number in range(1000)]
    batch = pa.record_batch({"a": texts, "d": pa.array(texts).dictionary_encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    memory = np.frombuffer(sink.getvalue(), np.uint8).copy()
    table = kinds.build(["pyarrow.Table", memory])
    memory[:] = 0x7F
    table.validate(full=True)
    assert table.column("a").to_pylist() == table.column("d").to_pylist() == texts
    for hostile in (1 << 40, [1, 2], "text", None, np.zeros((2, 2), np.uint8), np.zeros(8)):
        with pytest.raises((WireError, UnsupportedTypeError)):
            kinds.build(["pyarrow.Table", hostile])

    pd = pytest.importorskip("pandas")
    codes = np.zeros(10, np.int8)
    column = ["categories", codes, ["plain", ["objects", ["x", "y"]], None, None], False]
    made = kinds.build(["pandas.Array", column])
    codes[:] = 99
    assert list(made) == ["x"] * 10
    assert isinstance(made, pd.Categorical)


LIBRARIES = """
import numpy, pandas, pyarrow
from PIL import Image

class Extension:
    def echo(self, value): return value
    def versions(self): return [numpy.__version__, pandas.__version__]
    def frame(self): return pandas.DataFrame({"a": [1, 2], "t": pandas.date_range("2020", periods=2, tz="Asia/Tokyo")})
    def table(self): return pyarrow.table({"a": numpy.arange(100_000)})
    def image(self): return Image.new("RGBA", (640, 480), (1, 2, 3, 4))
"""


@pytest.mark.slow
class TestOtherVersions(IntegrationTestBase):
    """The same to a worker with numpy 1 and an older pandas, and back."""

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason="numpy 1 has no wheels for this Python")
    def test_libraries_of_another_generation(self) -> None:
        """Frames, tables and images are equal after both ways; what only one version has is refused or equal."""
        pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
        image_module = pytest.importorskip("PIL.Image")
        old = ["numpy<2", "pandas<2.3", "pyarrow<20", "pillow<11.3"]
        self.create_extension("old", LIBRARIES, dependencies=old)
        host, loaded = self.load_extensions()
        assert not loaded.errors
        call = host["old"].call
        assert call.versions()[0] < "2" < np.__version__
        square = pd.DataFrame(
            np.random.default_rng(0).random((20_000, 4)), columns=pd.Index(list("abcd"), dtype=object)
        )
        mixed = wide(pd).drop(columns=["s", "c", "st"]).reset_index(drop=True)
        mixed.columns = mixed.columns.astype(object)
        for frame in (square, square[::2], mixed):
            pd.testing.assert_frame_equal(call.echo(frame), frame, check_exact=True)
        if pd.__version__ >= "3":
            with pytest.raises(UnsupportedTypeError, match=r"send it as objects: frame\.astype"):
                call.echo(pd.DataFrame({"a": ["text"]}))
        moment = pd.Timestamp("2020-10-25 01:30:00.123456789", tz="UTC").tz_convert("Europe/Berlin")
        assert call.echo([moment, pd.NaT])[0] == moment
        table = pa.table({"a": pa.chunked_array([[1, 2], [None]]), "s": ["x", None, "z"]})
        assert call.echo(table).equals(table, check_metadata=True)
        assert call.table()["a"].to_pylist()[-1] == 99_999
        assert call.image() == image_module.new("RGBA", (640, 480), (1, 2, 3, 4))
        assert str(call.frame()["t"].iloc[1]) == "2020-01-02 00:00:00+09:00"


def test_images(travel: Travel) -> None:
    """Modes, palettes and notes; an image that is still a file is refused with what to send."""
    image_module = pytest.importorskip("PIL.Image")
    palette = image_module.new("P", (5, 4))
    palette.putpalette(list(range(30)))
    palette.putpixel((1, 1), 3)
    palette.info = {"transparency": 2, "dpi": (72.0, 72.0)}
    modes = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
    for image in (
        palette,
        *(image_module.new(mode, (9, 3)) for mode in modes),
        image_module.new("RGB", (300, 200), (1, 2, 3)),
    ):
        got = travel(image)
        assert (got, got.info, got.getpalette()) == (image, image.info, image.getpalette())
    file = io.BytesIO()
    palette.save(file, "PNG")
    with pytest.raises(UnsupportedTypeError, match=r"send value\.copy\(\)"):
        travel(image_module.open(file))


def test_tensors(travel: Travel) -> None:
    """Tensors keep their memory order; gradients and subclasses are refused."""
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.rand(40, 50, 60).permute(2, 0, 1),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ):
        got = travel(tensor)
        assert torch.equal(got, tensor)
        assert got.stride() == tensor.stride()
    for value in (torch.Size([1, 2]), torch.bfloat16, torch.device("cpu")):
        assert (travel(value), type(travel(value))) == (value, type(value))
    with pytest.raises(UnsupportedTypeError, match="meta device"):
        travel(torch.ones(2, device="meta"))
    for value in (torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.ones(2))):
        with pytest.raises(UnsupportedTypeError, match="detach"):
            travel(value)
