"""Regions: parts of a grid between walls take the colour of what lies in them; boxes are spanned by their corners."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

import numpy as np
from scipy import ndimage

from ttt._grid.drawing.registry import IN, OUT, Line
from ttt._grid.scene import Scene
from ttt.values import Grid

MOST_REGIONS = 200
RARE, COMMON, ONLY = "rarest", "commonest", "only"


def flooded(which: str, wall: int, s: Scene) -> Grid | None:
    """Fill each region between walls with a colour drawn in it; regions with nothing drawn stay.

    Args:
        which: Its rarest or commonest drawn colour, or the one that is the only one.
        wall: The colour of the walls.
        s: The grid.
    """
    if wall == s.background or not s.counts[wall]:
        return None
    labels, n = ndimage.label(s.grid != wall)
    if not 2 <= n <= MOST_REGIONS:
        return None
    counts = np.zeros((n + 1, 10), dtype=np.int64)
    np.add.at(counts, (labels.ravel(), s.grid.ravel()), 1)
    counts[:, s.background] = 0
    fill = np.full(n + 1, s.background, dtype=np.uint8)
    for k in range(1, n + 1):
        present = np.flatnonzero(counts[k])
        if not len(present) or (which == ONLY and len(present) > 1):
            continue
        fill[k] = present[counts[k][present].argmin() if which == RARE else counts[k][present].argmax()]
    out = np.where((labels > 0) & (fill[labels] != s.background), fill[labels], s.grid).astype(np.uint8)
    return None if np.array_equal(out, s.grid) else out


def spanned(colour: int, s: Scene) -> Grid | None:
    """Fill the inside of each box that has a thing of one size and colour at all four corners and is empty within."""
    out = s.grid.copy()
    things = s.things("joined")
    places = {(t.top, t.left): t for t in things}
    for t in things:
        for (top, left), other in places.items():
            if top <= t.top or left <= t.left:
                continue
            corners = [t, places.get((t.top, left)), places.get((top, t.left)), other]
            if any(c is None or c.colour != t.colour or c.mask.shape != t.mask.shape for c in corners):
                continue
            r, c = np.s_[t.top + t.height : top], np.s_[t.left + t.width : left]
            if out[r, c].size and (s.grid[r, c] == s.background).all():
                out[r, c] = colour
    return None if np.array_equal(out, s.grid) else out


def outlined(kind: str, own: bool, colour: int, s: Scene) -> Grid | None:
    """Draw the edge of the box of each thing, over what is empty.

    Args:
        kind: The way the grid is cut into things.
        own: Whether it takes the colour of the thing.
        colour: Of the edge otherwise.
        s: The grid.
    """
    things = s.things(kind)
    if not 1 <= len(things) <= 12:
        return None
    out = s.grid.copy()
    for t in things:
        edge = np.ones(t.mask.shape, dtype=bool)
        edge[1:-1, 1:-1] = False
        part = out[t.box]
        part[edge & (part == s.background)] = t.colour if own else colour
    return None if np.array_equal(out, s.grid) else out


def outlined_in_own(kind: str, s: Scene) -> Grid | None:
    """Draw the edge of the box of each thing in its colour."""
    return outlined(kind, True, 0, s)


def framed_outwards(gap: int, s: Scene) -> Grid | None:
    """Draw frames around each object's box, each a number of cells further out, until the border; the nearest wins."""
    things = s.things("object")
    if not 1 <= len(things) <= 12:
        return None
    rows, columns = np.indices(s.grid.shape)
    best = np.full(s.grid.shape, 99)
    colour = np.zeros(s.grid.shape, dtype=np.uint8)
    for t in things:
        down = np.maximum(np.maximum(t.top - rows, rows - (t.top + t.height - 1)), 0)
        across = np.maximum(np.maximum(t.left - columns, columns - (t.left + t.width - 1)), 0)
        away = np.maximum(down, across)
        nearer = away < best
        best[nearer], colour[nearer] = away[nearer], t.colour
    hit = (best > 0) & (best % (gap + 1) == 0) & ~s.front
    return np.where(hit, colour, s.grid) if hit.any() else None


def nested(s: Scene) -> Grid | None:
    """Draw nested square frames about the middle of all that is drawn, as far apart as its box reaches from there."""
    r, c = np.nonzero(s.front)
    if not len(r):
        return None
    sides = int(np.ptp(r)), int(np.ptp(c))
    if sides[0] != sides[1] or sides[0] % 2 or not sides[0]:
        return None
    middle, reach = (int(r.min()) + sides[0] // 2, int(c.min()) + sides[0] // 2), sides[0] // 2
    rows, columns = np.indices(s.grid.shape)
    away = np.maximum(abs(rows - middle[0]), abs(columns - middle[1]))
    hit = (away % reach == 0) & (away > 0) & ~s.front
    return np.where(hit, s.grid[r[0], c[0]], s.grid) if hit.any() else None


REGIONS = (
    Line(
        "each region between walls of colour {colour} filled with its {}",
        flooded,
        1.3,
        {f"{w} drawn colour": (w,) for w in (ONLY, RARE, COMMON)},
        IN,
    ),
    Line("boxes with equal things at their four corners filled with colour {colour}", spanned, 1.3, colours=OUT),
    Line(
        "the edge of the box of {} drawn",
        outlined_in_own,
        1.3,
        {"the cells of each colour": ("colour",), "each object": ("object",)},
    ),
    Line(
        "the edge of the box of {} drawn in colour {colour}",
        outlined,
        1.4,
        {"the cells of each colour": ("colour", False), "each object": ("object", False)},
        OUT,
    ),
    Line(
        "frames drawn around each object until the border, {}",
        framed_outwards,
        1.3,
        {"a cell apart": (1,), "two cells apart": (2,), "three cells apart": (3,)},
    ),
    Line("frames drawn around the middle of the drawing until the border, as far apart as its half", nested, 1.4),
)
