"""Rules that look a whole output up by how many of something the input has, or fill as many of its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ttt._grid.cell_rules import ENTRY, Program
from ttt._grid.geometry import Numbers
from ttt._grid.scene import Scene, Scenes
from ttt.values import Grid

REPEATED = 2
"""How many training pairs must have the same number as an earlier one."""

COUNTED: dict[str, Callable[[Scene], int]] = {
    "drawn cells": lambda s: int(s.front.sum()),
    "colours": lambda s: int(np.count_nonzero(s.counts)),
    "objects": lambda s: len(s.things("object")),
    "objects joined by sides": lambda s: len(s.things("solid")),
    "one-colour pieces": lambda s: len(s.things("piece")),
    "one-colour pieces joined by sides": lambda s: len(s.things("joined")),
}
"""What is counted, by its words."""


def programs_by_count(inputs: Sequence[Grid], outputs: Sequence[Grid], known: Scenes) -> list[Program]:
    """Return the rules "the output of the training pairs with as many", right on all pairs, some of which repeat.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        known: Scenes that others use too.
    """
    shown = [(o.shape, o.tobytes()) for o in outputs]
    found = _filled(inputs, outputs, known)
    if len(set(shown)) < 2 or len(set(shown)) > len(outputs) - REPEATED:
        return found
    for what, count in COUNTED.items():
        numbers = [count(s) for s in known.of(inputs)]
        first = {n: k for k, n in reversed(list(enumerate(numbers[: len(outputs)])))}
        same = all(shown[first[n]] == o for n, o in zip(numbers, shown, strict=False))
        if not same or len(first) > len(outputs) - REPEATED:
            continue
        grids = tuple(outputs[first[n]] if n in first else None for n in numbers[len(outputs) :])
        if any(g is not None for g in grids):
            why = f"the whole output by its number of {what} ({len(first)} cases)"
            found.append(Program(why, 1.5 + ENTRY * len(first), "table 2", grids))
    return found


def _snake(cells: Numbers) -> Numbers:
    """Turn every second row round."""
    cells = cells.copy()
    cells[1::2] = cells[1::2, ::-1]
    return cells


ORDERS: dict[str, Callable[[Numbers], Numbers]] = {
    "row by row": lambda cells: cells.ravel(),
    "row by row and back": lambda cells: _snake(cells).ravel(),
    "column by column": lambda cells: cells.T.ravel(),
    "column by column and back": lambda cells: _snake(cells.T).ravel(),
    "row by row from the bottom": lambda cells: cells[::-1].ravel(),
    "column by column, each from the bottom": lambda cells: cells[::-1].T.ravel(),
    "every second cell, row by row": lambda cells: cells.ravel()[::2],
    "down the diagonal": lambda cells: cells.diagonal(),
}
"""In which order the cells of an output are filled, given the numbers of its cells."""


def _filled(inputs: Sequence[Grid], outputs: Sequence[Grid], known: Scenes) -> list[Program]:
    """Return the rules "as many cells of the output as the input has things", where all outputs have one size."""
    shape = outputs[0].shape
    if any(o.shape != shape for o in outputs) or outputs[0].size < 2:
        return []
    ground = int(np.bincount(np.concatenate([o.ravel() for o in outputs]), minlength=10).argmax())
    drawn = [np.flatnonzero(o.ravel() != ground) for o in outputs]
    painted = [np.unique(o[o != ground]) for o in outputs]
    if any(len(p) > 1 for p in painted) or len({len(d) for d in drawn}) < 2:
        return []
    scenes = known.of(inputs)
    fixed = np.unique(np.concatenate(painted))
    cells = np.arange(outputs[0].size).reshape(shape)
    found = []
    for what, count in {**COUNTED, **_of_colours(scenes)}.items():
        numbers = [count(s) for s in scenes]
        if any(n != len(d) for n, d in zip(numbers, drawn, strict=False)):
            continue
        for words, order in ORDERS.items():
            line = order(cells)
            if max(numbers) > len(line) or any(set(line[: len(d)]) != set(d) for d in drawn):
                continue
            colours = [int(fixed[0]) if len(fixed) == 1 else _commonest(s) for s in scenes]
            if any(len(p) and p[0] != c for p, c in zip(painted, colours, strict=False)):
                continue
            grids = []
            for n, colour in list(zip(numbers, colours, strict=True))[len(outputs) :]:
                grid = np.full(shape, ground, dtype=np.uint8)
                grid.ravel()[line[:n]] = colour
                grids.append(grid)
            found.append(
                Program(f"as many cells as its number of {what}, filled {words}", 2.0, "table 2", tuple(grids))
            )
    return found


def _commonest(s: Scene) -> int:
    """Return the commonest drawn colour."""
    counts = s.counts.copy()
    counts[s.background] = 0
    return int(counts.argmax())


def _of_colours(scenes: Sequence[Scene]) -> dict[str, Callable[[Scene], int]]:
    """Return the counts of each colour that all inputs have."""
    every = np.flatnonzero(np.logical_and.reduce([s.counts > 0 for s in scenes])).tolist()
    found: dict[str, Callable[[Scene], int]] = {}
    for c in every:
        found[f"cells of colour {c}"] = partial(_cells_of, c)
        found[f"pieces of colour {c}"] = partial(_things_of, "piece", c)
        found[f"pieces of colour {c} joined by sides"] = partial(_things_of, "joined", c)
        found[f"squares of colour {c}"] = partial(_squares_of, c)
    return found


def _cells_of(colour: int, s: Scene) -> int:
    return int(s.counts[colour])


def _things_of(kind: str, colour: int, s: Scene) -> int:
    return sum(t.colour == colour for t in s.things(kind))


def _squares_of(colour: int, s: Scene) -> int:
    """Count the full squares of more than one cell."""
    return sum(t.colour == colour and t.height == t.width > 1 and bool(t.mask.all()) for t in s.things("joined"))
