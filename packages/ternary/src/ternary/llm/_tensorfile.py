"""Tensors of safetensors files, read from the file piece by piece, so that no more than one piece is in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary._tensorheader import read_exactly, read_tensor_header
from ternary.errors import ImportFormatError

__all__ = ["Tensor", "safetensors_in", "widen_bfloat16"]

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}
_BLOCK = 8 << 20


def widen_bfloat16(data: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 numbers, given as their bits, as float32."""
    return (data.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a file: where it is and what it holds."""

    name: str
    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """Return rows of the tensor: bytes as uint8 or int8, every float as float32 (or float64)."""
        rows = self.shape[0] if self.shape else 1
        count = rows - first if count is None else count
        width = math.prod(self.shape[1:]) * _SIZES[self.dtype]
        raw = read_exactly(self.path, self.offset + first * width, count * width)
        shape = (count, *self.shape[1:])
        if self.dtype == "BF16":
            return widen_bfloat16(np.frombuffer(raw, "<u2")).reshape(shape)
        kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1", "I8": "i1"}
        found = np.frombuffer(raw, kinds[self.dtype]).reshape(shape)
        return found.astype(np.float32) if self.dtype == "F16" else found

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Return the rows as float32, in blocks of some 8 MB."""
        step = max(1, _BLOCK // max(1, math.prod(self.shape[1:]) * 4))
        for first in range(0, self.shape[0], step):
            yield self.read(first, min(step, self.shape[0] - first)).astype(np.float32, copy=False)


def safetensors_in(path: Path) -> dict[str, Tensor]:
    """Return where the tensors of a safetensors file are, the header checked against the file's size.

    Raises:
        ImportFormatError: The file is damaged or holds a dtype that no weight has.
    """
    size = os.stat(path).st_size
    try:
        header, start = read_tensor_header(path)
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if entry["dtype"] not in _SIZES:
                continue  # nothing that a weight is stored in
            if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
                raise ImportFormatError(f"{path}: {name} has an impossible shape or place")
            if end - begin != math.prod(shape) * _SIZES[entry["dtype"]] or start + end > size:
                raise ImportFormatError(f"{path}: {name} does not fit its place in the file; the file is cut off")
            found[name] = Tensor(name, path, start + begin, entry["dtype"], shape)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, ImportFormatError):
            raise
        raise ImportFormatError(f"{path} is damaged or no safetensors file: {e}") from None
    return found
