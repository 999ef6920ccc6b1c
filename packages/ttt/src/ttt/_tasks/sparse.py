"""Grids that are mostly one colour, kept as that colour and the cells that differ. Lossless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt.values import COLOURS, Grid


@dataclass(frozen=True, eq=False, slots=True)
class SparseGrid:
    """A grid as its background and its other cells, in row order.

    `cells` (uint16) are positions row x width + column, ascending; `colours` (uint8) their colours.
    """

    height: int
    width: int
    background: int
    cells: npt.NDArray[np.uint16]
    colours: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes of the cells and colours."""
        return self.cells.nbytes + self.colours.nbytes

    def dense(self) -> Grid:
        """Return the grid."""
        flat = np.full(self.height * self.width, self.background, np.uint8)
        flat[self.cells] = self.colours
        grid = flat.reshape(self.height, self.width)
        grid.flags.writeable = False
        return grid


def sparse(grid: Grid) -> SparseGrid:
    """Return a grid in sparse form; its most frequent colour is the background."""
    flat = grid.ravel()
    background = int(np.bincount(flat, minlength=COLOURS).argmax())
    cells = np.flatnonzero(flat != background).astype(np.uint16)
    return SparseGrid(grid.shape[0], grid.shape[1], background, cells, flat[cells].copy())


def pays(grid: Grid) -> bool:
    """Return whether the sparse form is smaller: fewer than a third of the cells differ from the background."""
    flat = grid.ravel()
    return 3 * (flat.size - int(np.bincount(flat, minlength=COLOURS).max())) < flat.size
