"""Summaries: the tile that repeats, the odd thing, and bars as long as there are cells or pieces of a colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ttt._grid.drawing.registry import Line
from ttt._grid.scene import Scene, odd_one_out
from ttt.values import Grid


def tile(s: Scene) -> Grid | None:
    """Return the smallest tile that, repeated, makes the grid; its last copies may be cut."""
    h, w = s.grid.shape
    p = next((p for p in range(1, h) if (s.grid[p:] == s.grid[:-p]).all()), h)
    q = next((q for q in range(1, w) if (s.grid[:, q:] == s.grid[:, :-q]).all()), w)
    return s.grid[:p, :q] if p * q < h * w else None


def odd_one(kind: str, alone: bool, s: Scene) -> Grid | None:
    """Return the one thing that differs from all others, which are alike, in the most properties.

    Args:
        kind: The way the grid is cut into things.
        alone: Whether other things in its box are left out.
        s: The grid.
    """
    n = odd_one_out(s, kind)
    if n is None:
        return None
    chosen = s.things(kind)[n]
    return chosen.alone if alone else chosen.patch


CELLS, PIECES = "cells", "pieces"
GROWING, FALLING, AS_COLOURS = "shortest first", "longest first", "in the order of first occurrence"
RIGHTWARDS, LEFTWARDS, UPWARDS, DOWNWARDS = range(4)


def bars(what: str, order: str, way: int, s: Scene) -> Grid | None:
    """Draw a bar for each drawn colour, as long as it has cells or pieces.

    Args:
        what: What is counted.
        order: In which the bars stand.
        way: From which side of the result they grow.
        s: The grid.
    """
    colours, first = np.unique(s.grid, return_index=True)
    drawn = [(int(c), int(f)) for c, f in zip(colours, first, strict=True) if c != s.background]
    if not 2 <= len(drawn) <= 9:
        return None
    pieces = Counter(t.colour for t in s.things("piece"))
    counts = {c: int(s.counts[c]) if what == CELLS else pieces[c] for c, _ in drawn}
    if not 1 <= max(counts.values()) <= 30:
        return None
    sign = {GROWING: 1, FALLING: -1, AS_COLOURS: 0}[order]
    return _bars([c for c, f in sorted(drawn, key=lambda d: (sign * counts[d[0]], d[1]))], counts, way, s.background)


def _bars(colours: Sequence[int], counts: dict[int, int], way: int, background: int) -> Grid:
    length = max(counts.values())
    out = np.full((len(colours), length), background, dtype=np.uint8)
    for n, c in enumerate(colours):
        out[n, : counts[c]] = c
    if way in (LEFTWARDS, UPWARDS):
        out = out[:, ::-1]
    return out.T if way in (UPWARDS, DOWNWARDS) else out


def unique_in_line(rows: bool, s: Scene) -> Grid | None:
    """Return each distinct row (column) once, in order of first occurrence."""
    g = s.grid if rows else s.grid.T
    kept = list(dict.fromkeys(row.tobytes() for row in np.ascontiguousarray(g)))
    if len(kept) == len(g):
        return None
    out = np.stack([np.frombuffer(row, dtype=np.uint8) for row in kept])
    return out if rows else out.T


SUMMARIES = (
    Line("the smallest tile that it repeats", tile, 1.2),
    Line(
        "cropped to the {} that is the odd one out",
        odd_one,
        1.3,
        {
            f"{words}{end}": (kind, alone)
            for kind, words in (
                ("object", "object"),
                ("piece", "one-colour piece"),
                ("panel", "panel"),
                ("solid", "object joined by sides"),
            )
            for alone, end in ((False, ""), (True, ", alone,"))
        },
    ),
    Line(
        "a bar for each colour {}",
        bars,
        1.4,
        {
            f"as long as its number of {what}, {order}, {words}": (what, order, way)
            for what in (CELLS, PIECES)
            for order in (FALLING, GROWING, AS_COLOURS)
            for way, words in (
                (RIGHTWARDS, "to the right"),
                (LEFTWARDS, "to the left"),
                (UPWARDS, "upwards"),
                (DOWNWARDS, "downwards"),
            )
        },
    ),
    Line("each distinct {} once", unique_in_line, 1.2, {"row": (True,), "column": (False,)}),
)
