"""GGUF files: metadata, the places of the tensors, each compared with the file's size, and ternary blocks."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary._tensorheader import read_exactly
from ternary.errors import ImportFormatError

__all__ = ["BF16", "F16", "F32", "I2S", "MAGIC", "TQ1", "TQ2", "Entry", "read_directory", "refuse_code_3", "row_codes"]

MAGIC = b"GGUF"
F32, F16, BF16, TQ1, TQ2, I2S = 0, 1, 30, 34, 35, 36
BLOCKS = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), TQ1: (256, 54), TQ2: (256, 66), I2S: (4, 1)}
BLOCKS |= {24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 8: (32, 34), 2: (32, 18)}
"""Weights and bytes of a block by the number of its type; others are checked as if they took one bit a weight."""
_MOST_HEADER, _MOST_KEYS, _MOST_TENSORS = 512 << 20, 10_000, 100_000
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
BLOCK = 256
"""Weights of a TQ1_0 or TQ2_0 block."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class _Header:
    """Reads the numbers and texts at the start of a GGUF file, never past its end."""

    def __init__(self, path: Path):
        self._path = path
        self._data = np.memmap(path, np.uint8, "r").data if os.stat(path).st_size else memoryview(b"")
        self._data = self._data[:_MOST_HEADER]
        self.at = 0

    def take(self, size: int) -> memoryview:
        if size < 0 or self.at + size > len(self._data):
            raise ImportFormatError(f"{self._path} is damaged or cut off: its header ends early")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("<Q"))).decode("utf-8", errors="surrogateescape")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 1:
            raise ImportFormatError(f"{self._path} has a metadata value of type {kind}, which GGUF does not have")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            form = _SCALARS[inner]
            return np.frombuffer(self.take(count * struct.calcsize(form)), form).tolist()
        return [self.value(inner, depth + 1) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a GGUF file: its type's number, its shape (rows first), and where its bytes start."""

    kind: int
    shape: tuple[int, ...]
    offset: int

    def nbytes(self) -> int:
        """Return how many bytes the tensor takes at least."""
        per_block, size = BLOCKS.get(self.kind, (8, 1))
        return -(-math.prod(self.shape) // per_block) * size


def read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Return the metadata and the tensors' places of a GGUF file of version 2 or 3.

    Raises:
        ImportFormatError: The file is damaged, cut off, or of another version; names the tensor that does not fit.
    """
    header = _Header(path)
    if bytes(header.take(4)) != MAGIC:
        raise ImportFormatError(f"{path} is no GGUF file")
    version = header.number("<I")
    if version not in (2, 3):
        raise ImportFormatError(f"{path} has GGUF version {version}; this library reads 2 and 3, little-endian")
    tensor_count, value_count = header.number("<Q"), header.number("<Q")
    if value_count > _MOST_KEYS or tensor_count > _MOST_TENSORS:
        raise ImportFormatError(f"{path} claims {value_count} metadata keys and {tensor_count} tensors")
    metadata = {}
    for _ in range(value_count):
        name = header.text()
        metadata[name] = header.value(header.number("<I"))
    found = {}
    for _ in range(tensor_count):
        name, dimensions = header.text(), header.number("<I")
        if dimensions > 4:
            raise ImportFormatError(f"{path}: {name} has {dimensions} dimensions; GGUF tensors have up to 4")
        shape = tuple(header.number("<Q") for _ in range(dimensions))[::-1]
        found[name] = (header.number("<I"), shape, header.number("<Q"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment < 1 << 31:
        raise ImportFormatError(f"{path} has an alignment of {alignment}")
    start, size = -(-header.at // alignment) * alignment, os.stat(path).st_size
    entries = {name: Entry(kind, shape, start + offset) for name, (kind, shape, offset) in found.items()}
    for name, entry in entries.items():
        if entry.offset + entry.nbytes() > size:
            raise ImportFormatError(f"{path}: {name} of shape {entry.shape} ends behind the file; the file is cut off")
    return metadata, entries


def row_codes(path: Path, name: str, entry: Entry) -> tuple[Bytes, Floats]:
    """TQ1_0 or TQ2_0: blocks of 256 weights of a row with a scale each; all of a row must have the same."""
    rows, columns = entry.shape
    if columns % BLOCK:
        raise ImportFormatError(f"{name}: got {columns} columns; TQ blocks hold {BLOCK}")
    size = 54 if entry.kind == TQ1 else 66
    raw = np.frombuffer(read_exactly(path, entry.offset, rows * columns // BLOCK * size), np.uint8)
    blocks = raw.reshape(-1, size)
    codes = tq_codes(blocks, entry.kind)
    refuse_code_3(codes, name)
    scale = np.ascontiguousarray(blocks[:, -2:]).view("<f2").astype(np.float32).reshape(rows, -1)
    # A block of zeros has a scale of 0 and fits any.
    most = np.abs(scale).max(axis=1)
    codes = codes.reshape(rows, columns)
    empty = (codes.reshape(rows, -1, BLOCK) == 1).all(axis=2)
    codes = np.where(np.repeat(scale < 0, BLOCK, axis=1), 2 - codes, codes).astype(np.uint8)
    codes = np.where(np.repeat(scale == 0, BLOCK, axis=1), 1, codes).astype(np.uint8)
    fits = (np.abs(scale) == most[:, None]) | empty | (scale == 0)
    if not bool(fits.all()):
        row = int((~fits).any(axis=1).argmax())
        raise ImportFormatError(f"{name}: row {row} has blocks of different scales; these weights are not ternary")
    return codes, most


def tq_codes(blocks: Bytes, kind: int) -> Bytes:
    """Return the codes, value + 1, of TQ1_0 or TQ2_0 blocks, 256 a block."""
    return _tq1_codes(blocks) if kind == TQ1 else _tq2_codes(blocks)


def _tq2_codes(blocks: Bytes) -> Bytes:
    packed = blocks[:, :64].reshape(-1, 2, 1, 32)
    codes = packed >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None] & 3
    return codes.astype(np.uint8).reshape(len(blocks), BLOCK)


def _tq1_codes(blocks: Bytes) -> Bytes:
    """Five digits a byte as a fraction of 256: each multiplication by 3 brings the next digit to the top."""
    parts = []
    for begin, end, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        powers = np.array([1, 3, 9, 27, 81][:digits], np.uint8)[None, :, None]
        shifted = blocks[:, None, begin:end] * powers
        parts.append(((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(blocks), -1))
    return np.concatenate(parts, axis=1)


def refuse_code_3(codes: NDArray[Any], name: str) -> None:
    if codes.size and int(codes.max()) == 3:
        raise ImportFormatError(f"{name}: got a code that stands for no ternary value; the file is damaged")
