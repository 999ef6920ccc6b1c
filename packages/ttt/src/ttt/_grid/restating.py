"""Ways to restate a task so that its pairs look more alike, each with the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ttt._grid.scene import Scene
from ttt.values import MAX_SIDE, Grid

Undo = Callable[[Grid], Grid | None]
"""Turns an output of the restated task into one of the task; None where its size does not fit."""
Restate = Callable[[str, Sequence[Grid], Sequence[Grid]], "Restated | None"]
Box = tuple[int, int, int, int]
"""First and last row and column, the last ones exclusive: top, left, bottom, right."""


@dataclass(frozen=True, slots=True)
class Restated:
    """A restated task.

    Args:
        name: How it was restated, in words.
        cost: Length of that description.
        inputs: All inputs, training first.
        outputs: The training outputs.
        undo: For each test, the way back for its output.
    """

    name: str
    cost: float
    inputs: tuple[Grid, ...]
    outputs: tuple[Grid, ...]
    undo: tuple[Undo, ...]


def restated(
    inputs: Sequence[Grid], outputs: Sequence[Grid], table: Mapping[str, Restate] | None = None
) -> list[Restated]:
    """Return every restatement of a table (`RESTATEMENTS` if none is given) that changes the task."""
    found: list[Restated] = []
    seen = [[g.tolist() for g in inputs]]
    for name, restate in (RESTATEMENTS if table is None else table).items():
        restatement = restate(name, inputs, outputs)
        drawn = [] if restatement is None else [g.tolist() for g in restatement.inputs]
        if restatement is not None and drawn not in seen:
            seen.append(drawn)
            found.append(restatement)
    return found


def _by_role(by_place: bool, name: str, inputs: Sequence[Grid], outputs: Sequence[Grid]) -> Restated | None:
    """Rename the colours that not all inputs have by their role in the input; None if fewer than two remain."""
    present = [set(np.unique(g).tolist()) for g in inputs]
    constant = set.intersection(*present) | {0}
    needed = set().union(*(set(np.unique(b).tolist()) - p for b, p in zip(outputs, present, strict=False)))
    constant |= needed
    free = [c for c in range(9, -1, -1) if c not in constant]
    if len(free) < 2:
        return None
    maps = []
    for g in inputs:
        colours, first, counts = np.unique(g, return_index=True, return_counts=True)
        order = np.argsort(first) if by_place else np.lexsort((first, -counts))
        own = [int(c) for c in colours[order] if c in free]
        to = np.arange(10, dtype=np.uint8)
        rest = [c for c in free if c not in own]
        to[[*own, *rest]] = free
        maps.append(to)
    back = [np.argsort(m).astype(np.uint8) for m in maps]
    return Restated(
        name,
        1.0,
        tuple(m[g] for m, g in zip(maps, inputs, strict=True)),
        tuple(m[g] for m, g in zip(maps, outputs, strict=False)),
        tuple(_Recolour(b) for b in back[len(outputs) :]),
    )


@dataclass(frozen=True, slots=True)
class _Recolour:
    table: Grid

    def __call__(self, grid: Grid) -> Grid:
        return self.table[grid]


@dataclass(frozen=True, slots=True)
class _Pose:
    transpose: bool
    turns: int

    def apply(self, grid: Grid) -> Grid:
        """Put a grid into the pose."""
        return np.ascontiguousarray(np.rot90(grid.T if self.transpose else grid, self.turns))

    def __call__(self, grid: Grid) -> Grid:
        turned = np.rot90(grid, -self.turns)
        return np.ascontiguousarray(turned.T if self.transpose else turned)


def _posed(
    choose: Callable[[Grid], _Pose], name: str, inputs: Sequence[Grid], outputs: Sequence[Grid]
) -> Restated | None:
    picked = [choose(g) for g in inputs]
    if len(set(picked)) == 1:
        return None
    return Restated(
        name,
        1.0,
        tuple(p.apply(g) for p, g in zip(picked, inputs, strict=True)),
        tuple(p.apply(g) for p, g in zip(picked, outputs, strict=False)),
        tuple(picked[len(outputs) :]),
    )


def _wide(grid: Grid) -> _Pose:
    """Transpose tall grids; transpose square ones whose drawn lines run down rather than across."""
    h, w = grid.shape
    if h != w:
        return _Pose(h > w, 0)
    along = int((grid[:, 1:] == grid[:, :-1])[Scene(grid).front[:, 1:]].sum())
    down = int((grid[1:] == grid[:-1])[Scene(grid).front[1:]].sum())
    return _Pose(down > along, 0)


def _fullest_first(grid: Grid) -> _Pose:
    """Turn the quarter with the most drawn cells to the top left."""
    front = Scene(grid).front
    best, turns = -1, 0
    for k in range(4):
        turned = np.rot90(front, k)
        th, tw = turned.shape
        score = int(turned[: (th + 1) // 2, : (tw + 1) // 2].sum())
        if score > best:
            best, turns = score, k
    return _Pose(False, turns)


_TURNS = [_Pose(False, k) for k in range(4)]
_ALL_POSES = [_Pose(transpose, k) for transpose in (False, True) for k in range(4)]


def _lines_across(grid: Grid) -> _Pose:
    """Transpose where more neighbours are equal along columns than along rows."""
    rows, columns = grid[:, 1:] == grid[:, :-1], grid[1:] == grid[:-1]
    return _Pose(int(columns.sum()) * rows.size > int(rows.sum()) * columns.size, 0)


def _rarest_first(poses: Sequence[_Pose], both: bool, grid: Grid) -> _Pose:
    """Choose the first pose in which the cells of the rarest drawn colour lie nearest to the top, or the top left."""
    s = Scene(grid)
    drawn = [c for c in np.flatnonzero(s.counts) if c != s.background]
    if not drawn:
        return poses[0]
    rarest = grid == min(drawn, key=lambda c: s.counts[c])

    def distance(pose: _Pose) -> tuple[float, float]:
        r, c = np.nonzero(pose.apply(rarest))
        h, w = pose.apply(rarest).shape
        down, across = float(r.sum()) / (len(r) * h), float(c.sum()) / (len(r) * w)
        return (round(down + across, 9), down) if both else (down, 0.0)

    return min(poses, key=distance)


def _within(
    choose: Callable[[Scene], Box | None], name: str, inputs: Sequence[Grid], outputs: Sequence[Grid]
) -> Restated | None:
    """Cut every grid down to a box of its input; None if something changes outside."""
    if any(a.shape != b.shape for a, b in zip(inputs, outputs, strict=False)):
        return None
    back = []
    for g in inputs:
        box = choose(Scene(g))
        if box is None:
            return None
        back.append(_PutBack(g, box))
    changed = tuple(b.cut(o) for b, o in zip(back, outputs, strict=False))
    if not all(_equal(b(c), o) for b, c, o in zip(back, changed, outputs, strict=False)):
        return None
    return Restated(name, 1.0, tuple(b.cut(b.grid) for b in back), changed, tuple(back[len(outputs) :]))


def _equal(a: Grid | None, b: Grid) -> bool:
    return a is not None and np.array_equal(a, b)


@dataclass(frozen=True, slots=True)
class _PutBack:
    grid: Grid
    box: Box

    def cut(self, grid: Grid) -> Grid:
        """Return the box of a grid."""
        top, left, bottom, right = self.box
        return np.ascontiguousarray(grid[top:bottom, left:right])

    def __call__(self, made: Grid) -> Grid | None:
        top, left, bottom, right = self.box
        if made.shape != (bottom - top, right - left):
            return None
        out = self.grid.copy()
        out[top:bottom, left:right] = made
        return out


def _drawn_box(s: Scene) -> Box | None:
    r, c = np.nonzero(s.front)
    return (int(r.min()), int(c.min()), int(r.max()) + 1, int(c.max()) + 1) if len(r) else None


def _largest_box(s: Scene) -> Box | None:
    """Return the box of the object with the largest one; None where two are as large."""
    boxes = [(t.top, t.left, t.top + t.height, t.left + t.width) for t in s.things("object")]
    size = sorted(((b[2] - b[0]) * (b[3] - b[1]), b) for b in boxes)
    return None if not size or (len(size) > 1 and size[-2][0] == size[-1][0]) else size[-1][1]


def _lattice(name: str, inputs: Sequence[Grid], outputs: Sequence[Grid]) -> Restated | None:
    """Take each panel for one cell, where all panels between the separators are of one colour each."""
    if any(a.shape != b.shape for a, b in zip(inputs, outputs, strict=False)):
        return None
    back = [_Panels.of(g) for g in inputs]
    small = [None if b is None else b.cells(g) for b, g in zip(back, inputs, strict=True)]
    changed = [None if b is None else b.cells(o) for b, o in zip(back, outputs, strict=False)]
    known = [b for b in back if b is not None]
    before, after = [s for s in small if s is not None], [c for c in changed if c is not None]
    if len(before) < len(inputs) or len(after) < len(outputs):
        return None
    if not all(_equal(b(c), o) for b, c, o in zip(known, after, outputs, strict=False)):
        return None
    return Restated(name, 1.0, tuple(before), tuple(after), tuple(known[len(outputs) :]))


@dataclass(frozen=True, slots=True)
class _Panels:
    grid: Grid
    rows: Sequence[tuple[int, int]]
    columns: Sequence[tuple[int, int]]

    @staticmethod
    def of(grid: Grid) -> _Panels | None:
        """Return the panels between a grid's separators, None if there are fewer than four."""
        s = Scene(grid)
        rows, columns = s.panel_layout
        return _Panels(grid, rows, columns) if s.separators and len(rows) * len(columns) >= 4 else None

    def cells(self, grid: Grid) -> Grid | None:
        """Return the colour of each panel of a grid; None where one has several."""
        panels = [[grid[a:b, c:d] for c, d in self.columns] for a, b in self.rows]
        if any((p != p[0, 0]).any() for row in panels for p in row):
            return None
        return np.array([[p[0, 0] for p in row] for row in panels], dtype=np.uint8)

    def __call__(self, made: Grid) -> Grid | None:
        if made.shape != (len(self.rows), len(self.columns)):
            return None
        out = self.grid.copy()
        for (a, b), row in zip(self.rows, made, strict=True):
            for (c, d), colour in zip(self.columns, row, strict=True):
                out[a:b, c:d] = colour
        return out


