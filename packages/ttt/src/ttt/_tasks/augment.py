"""Invertible views of a task: symmetries of the square, colour permutations, orders of pairs; and leave-one-out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.values import COLOURS, Grid, Pair, Task

IDENTITY_COLOURS = tuple(range(COLOURS))


@dataclass(frozen=True, slots=True)
class View:
    """An invertible view of a task: a symmetry, a permutation of colours, an order of pairs.

    Example:
        >>> view = ttt.View(turns=1)
        >>> view.undo(view.apply(one)).tolist() == one.tolist()
        True

    `turns` quarter turns counter-clockwise after an optional `mirror` (left-right); colour c becomes
    `colours[c]`; `order` permutes the training pairs (empty: as they are).
    """

    turns: int = 0
    mirror: bool = False
    colours: tuple[int, ...] = IDENTITY_COLOURS
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that could not be undone."""
        if self.turns not in range(4):
            raise ValueError(f"turns: got {self.turns}, wanted 0 to 3")
        if sorted(self.colours) != list(IDENTITY_COLOURS):
            raise ValueError(f"colours: got {self.colours}, wanted a permutation of 0 to 9")
        if self.order and sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order: got {self.order}, wanted a permutation of the training pairs")

    def apply(self, grid: Grid) -> Grid:
        """Return the grid under this view."""
        seen = np.fliplr(grid) if self.mirror else grid
        return _frozen(np.array(self.colours, np.uint8)[np.rot90(seen, self.turns)])

    def undo(self, grid: Grid) -> Grid:
        """Return the grid that `apply` would turn into this one."""
        table = np.empty(COLOURS, np.uint8)
        table[list(self.colours)] = np.arange(COLOURS, dtype=np.uint8)
        seen = np.rot90(table[grid], -self.turns)
        return _frozen(np.fliplr(seen) if self.mirror else seen)

    def apply_task(self, task: Task) -> Task:
        """Return the whole task under this view."""
        order = self.order or range(len(task.train))
        if len(order) != len(task.train):
            raise ValueError(f"order of {len(order)} pairs for task {task.id}, which has {len(task.train)}")
        return Task(task.id, tuple(self._pair(task.train[i]) for i in order), tuple(self._pair(p) for p in task.test))

    def _pair(self, pair: Pair) -> Pair:
        return Pair(self.apply(pair.input), None if pair.output is None else self.apply(pair.output))

    def to_json(self) -> dict[str, Any]:
        """Return the view as JSON values, which `View.from_json` reads."""
        return {"turns": self.turns, "mirror": self.mirror, "colours": [*self.colours], "order": [*self.order]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> View:
        """Read what `to_json` wrote."""
        return cls(value["turns"], value["mirror"], tuple(value["colours"]), tuple(value["order"]))


def _frozen(grid: Grid) -> Grid:
    grid = np.ascontiguousarray(grid)
    grid.flags.writeable = False
    return grid


SYMMETRIES = tuple(View(turns, mirror) for mirror in (False, True) for turns in range(4))
"""The eight symmetries of the square, identity first."""


def random_views(
    task: Task, n: int, seed: int, *, keep_colours: Sequence[int] = (0,), shuffle_pairs: bool = True
) -> list[View]:
    """Draw n views of a task, the identity first: symmetries in turn, random colours and orders of pairs.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one),))
        >>> ttt.random_views(task, 8, seed=0)[0] == ttt.View()
        True

    Args:
        task: The task.
        n: Number of views.
        seed: The same seed draws the same views.
        keep_colours: Colours that are not permuted; 0 is the background of most tasks.
        shuffle_pairs: Whether views also reorder the training pairs.
    """
    rng = np.random.default_rng(seed)
    free = [c for c in range(COLOURS) if c not in keep_colours]
    views = [View()]
    while len(views) < n:
        symmetry = SYMMETRIES[len(views) % 8] if len(views) % 8 else SYMMETRIES[int(rng.integers(8))]
        colours = list(IDENTITY_COLOURS)
        for c, to in zip(free, rng.permutation(free), strict=True):
            colours[c] = int(to)
        order = tuple(int(i) for i in rng.permutation(len(task.train))) if shuffle_pairs else ()
        views.append(View(symmetry.turns, symmetry.mirror, tuple(colours), order))
    return views[:n]


def leave_one_out(task: Task) -> Iterator[Task]:
    """Yield one task per training pair, with that pair as its test and the others as its training pairs.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two), ttt.Pair(two, one)), (ttt.Pair(one),))
        >>> [len(t.train) for t in ttt.leave_one_out(task)]
        [1, 1]

    Args:
        task: The task to split.
    """
    if len(task.train) < 2:
        return
    for i, held in enumerate(task.train):
        yield Task(task.id, task.train[:i] + task.train[i + 1 :], (held,))
