"""Cell features that need no things: neighbours, lines of sight, background regions, position, row and column."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ttt._grid.features.registry import Feature, Table
from ttt._grid.geometry import DIAGONALS, EIGHT, STEPS, Numbers, Step, shift
from ttt._grid.scene import Scene, enclosed, seen
from ttt._grid.things import Thing
from ttt.values import Grid

ALL_STEPS = {**STEPS, **DIAGONALS}


def _neighbour(direction: str, s: Scene) -> Numbers:
    dr, dc = ALL_STEPS[direction]
    return shift(s.grid, -dr, -dc, 10).astype(np.int64)


def _first_seen(direction: str, s: Scene) -> Numbers:
    return seen(s, ALL_STEPS[direction]).astype(np.int64)


def _seen_both(a: Step, b: Step, s: Scene) -> Numbers:
    one, two = seen(s, a), seen(s, b)
    return np.where(one == two, one, s.background).astype(np.int64)


def _kernel(diagonal: bool) -> Numbers:
    kernel = EIGHT.copy() if diagonal else ndimage.generate_binary_structure(2, 1).astype(int)
    kernel[1, 1] = 0
    return kernel


def _drawn_neighbours(diagonal: bool, s: Scene) -> Numbers:
    return ndimage.convolve(s.front.astype(np.int64), _kernel(diagonal), mode="constant")


def _equal_neighbours(diagonal: bool, s: Scene) -> Numbers:
    total = np.zeros(s.grid.shape, dtype=np.int64)
    for c in np.flatnonzero(s.counts):
        mask = s.grid == c
        total[mask] = ndimage.convolve(mask.astype(np.int64), _kernel(diagonal), mode="constant")[mask]
    return total


NEIGHBOURS: Table = {
    "colour of the neighbour up": Feature(partial(_neighbour, "up")),
    "first colour seen up": Feature(partial(_first_seen, "up"), is_colour=True),
    "colour of the neighbour down": Feature(partial(_neighbour, "down")),
    "first colour seen down": Feature(partial(_first_seen, "down"), is_colour=True),
    "colour of the neighbour left": Feature(partial(_neighbour, "left")),
    "first colour seen left": Feature(partial(_first_seen, "left"), is_colour=True),
    "colour of the neighbour right": Feature(partial(_neighbour, "right")),
    "first colour seen right": Feature(partial(_first_seen, "right"), is_colour=True),
    "colour of the neighbour up left": Feature(partial(_neighbour, "up left")),
    "first colour seen up left": Feature(partial(_first_seen, "up left"), is_colour=True),
    "colour of the neighbour up right": Feature(partial(_neighbour, "up right")),
    "first colour seen up right": Feature(partial(_first_seen, "up right"), is_colour=True),
    "colour of the neighbour down left": Feature(partial(_neighbour, "down left")),
    "first colour seen down left": Feature(partial(_first_seen, "down left"), is_colour=True),
    "colour of the neighbour down right": Feature(partial(_neighbour, "down right")),
    "first colour seen down right": Feature(partial(_first_seen, "down right"), is_colour=True),
    "the colour seen both left and right": Feature(partial(_seen_both, STEPS["left"], STEPS["right"]), is_colour=True),
    "the colour seen both above and below": Feature(partial(_seen_both, STEPS["up"], STEPS["down"]), is_colour=True),
    "the colour seen both ways along one diagonal": Feature(
        partial(_seen_both, DIAGONALS["up left"], DIAGONALS["down right"]), is_colour=True
    ),
    "the colour seen both ways along the other diagonal": Feature(
        partial(_seen_both, DIAGONALS["up right"], DIAGONALS["down left"]), is_colour=True
    ),
    "number of drawn neighbours at its sides": Feature(partial(_drawn_neighbours, False)),
    "number of drawn neighbours all around": Feature(partial(_drawn_neighbours, True)),
    "number of equal neighbours at its sides": Feature(partial(_equal_neighbours, False)),
    "number of equal neighbours all around": Feature(partial(_equal_neighbours, True)),
    "inside or outside": Feature(lambda s: np.where(s.front, 2, enclosed(s)).astype(np.int64)),
    "inside or outside, diagonal gaps open": Feature(
        lambda s: np.where(s.front, 2, enclosed(s, sides_only=False)).astype(np.int64)
    ),
}


class Region(NamedTuple):
    """A connected part of the background: its cells, its box, and what it is compared with."""

    cells: int
    height: int
    width: int
    inside: bool
    """Whether its box does not touch the border."""
    largest: int
    """Cells of the grid's largest region."""
    smallest: int


