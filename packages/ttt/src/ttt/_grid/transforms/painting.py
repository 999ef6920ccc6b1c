"""Transformations that keep a grid's size and paint its cells: gravity, moves, lines, fills, smoothing, growth."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from scipy import ndimage

from ttt._grid.geometry import DIAGONALS, STEPS, TURNS, Step, shift, turned
from ttt._grid.scene import Scene, enclosed, seen
from ttt._grid.transforms.registry import Table, Transform
from ttt.values import Grid


def _keeping_size(table: Table) -> Table:
    return {name: replace(transform, keeps_size=True) for name, transform in table.items()}


def _gravity(direction: str, s: Scene) -> Grid:
    g = turned(s.grid, TURNS[direction])
    out = np.take_along_axis(g, np.argsort(g != s.background, axis=0, kind="stable"), axis=0)
    return turned(out, -TURNS[direction])


def _drop(direction: str, kind: str, s: Scene) -> Grid | None:
    things = s.things(kind)
    if not 1 <= len(things) <= 40:
        return None
    turn = TURNS[direction]
    labels = turned(s.labels(kind), turn)
    g = turned(s.grid, turn)
    height = g.shape[0]
    cells = [np.nonzero(labels == i + 1) for i in range(len(things))]
    out = np.full_like(g, s.background)
    for i in sorted(range(len(things)), key=lambda i: -int(cells[i][0].max())):
        r, c = cells[i]
        fall = 0
        while r.max() + fall + 1 < height and (out[r + fall + 1, c] == s.background).all():
            fall += 1
        out[r + fall, c] = g[r, c]
    return turned(out, -turn)


GRAVITY = _keeping_size(
    {
        "cells fallen down": Transform(partial(_gravity, "down"), second=True),
        "objects fallen down": Transform(partial(_drop, "down", "object")),
        "pieces fallen down": Transform(partial(_drop, "down", "piece")),
        "cells fallen right": Transform(partial(_gravity, "right"), second=True),
        "objects fallen right": Transform(partial(_drop, "right", "object")),
        "pieces fallen right": Transform(partial(_drop, "right", "piece")),
        "cells fallen up": Transform(partial(_gravity, "up"), second=True),
        "objects fallen up": Transform(partial(_drop, "up", "object")),
        "pieces fallen up": Transform(partial(_drop, "up", "piece")),
        "cells fallen left": Transform(partial(_gravity, "left"), second=True),
        "objects fallen left": Transform(partial(_drop, "left", "object")),
        "pieces fallen left": Transform(partial(_drop, "left", "piece")),
    }
)


def _moved(direction: str, n: int, s: Scene) -> Grid:
    dr, dc = STEPS[direction]
    return shift(s.grid, dr * n, dc * n, s.background)


def _rolled(direction: str, s: Scene) -> Grid:
    return np.roll(s.grid, STEPS[direction], axis=(0, 1))


MOVES = _keeping_size(
    {
        "moved up by 1": Transform(partial(_moved, "up", 1), cost=1.0 + 0.1 * 1),
        "moved up by 2": Transform(partial(_moved, "up", 2), cost=1.0 + 0.1 * 2),
        "moved up by 3": Transform(partial(_moved, "up", 3), cost=1.0 + 0.1 * 3),
        "rolled up": Transform(partial(_rolled, "up")),
        "moved down by 1": Transform(partial(_moved, "down", 1), cost=1.0 + 0.1 * 1),
        "moved down by 2": Transform(partial(_moved, "down", 2), cost=1.0 + 0.1 * 2),
        "moved down by 3": Transform(partial(_moved, "down", 3), cost=1.0 + 0.1 * 3),
        "rolled down": Transform(partial(_rolled, "down")),
        "moved left by 1": Transform(partial(_moved, "left", 1), cost=1.0 + 0.1 * 1),
        "moved left by 2": Transform(partial(_moved, "left", 2), cost=1.0 + 0.1 * 2),
        "moved left by 3": Transform(partial(_moved, "left", 3), cost=1.0 + 0.1 * 3),
        "rolled left": Transform(partial(_rolled, "left")),
        "moved right by 1": Transform(partial(_moved, "right", 1), cost=1.0 + 0.1 * 1),
        "moved right by 2": Transform(partial(_moved, "right", 2), cost=1.0 + 0.1 * 2),
        "moved right by 3": Transform(partial(_moved, "right", 3), cost=1.0 + 0.1 * 3),
        "rolled right": Transform(partial(_rolled, "right")),
    }
)


def _drawn_on(steps: tuple[Step, ...], s: Scene) -> Grid:
    """Draw from every drawn cell in some directions, over background."""
    out = s.grid.copy()
    for dr, dc in steps:
        found = seen(s, (-dr, -dc))
        out = np.where((out == s.background) & (found != s.background), found, out)
    return out


def _joined(lines: tuple[tuple[Step, Step], ...], s: Scene) -> Grid:
    """Draw between equal colours that face each other, over background."""
    out = s.grid.copy()
    for a, b in lines:
        ahead, back = seen(s, a), seen(s, b)
        hit = (ahead == back) & (ahead != s.background) & ~s.front
        out[hit] = ahead[hit]
    return out


ROW, COLUMN = (STEPS["left"], STEPS["right"]), (STEPS["up"], STEPS["down"])
FALLING = (DIAGONALS["up left"], DIAGONALS["down right"])
RISING = (DIAGONALS["up right"], DIAGONALS["down left"])

LINES = _keeping_size(
    {
        "lines drawn up": Transform(partial(_drawn_on, (STEPS["up"],)), second=True),
        "lines drawn down": Transform(partial(_drawn_on, (STEPS["down"],)), second=True),
        "lines drawn left": Transform(partial(_drawn_on, (STEPS["left"],)), second=True),
        "lines drawn right": Transform(partial(_drawn_on, (STEPS["right"],)), second=True),
        "lines drawn left and right": Transform(partial(_drawn_on, ROW), second=True),
        "lines drawn up and down": Transform(partial(_drawn_on, COLUMN), second=True),
        "lines drawn in four directions": Transform(partial(_drawn_on, tuple(STEPS.values())), second=True),
        "lines drawn up left": Transform(partial(_drawn_on, (DIAGONALS["up left"],)), second=True),
        "lines drawn up right": Transform(partial(_drawn_on, (DIAGONALS["up right"],)), second=True),
        "lines drawn down left": Transform(partial(_drawn_on, (DIAGONALS["down left"],)), second=True),
        "lines drawn down right": Transform(partial(_drawn_on, (DIAGONALS["down right"],)), second=True),
        "lines drawn along one diagonal": Transform(partial(_drawn_on, FALLING), second=True),
        "lines drawn along the other diagonal": Transform(partial(_drawn_on, RISING), second=True),
        "lines drawn along both diagonals": Transform(partial(_drawn_on, tuple(DIAGONALS.values())), second=True),
        "equal colours joined in rows": Transform(partial(_joined, (ROW,))),
        "equal colours joined in columns": Transform(partial(_joined, (COLUMN,))),
        "equal colours joined in rows and columns": Transform(partial(_joined, (ROW, COLUMN)), second=True),
        "equal colours joined along diagonals": Transform(partial(_joined, (FALLING, RISING))),
    }
)

FILLS = _keeping_size(
    {
        "holes filled with the colour above them": Transform(
            lambda s: np.where(enclosed(s), seen(s, STEPS["up"]), s.grid), second=True
        )
    }
)


def _smoothed(s: Scene) -> Grid:
    """Give each cell the majority colour of its 3 x 3 neighbourhood; its own colour wins ties."""
    votes = np.stack([ndimage.uniform_filter((s.grid == c).astype(np.float32), 3, mode="nearest") for c in range(10)])
    own = np.take_along_axis(votes, s.grid[None].astype(np.int64), axis=0)[0]
    return np.where(votes.max(axis=0) > own + 1e-4, votes.argmax(axis=0), s.grid).astype(np.uint8)


SMOOTHING = _keeping_size({"each cell the most frequent colour of its 3 x 3 surroundings": Transform(_smoothed)})


def _nearest(s: Scene) -> Grid | None:
    """Give every cell the colour of the nearest drawn cell."""
    if not s.front.any():
        return None
    _, (r, c) = ndimage.distance_transform_edt(~s.front, return_indices=True)
    return s.grid[r, c]


def _grown(steps: tuple[Step, ...], s: Scene) -> Grid:
    out = s.grid.copy()
    for step in steps:
        near = shift(s.grid, step[0], step[1], s.background)
        out = np.where((out == s.background) & (near != s.background), near, out)
    return out


GROWTH = _keeping_size(
    {
        "each cell the colour of the nearest drawn cell": Transform(_nearest),
        "objects grown by one cell to the sides": Transform(partial(_grown, tuple(STEPS.values())), second=True),
        "objects grown by one cell all around": Transform(
            partial(_grown, (*STEPS.values(), *DIAGONALS.values())), second=True
        ),
    }
)