def _times_larger(inputs: Sequence[Grid], outputs: Sequence[Grid]) -> list[tuple[int, int]] | None:
    """Return for each input the size of its output, larger than it by a factor that all pairs show; None for none.

    The factor is a number for each side, or the number of drawn colours; of the longer side, if outputs are square.
    """
    shapes = [g.shape for g in inputs]
    colours = [int(np.count_nonzero(s.counts)) - (s.counts[s.background] > 0) for s in map(Scene, inputs)]
    down, across = (max(1, outputs[0].shape[i] // inputs[0].shape[i]) for i in (0, 1))
    for sizes in (
        [(h * down, w * across) for h, w in shapes],
        [(h * n, w * n) for (h, w), n in zip(shapes, colours, strict=True)],
        [(max(s) * n,) * 2 for s, n in zip(shapes, colours, strict=True)],
        [(max(s) * max(down, across),) * 2 for s in shapes],
    ):
        fits = all(s == o.shape for s, o in zip(sizes, outputs, strict=False))
        larger = all(h <= s[0] <= MAX_SIDE and w <= s[1] <= MAX_SIDE for (h, w), s in zip(shapes, sizes, strict=True))
        if fits and larger and sizes != shapes:
            return sizes
    return None


def _in_corner(at_bottom: bool, name: str, inputs: Sequence[Grid], outputs: Sequence[Grid]) -> Restated | None:
    """Put each input into a left corner of an empty grid of its output's size."""
    sizes = _times_larger(inputs, outputs)
    if sizes is None:
        return None
    made = []
    for g, (height, width) in zip(inputs, sizes, strict=True):
        h, w = g.shape
        out = np.full((height, width), Scene(g).background, dtype=np.uint8)
        out[height - h if at_bottom else 0 :, :w][:h] = g
        made.append(out)
    same = _Pose(False, 0)
    return Restated(name, 1.0, tuple(made), tuple(outputs), (same,) * (len(inputs) - len(outputs)))


RESTATEMENTS: dict[str, Restate] = {
    "colours ordered by frequency": partial(_by_role, False),
    "colours ordered by first occurrence": partial(_by_role, True),
    "tall grids transposed": partial(_posed, _wide),
    "every grid turned so that the fullest quarter is at the top left": partial(_posed, _fullest_first),
}
"""Functions that restate a task, by the words of answers, in the order in which they are tried."""

FURTHER: dict[str, Restate] = {
    "grids of panels taken for grids of cells": _lattice,
    "each input put into the top left of an empty grid of its output's size": partial(_in_corner, False),
    "each input put into the bottom left of an empty grid of its output's size": partial(_in_corner, True),
    "grids cut down to what is drawn": partial(_within, _drawn_box),
    "grids cut down to the largest object": partial(_within, _largest_box),
    **RESTATEMENTS,
    "grids transposed so that equal cells lie along rows": partial(_posed, _lines_across),
    "every grid turned so that the rarest colour is nearest to the top": partial(
        _posed, partial(_rarest_first, _TURNS, False)
    ),
    "every grid posed so that the rarest colour is nearest to the top left": partial(
        _posed, partial(_rarest_first, _ALL_POSES, True)
    ),
}
"""Those of the stage "restated", which searches each as it searches the task itself."""
