"""Cleaning: what is too small or too thin to belong to the drawing is painted over."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

import numpy as np
from scipy import ndimage

from ttt._grid.drawing.registry import Line
from ttt._grid.geometry import EIGHT, Mask, Numbers
from ttt._grid.scene import Scene
from ttt.values import Grid

ROUNDS = 30
LEAST_SHARE = 0.6
"""Of the cells that are as the repeating tile, less its own share of the grid."""


def without_thin(side: int, s: Scene) -> Grid | None:
    """Paint over all cells that lie in no square of their colour; each takes the commonest colour of those around.

    Args:
        side: Of the squares.
        s: The grid.
    """
    if min(s.grid.shape) < side:
        return None
    square = np.ones((side, side), dtype=bool)
    thick = np.zeros(s.grid.shape, dtype=bool)
    for c in np.flatnonzero(s.counts):
        thick |= ndimage.binary_opening(s.grid == c, square)
    if thick.all() or not thick.any():
        return None
    out = s.grid.copy()
    for _ in range(ROUNDS):
        if thick.all():
            return out
        votes = np.stack([_around(thick & (out == c)) for c in range(10)])
        new = ~thick & (votes.max(axis=0) > 0)
        out[new] = votes.argmax(axis=0)[new]
        thick |= new
    return out


def _around(mask: Mask) -> Numbers:
    """Return for each cell how many of the nine cells about it are marked."""
    found: Numbers = ndimage.convolve(mask.astype(np.int64), EIGHT, mode="constant")
    return found


def repeating(s: Scene) -> Grid | None:
    """Paint each cell in the commonest colour of those that a repeating tile puts under one another.

    The tile is that of the best share of equal cells, less its own share of the grid.
    """
    h, w = s.grid.shape
    rows, columns = np.indices(s.grid.shape)
    colours, size = s.grid.ravel().astype(np.int64), s.grid.size
    best: tuple[float, Numbers, Numbers] | None = None
    for p in range(1, h // 2 + 1):
        for q in range(1, w // 2 + 1):
            key = ((rows % p) * q + columns % q).ravel()
            counts = np.bincount(key * 10 + colours, minlength=p * q * 10).reshape(-1, 10)
            share = (counts.max(axis=1).sum() - p * q) / size
            if best is None or share > best[0] + 1e-9:
                best = share, counts.argmax(axis=1), key
    if best is None or best[0] < LEAST_SHARE or len(np.unique(best[1])) < 2:
        return None
    votes = np.bincount(best[2] * 10 + colours, minlength=len(best[1]) * 10).reshape(-1, 10)
    if (2 * votes.max(axis=1) <= votes.sum(axis=1)).any():
        return None
    out = best[1][best[2]].reshape(h, w).astype(np.uint8)
    return None if np.array_equal(out, s.grid) else out


def without_small(kind: str, most: int, s: Scene) -> Grid | None:
    """Erase the things of a few cells, or those smaller than half of the largest (0 cells)."""
    things = s.things(kind)
    if len(things) < 2:
        return None
    sizes = np.array([int(t.mask.sum()) for t in things])
    small = sizes <= most if most else 2 * sizes < sizes.max()
    if small.all() or not small.any():
        return None
    gone = np.isin(s.labels(kind), np.flatnonzero(small) + 1)
    return np.where(gone, np.uint8(s.background), s.grid)


CLEANINGS = (
    Line("each cell the commonest colour of those that it repeats", repeating, 1.3),
    Line(
        "each cell outside squares of {} cells of one colour painted like those around it",
        without_thin,
        1.3,
        {"2 x 2": (2,), "3 x 3": (3,)},
    ),
    Line(
        "{} erased",
        without_small,
        1.3,
        {
            f"{words} {size}": (kind, most)
            for kind, words in (("object", "objects"), ("joined", "one-colour pieces joined by sides"))
            for most, size in ((0, "smaller than half of the largest"), (1, "of one cell"), (2, "of two cells or one"))
        },
    ),
)
