"""Cell features of the lines that a cell lies in: runs of one colour and what ends them, steps to what is drawn."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from functools import partial

import numpy as np
from scipy import ndimage

from ttt._grid.features.registry import Feature, Table
from ttt._grid.geometry import EIGHT, STEPS, Mask, Numbers, shift
from ttt._grid.rectangles import largest_empty
from ttt._grid.scene import Scene, seen
from ttt.values import Grid

FAR = 31
"""Steps to something that is not there."""


def _runs(grid: Grid) -> tuple[Numbers, Numbers]:
    """Return first and last column of the run of one colour in its row that each cell lies in."""
    h, w = grid.shape
    columns = np.broadcast_to(np.arange(w), (h, w))
    new = np.ones((h, w), dtype=bool)
    new[:, 1:] = grid[:, 1:] != grid[:, :-1]
    end = np.ones((h, w), dtype=bool)
    end[:, :-1] = new[:, 1:]
    first = np.maximum.accumulate(np.where(new, columns, 0), axis=1)
    last = np.minimum.accumulate(np.where(end, columns, w)[:, ::-1], axis=1)[:, ::-1]
    return first, last


def _along(across: bool, s: Scene) -> tuple[Numbers, Numbers]:
    key = ("runs", across)
    if key not in s.memo:
        first, last = _runs(s.grid if across else s.grid.T)
        s.memo[key] = (first, last) if across else (first.T, last.T)
    return s.memo[key]


def _length(across: bool, s: Scene) -> Numbers:
    first, last = _along(across, s)
    return last - first + 1


def _longer(s: Scene) -> Numbers:
    return np.sign(_length(True, s) - _length(False, s)) + 1


def _extreme(longer: bool, s: Scene) -> Numbers:
    return (np.maximum if longer else np.minimum)(_length(True, s), _length(False, s))


def _place(across: bool, from_start: bool, s: Scene) -> Numbers:
    first, last = _along(across, s)
    at = np.indices(s.grid.shape)[int(across)]
    return at - first if from_start else last - at


def _ends(across: bool, s: Scene) -> tuple[Numbers, Numbers]:
    """Return the colours before and behind the run of each cell, 10 where the grid ends."""
    first, last = _along(across, s)
    if across:
        padded = np.pad(s.grid.astype(np.int64), ((0, 0), (1, 1)), constant_values=10)
        return np.take_along_axis(padded, first, axis=1), np.take_along_axis(padded, last + 2, axis=1)
    padded = np.pad(s.grid.astype(np.int64), ((1, 1), (0, 0)), constant_values=10)
    return np.take_along_axis(padded, first, axis=0), np.take_along_axis(padded, last + 2, axis=0)


def _both_ends(across: bool, s: Scene) -> Numbers:
    before, behind = _ends(across, s)
    return np.where((before == behind) & (before < 10), before, s.background)


def _ends_as_code(across: bool, s: Scene) -> Numbers:
    before, behind = _ends(across, s)
    return before * 11 + behind


def _end(across: bool, behind: bool, s: Scene) -> Numbers:
    found = _ends(across, s)[behind]
    return np.where(found < 10, found, s.background)


def _largest_square(s: Scene) -> Numbers:
    """Return the side of the largest square of one colour that covers each cell."""
    g = s.grid
    h, w = g.shape
    out = np.ones((h, w), dtype=np.int64)
    for n in range(2, min(h, w, 6) + 1):
        windows = np.lib.stride_tricks.sliding_window_view(g, (n, n))
        hit = (windows == windows[:, :, :1, :1]).all(axis=(2, 3))
        if not hit.any():
            break
        covered = np.zeros((h, w), dtype=bool)
        for r in range(n):
            for c in range(n):
                covered[r : r + hit.shape[0], c : c + hit.shape[1]] |= hit
        out[covered] = n
    return out


def _other_colour_seen(s: Scene) -> Numbers:
    """Return the one colour, other than its own, that a cell sees in four directions; the background for none."""
    views = np.stack([seen(s, step) for step in STEPS.values()]).astype(np.int64)
    other = (views != s.grid) & (views != s.background)
    high = np.where(other, views, -1).max(axis=0)
    low = np.where(other, views, 99).min(axis=0)
    return np.where(high == low, high, s.background)


RUNS: Table = {
    "lies in the largest empty rectangle": Feature(lambda s: largest_empty(s).astype(np.int64)),
    "length of its run across": Feature(partial(_length, True)),
    "length of its run down": Feature(partial(_length, False)),
    "whether its run is longer across or down": Feature(_longer),
    "length of its longer run": Feature(partial(_extreme, True)),
    "length of its shorter run": Feature(partial(_extreme, False)),
    "place in its run from the left": Feature(partial(_place, True, True)),
    "place in its run from the right": Feature(partial(_place, True, False)),
    "place in its run from the top": Feature(partial(_place, False, True)),
    "place in its run from the bottom": Feature(partial(_place, False, False)),
    "the colours at the ends of its run across": Feature(partial(_ends_as_code, True)),
    "the colours at the ends of its run down": Feature(partial(_ends_as_code, False)),
    "the colour at both ends of its run across": Feature(partial(_both_ends, True), is_colour=True),
    "the colour at both ends of its run down": Feature(partial(_both_ends, False), is_colour=True),
    "the colour left of its run": Feature(partial(_end, True, False), is_colour=True),
    "the colour right of its run": Feature(partial(_end, True, True), is_colour=True),
    "the colour above its run": Feature(partial(_end, False, False), is_colour=True),
    "the colour below its run": Feature(partial(_end, False, True), is_colour=True),
    "side of the largest square of its colour that covers it": Feature(_largest_square),
    "the only other colour that it sees": Feature(_other_colour_seen, is_colour=True),
}
"""Of the cells of one colour next to one another in a row, or in a column."""


def _steps_to(direction: str, s: Scene) -> Numbers:
    """Return the steps to the first drawn cell in a direction, 0 where there is none."""
    dr, dc = STEPS[direction]
    out = np.zeros(s.grid.shape, dtype=np.int64)
    ahead = s.front
    for n in range(1, max(s.grid.shape)):
        ahead = shift(ahead, -dr, -dc, 0)
        out[(out == 0) & ahead] = n
    return out


def _parity_to(direction: str, s: Scene) -> Numbers:
    steps = _steps_to(direction, s)
    return np.where(steps > 0, 1 + steps % 2, 0)


def _distance(targets: Mask, diagonal: bool) -> Numbers:
    if not targets.any():
        return np.full(targets.shape, FAR, dtype=np.int64)
    metric = "chessboard" if diagonal else "taxicab"
    return ndimage.distance_transform_cdt(~targets, metric=metric).astype(np.int64)


def _rarest(s: Scene) -> Mask:
    drawn = s.counts.copy()
    drawn[s.background] = 0
    present = np.flatnonzero(drawn)
    return s.grid == present[drawn[present].argmin()] if len(present) else np.zeros(s.grid.shape, dtype=bool)


def _nearest(diagonal: bool, rarest: bool, s: Scene) -> Numbers:
    return np.minimum(_distance(_rarest(s) if rarest else s.front, diagonal), FAR)


def _nearest_parity(diagonal: bool, s: Scene) -> Numbers:
    steps = _nearest(diagonal, False, s)
    return np.where(steps > 0, 1 + steps % 2, 0)


def _nearest_colour(diagonal: bool, s: Scene) -> Numbers:
    """Return the colour of the nearest drawn cell, the background where two are as near."""
    drawn = [c for c in np.flatnonzero(s.counts) if c != s.background]
    if not drawn:
        return s.grid.astype(np.int64)
    distance = np.stack([_distance(s.grid == c, diagonal) for c in drawn])
    least = distance.min(axis=0)
    single = (distance == least).sum(axis=0) == 1
    return np.where(single, np.array(drawn)[distance.argmin(axis=0)], s.background)


def _walked(diagonal: bool, s: Scene) -> Numbers:
    """Return the steps over background from the rarest drawn colour, 0 where it cannot be reached."""
    structure = EIGHT if diagonal else None
    reached = _rarest(s)
    free = ~s.front | reached
    out = np.zeros(s.grid.shape, dtype=np.int64)
    for n in range(1, s.grid.size):
        grown = ndimage.binary_dilation(reached, structure) & free
        new = grown & ~reached
        if not new.any():
            break
        out[new] = n
        reached = grown
    return out


def _walked_parity(diagonal: bool, s: Scene) -> Numbers:
    steps = _walked(diagonal, s)
    return np.where(steps > 0, 1 + steps % 2, 0)


STEPS_TO: Table = {
    "steps up to the first drawn cell": Feature(partial(_steps_to, "up")),
    "steps down to the first drawn cell": Feature(partial(_steps_to, "down")),
    "steps left to the first drawn cell": Feature(partial(_steps_to, "left")),
    "steps right to the first drawn cell": Feature(partial(_steps_to, "right")),
    "parity of the steps up to the first drawn cell": Feature(partial(_parity_to, "up")),
    "parity of the steps down to the first drawn cell": Feature(partial(_parity_to, "down")),
    "parity of the steps left to the first drawn cell": Feature(partial(_parity_to, "left")),
    "parity of the steps right to the first drawn cell": Feature(partial(_parity_to, "right")),
    "steps to the nearest drawn cell": Feature(partial(_nearest, True, False)),
    "steps to the nearest drawn cell, without diagonal ones": Feature(partial(_nearest, False, False)),
    "steps to the nearest cell of the rarest drawn colour": Feature(partial(_nearest, True, True)),
    "steps to the nearest cell of the rarest drawn colour, without diagonal ones": Feature(
        partial(_nearest, False, True)
    ),
    "parity of the steps to the nearest drawn cell": Feature(partial(_nearest_parity, True)),
    "parity of the steps to the nearest drawn cell, without diagonal ones": Feature(partial(_nearest_parity, False)),
    "colour of the nearest drawn cell": Feature(partial(_nearest_colour, True), is_colour=True),
    "colour of the nearest drawn cell, without diagonal steps": Feature(
        partial(_nearest_colour, False), is_colour=True
    ),
    "steps over background from the rarest drawn colour": Feature(partial(_walked, False)),
    "parity of the steps over background from the rarest drawn colour": Feature(partial(_walked_parity, False)),
    "parity of the steps over background from the rarest drawn colour, also diagonal ones": Feature(
        partial(_walked_parity, True)
    ),
}


def _from_drawn(rows: bool, from_end: bool, modulus: int, s: Scene) -> Numbers:
    """Return the rows (or columns) from the first (or last) one in which something is drawn."""
    lines = np.flatnonzero(s.front.any(axis=1 if rows else 0))
    if not len(lines):
        return np.zeros(s.grid.shape, dtype=np.int64)
    at = np.indices(s.grid.shape)[0 if rows else 1]
    away = lines[-1] - at if from_end else at - lines[0]
    return np.where(away >= 0, 1 + (away % modulus if modulus else away), 0)


def _parity_from_end(rows: bool, s: Scene) -> Numbers:
    at = np.indices(s.grid.shape)[0 if rows else 1]
    return (s.grid.shape[0 if rows else 1] - 1 - at) % 2


FROM_DRAWN: Table = {
    "row from the bottom, parity": Feature(partial(_parity_from_end, True), cost=1.2),
    "column from the right, parity": Feature(partial(_parity_from_end, False), cost=1.2),
    "row counted from the first drawn one": Feature(partial(_from_drawn, True, False, 0), cost=1.2),
    "row counted from the first drawn one, parity": Feature(partial(_from_drawn, True, False, 2), cost=1.2),
    "row counted from the first drawn one, modulo 3": Feature(partial(_from_drawn, True, False, 3), cost=1.2),
    "row counted from the first drawn one, modulo 4": Feature(partial(_from_drawn, True, False, 4), cost=1.2),
    "row counted from the last drawn one": Feature(partial(_from_drawn, True, True, 0), cost=1.2),
    "row counted from the last drawn one, parity": Feature(partial(_from_drawn, True, True, 2), cost=1.2),
    "row counted from the last drawn one, modulo 3": Feature(partial(_from_drawn, True, True, 3), cost=1.2),
    "row counted from the last drawn one, modulo 4": Feature(partial(_from_drawn, True, True, 4), cost=1.2),
    "column counted from the first drawn one": Feature(partial(_from_drawn, False, False, 0), cost=1.2),
    "column counted from the first drawn one, parity": Feature(partial(_from_drawn, False, False, 2), cost=1.2),
    "column counted from the first drawn one, modulo 3": Feature(partial(_from_drawn, False, False, 3), cost=1.2),
    "column counted from the first drawn one, modulo 4": Feature(partial(_from_drawn, False, False, 4), cost=1.2),
    "column counted from the last drawn one": Feature(partial(_from_drawn, False, True, 0), cost=1.2),
    "column counted from the last drawn one, parity": Feature(partial(_from_drawn, False, True, 2), cost=1.2),
    "column counted from the last drawn one, modulo 3": Feature(partial(_from_drawn, False, True, 3), cost=1.2),
    "column counted from the last drawn one, modulo 4": Feature(partial(_from_drawn, False, True, 4), cost=1.2),
}
