"""The largest rectangles of a grid: outlines of one colour, and full ones of one colour, also amid noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttt._grid.geometry import Mask
from ttt._grid.scene import Scene

Box = tuple[int, int, int, int]
"""First and last row and column, the last ones exclusive: top, left, bottom, right."""
LEAST = 3
"""Shortest side of an outline."""


def _lines(mask: Mask) -> npt.NDArray[np.bool_]:
    """Return for each row, first and last column whether all cells between them are marked."""
    h, w = mask.shape
    before = np.zeros((h, w + 1), dtype=np.int64)
    np.cumsum(mask, axis=1, out=before[:, 1:])
    length = np.arange(w)[None, :] - np.arange(w)[:, None] + 1
    full: npt.NDArray[np.bool_] = before[:, None, 1:] - before[:, :-1, None] == length
    return full & (length > 0)


def outline(s: Scene) -> Box | None:
    """Return the largest box whose outermost cells are all of one drawn colour, but not all of its cells.

    None where there is none, or where two are as large.
    """
    if "outline" not in s.memo:
        s.memo["outline"] = _outline(s)
    found: Box | None = s.memo["outline"]
    return found


def _outline(s: Scene) -> Box | None:
    best: list[tuple[int, Box]] = []
    for colour in np.flatnonzero(s.counts):
        if colour == s.background or s.counts[colour] < 4 * (LEAST - 1):
            continue
        mask = s.grid == colour
        across, down = _lines(mask), _lines(mask.T)
        wide = np.array([rows.any() for rows in across])
        total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
        total[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
        for top in range(mask.shape[0] - LEAST + 1):
            for bottom in np.flatnonzero(wide[top + LEAST - 1 :]) + top + LEAST - 1:
                sides: Mask = np.asarray(down[:, top, bottom])
                hit = across[top] & across[bottom] & sides[:, None] & sides[None, :]
                for left, right in np.argwhere(np.triu(hit, LEAST - 1)):
                    h, w = int(bottom) - top + 1, int(right - left) + 1
                    part = (
                        total[bottom + 1, right + 1]
                        - total[top, right + 1]
                        - total[bottom + 1, left]
                        + total[top, left]
                    )
                    if part < h * w:
                        best.append((h * w, (top, int(left), int(bottom) + 1, int(right) + 1)))
    best.sort()
    return None if not best or (len(best) > 1 and best[-2][0] == best[-1][0]) else best[-1][1]


def largest_empty(s: Scene) -> Mask:
    """Return the cells of the largest rectangles of background cells."""
    if "largest empty" not in s.memo:
        s.memo["largest empty"] = _largest_empty(~s.front)
    found: Mask = s.memo["largest empty"]
    return found


def _largest_empty(free: Mask) -> Mask:
    h, w = free.shape
    out, best = np.zeros_like(free), 0
    for top in range(h):
        below = np.logical_and.accumulate(free[top:], axis=0)
        for n in range(h - top):
            if (n + 1) * w < best or not below[n].any():
                continue
            edges = np.flatnonzero(np.diff(np.concatenate([[0], below[n].astype(np.int8), [0]])))
            for left, right in zip(edges[::2], edges[1::2], strict=True):
                area = (n + 1) * int(right - left)
                if area > best:
                    out[:], best = False, area
                if area == best:
                    out[top : top + n + 1, left:right] = True
    return out
