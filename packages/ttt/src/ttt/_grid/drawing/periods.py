"""Periods: each row, column or whole grid goes on as its drawn part repeats, with a period of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ttt._grid.drawing.registry import Line
from ttt._grid.geometry import Mask
from ttt._grid.scene import Scene
from ttt.values import Grid

MOST_THINGS = 12
FURTHEST = 8
"""Rows or columns from one copy of the drawing to the next, at most."""


def lines_continued(turns: int, once: bool, s: Scene) -> Grid | None:
    """Repeat the drawn beginning of each row with the smallest period that it shows.

    Args:
        turns: Quarter turns of the grid before and back after: 0 for rows to the right.
        once: Whether a beginning that shows no repetition repeats as a whole.
        s: The grid.
    """
    g = np.rot90(s.grid, turns)
    out = g.copy()
    for row in out:
        drawn = np.flatnonzero(row != s.background)
        if not len(drawn) or drawn[-1] == len(row) - 1:
            continue
        n = int(drawn[-1]) + 1
        period = next((p for p in range(1, n) if (row[p:n] == row[: n - p]).all()), n)
        if period == n and not (once and row[0] != s.background):
            continue
        row[:] = row[np.arange(len(row)) % period]
    return None if np.array_equal(out, g) else np.ascontiguousarray(np.rot90(out, -turns))


def repeated(ahead: bool, back: bool, s: Scene) -> Grid | None:
    """Repeat the drawing by the shortest vector by which a part of it repeats already, over what is empty.

    Args:
        ahead: Whether it goes on in the direction of the vector, which points down or to the right.
        back: Whether it goes on in the other one.
        s: The grid.
    """
    out = s.grid.copy()
    _repeat(out, s.front, ahead, back, s)
    return None if np.array_equal(out, s.grid) else out


def things_repeated(ahead: bool, back: bool, s: Scene) -> Grid | None:
    """Repeat each object by a vector of its own; arguments as of `repeated`."""
    things = s.things("object")
    if not 1 <= len(things) <= MOST_THINGS:
        return None
    out = s.grid.copy()
    for n in range(1, len(things) + 1):
        _repeat(out, s.labels("object") == n, ahead, back, s)
    return None if np.array_equal(out, s.grid) else out


def _repeat(out: Grid, mine: Mask, ahead: bool, back: bool, s: Scene) -> None:
    """Draw copies of some cells by the shortest vector by which they repeat, if there is one."""
    r, c = np.nonzero(mine)
    if not len(r):
        return
    box = np.where(mine, s.grid, np.uint8(s.background))[r.min() : r.max() + 1, c.min() : c.max() + 1]
    vector = next(_vectors(box, s.background), None)
    if vector is None:
        return
    colours = s.grid[r, c]
    for n in range(1, max(out.shape)):
        for sign in ((1,) if ahead else ()) + ((-1,) if back else ()):
            y, x = r + sign * n * vector[0], c + sign * n * vector[1]
            inside = (y >= 0) & (x >= 0) & (y < out.shape[0]) & (x < out.shape[1])
            y, x, k = y[inside], x[inside], colours[inside]
            room = out[y, x] == s.background
            out[y[room], x[room]] = k[room]


def _vectors(box: Grid, background: int) -> Iterator[tuple[int, int]]:
    """Yield the vectors that move every drawn cell of a box onto an equal one or out of the box, shortest first."""
    h, w = box.shape
    near = [
        (dr, dc)
        for dr in range(min(h, FURTHEST + 1))
        for dc in range(-min(w - 1, FURTHEST), min(w, FURTHEST + 1))
        if dr > 0 or dc > 0
    ]
    for dr, dc in sorted(near, key=lambda v: (v[0] ** 2 + v[1] ** 2, v)):
        a = box[: h - dr, max(0, -dc) : w - max(0, dc)]
        b = box[dr:, max(0, dc) : w - max(0, -dc)]
        if (a == b).all() and (a != background).sum() >= 2:
            yield dr, dc


WAYS = {"forwards": (True, False), "backwards": (False, True), "both ways": (True, True)}
PERIODS = (
    Line(
        "each {}",
        lines_continued,
        1.3,
        {
            f"{words}, with its own period{end}": (turns, once)
            for words, turns in (
                ("row continued to the right", 0),
                ("row continued to the left", 2),
                ("column continued downwards", 1),
                ("column continued upwards", 3),
            )
            for once, end in ((False, ""), (True, " or as a whole"))
        },
    ),
    Line("the drawing repeated by the vector by which it repeats, {}", repeated, 1.3, WAYS),
    Line("each object repeated by the vector by which it repeats, {}", things_repeated, 1.4, WAYS),
)
