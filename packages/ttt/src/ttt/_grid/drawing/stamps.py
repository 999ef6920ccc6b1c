"""Stamps: a drawing of several colours is completed wherever some of its colours lie as they do in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from ttt._grid.drawing.registry import Line
from ttt._grid.geometry import Mask, Numbers, poses
from ttt._grid.scene import Scene
from ttt._grid.things import Thing
from ttt.values import Grid

MOST_COLOURS = 4
"""Drawings of more colours are no stamps."""
MOST_ANCHORS = 60
"""Stamps with more cells that must lie on drawn ones are not tried."""
UNTURNED, FLIPPED, ANY = (0,), (0, 2, 4, 6), (0, 1, 2, 3, 4, 5, 6, 7)
"""Poses in the order of `geometry.poses`."""


def completed(turns: Sequence[int], scales: int, over: bool, s: Scene) -> Grid | None:
    """Complete each stamp where anchors show it.

    A stamp is a thing of the most colours; anchors are all other drawn cells. A stamp is drawn where its cells of some
    of its colours lie on whole things of those colours, most of its colours first, then the largest.

    Args:
        turns: The poses that it may have.
        scales: How many times larger it may be.
        over: Whether it is drawn over other things too.
        s: The grid.
    """
    things = s.things("object")
    if len(things) < 2:
        return None
    colours = [int(np.count_nonzero(t.drawn)) for t in things]
    if not 2 <= max(colours) <= MOST_COLOURS:
        return None
    stamps = [t for t, n in zip(things, colours, strict=True) if n == max(colours)]
    rest = [n for n, c in enumerate(colours, 1) if c != max(colours)]
    free = np.isin(s.labels("object"), rest)
    if not free.any():
        return None
    out, drawn = s.grid.copy(), False
    for stamp in sorted(stamps, key=lambda t: -t.mask.sum()):
        for cells, anchors in _forms(stamp, s.grid, free, turns, scales):
            for r, c in _places(cells, anchors, s, free):
                free[r[anchors], c[anchors]] = False
                drawn |= _draw(out, r, c, cells[2], s, over)
    return out if drawn else None


Cells = tuple[Numbers, Numbers, Numbers]


def _forms(stamp: Thing, grid: Grid, free: Mask, turns: Sequence[int], scales: int) -> Iterator[tuple[Cells, Mask]]:
    """Yield the cells of a stamp in each pose and scale, with a mark for its anchors; forms of most anchors first."""
    own = np.flatnonzero(stamp.drawn).tolist()
    shown = np.bincount(grid[free], minlength=10)
    for n in range(len(own) - 1, 0, -1):
        for chosen in combinations(own, n):
            if not shown[list(chosen)].all():
                continue
            for scale in range(scales, 0, -1):
                patch = np.kron(np.where(stamp.mask, stamp.patch.astype(np.int64), -1), np.ones((scale, scale), int))
                seen: set[tuple[tuple[int, ...], bytes]] = set()
                for k in turns:
                    posed = np.ascontiguousarray(poses(patch)[k])
                    if (posed.shape, posed.tobytes()) in seen:
                        continue
                    seen.add((posed.shape, posed.tobytes()))
                    r, c = np.nonzero(posed >= 0)
                    colour = posed[r, c]
                    anchors = np.isin(colour, chosen)
                    if anchors.sum() <= MOST_ANCHORS:
                        yield (r, c, colour), anchors


def _places(cells: Cells, anchors: Mask, s: Scene, free: Mask) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield where a stamp's anchors cover whole free things of their colours: the rows and columns of its cells."""
    rows, columns, colours = cells
    r, c, k = rows[anchors], columns[anchors], colours[anchors]
    labels = s.labels("object")
    height, width = labels.shape
    at = np.argwhere(free & (s.grid == k[0]))
    dr, dc = at[:, :1] - r[0], at[:, 1:] - c[0]
    y, x = dr + r, dc + c
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).all(axis=1)
    y, x, dr, dc = y[inside], x[inside], dr[inside, 0], dc[inside, 0]
    fits = ((s.grid[y, x] == k) & free[y, x]).all(axis=1)
    for n in np.flatnonzero(fits):
        here = labels[y[n], x[n]]
        if np.isin(labels, here).sum() == len(k) and free[y[n], x[n]].all():
            yield rows + dr[n], columns + dc[n]


def _draw(out: Grid, r: Numbers, c: Numbers, colours: Numbers, s: Scene, over: bool) -> bool:
    """Draw cells where the grid has room; return whether any was drawn."""
    inside = (r >= 0) & (c >= 0) & (r < out.shape[0]) & (c < out.shape[1])
    r, c, colours = r[inside], c[inside], colours[inside]
    if not over:
        room = ~s.front[r, c]
        r, c, colours = r[room], c[room], colours[room]
    out[r, c] = colours
    return bool(len(r))


def copied(recoloured: bool, s: Scene) -> Grid | None:
    """Draw the largest object at every single cell, its core on the cell.

    The core is its only cell of another colour, else the middle of its box.

    Args:
        recoloured: Whether the rest of the copy has the colour of the single cell.
        s: The grid.
    """
    things = s.things("object")
    dots = [t for t in things if t.mask.size == 1]
    large = [t for t in things if t.mask.size > 1]
    if not dots or len(large) != 1:
        return None
    stamp = large[0]
    r, c = np.nonzero(stamp.mask)
    colours = stamp.patch[r, c]
    odd = np.flatnonzero(colours != stamp.colour)
    if len(odd) == 1:
        core = int(r[odd[0]]), int(c[odd[0]])
    elif not len(odd) and stamp.height % 2 and stamp.width % 2:
        core = stamp.height // 2, stamp.width // 2
    else:
        return None
    out, drawn = s.grid.copy(), False
    for t in dots:
        k = np.where(recoloured, t.colour, colours).astype(np.int64)
        drawn |= _draw(out, r - core[0] + t.top, c - core[1] + t.left, k, s, False)
    return out if drawn else None


STAMPS = (
    Line(
        "the only larger object copied to every single cell, its core on the cell{}",
        copied,
        1.4,
        {"": (False,), ", in the colour of the cell": (True,)},
    ),
    Line(
        "the drawing of most colours completed wherever some of its colours lie as in it{}",
        completed,
        1.5,
        {
            "": (UNTURNED, 1, False),
            ", also mirrored": (FLIPPED, 1, False),
            ", in any pose": (ANY, 1, False),
            ", also enlarged": (UNTURNED, 4, False),
            ", in any pose, also enlarged": (ANY, 4, False),
            ", in any pose, over other things": (ANY, 1, True),
        },
    ),
)