def _regions(s: Scene) -> tuple[Numbers, list[Region]]:
    """Label the background's regions from 1, and describe each."""
    if "regions" not in s.memo:
        labels, n = ndimage.label(~s.front)
        sizes = np.bincount(labels.ravel(), minlength=n + 1)[1:]
        h, w = s.grid.shape
        s.memo["regions"] = (
            labels,
            [
                Region(
                    int(sizes[i]),
                    box[0].stop - box[0].start,
                    box[1].stop - box[1].start,
                    box[0].start > 0 and box[1].start > 0 and box[0].stop < h and box[1].stop < w,
                    int(sizes.max()),
                    int(sizes.min()),
                )
                for i, box in enumerate(ndimage.find_objects(labels))
            ],
        )
    return s.memo["regions"]


def _of_region(value: Callable[[Region], int], s: Scene) -> Numbers:
    labels, regions = _regions(s)
    return np.array([0, *map(value, regions)], dtype=np.int64)[labels]


REGIONS: Table = {
    "background region's size": Feature(partial(_of_region, lambda r: r.cells)),
    "background region is a rectangle": Feature(partial(_of_region, lambda r: 1 + (r.cells == r.height * r.width))),
    "background region is a square": Feature(
        partial(_of_region, lambda r: 1 + (r.cells == r.height * r.width and r.height == r.width))
    ),
    "background region does not touch the border": Feature(partial(_of_region, lambda r: 1 + r.inside)),
    "background region's height": Feature(partial(_of_region, lambda r: r.height)),
    "background region's width": Feature(partial(_of_region, lambda r: r.width)),
    "background region is the largest": Feature(partial(_of_region, lambda r: 1 + (r.cells == r.largest))),
    "background region is the smallest": Feature(partial(_of_region, lambda r: 1 + (r.cells == r.smallest))),
    "background region's size is odd": Feature(partial(_of_region, lambda r: 1 + r.cells % 2)),
}


class Place(NamedTuple):
    """Row and column of every cell, and the grid's height and width."""

    r: Numbers
    c: Numbers
    h: int
    w: int

    def ring(self) -> Numbers:
        """Return the distance of every cell from the border."""
        return np.minimum.reduce([self.r, self.c, self.h - 1 - self.r, self.w - 1 - self.c])


def _at(value: Callable[[Place], npt.NDArray[np.generic]], s: Scene) -> Numbers:
    at = np.indices(s.grid.shape)
    return value(Place(at[0], at[1], *s.grid.shape)).astype(np.int64)


POSITIONS: Table = {
    "row": Feature(partial(_at, lambda p: p.r), cost=1.5),
    "column": Feature(partial(_at, lambda p: p.c), cost=1.5),
    "row from the bottom": Feature(partial(_at, lambda p: p.h - 1 - p.r), cost=1.2),
    "column from the right": Feature(partial(_at, lambda p: p.w - 1 - p.c), cost=1.2),
    "row parity": Feature(partial(_at, lambda p: p.r % 2), cost=1.2),
    "column parity": Feature(partial(_at, lambda p: p.c % 2), cost=1.2),
    "chessboard parity": Feature(partial(_at, lambda p: (p.r + p.c) % 2), cost=1.2),
    "row modulo 3": Feature(partial(_at, lambda p: p.r % 3), cost=1.2),
    "column modulo 3": Feature(partial(_at, lambda p: p.c % 3), cost=1.2),
    "diagonal modulo 3": Feature(partial(_at, lambda p: (p.r + p.c) % 3), cost=1.2),
    "other diagonal modulo 3": Feature(partial(_at, lambda p: (p.r - p.c) % 3), cost=1.2),
    "ring from the border": Feature(partial(_at, Place.ring), cost=1.2),
    "lies on the border": Feature(partial(_at, lambda p: p.ring() == 0), cost=1.2),
    "lies on the diagonal": Feature(partial(_at, lambda p: p.r == p.c), cost=1.2),
    "lies on the other diagonal": Feature(partial(_at, lambda p: p.r + p.c == p.w - 1), cost=1.2),
    "ring parity": Feature(partial(_at, lambda p: p.ring() % 2), cost=1.2),
    "upper or lower half": Feature(partial(_at, lambda p: np.sign(2 * p.r + 1 - p.h)), cost=1.2),
    "left or right half": Feature(partial(_at, lambda p: np.sign(2 * p.c + 1 - p.w)), cost=1.2),
}
"""Where a cell lies in its grid."""


