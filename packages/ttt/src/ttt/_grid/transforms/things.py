"""Transformations of a grid's things: crops, counts, repaintings, and things kept, removed, mirrored or moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from ttt._grid.geometry import Step
from ttt._grid.scene import Scene, pick
from ttt._grid.things import SELECTIONS, Extreme, Thing
from ttt._grid.transforms.registry import Table, Transform, per_colour
from ttt.values import Grid


def _cropped(kind: str, alone: bool, measure: str, extreme: Extreme, s: Scene) -> Grid | None:
    i = pick(s, kind, measure, extreme)
    if i is None:
        return None
    thing = s.things(kind)[i]
    return thing.alone if alone else thing.patch


PLAIN = ("number of cells", "number of colours", "number of off-colour cells", "symmetry")
"""Measures whose extremes are cheap to describe."""


def _crops(rows: Mapping[str, tuple[str, bool]], extra: float = 0.0) -> Table:
    """Return a crop for every row and selection; `{}` in a row's text stands for the selection."""
    return {
        row.format(words): Transform(
            partial(_cropped, kind, alone, measure, extreme),
            cost=(1.2 if measure in PLAIN else 1.6) + extra,
        )
        for words, (measure, extreme) in SELECTIONS.items()
        for row, (kind, alone) in rows.items()
    }


CROPS: Table = {
    **_crops(
        {
            "cropped to the one-colour piece {}": ("piece", False),
            "cropped to the one-colour piece {}, alone": ("piece", True),
        }
    ),
    **_crops({"cropped to the one-colour piece joined by sides {}": ("joined", False)}, extra=0.2),
    **_crops({"cropped to the object {}": ("object", False), "cropped to the object {}, alone": ("object", True)}),
    **_crops({"cropped to the cells of the colour {}": ("colour", False)}),
    **_crops({"cropped to the panel {}": ("panel", False)}),
}


def _cropped_by_colour(kind: str, colour: int, most: bool, s: Scene) -> Grid | None:
    """Crop to the one thing with the most (fewest) cells of a colour."""
    things = s.things(kind)
    if len(things) < 2 or not s.counts[colour]:
        return None
    counts = np.array([t.colours[colour] for t in things])
    best = np.flatnonzero(counts == (counts.max() if most else counts.min()))
    return things[best[0]].patch if len(best) == 1 else None


CROPS_BY_COLOUR: Table = per_colour(
    {
        "cropped to the object with the most cells of colour {}": lambda c: Transform(
            partial(_cropped_by_colour, "object", c, True), cost=1.4
        ),
        "cropped to the object with the fewest cells of colour {}": lambda c: Transform(
            partial(_cropped_by_colour, "object", c, False), cost=1.4
        ),
        "cropped to the panel with the most cells of colour {}": lambda c: Transform(
            partial(_cropped_by_colour, "panel", c, True), cost=1.4
        ),
        "cropped to the panel with the fewest cells of colour {}": lambda c: Transform(
            partial(_cropped_by_colour, "panel", c, False), cost=1.4
        ),
    }
)


def _count_row(kind: str, s: Scene) -> Grid | None:
    n = len(s.things(kind))
    return np.full((1, n), 1, dtype=np.uint8) if 0 < n <= 30 else None


def _count_diagonal(kind: str, s: Scene) -> Grid | None:
    n = len(s.things(kind))
    return np.eye(n, dtype=np.uint8) if 0 < n <= 30 else None


COUNTS: Table = {
    "a row with a cell for each one-colour piece": Transform(partial(_count_row, "piece")),
    "a square with a diagonal cell for each one-colour piece": Transform(partial(_count_diagonal, "piece")),
    "a row with a cell for each object": Transform(partial(_count_row, "object")),
    "a square with a diagonal cell for each object": Transform(partial(_count_diagonal, "object")),
    "a row with a cell for each colour": Transform(partial(_count_row, "colour")),
    "a square with a diagonal cell for each colour": Transform(partial(_count_diagonal, "colour")),
}


