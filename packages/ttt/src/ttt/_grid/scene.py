"""A grid with what is computed from it once: its background, things, panels, enclosed cells and lines of sight."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import ndimage

from ttt._grid.geometry import EIGHT, Mask, Numbers, Step, framed, shift
from ttt._grid.things import FORMS, PROPERTIES, RELATED, REPEATS, Extreme, Thing
from ttt.values import Grid, grid_bytes

MAX_THINGS = 120
"""Grids with more things of a kind than this count as having none of that kind."""


class Scene:
    """A grid with everything that is computed from it once and used by many.

    Args:
        grid: The grid.
        background: Its background colour, where other grids decide that.
    """

    def __init__(self, grid: Grid, background: int | None = None) -> None:
        self.grid = grid
        if background is not None:
            self.background = background
        self._things: dict[str, tuple[list[Thing], Numbers]] = {}
        self._measures: dict[tuple[str, str], Numbers] = {}
        self.memo: dict[Any, Any] = {}

    @cached_property
    def counts(self) -> Numbers:
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
        """Return the things of a kind in reading order; none where there are more than `MAX_THINGS`."""
        return self._cut(kind)[0]

    def labels(self, kind: str) -> Numbers:
        """Return for each cell 1 + the index of its thing, 0 for none."""
        return self._cut(kind)[1]

    def measure(self, kind: str, name: str) -> Numbers:
        """Return a measure of the things of a kind; of `REPEATS` how many things are equal."""
        key = (kind, name)
        if key not in self._measures:
            things = self.things(kind)
            if name in REPEATS:
                marks = [REPEATS[name](t) for t in things]
                times = Counter(marks)
                values = [times[m] for m in marks]
            elif name in RELATED:
                values = RELATED[name](things).tolist() if things else []
            else:
                values = [(FORMS.get(name) or PROPERTIES[name])(t) for t in things]
            self._measures[key] = np.array(values, dtype=np.int64)
        return self._measures[key]

    def _cut(self, kind: str) -> tuple[list[Thing], Numbers]:
        if kind not in self._things:
            self._things[kind] = self._cut_panels() if kind == "panel" else self._cut_pieces(kind)
        return self._things[kind]

    def _cut_pieces(self, kind: str) -> tuple[list[Thing], Numbers]:
        grid = self.grid
        labels = np.zeros(grid.shape, dtype=np.int64)
        if kind in ("object", "solid"):
            labels = ndimage.label(self.front, EIGHT if kind == "object" else None)[0].astype(np.int64)
        elif kind in ("region", "enclosed"):
            labels = ndimage.label(~self.front)[0].astype(np.int64)
            if kind == "enclosed":
                edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
                labels[np.isin(labels, edge)] = 0
                labels = np.unique(labels, return_inverse=True)[1].reshape(grid.shape).astype(np.int64)
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
        if len(boxes) > MAX_THINGS:
            return [], np.zeros(grid.shape, dtype=np.int64)
        order = sorted(range(len(boxes)), key=lambda i: (boxes[i][0].start, boxes[i][1].start))
        renumber = np.zeros(len(boxes) + 1, dtype=np.int64)
        things = []
        for new, old in enumerate(order):
            box = boxes[old]
            renumber[old + 1] = new + 1
            mask = labels[box] == old + 1
            things.append(self._thing(grid[box], mask, box[0].start, box[1].start, kind in ("region", "enclosed")))
        return things, renumber[labels]

    def _thing(self, patch: Grid, mask: Mask, top: int, left: int, of_background: bool = False) -> Thing:
        height, width = self.grid.shape
        around = (self.background + 1) % 10 if of_background else self.background
        return Thing(patch, mask, top, left, around, (height, width))

    @cached_property
    def separators(self) -> tuple[Numbers, Numbers, int] | None:
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

    def _cut_panels(self) -> tuple[list[Thing], Numbers]:
        rows, cols = self.panel_layout
        labels = np.zeros(self.grid.shape, dtype=np.int64)
        if not 2 <= len(rows) * len(cols) <= MAX_THINGS:
            return [], labels
        things = []
        for top, bottom in rows:
            for left, right in cols:
                patch = self.grid[top:bottom, left:right]
                things.append(self._thing(patch, np.ones(patch.shape, dtype=bool), top, left))
                labels[top:bottom, left:right] = len(things)
        return things, labels


def scenes_of(grids: Iterable[Grid]) -> list[Scene]:
    """Return the scene of each grid; the background of all is 0 where half of them have that and all show it."""
    scenes = [Scene(g) for g in grids]
    empty = [s.background == 0 for s in scenes]
    if all(empty) or 2 * sum(empty) < len(empty) or any(not s.counts[0] for s in scenes):
        return scenes
    return [s if is_empty else Scene(s.grid, 0) for s, is_empty in zip(scenes, empty, strict=True)]


class Scenes:
    """The scenes of some grids, each made once."""

    def __init__(self) -> None:
        self._made: dict[bytes, Scene] = {}

    def of(self, grids: Iterable[Grid]) -> list[Scene]:
        """Return the scene of each grid; equal grids have the same one."""
        found = []
        for scene in scenes_of(grids):
            key = bytes((scene.background,)) + grid_bytes(scene.grid)
            found.append(self._made.setdefault(key, scene))
        return found


def _spans(cuts: Numbers, length: int) -> list[tuple[int, int]]:
    edges = [-1, *cuts.tolist(), length]
    return [(a + 1, b) for a, b in pairwise(edges) if b > a + 1]


def pick(s: Scene, kind: str, measure: str, extreme: Extreme) -> int | None:
    """Return the index of the one thing with the most, the least or the only odd value of a measure."""
    key = ("pick", kind, measure, extreme)
    if key not in s.memo:
        s.memo[key] = _pick(s, kind, measure, extreme)
    found: int | None = s.memo[key]
    return found


def _pick(s: Scene, kind: str, measure: str, extreme: Extreme) -> int | None:
    values = s.measure(kind, measure)
    if not len(values):
        return None
    if extreme == "odd":
        if len(values) < 3:
            return None
        present, count = np.unique(values, return_counts=True)
        single = present[count == 1]
        return int(np.flatnonzero(values == single[0])[0]) if len(single) == 1 else None
    target = values.max() if extreme == "most" else values.min()
    hits = np.flatnonzero(values == target)
    if len(hits) == 1:
        return int(hits[0])
    things = s.things(kind)
    same = all(np.array_equal(things[h].alone, things[hits[0]].alone) for h in hits[1:])
    return int(hits[0]) if same and len(hits) < len(values) else None


PLACES = ("top row", "left column", "bottom row", "right column")
"""Properties of a place, in which things differ though they are alike."""
MOST_ALIKE = 40


def odd_one_out(s: Scene, kind: str) -> int | None:
    """Return the index of the thing that differs from all others, alike among themselves, in the most properties."""
    key = ("odd one out", kind)
    if key not in s.memo:
        s.memo[key] = _odd_one_out(s, kind)
    found: int | None = s.memo[key]
    return found


def _odd_one_out(s: Scene, kind: str) -> int | None:
    if not 3 <= len(s.things(kind)) <= MOST_ALIKE:
        return None
    votes: Counter[int] = Counter()
    for name in (*PROPERTIES, *REPEATS):
        values = s.measure(kind, name)
        present, count = np.unique(values, return_counts=True)
        if name not in PLACES and len(present) == 2 and count.min() == 1:
            votes[int(np.flatnonzero(values == present[count.argmin()])[0])] += 1
    ranked = votes.most_common(2)
    clear = len(ranked) == 1 or (len(ranked) == 2 and ranked[0][1] > ranked[1][1])
    return ranked[0][0] if clear else None


def seen(s: Scene, step: Step) -> Grid:
    """Return per cell the first drawn colour on the way in a direction, the background where there is none."""
    key = ("seen", step)
    if key not in s.memo:
        out = shift(s.grid, -step[0], -step[1], s.background)
        reach = 1
        while reach < max(s.grid.shape):  # within 2n cells: within n of this cell, else within n of the one n further
            out = np.where(out != s.background, out, shift(out, -step[0] * reach, -step[1] * reach, s.background))
            reach *= 2
        s.memo[key] = out
    found: Grid = s.memo[key]
    return found


def enclosed(s: Scene, *, sides_only: bool = True) -> Mask:
    """Return the background cells from which no path over background leads to the border."""
    key = ("enclosed", sides_only)
    if key not in s.memo:
        outside = framed(~s.front, True)
        labels, _ = ndimage.label(outside, None if sides_only else EIGHT)
        s.memo[key] = (outside & (labels != labels[0, 0]))[1:-1, 1:-1]
    found: Mask = s.memo[key]
    return found