class Lines:
    """The rows of a grid, with the number of cells of each colour in each; its columns, if transposed."""

    def __init__(self, grid: Grid, background: int) -> None:
        self.grid, self.background = grid, background

    @property
    def counts(self) -> Numbers:
        """Cells of each colour in each row."""
        return np.stack([(self.grid == c).sum(axis=1) for c in range(10)], axis=1)

    @property
    def drawn(self) -> Numbers:
        """The counts with the background left out."""
        counts = self.counts
        counts[:, self.background] = 0
        return counts

    @property
    def total(self) -> Numbers:
        """Drawn cells in each row."""
        return self.drawn.sum(axis=1)

    def colour(self) -> Numbers:
        """Return each row's most frequent drawn colour, the background where it is empty."""
        drawn = self.drawn
        return np.where(drawn.any(axis=1), drawn.argmax(axis=1), self.background)

    def fullest(self) -> Numbers:
        """Return whether each row has the most drawn cells."""
        total = self.total
        return total == total.max()


def _in_row(value: Callable[[Lines], npt.NDArray[np.generic]], s: Scene) -> Numbers:
    rows = value(Lines(s.grid, s.background)).astype(np.int64)
    return np.repeat(rows[:, None], s.grid.shape[1], axis=1)


def _in_column(value: Callable[[Lines], npt.NDArray[np.generic]], s: Scene) -> Numbers:
    columns = value(Lines(s.grid.T, s.background)).astype(np.int64)
    return np.repeat(columns[:, None], s.grid.shape[0], axis=1).T


ROWS_AND_COLUMNS: Table = {
    "its row's most frequent colour": Feature(partial(_in_row, lambda x: x.counts.argmax(axis=1)), is_colour=True),
    "its row's most frequent drawn colour": Feature(partial(_in_row, Lines.colour), is_colour=True),
    "its row's number of drawn cells": Feature(partial(_in_row, lambda x: x.total)),
    "its row is of one colour": Feature(partial(_in_row, lambda x: x.counts.max(axis=1) == x.grid.shape[1])),
    "its row is empty": Feature(partial(_in_row, lambda x: x.total == 0)),
    "its row is fully drawn": Feature(partial(_in_row, lambda x: x.total == x.grid.shape[1])),
    "its row has the most drawn cells": Feature(partial(_in_row, Lines.fullest)),
    "its row's first cell": Feature(partial(_in_row, lambda x: x.grid[:, 0]), is_colour=True),
    "its row's last cell": Feature(partial(_in_row, lambda x: x.grid[:, -1]), is_colour=True),
    "its row's number of colours": Feature(partial(_in_row, lambda x: (x.drawn > 0).sum(axis=1))),
    "its column's most frequent colour": Feature(
        partial(_in_column, lambda x: x.counts.argmax(axis=1)), is_colour=True
    ),
    "its column's most frequent drawn colour": Feature(partial(_in_column, Lines.colour), is_colour=True),
    "its column's number of drawn cells": Feature(partial(_in_column, lambda x: x.total)),
    "its column is of one colour": Feature(partial(_in_column, lambda x: x.counts.max(axis=1) == x.grid.shape[1])),
    "its column is empty": Feature(partial(_in_column, lambda x: x.total == 0)),
    "its column is fully drawn": Feature(partial(_in_column, lambda x: x.total == x.grid.shape[1])),
    "its column has the most drawn cells": Feature(partial(_in_column, Lines.fullest)),
    "its column's first cell": Feature(partial(_in_column, lambda x: x.grid[:, 0]), is_colour=True),
    "its column's last cell": Feature(partial(_in_column, lambda x: x.grid[:, -1]), is_colour=True),
    "its column's number of colours": Feature(partial(_in_column, lambda x: (x.drawn > 0).sum(axis=1))),
}