def _in_line(kind: str, across: bool, s: Scene) -> Grid | None:
    things = s.things(kind)
    if not 2 <= len(things) <= 8:
        return None
    if across:
        things = sorted(things, key=lambda t: t.left)
    sides = {t.height if across else t.width for t in things}
    if len(sides) != 1:
        return None
    parts = [t.alone for t in things]
    return np.hstack(parts) if across else np.vstack(parts)


def _overlaid(s: Scene) -> Grid | None:
    things = s.things("object")
    if len(things) < 2 or len({t.mask.shape for t in things}) != 1:
        return None
    out = things[0].alone.copy()
    for t in things[1:]:
        out = np.where(out == s.background, t.alone, out)
    return out


JOINED: Table = {
    "its one-colour pieces side by side": Transform(partial(_in_line, "piece", True)),
    "its one-colour pieces one below the other": Transform(partial(_in_line, "piece", False)),
    "its objects side by side": Transform(partial(_in_line, "object", True)),
    "its objects one below the other": Transform(partial(_in_line, "object", False)),
    "its objects laid over one another": Transform(_overlaid),
}


def _boxes_filled(s: Scene) -> Grid:
    """Fill the background in every object's box with the object's most frequent colour."""
    out = s.grid.copy()
    for t in s.things("object"):
        part = out[t.box]
        part[part == s.background] = t.colour
    return out


def _painted(kind: str, rarest: bool, s: Scene) -> Grid | None:
    things = s.things(kind)
    if not things:
        return None
    out = s.grid.copy()
    labels = s.labels(kind)
    for i, t in enumerate(things):
        present = np.flatnonzero(t.drawn)
        if not len(present):
            continue
        where = labels == i + 1
        colour = present[t.drawn[present].argmin()] if rarest else t.drawn.argmax()
        out[where & s.front if kind == "panel" else where] = colour
    return out


def _kept(kind: str, extreme: Extreme, s: Scene) -> Grid | None:
    i = pick(s, kind, "number of cells", extreme)
    return None if i is None else np.where(s.labels(kind) == i + 1, s.grid, np.uint8(s.background))


def _removed(kind: str, extreme: Extreme, s: Scene) -> Grid | None:
    i = pick(s, kind, "number of cells", extreme)
    return None if i is None else np.where(s.labels(kind) != i + 1, s.grid, np.uint8(s.background))


def _without_single_cells(s: Scene) -> Grid:
    out = s.grid.copy()
    for t in s.things("piece"):
        if t.mask.size == 1:
            out[t.top, t.left] = s.background
    return out


REPAINTED: Table = {
    "objects filled to their boxes": Transform(_boxes_filled, second=True),
    "each object painted in its most frequent colour": Transform(partial(_painted, "object", False)),
    "each object painted in its rarest colour": Transform(partial(_painted, "object", True)),
    "each panel painted in its most frequent colour": Transform(partial(_painted, "panel", False)),
    "each panel painted in its rarest colour": Transform(partial(_painted, "panel", True)),
    "only the one-colour piece with the most cells kept": Transform(partial(_kept, "piece", "most"), second=True),
    "the one-colour piece with the most cells removed": Transform(partial(_removed, "piece", "most"), second=True),
    "only the one-colour piece with the fewest cells kept": Transform(partial(_kept, "piece", "least")),
    "the one-colour piece with the fewest cells removed": Transform(partial(_removed, "piece", "least")),
    "only the one-colour piece with a unique number of cells kept": Transform(partial(_kept, "piece", "odd")),
    "the one-colour piece with a unique number of cells removed": Transform(partial(_removed, "piece", "odd")),
    "only the object with the most cells kept": Transform(partial(_kept, "object", "most"), second=True),
    "the object with the most cells removed": Transform(partial(_removed, "object", "most"), second=True),
    "only the object with the fewest cells kept": Transform(partial(_kept, "object", "least")),
    "the object with the fewest cells removed": Transform(partial(_removed, "object", "least")),
    "only the object with a unique number of cells kept": Transform(partial(_kept, "object", "odd")),
    "the object with a unique number of cells removed": Transform(partial(_removed, "object", "odd")),
    "only the colour with the most cells kept": Transform(partial(_kept, "colour", "most"), second=True),
    "the colour with the most cells removed": Transform(partial(_removed, "colour", "most"), second=True),
    "only the colour with the fewest cells kept": Transform(partial(_kept, "colour", "least")),
    "the colour with the fewest cells removed": Transform(partial(_removed, "colour", "least")),
    "only the colour with a unique number of cells kept": Transform(partial(_kept, "colour", "odd")),
    "the colour with a unique number of cells removed": Transform(partial(_removed, "colour", "odd")),
    "single cells removed": Transform(_without_single_cells, second=True),
}
REPAINTED = {name: replace(t, keeps_size=True) for name, t in REPAINTED.items()}


