"""Ternary matrices in the core's tiles, made from codes without passing through floats; and 8-bit rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ternary.errors import ImportFormatError

__all__ = ["TernaryMatrix", "codes_of", "exact_rows", "from_codes", "quantize_rows"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

SIDE = 16


@dataclass(frozen=True, slots=True)
class TernaryMatrix:
    """A ternary matrix as the decoder reads it.

    Attributes:
        tiles: uint8 of shape (ceil(outputs / 16), inputs / 16, 16, 4), as docs/packing-format.md says.
        scale: float32 of shape (outputs,), what +1 stands for in each output.
        bias: float32 of shape (outputs,), or None.
    """

    tiles: Bytes
    scale: Floats
    bias: Floats | None = None

    @property
    def outputs(self) -> int:
        """Number of rows."""
        return len(self.scale)

    @property
    def inputs(self) -> int:
        """Number of columns."""
        return int(self.tiles.shape[1]) * SIDE

    def values(self) -> NDArray[np.int8]:
        """Return the matrix as int8 of -1, 0, +1, of shape (outputs, inputs)."""
        return (codes_of(self.tiles)[: self.outputs].astype(np.int8) - 1).astype(np.int8)


def from_codes(codes: Bytes) -> Bytes:
    """Pack codes 0, 1, 2 (value + 1) of shape (outputs, inputs), inputs a multiple of 16, into tiles."""
    outputs, inputs = codes.shape
    strips = -(-outputs // SIDE)
    if strips * SIDE != outputs:
        whole = np.ones((strips * SIDE, inputs), np.uint8)
        whole[:outputs] = codes
        codes = whole
    four = np.ascontiguousarray(codes).view("<u4")
    packed = (four | four >> 6 | four >> 12 | four >> 18).astype(np.uint8)
    tiles = packed.reshape(strips, SIDE, inputs // SIDE, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(tiles)


def codes_of(tiles: Bytes) -> Bytes:
    """Return the codes of tiles, of shape (16 * strips, inputs)."""
    strips, columns = tiles.shape[:2]
    rows = np.ascontiguousarray(tiles.transpose(0, 2, 1, 3)).reshape(strips * SIDE, columns * 4)
    codes = np.stack([rows >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return codes.reshape(strips * SIDE, columns * SIDE).astype(np.uint8)


def exact_rows(rows: Floats, name: str) -> tuple[Bytes, Floats]:
    """Take a float matrix apart that holds -s, 0, +s in each row; return its codes and the s of each row.

    Raises:
        ImportFormatError: A row has more than one magnitude besides zero.
    """
    scale = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    full = (rows == scale[:, None]) | (rows == -scale[:, None]) | (rows == 0)
    if not bool(np.isfinite(scale).all()) or not bool(full.all()):
        wrong = int((~full).any(axis=1).argmax())
        raise ImportFormatError(
            f"{name}: row {wrong} is not ternary (it has more than one magnitude). If these are master weights of a "
            "model trained with absmean, convert with weights='absmean'"
        )
    return (np.sign(rows).astype(np.int8) + 1).astype(np.uint8), scale


def quantize_rows(rows: Floats, name: str) -> tuple[NDArray[np.int8], Floats]:
    """Quantize each row to int8 with one scale, rounding half to even.

    Raises:
        ImportFormatError: A value is not finite.
    """
    most = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    if not bool(np.isfinite(most).all()):
        raise ImportFormatError(f"{name}: row {int((~np.isfinite(most)).argmax())} has a value that is not finite")
    inverse = np.divide(np.float32(127.0), most, out=np.zeros_like(most), where=most > 1e-30)
    return np.rint(rows * inverse[:, None]).astype(np.int8), (most / np.float32(127.0)).astype(np.float32)
