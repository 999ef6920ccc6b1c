"""Tasks as sequences of sixteen symbols, and which symbol may follow which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt.values import MAX_SIDE, Grid, Pair, Task, as_grid

ROW_END, INPUT, OUTPUT, GRID_END, PAD, BEGIN = 10, 11, 12, 13, 14, 15
SYMBOLS = 16
"""Colours 0 to 9, then the six above."""
IGNORED = -100
"""Label of a symbol that is not learned, as PyTorch's cross entropy takes it."""


def grid_symbols(grid: Grid) -> list[int]:
    """Return a grid row by row, with ROW_END after each row and GRID_END after the last."""
    out: list[int] = []
    for row in grid.tolist():
        out += [*row, ROW_END]
    return [*out, GRID_END]


def symbols_grid(symbols: Sequence[int]) -> Grid:
    """Read what `grid_symbols` wrote."""
    rows: list[list[int]] = [[]]
    for s in symbols:
        if s == ROW_END:
            rows.append([])
        elif s != GRID_END:
            rows[-1].append(int(s))
    return as_grid(rows[:-1], "a decoded grid")


def prompt(pairs: Sequence[Pair], query: Grid) -> list[int]:
    """Return pairs, then an input whose output the model continues with."""
    out = [BEGIN]
    for pair in pairs:
        if pair.output is not None:
            out += [INPUT, *grid_symbols(pair.input), OUTPUT, *grid_symbols(pair.output)]
    return [*out, INPUT, *grid_symbols(query), OUTPUT]


def example(task: Task, limit: int) -> tuple[list[int], list[int]]:
    """Return a training sequence and its labels: outputs are learned, inputs are not.

    The task's one test pair comes last; the first training pairs are dropped until the sequence has at most `limit`
    symbols.
    """
    held = task.test[0]
    if held.output is None:
        raise ValueError(f"task {task.id}: an example needs the output of its test pair")
    pairs = list(task.train)
    while True:
        text = [*prompt(pairs, held.input), *grid_symbols(held.output)]
        if len(text) <= limit or not pairs:
            break
        pairs.pop(0)
    labels = []
    learning = False
    for s in text:
        labels.append(s if learning else IGNORED)
        if s == OUTPUT:
            learning = True
        elif s == GRID_END:
            learning = False
    return text, labels


def shorten(pairs: Sequence[Pair], query: Grid, room: int) -> list[int]:
    """Return a prompt of at most `room` symbols if dropping the first pairs makes it short enough."""
    left = list(pairs)
    while len(text := prompt(left, query)) > room and left:
        left.pop(0)
    return text


@dataclass(frozen=True, slots=True)
class Grammar:
    """Where a grid being written stands: only grids of equal rows, 30 x 30 at most, can be written."""

    row: int = 0
    column: int = 0
    width: int | None = None

    def allowed(self) -> np.ndarray:
        """Which of the sixteen symbols may come next."""
        may = np.zeros(SYMBOLS, bool)
        width = MAX_SIDE if self.width is None else self.width
        may[:10] = self.row < MAX_SIDE and self.column < width
        may[ROW_END] = self.column > 0 and (self.width is None or self.column == self.width)
        may[GRID_END] = self.row > 0 and self.column == 0
        return may

    def after(self, symbol: int) -> Grammar:
        """Return the state after one more symbol."""
        if symbol == ROW_END:
            return Grammar(self.row + 1, 0, self.width or self.column)
        return Grammar(self.row, self.column + 1, self.width)
