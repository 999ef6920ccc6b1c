"""A grid as people see it: background, objects, panels; knows nothing of tasks or programs."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ttt.grid.answers import Grid

Mask = npt.NDArray[np.bool_]
EIGHT = np.ones((3, 3), dtype=int)
MAX_OBJECTS = 120
"""Above this many objects a grid is noise and nobody counts them."""

KINDS: dict[str, str] = {
    "piece": "one-colour piece",
    "joined": "one-colour piece joined by sides",
    "object": "object",
    "colour": "set of all cells of a colour",
    "panel": "panel",
}
"""The ways to cut a grid into things, with the word that people read."""


class Thing:
    """A set of cells of one grid: a piece, an object, all of a colour, or a panel.

    Args:
        patch: The grid inside the thing's box.
        mask: Which cells of the box belong to it, same shape as `patch`.
        top: First row of the box.
        left: First column of the box.
        background: The grid's background colour.
        field: Height and width of the whole grid.
    """

    def __init__(self, patch: Grid, mask: Mask, top: int, left: int, background: int, field: tuple[int, int]) -> None:
        self.patch, self.mask, self.top, self.left = patch, mask, top, left
        self.background, self.field = background, field
        self.height, self.width = mask.shape

    @cached_property
    def colours(self) -> npt.NDArray[np.int64]:
        """How many cells of each colour 0..9 it has."""
        return np.bincount(self.patch[self.mask], minlength=10)

    @cached_property
    def colour(self) -> int:
        """Its commonest colour."""
        return int(self.colours.argmax())

    @cached_property
    def alone(self) -> Grid:
        """Its box with everything that does not belong to it painted as background."""
        return np.where(self.mask, self.patch, np.uint8(self.background))


PROPERTIES: dict[str, Callable[[Thing], int]] = {}
"""Every whole-number property of a thing by its readable name."""


def prop(name: str) -> Callable[[Callable[[Thing], int]], Callable[[Thing], int]]:
    """Register a property of things; the search then selects by it and the features paint it."""

    def register(function: Callable[[Thing], int]) -> Callable[[Thing], int]:
        PROPERTIES[name] = function
        return function

    return register


class Scene:
    """A grid with everything that is computed from it once and used by many."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._things: dict[str, tuple[list[Thing], npt.NDArray[np.int64]]] = {}
        self._measures: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
        self.memo: dict[Any, Any] = {}

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many cells of each colour 0..9 there are."""
        return np.bincount(self.grid.ravel(), minlength=10)

    @cached_property
    def background(self) -> int:
        """The colour that most of the grid has, else 0 where it occurs, else the commonest."""
        most = int(self.counts.argmax())
        return most if self.counts[most] > 0.6 * self.grid.size or not self.counts[0] else 0

    @cached_property
    def front(self) -> Mask:
        """Cells that are not background."""
        return self.grid != self.background

    def things(self, kind: str) -> list[Thing]:
        """The things of a kind, in reading order; empty where there are too many to count."""
        return self._cut(kind)[0]

    def labels(self, kind: str) -> npt.NDArray[np.int64]:
        """For each cell 1 + the index of its thing, 0 for none."""
        return self._cut(kind)[1]

    def measure(self, kind: str, name: str) -> npt.NDArray[np.int64]:
        """One of `PROPERTIES` of every thing of a kind, or how many things are equal by one of `REPEATS`."""
        key = (kind, name)
        if key not in self._measures:
            things = self.things(kind)
            if name in REPEATS:
                marks = [REPEATS[name](t) for t in things]
                times = Counter(marks)
                values = [times[m] for m in marks]
            else:
                values = [PROPERTIES[name](t) for t in things]
            self._measures[key] = np.array(values, dtype=np.int64)
        return self._measures[key]

    def _cut(self, kind: str) -> tuple[list[Thing], npt.NDArray[np.int64]]:
        if kind not in self._things:
            self._things[kind] = self._cut_panels() if kind == "panel" else self._cut_pieces(kind)
        return self._things[kind]

    def _cut_pieces(self, kind: str) -> tuple[list[Thing], npt.NDArray[np.int64]]:
        grid = self.grid
        labels = np.zeros(grid.shape, dtype=np.int64)
        if kind == "object":
            labels = ndimage.label(self.front, EIGHT)[0].astype(np.int64)
        else:
            for colour in np.flatnonzero(self.counts):
                if colour == self.background:
                    continue
                mask = grid == colour
                if kind == "colour":
                    labels[mask] = labels.max() + 1
                else:
                    found = ndimage.label(mask, EIGHT if kind == "piece" else None)[0]
                    labels[mask] = found[mask] + labels.max()
        boxes = ndimage.find_objects(labels)
        if len(boxes) > MAX_OBJECTS:
            return [], np.zeros(grid.shape, dtype=np.int64)
        order = sorted(range(len(boxes)), key=lambda i: (boxes[i][0].start, boxes[i][1].start))
        renumber = np.zeros(len(boxes) + 1, dtype=np.int64)
        things = []
        for new, old in enumerate(order):
            box = boxes[old]
            renumber[old + 1] = new + 1
            mask = labels[box] == old + 1
            things.append(self._thing(grid[box], mask, box[0].start, box[1].start))
        return things, renumber[labels]

    def _thing(self, patch: Grid, mask: Mask, top: int, left: int) -> Thing:
        height, width = self.grid.shape
        return Thing(patch, mask, top, left, self.background, (height, width))

    @cached_property
    def separators(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int] | None:
        """Rows, columns and colour of the full lines that cut the grid into panels, if any."""
        best = None
        for colour in np.flatnonzero(self.counts):
            mask = self.grid == colour
            rows, cols = np.flatnonzero(mask.all(axis=1)), np.flatnonzero(mask.all(axis=0))
            n = len(rows) + len(cols)
            if not n or n > 20 or (colour == self.background and self.counts[colour] > 0.5 * self.grid.size):
                continue
            if best is None or (colour != self.background, n) > (
                best[2] != self.background,
                len(best[0]) + len(best[1]),
            ):
                best = (rows, cols, int(colour))
        return best

    @cached_property
    def panel_layout(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Row spans and column spans of the panels; without separators halves or thirds of a long grid."""
        height, width = self.grid.shape
        if self.separators is not None:
            rows, cols, _ = self.separators
            return _spans(rows, height), _spans(cols, width)
        for long, short, is_tall in ((height, width, True), (width, height, False)):
            for n in (2, 3, 4):
                if long == n * short:
                    cuts = [(i * short, (i + 1) * short) for i in range(n)]
                    return (cuts, [(0, width)]) if is_tall else ([(0, height)], cuts)
        return [(0, height)], [(0, width)]

    def _cut_panels(self) -> tuple[list[Thing], npt.NDArray[np.int64]]:
        rows, cols = self.panel_layout
        labels = np.zeros(self.grid.shape, dtype=np.int64)
        if not 2 <= len(rows) * len(cols) <= MAX_OBJECTS:
            return [], labels
        things = []
        for top, bottom in rows:
            for left, right in cols:
                patch = self.grid[top:bottom, left:right]
                things.append(self._thing(patch, np.ones(patch.shape, dtype=bool), top, left))
                labels[top:bottom, left:right] = len(things)
        return things, labels