def _objects_mirrored(axis: int, s: Scene) -> Grid | None:
    things = s.things("object")
    if not 1 <= len(things) <= 40:
        return None
    out = np.full_like(s.grid, s.background)
    for t in things:
        new, part = np.flip(t.alone, axis), out[t.box]
        part[...] = np.where(new == s.background, part, new)
    return out


def _panels_mirrored(axis: int, s: Scene) -> Grid | None:
    things = s.things("panel")
    if not 1 <= len(things) <= 40:
        return None
    out = s.grid.copy()
    for t in things:
        out[t.box] = np.flip(t.alone, axis)
    return out


def _straight_towards(t: Thing, low: Step, high: Step) -> Step:
    """Return the step from a thing's box straight to the box between two corners; (0, 0) where there is none."""
    last = (t.top + t.height - 1, t.left + t.width - 1)
    dr, dc = (
        1 if last[axis] < low[axis] else -1 if first > high[axis] else 0 for axis, first in enumerate((t.top, t.left))
    )
    return (dr, dc) if bool(dr) != bool(dc) else (0, 0)


def _slid(mover: int, target: int, s: Scene) -> Grid | None:
    """Slide the pieces of one colour straight towards the other colour until they touch something."""
    if not s.counts[mover] or not s.counts[target]:
        return None
    out = np.where(s.grid == mover, np.uint8(s.background), s.grid)
    goal = np.argwhere(s.grid == target)
    low, high = goal.min(axis=0), goal.max(axis=0)
    moved = False
    for t in s.things("piece"):
        if t.colour != mover:
            continue
        dr, dc = _straight_towards(t, low, high)
        if not (dr or dc):
            out[t.box][t.mask] = t.patch[t.mask]
            continue
        r, c = np.nonzero(t.mask)
        r, c = r + t.top, c + t.left
        n = 0
        while True:
            nr, nc = r + dr * (n + 1), c + dc * (n + 1)
            if nr.min() < 0 or nc.min() < 0 or nr.max() >= out.shape[0] or nc.max() >= out.shape[1]:
                return None
            if (out[nr, nc] != s.background).any():
                break
            n += 1
        out[r + dr * n, c + dc * n] = mover
        moved = moved or n > 0
    return out if moved else None


def _rarer_slid(s: Scene) -> Grid | None:
    order = [int(c) for c in np.argsort(-s.counts, kind="stable") if s.counts[c] and c != s.background]
    return _slid(order[1], order[0], s) if len(order) == 2 else None


SLID = "pieces of colour {} slid to colour {}"

MOVED: Table = {
    "each object mirrored left-right": Transform(partial(_objects_mirrored, 1), keeps_size=True),
    "each object mirrored up-down": Transform(partial(_objects_mirrored, 0), keeps_size=True),
    "each panel mirrored left-right": Transform(partial(_panels_mirrored, 1), keeps_size=True),
    "each panel mirrored up-down": Transform(partial(_panels_mirrored, 0), keeps_size=True),
    **{
        SLID.format(a, b): Transform(partial(_slid, a, b), keeps_size=True, cost=1.4)
        for a in range(1, 10)
        for b in range(1, 10)
        if a != b
    },
    "pieces of the rarer colour slid to the more frequent one": Transform(_rarer_slid, keeps_size=True),
}
