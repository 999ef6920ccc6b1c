"""Marks: small figures at the middle of what is drawn, drawings in boxes of their proportions, and framed parts."""

from __future__ import annotations

import numpy as np

from ttt._grid.drawing.registry import IN, OUT, Line
from ttt._grid.scene import Scene
from ttt.values import Grid

FIGURES = {
    "a cell": ((0, 0),),
    "a cross": ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)),
    "a ring": ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    "a diagonal cross": ((0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)),
}
"""Rows and columns of their cells from the middle."""
MOST_THINGS = 20


def in_middle(kind: str, figure: str, colour: int, s: Scene) -> Grid | None:
    """Draw a figure in the middle of the box of each thing that has a middle cell, over what is empty.

    Args:
        kind: The way the grid is cut into things; "" for all that is drawn.
        figure: One of `FIGURES`.
        colour: Of the figure.
        s: The grid.
    """
    if kind:
        boxes = [(t.top, t.left, t.height, t.width) for t in s.things(kind) if t.mask.size > 1]
    else:
        r, c = np.nonzero(s.front)
        boxes = [(int(r.min()), int(c.min()), int(np.ptp(r)) + 1, int(np.ptp(c)) + 1)] if len(r) else []
    if not 1 <= len(boxes) <= MOST_THINGS:
        return None
    out = s.grid.copy()
    for top, left, h, w in boxes:
        if h % 2 and w % 2:
            for dr, dc in FIGURES[figure]:
                y, x = top + h // 2 + dr, left + w // 2 + dc
                if 0 <= y < out.shape[0] and 0 <= x < out.shape[1] and out[y, x] == s.background:
                    out[y, x] = colour
    return None if np.array_equal(out, s.grid) else out


def in_boxes(recoloured: bool, s: Scene) -> Grid | None:
    """Draw the thing of most colours in every full box of one colour of its proportions, as large as the box.

    Args:
        recoloured: Whether only its commonest colour is replaced, by that of the box.
        s: The grid.
    """
    things = s.things("object")
    if not 2 <= len(things) <= MOST_THINGS:
        return None
    colours = [int(np.count_nonzero(t.drawn)) for t in things]
    if max(colours) < 2 or colours.count(max(colours)) > 1:
        return None
    source = things[colours.index(max(colours))]
    out = s.grid.copy()
    for t, n in zip(things, colours, strict=True):
        down, across = t.height // source.height, t.width // source.width
        if n > 1 or not t.mask.all() or (t.height, t.width) != (down * source.height, across * source.width):
            continue
        new = np.where(source.mask, source.patch, np.uint8(t.colour))
        if recoloured:
            new = np.where(new == source.colour, np.uint8(t.colour), new)
        out[t.box] = np.kron(new, np.ones((down, across), dtype=np.uint8))
    return None if np.array_equal(out, s.grid) else out


def within(margin: int, colour: int, s: Scene) -> Grid | None:
    """Return the part inside the box of all cells of a colour, less a margin of some cells, or more if negative."""
    r, c = np.nonzero(s.grid == colour)
    if not len(r):
        return None
    top, left, bottom, right = r.min() + margin, c.min() + margin, r.max() + 1 - margin, c.max() + 1 - margin
    if min(top, left) < 0 or bottom > s.grid.shape[0] or right > s.grid.shape[1]:
        return None
    part = s.grid[top:bottom, left:right]
    return part if part.size else None


MARKS = (
    Line(
        "{} in colour {colour}",
        in_middle,
        1.4,
        {
            f"{figure} in the middle of {words}": (kind, figure)
            for kind, words in (("", "the drawing"), ("colour", "the cells of each colour"), ("object", "each object"))
            for figure in FIGURES
        },
        OUT,
    ),
    Line(
        "the object of most colours drawn in each box of its proportions{}",
        in_boxes,
        1.4,
        {"": (False,), ", its commonest colour that of the box": (True,)},
    ),
    Line(
        "the part inside the box of colour {colour}{}",
        within,
        1.2,
        {"": (1,), ", two cells in": (2,), " and the cells around it": (-1,)},
        IN,
    ),
)
