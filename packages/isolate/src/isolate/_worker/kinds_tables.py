"""Arrow: tables, batches and arrays as an Arrow IPC stream that is written into shared memory and read in place."""

from __future__ import annotations

import struct
import sys
from typing import Any

from .errors import UnsupportedTypeError, WireError
from .kinds_standard import wanted
from .libraries import library
from .outgoing import Filled

_NAMES = ("Table", "RecordBatch", "ChunkedArray", "Schema")
_EXTENSION = b"ARROW:extension:name"
"""Where a stream has this, pyarrow runs code that the name selects, with bytes of the sender; before 14.0.1, any."""


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts; None for what does not travel."""
    pa = library("pyarrow", "an Arrow table")
    if kind is pa.Table:
        return "pyarrow.Table", _filled(pa, value.schema, value.to_batches())
    if kind is pa.RecordBatch:
        return "pyarrow.RecordBatch", _filled(pa, value.schema, [value])
    if kind is pa.Schema:
        return "pyarrow.Schema", _filled(pa, value, [])
    if kind is pa.ChunkedArray:
        schema = pa.schema([pa.field("", value.type)])
        batches = [pa.record_batch([chunk], schema=schema) for chunk in value.chunks]
        return "pyarrow.ChunkedArray", _filled(pa, schema, batches)
    if isinstance(value, pa.Array):
        schema = pa.schema([pa.field("", value.type)])
        return "pyarrow.Array", _filled(pa, schema, [pa.record_batch([value], schema=schema)])
    if isinstance(value, pa.Scalar):
        raise UnsupportedTypeError("a scalar of pyarrow does not travel; send value.as_py()")
    return None


def _filled(pa: Any, schema: Any, batches: list[Any]) -> Any:
    for field in schema:
        if isinstance(field.type, pa.BaseExtensionType):
            raise UnsupportedTypeError(
                f"a column {field.name!r} of the extension type {field.type} does not travel; send its .storage"
            )
        if _EXTENSION in pa.schema([field]).serialize().to_pybytes():
            raise UnsupportedTypeError(
                f"a column {field.name!r} with an extension type inside, or with its name in the metadata, does not "
                "travel; send the storage without that metadata"
            )
    if _EXTENSION in (schema.metadata or {}):
        raise UnsupportedTypeError(f"a schema with metadata {_EXTENSION.decode()} does not travel; remove that")

    def write(sink: Any) -> None:
        with pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)

    size = pa.MockOutputStream()
    write(size)

    def fill(target: Any) -> None:
        with pa.FixedSizeBufferWriter(pa.py_buffer(target)) as sink:
            write(sink)

    return Filled(size.size(), fill)


def build(tag: str, parts: Any, trusted: bool = False) -> Any:
    """Return the value for an IPC stream; everything in it is checked before use.

    Args:
        tag: What it is.
        parts: The stream, in memory that the sender may still write to.
        trusted: Whether the sender leaves it alone. Else it is copied first, since offsets that are changed after the
            check would lead the reader out of its memory.
    """
    pa = library("pyarrow", "an Arrow table")
    name = tag.partition(".")[2]
    if name not in (*_NAMES, "Array"):
        raise WireError(f"there is no type {tag!r:.40} in the protocol")
    data = pa.py_buffer(parts) if trusted or type(parts) is bytes else _copied(pa, parts)
    for message in pa.ipc.MessageReader.open_stream(data):
        metadata = message.metadata.to_pybytes()
        if _EXTENSION in metadata:
            raise UnsupportedTypeError("an Arrow stream with extension types does not travel; send their .storage")
        _refuse_compressed(metadata)
    with pa.ipc.open_stream(data) as reader:
        schema = reader.schema
        batches = list(reader)
    for batch in batches:
        batch.validate(full=True)  # offsets that lead out of the buffers would read foreign memory
    if name == "Schema":
        return schema
    if name == "Table":
        return pa.Table.from_batches(batches, schema)
    if name == "RecordBatch":
        wanted(len(batches) == 1, "a record batch")
        return batches[0]
    wanted(len(schema) == 1, "an Arrow array")
    chunks = [batch.column(0) for batch in batches]
    if name == "ChunkedArray":
        return pa.chunked_array(chunks, schema.field(0).type)
    wanted(len(chunks) == 1, "an Arrow array")
    return chunks[0]


def _copied(pa: Any, parts: Any) -> Any:
    """Return a copy that keeps the sender's memory too, so that this still counts towards what the sender may hold."""
    numpy = sys.modules["numpy"]
    wanted(isinstance(parts, numpy.ndarray) and parts.dtype == numpy.uint8 and parts.ndim == 1, "an Arrow stream")
    copy = parts.copy()  # other threads go on meanwhile
    return pa.foreign_buffer(copy.ctypes.data, copy.nbytes, (copy, parts))


def _refuse_compressed(metadata: bytes) -> None:
    """Raise WireError if a message's buffers are compressed: what they become would know no limit.

    `metadata` is a flatbuffer: a `Message` whose field 1 is the kind of its field 2; kind 3 is a `RecordBatch`, whose
    field 3 describes the compression; kind 2 is a `DictionaryBatch`, whose field 1 is a `RecordBatch`.
    """
    try:
        root = _u32(metadata, 0)
        kind_at, header_at = _field(metadata, root, 1), _field(metadata, root, 2)
        if not kind_at or not header_at or metadata[kind_at] not in (2, 3):
            return
        batch = header_at + _u32(metadata, header_at)
        if metadata[kind_at] == 2:
            inner = _field(metadata, batch, 1)
            if not inner:
                return
            batch = inner + _u32(metadata, inner)
        compressed = _field(metadata, batch, 3)
    except (struct.error, IndexError):
        raise WireError("an Arrow message is malformed") from None
    if compressed:
        raise WireError("an Arrow message is compressed")


def _u32(data: bytes, at: int) -> int:
    found: int = struct.unpack_from("<I", data, at)[0]
    return found


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a flatbuffer's table is; 0 if the table does not have it."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, entries)[0]
    slot = 4 + 2 * number
    if slot + 2 > size:
        return 0
    offset: int = struct.unpack_from("<H", data, entries + slot)[0]
    return table + offset if offset else 0
