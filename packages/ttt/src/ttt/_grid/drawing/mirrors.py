"""Mirrors: what lies on one side of a line across the grid appears on the other side too."""

from __future__ import annotations

import numpy as np

from ttt._grid.drawing.registry import Line
from ttt._grid.scene import Scene
from ttt.values import Grid


def across_lines(rows: bool, columns: bool, moved: bool, s: Scene) -> Grid | None:
    """Mirror the drawing across the separators that run through the whole grid.

    Args:
        rows: Across those that are rows.
        columns: Across those that are columns.
        moved: Whether only the images stay.
        s: The grid.
    """
    if s.separators is None:
        return None
    across = [int(r) for r in s.separators[0]] if rows else []
    down = [int(c) for c in s.separators[1]] if columns else []
    if len(across) != int(rows) or len(down) != int(columns):
        return None
    line = np.zeros(s.grid.shape, dtype=bool)
    line[across], line[:, down] = True, True
    out = np.where(~line & moved, np.uint8(s.background), s.grid)
    r, c = np.nonzero(s.front & ~line)
    images = [(r, c)]
    for row in across:
        images += [(2 * row - y, x) for y, x in images]
    for column in down:
        images += [(y, 2 * column - x) for y, x in images]
    for y, x in images[1:]:
        inside = (y >= 0) & (x >= 0) & (y < out.shape[0]) & (x < out.shape[1])
        room = inside.copy()
        room[inside] = out[y[inside], x[inside]] == s.background
        out[y[room], x[room]] = s.grid[r[room], c[room]]
    return None if np.array_equal(out, s.grid) else out


MIRRORS = (
    Line(
        "the drawing {}",
        across_lines,
        1.2,
        {
            f"{word} across the line through the grid{end}": (rows, columns, moved)
            for word, moved in (("mirrored", False), ("moved", True))
            for (rows, columns), end in (
                ((True, False), " from side to side"),
                ((False, True), " from top to bottom"),
                ((True, True), "s that cross"),
            )
        },
    ),
)