def _spans(cuts: npt.NDArray[np.int64], length: int) -> list[tuple[int, int]]:
    edges = [-1, *cuts.tolist(), length]
    return [(a + 1, b) for a, b in pairwise(edges) if b > a + 1]


def turned(grid: npt.NDArray[Any], quarters: int) -> npt.NDArray[Any]:
    """A view of a 2-D grid turned left by quarters, as `np.rot90`, which takes seven times as long."""
    return (grid, grid.T[::-1], grid[::-1, ::-1], grid.T[:, ::-1])[quarters % 4]


def poses(grid: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The eight views of a grid under rotation and reflection, itself first."""
    turns = [turned(grid, k) for k in range(4)]
    return turns + [t[:, ::-1] for t in turns]


def framed(mask: Mask, fill: bool) -> Mask:
    """A mask with one more cell on every side, as `np.pad`, which takes ten times as long."""
    out = np.full((mask.shape[0] + 2, mask.shape[1] + 2), fill)
    out[1:-1, 1:-1] = mask
    return out


REPEATS: dict[str, Callable[[Thing], Hashable]] = {
    "repeats of its shape": lambda t: (t.mask.shape, t.mask.tobytes()),
    "repeats of its drawing": lambda t: (t.mask.shape, t.alone.tobytes()),
    "repeats of its colour": lambda t: t.colour,
    "repeats of its shape in any pose": lambda t: min((p.shape, p.tobytes()) for p in poses(t.mask)),
}
"""In what things are compared, by the name of how many of a grid are equal in it."""


@prop("number of cells")
def _area(t: Thing) -> int:
    return int((t.alone != t.background).sum())


@prop("height")
def _height(t: Thing) -> int:
    return t.height


@prop("width")
def _width(t: Thing) -> int:
    return t.width


@prop("box size")
def _box(t: Thing) -> int:
    return t.height * t.width


@prop("longer side")
def _longer(t: Thing) -> int:
    return max(t.height, t.width)


@prop("being taller than wide")
def _taller(t: Thing) -> int:
    return int(np.sign(t.height - t.width))


@prop("number of colours")
def _n_colours(t: Thing) -> int:
    return int(np.count_nonzero(t.colours))


@prop("number of odd cells")
def _odd_cells(t: Thing) -> int:
    drawn = t.colours.copy()
    drawn[t.background] = 0
    return int(drawn.sum() - drawn.max())


@prop("holes")
def _holes(t: Thing) -> int:
    return int(ndimage.label(framed(~t.mask, True))[1]) - 1


@prop("empty cells in its box")
def _hollow(t: Thing) -> int:
    return int((~t.mask).sum())


@prop("symmetry left-right")
def _symmetric_lr(t: Thing) -> int:
    return int((t.alone == t.alone[:, ::-1]).all())


@prop("symmetry up-down")
def _symmetric_ud(t: Thing) -> int:
    return int((t.alone == t.alone[::-1]).all())


@prop("any symmetry")
def _symmetric(t: Thing) -> int:
    square = t.height == t.width
    return _symmetric_lr(t) | _symmetric_ud(t) | int(square and (t.alone == t.alone.T).all())


@prop("row of its top")
def _top(t: Thing) -> int:
    return t.top


@prop("column of its left side")
def _left(t: Thing) -> int:
    return t.left


@prop("row of its bottom")
def _bottom(t: Thing) -> int:
    return t.top + t.height


@prop("column of its right side")
def _right(t: Thing) -> int:
    return t.left + t.width


@prop("touching the border")
def _touches(t: Thing) -> int:
    height, width = t.field
    return int(t.top == 0) + int(t.left == 0) + int(t.top + t.height == height) + int(t.left + t.width == width)


@prop("number of parts")
def _parts(t: Thing) -> int:
    return int(ndimage.label(t.alone != t.background, EIGHT)[1])


@prop("bends")
def _bends(t: Thing) -> int:
    padded = framed(t.mask, False).view(np.uint8)
    corners = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    return int((corners % 2).sum())


@prop("colour")
def _colour(t: Thing) -> int:
    return t.colour
