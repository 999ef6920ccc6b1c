"""A piece of a grid with its place; colour 0 is empty."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ttt.values import Grid

Mask = npt.NDArray[np.bool_]

LARGEST = 30
"""Rows and columns of the largest piece."""
STEPS = ((-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Up, left, right, down, then the diagonals in the same order."""


class Piece(NamedTuple):
    """A rectangle of colours at a place.

    Args:
        y: The row of its top.
        x: The column of its left side.
        cells: Its colours.
        output: Of an input the size of its output, None where none is known.
    """

    y: int
    x: int
    cells: Grid
    output: tuple[int, int] | None = None

    def showing(self, cells: Grid, down: int = 0, right: int = 0) -> Piece | None:
        """A piece at this place, or moved from it, with other cells; None where they are no grid."""
        if not cells.size or max(cells.shape) > LARGEST:
            return None
        return Piece(self.y + down, self.x + right, np.ascontiguousarray(cells, dtype=np.uint8))


def commonest(cells: Grid) -> int:
    """The drawn colour with most cells, the lowest of equals; 0 where nothing is drawn."""
    count = np.bincount(cells.ravel(), minlength=10)
    count[0] = 0
    return int(count.argmax())


def shifted(cells: Grid, dy: int, dx: int) -> Grid:
    """The cells moved, with empty ones moving in."""
    out = np.zeros_like(cells)
    h, w = cells.shape
    if abs(dy) < h and abs(dx) < w:
        out[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)] = cells[
            max(0, -dy) : h + min(0, -dy), max(0, -dx) : w + min(0, -dx)
        ]
    return out


def drawn_box(cells: Grid) -> tuple[int, int, int, int] | None:
    """First and last row and column with a drawn cell."""
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    return (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) if len(rows) else None


def placed(piece: Piece, shape: tuple[int, int], y: int = 0, x: int = 0) -> Grid:
    """What of a piece lies inside a frame whose corner is at y, x."""
    out = np.zeros(shape, dtype=np.uint8)
    top, left = piece.y - y, piece.x - x
    h, w = piece.cells.shape
    r0, r1, c0, c1 = max(0, top), min(shape[0], top + h), max(0, left), min(shape[1], left + w)
    if r0 < r1 and c0 < c1:
        out[r0:r1, c0:c1] = piece.cells[r0 - top : r1 - top, c0 - left : c1 - left]
    return out


def enclosed(cells: Grid) -> Mask:
    """Empty cells from which no path of empty cells, over sides, leads to the border."""
    empty: Mask = cells == 0
    reached = empty.copy()
    reached[1:-1, 1:-1] = False
    while True:
        grown = reached.astype(np.uint8)
        for dy, dx in STEPS[:4]:
            grown |= shifted(reached.astype(np.uint8), dy, dx)
        new: Mask = grown.astype(bool) & empty
        if np.array_equal(new, reached):
            return empty & ~reached
        reached = new


def connected(where: Mask, start: Mask) -> Mask:
    """The cells of a set that are connected, over sides and corners, to those of `start`."""
    now = (where & start).astype(np.uint8)
    while True:
        grown = now.copy()
        for dy, dx in STEPS:
            grown |= shifted(now, dy, dx)
        grown &= where
        if np.array_equal(grown, now):
            return now.astype(bool)
        now = grown


def objects_of(cells: Grid) -> int:
    """How many sets of drawn cells there are that touch over sides or corners."""
    left, found = cells != 0, 0
    while left.any():
        found += 1
        start = np.zeros(cells.shape, dtype=bool)
        start[np.unravel_index(int(left.argmax()), cells.shape)] = True
        left &= ~connected(left, start)
    return found
