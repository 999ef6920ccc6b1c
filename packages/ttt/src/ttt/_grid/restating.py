"""Ways to restate a task so that its pairs look more alike, each with the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ttt._grid.scene import Scene
from ttt.values import Grid

Undo = Callable[[Grid], Grid]


@dataclass(frozen=True, slots=True)
class Restated:
    """A restated task.

    Args:
        name: How it was restated, in words.
        cost: Length of that description.
        inputs: All inputs, training first.
        outputs: The training outputs.
        undo: Per test, turns an output of the restated task into one of the task.
    """

    name: str
    cost: float
    inputs: tuple[Grid, ...]
    outputs: tuple[Grid, ...]
    undo: tuple[Undo, ...]


def restated(inputs: Sequence[Grid], outputs: Sequence[Grid]) -> list[Restated]:
    """Return every restatement that changes the task and can be undone."""
    found: list[Restated] = []
    seen = [[g.tolist() for g in inputs]]
    for name, restate in RESTATEMENTS.items():
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


RESTATEMENTS: dict[str, Callable[[str, Sequence[Grid], Sequence[Grid]], Restated | None]] = {
    "colours ordered by frequency": partial(_by_role, False),
    "colours ordered by first occurrence": partial(_by_role, True),
    "tall grids transposed": partial(_posed, _wide),
    "every grid turned so that the fullest quarter is at the top left": partial(_posed, _fullest_first),
}
"""Functions that restate a task, by the words of answers, in the order in which they are tried."""
