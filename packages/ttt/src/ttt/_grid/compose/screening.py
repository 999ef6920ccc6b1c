"""Which columns over cells can explain the outputs, asked of a sample of cells; with the compiled core, or in numpy.

A column has a code for each cell; a paint is right or wrong in each cell. A column can explain the outputs if for each
of its codes some paint is right in all cells that have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.core import library

Codes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
MOST_CELLS = 4800
"""Cells in a sample for the compiled core."""


def bits(marks: Mask) -> Bits:
    """Rows of marks as words, the first in the lowest bit."""
    padded = np.zeros((len(marks), -(-marks.shape[1] // 64) * 64), dtype=bool)
    padded[:, : marks.shape[1]] = marks
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


class Screen:
    """A sample of cells with the paints that are wrong in them.

    Args:
        codes: The code of each column (rows) in each cell.
        keys: How many codes each column has, at most 64.
        wrong: Where each paint (rows) is wrong.
        compiled: Whether to use the compiled core where there is one.
    """

    def __init__(
        self, codes: npt.NDArray[np.integer[Any]], keys: Sequence[int], wrong: Mask, compiled: bool = True
    ) -> None:
        self.codes: Codes = np.ascontiguousarray(codes, dtype=np.uint8)
        self.keys, self.wrong = list(keys), wrong
        self._core = library() if compiled and codes.shape[1] <= MOST_CELLS else None
        if self._core is not None:
            self._bits = bits(wrong)
            self._keys = np.array(keys, dtype=np.int32)

    def mistaken(self) -> list[Mask]:
        """For each column, code (rows) and paint: whether the paint is wrong in a cell of that code."""
        ends = np.cumsum([0, *self.keys])
        if self._core is None:
            return [
                (self.wrong.astype(np.float32) @ (codes[:, None] == np.arange(keys)).astype(np.float32)).T > 0.5
                for codes, keys in zip(self.codes, self.keys, strict=True)
            ]
        out = np.empty((int(ends[-1]), len(self.wrong)), dtype=bool)
        self._core.screen_wrong(
            self.codes.ctypes.data,
            self._keys.ctypes.data,
            *self.codes.shape,
            self._bits.ctypes.data,
            *self._bits.shape,
            out.ctypes.data,
        )
        return np.split(out, ends[1:-1])

    def least(self) -> list[int]:
        """For each column the mistakes that remain if each of its codes takes its best paint."""
        if self._core is None:
            found = []
            for codes, keys in zip(self.codes, self.keys, strict=True):
                marks = (codes[:, None] == np.arange(keys)).astype(np.float32)
                found.append(int((self.wrong.astype(np.float32) @ marks).min(axis=0).sum()))
            return found
        out = np.empty(len(self.codes), dtype=np.int32)
        self._core.screen_least(
            self.codes.ctypes.data,
            self._keys.ctypes.data,
            *self.codes.shape,
            self._bits.ctypes.data,
            *self._bits.shape,
            out.ctypes.data,
        )
        return out.tolist()

    def pairs(self, firsts: int) -> list[tuple[int, int]]:
        """Pairs of columns, one of the first ones and a later one, that together can explain the outputs."""
        if self._core is None:
            return [
                (i, j)
                for i in range(min(firsts, len(self.codes)))
                for j in range(i + 1, len(self.codes))
                if self._pair_fits(i, j)
            ]
        out = np.empty((max(1, firsts * len(self.codes)), 2), dtype=np.int32)
        count = self._core.screen_pairs(
            self.codes.ctypes.data,
            self._keys.ctypes.data,
            len(self.codes),
            firsts,
            self.codes.shape[1],
            self._bits.ctypes.data,
            *self._bits.shape,
            out.ctypes.data,
        )
        return [(i, j) for i, j in out[:count].tolist()]

    def _pair_fits(self, i: int, j: int) -> bool:
        joint = self.codes[i].astype(np.int64) * self.keys[j] + self.codes[j]
        marks = (joint[:, None] == np.unique(joint)).astype(np.float32)
        return bool(((self.wrong.astype(np.float32) @ marks).min(axis=0) < 0.5).all())


def disjoint(rows: Mask, compiled: bool = True) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The pairs of rows that are nowhere both true, in order."""
    core = library() if compiled else None
    if core is None:
        numbers = rows.astype(np.float32)
        first, second = np.nonzero(np.triu(numbers @ numbers.T < 0.5, 1))
        return first.astype(np.int32), second.astype(np.int32)
    packed = bits(rows)
    most = len(rows) * (len(rows) - 1) // 2
    out = np.empty((max(1, most), 2), dtype=np.int32)
    count = core.screen_disjoint(packed.ctypes.data, *packed.shape, most, out.ctypes.data)
    return out[:count, 0], out[:count, 1]