def _drawn_by_count(s: Scene) -> list[int]:
    """Return the drawn colours, most frequent first."""
    drawn = s.counts.copy()
    drawn[s.background] = 0
    present = np.flatnonzero(drawn)
    return [int(c) for c in present[np.argsort(-drawn[present], kind="stable")]]


def _nth_drawn(n: int, s: Scene) -> int:
    order = _drawn_by_count(s)
    return order[n] if -len(order) <= n < len(order) else s.background


def _colour_of_piece(take: Callable[..., Thing], s: Scene) -> int:
    """Return the colour of the largest (smallest) one-colour piece, the first of equals."""
    things = s.things("piece")
    return take(things, key=lambda t: int(t.mask.sum())).colour if things else s.background


def _colour_of_pieces(take: Callable[..., int], s: Scene) -> int:
    """Return the drawn colour of the most (fewest) one-colour pieces."""
    times = Counter(t.colour for t in s.things("piece"))
    return take(sorted(times), key=times.__getitem__) if times else s.background


GRID_COLOURS: dict[str, Callable[[Scene], int]] = {
    "the background colour": lambda s: s.background,
    "the most frequent drawn colour": partial(_nth_drawn, 0),
    "the second most frequent drawn colour": partial(_nth_drawn, 1),
    "the third most frequent drawn colour": partial(_nth_drawn, 2),
    "the rarest drawn colour": partial(_nth_drawn, -1),
    "the top left colour": lambda s: int(s.grid[0, 0]),
    "the top right colour": lambda s: int(s.grid[0, -1]),
    "the bottom left colour": lambda s: int(s.grid[-1, 0]),
    "the bottom right colour": lambda s: int(s.grid[-1, -1]),
    "the middle cell's colour": lambda s: int(s.grid[s.grid.shape[0] // 2, s.grid.shape[1] // 2]),
    "the colour of the piece with the most cells": partial(_colour_of_piece, max),
    "the colour of the piece with the fewest cells": partial(_colour_of_piece, min),
    "the colour of the most pieces": partial(_colour_of_pieces, max),
    "the colour of the fewest pieces": partial(_colour_of_pieces, min),
    "the separators' colour": lambda s: s.background if s.separators is None else s.separators[2],
}
"""Colours that stand for a whole grid; rules can paint them."""


def _has(colour: str, s: Scene) -> Numbers:
    return (s.grid == GRID_COLOURS[colour](s)).astype(np.int64)


def _everywhere(value: Callable[[Scene], int], s: Scene) -> Numbers:
    return np.full(s.grid.shape, value(s), dtype=np.int64)


def _sides_that_see(s: Scene) -> Numbers:
    hits = [(seen(s, step) != s.background) | s.front for step in STEPS.values()]
    return sum((h.astype(np.int64) for h in hits), start=np.zeros(s.grid.shape, dtype=np.int64))


WHOLE_GRID: Table = {
    "has the most frequent drawn colour": Feature(partial(_has, "the most frequent drawn colour")),
    "has the second most frequent drawn colour": Feature(partial(_has, "the second most frequent drawn colour")),
    "has the rarest drawn colour": Feature(partial(_has, "the rarest drawn colour")),
    "has the separators' colour": Feature(partial(_has, "the separators' colour")),
    "is drawn": Feature(lambda s: s.front.astype(np.int64), cost=0.8),
    "the grid's number of objects": Feature(partial(_everywhere, lambda s: len(s.things("object"))), cost=1.5),
    "the grid's number of pieces": Feature(partial(_everywhere, lambda s: len(s.things("piece"))), cost=1.5),
    "the grid's number of colours": Feature(partial(_everywhere, lambda s: int(np.count_nonzero(s.counts))), cost=1.5),
    "the grid's number of drawn cells": Feature(partial(_everywhere, lambda s: int(s.front.sum())), cost=1.5),
    "number of sides where something drawn is seen": Feature(_sides_that_see),
}
