"""The handle: where an array lies and what it is, as plain bytes.

Layout, little-endian (version 1):

    2s magic "XF"   B version   B flags   B ndim   B reserved   H length of the dtype token
    I producer's process id     I descriptor number there, or NAMED
    Q segment id (random)       Q inode of the segment
    I slot number   I reserved  Q bytes of data   Q stamp of this filling of the slot
    ndim x Q shape              dtype token, unless it is kept in the slot behind the data
    I CRC-32 of everything before

The stamp is drawn from a counter with a random start and is never used twice; stamp and CRC are also kept in the
slot, so a handle with any altered field fails even if its CRC was made to fit.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np

from xfer._arguments import token_bytes
from xfer._shared import dtypes
from xfer.errors import HandleError

MAGIC = b"XF"
VERSION = 1
NAMED = 0xFFFFFFFF
MAX_DIMS = 64
FORTRAN = 1
TOKEN_IN_SLOT = 2
CUDA = 4
TREE = 8  # the slot holds a packed tree of arrays
CONSUME = 16  # the first reader takes the array over
HEADER = struct.Struct("<2sBBBBHIIQQIIQQ")
TAIL = struct.Struct("<I")
# Header, eight dimensions and the CRC leave this much of 256 bytes for the dtype.
INLINE_TOKEN = 256 - HEADER.size - 8 * 8 - TAIL.size


class Fields(NamedTuple):
    """The header of a handle."""

    magic: bytes = MAGIC
    version: int = VERSION
    flags: int = 0
    ndim: int = 0
    reserved: int = 0
    token_length: int = 0
    pid: int = 0
    fd: int = 0
    segment: int = 0
    inode: int = 0
    slot: int = 0
    reserved2: int = 0
    nbytes: int = 0
    stamp: int = 0


class Handle:
    """A reference to an array in a pool: immutable, hashable, picklable, and plain bytes.

    It may travel through any channel to any process of the same user. `bytes(handle)` is at most 256 long for up to
    eight dimensions; `Handle.from_bytes` checks version and checksum.

    Example:
        >>> pool = xfer.Pool("1MiB")
        >>> handle = pool.put(np.zeros((2, 3), np.float32))
        >>> same = xfer.Handle.from_bytes(bytes(handle))
        >>> same == handle, same.shape, same.dtype, same.nbytes
        (True, (2, 3), dtype('float32'), 24)

    Args:
        raw: The bytes of an intact handle; `from_bytes` checks bytes that came from outside.
    """

    __module__ = "xfer"  # pickles and type names show the public path
    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray | memoryview) -> Handle:
        """Check bytes that came from outside and wrap them.

        Args:
            raw: What `bytes(handle)` returned.

        Raises:
            HandleError: They are not an intact handle of this version.
        """
        handle = cls(token_bytes(raw, "a Handle"))
        parse(handle._raw)
        return handle

    def __bytes__(self) -> bytes:
        return self._raw

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return Handle.from_bytes, (self._raw,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    @property
    def fields(self) -> Fields:
        """All header fields, checked."""
        return parse(self._raw)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return struct.unpack_from(f"<{self.fields.ndim}Q", self._raw, HEADER.size)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Data type, or None where its description is too long for a handle and lies beside the data."""
        fields = self.fields
        if fields.flags & TOKEN_IN_SLOT:
            return None
        start = HEADER.size + 8 * fields.ndim
        return dtypes.decode(self._raw[start : start + fields.token_length])

    @property
    def nbytes(self) -> int:
        """Bytes of data in shared memory."""
        return self.fields.nbytes

    @property
    def pid(self) -> int:
        """Process id of the producer."""
        return self.fields.pid

    def __repr__(self) -> str:
        fields = self.fields
        kind = "cuda " if fields.flags & CUDA else ""
        return f"<xfer.Handle {kind}{self.shape} {self.dtype or 'structured'} of process {fields.pid}>"


def parse(raw: bytes) -> Fields:
    """Check version, lengths and checksum, and return the header fields.

    Raises:
        HandleError: The bytes are not an intact handle of this version.
    """
    if len(raw) < HEADER.size + TAIL.size:
        raise HandleError(f"got {len(raw)} bytes, but a handle has at least {HEADER.size + TAIL.size}")
    fields = Fields._make(HEADER.unpack_from(raw))
    if fields.magic != MAGIC:
        raise HandleError(f"these bytes start with {fields.magic!r}, not {MAGIC!r}: they are not a handle of xfer")
    if fields.version != VERSION:
        raise HandleError(
            f"the handle has format version {fields.version}, this xfer reads {VERSION}: use the same release"
        )
    inline = 0 if fields.flags & TOKEN_IN_SLOT else fields.token_length
    expected = HEADER.size + 8 * fields.ndim + inline + TAIL.size
    if len(raw) != expected or fields.ndim > MAX_DIMS:
        raise HandleError(f"got {len(raw)} bytes, but the header announces {expected}: the handle was cut or altered")
    if TAIL.unpack_from(raw, len(raw) - 4)[0] != crc32(raw[:-4]):
        raise HandleError("the handle's checksum does not match: it was altered on the way")
    return fields


class Signature:
    """What all handles of one dtype, shape and order have in common, prepared once."""

    __slots__ = ("count", "dtype", "flags", "meta", "nbytes", "ndim", "order", "shape", "slot_bytes", "token")

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> None:
        token = dtypes.encode(dtype)
        self.dtype = dtype
        self.shape = shape
        self.ndim = len(shape)
        self.order: Literal["C", "F"] = "F" if fortran else "C"
        self.count = 1
        for length in shape:
            self.count *= length
        self.nbytes = self.count * dtype.itemsize
        spilled = len(token) > INLINE_TOKEN
        self.flags = (FORTRAN if fortran else 0) | (TOKEN_IN_SLOT if spilled else 0)
        self.token = token
        self.meta = struct.pack(f"<{self.ndim}Q", *shape) + (b"" if spilled else token)
        self.slot_bytes = self.nbytes + (len(token) if spilled else 0)


@lru_cache(maxsize=4096)
def signature(dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> Signature:
    """Return the prepared signature of arrays like these."""
    return Signature(dtype, shape, fortran)


@lru_cache(maxsize=4096)
def read_meta(meta: bytes, ndim: int) -> tuple[tuple[int, ...], bytes]:
    """Split the variable part of a handle into shape and dtype token."""
    return struct.unpack_from(f"<{ndim}Q", meta), meta[8 * ndim :]
