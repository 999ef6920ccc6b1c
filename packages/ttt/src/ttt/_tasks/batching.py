"""Batches that fit in memory: grids grouped by size, bounded by padded cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt.values import Grid

OUTSIDE = 10
"""The value of a padded cell: one above the last colour."""


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Grids of similar size as one array.

    `cells` (n, height, width) uint8 is padded with OUTSIDE; `index` says which grid each is.
    """

    index: tuple[int, ...]
    cells: npt.NDArray[np.uint8]

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """True where a cell belongs to its grid, (n, height, width)."""
        return np.not_equal(self.cells, OUTSIDE)


def pad(grids: Sequence[Grid], height: int | None = None, width: int | None = None) -> npt.NDArray[np.uint8]:
    """Stack grids into (n, height, width), padded below and right with OUTSIDE; by default as large as the largest."""
    height = height or max(g.shape[0] for g in grids)
    width = width or max(g.shape[1] for g in grids)
    out = np.full((len(grids), height, width), OUTSIDE, np.uint8)
    for row, g in zip(out, grids, strict=True):
        row[: g.shape[0], : g.shape[1]] = g
    return out


def batches(grids: Iterable[Grid], *, bytes_per_cell: int, memory: int) -> Iterator[Batch]:
    """Split grids into batches whose padded cells need no more than `memory` bytes, large ones first.

    Args:
        grids: Any number of grids, of any sizes.
        bytes_per_cell: What the model needs per padded cell of a batch (activations, gradients).
        memory: Most bytes per batch; a single grid that needs more still is a batch of its own.
    """
    if bytes_per_cell < 1 or memory < 1:
        raise ValueError(f"got {bytes_per_cell} bytes per cell and {memory} bytes of memory, wanted positive numbers")
    listed = list(grids)
    order = sorted(range(len(listed)), key=lambda i: (-max(listed[i].shape), -listed[i].size, i))
    limit = memory // bytes_per_cell
    held: list[int] = []
    height = width = 0
    for i in order:
        h, w = max(height, listed[i].shape[0]), max(width, listed[i].shape[1])
        if held and (len(held) + 1) * h * w > limit:
            yield Batch(tuple(held), pad([listed[j] for j in held]))
            held, h, w = [], *listed[i].shape
        held.append(i)
        height, width = h, w
    if held:
        yield Batch(tuple(held), pad([listed[j] for j in held]))
