"""Rings: the nested rectangles of a grid or of a thing exchange their colours."""

from __future__ import annotations

import numpy as np

from ttt._grid.drawing.registry import Line
from ttt._grid.geometry import Numbers
from ttt._grid.scene import Scene
from ttt.values import Grid

REVERSED, OUTWARDS, INWARDS = "reversed", "outwards", "inwards"
MOST_THINGS = 20


def of_whole(way: str, by_width: bool, s: Scene) -> Grid | None:
    """Exchange the colours of the rings of the whole grid; arguments as of `of_things`."""
    return _changed(s.grid, way, by_width)


def of_things(kind: str, way: str, by_width: bool, s: Scene) -> Grid | None:
    """Exchange the colours of the rings in the box of each thing; None where none has rings.

    Args:
        kind: The way the grid is cut into things.
        way: The colours are reversed, or each ring gets the colour of the next one inwards or outwards.
        by_width: Whether rings of one cell exchange colours, or all cells of a colour.
        s: The grid.
    """
    things = s.things(kind)
    if not 1 <= len(things) <= MOST_THINGS:
        return None
    out, drawn = s.grid.copy(), False
    for t in things:
        new = _changed(t.patch, way, by_width) if t.mask.all() else None
        if new is not None:
            out[t.box], drawn = new, True
    return out if drawn else None


def _changed(g: Grid, way: str, by_width: bool) -> Grid | None:
    depth = depths(g.shape)
    rings = [np.unique(g[depth == d]) for d in range(int(depth.max()) + 1)]
    if len(rings) < 2 or any(len(r) > 1 for r in rings):
        return None
    colours = [int(r[0]) for r in rings]
    if not by_width:
        colours = [c for n, c in enumerate(colours) if not n or c != colours[n - 1]]
    if len(set(colours)) < 2:
        return None
    new = (
        colours[::-1]
        if way == REVERSED
        else colours[1:] + colours[:1]
        if way == OUTWARDS
        else colours[-1:] + colours[:-1]
    )
    if by_width:
        return np.array(new, dtype=np.uint8)[depth]
    if len(set(colours)) < len(colours):
        return None
    to = np.arange(10, dtype=np.uint8)
    to[colours] = new
    return to[g]


def depths(shape: tuple[int, int]) -> Numbers:
    """Return for each cell of a rectangle how many rings lie around its own."""
    r, c = np.indices(shape)
    found: Numbers = np.minimum(np.minimum(r, shape[0] - 1 - r), np.minimum(c, shape[1] - 1 - c))
    return found


WAYS = {
    f"{words}{end}": (way, by_width)
    for way, words in ((REVERSED, "reversed"), (OUTWARDS, "moved outwards"), (INWARDS, "moved inwards"))
    for by_width, end in ((False, ""), (True, ", ring by ring"))
}
RINGS = (
    Line("the colours of its rings {}", of_whole, 1.2, WAYS),
    Line("the colours of each object's rings {}", of_things, 1.3, {w: ("object", *a) for w, a in WAYS.items()}),
)
