"""Symmetry: things are completed about the centre about which they are most symmetric."""

from __future__ import annotations

import numpy as np

from ttt._grid.drawing.registry import IN, Line
from ttt._grid.geometry import Mask, Numbers
from ttt._grid.scene import Scene
from ttt.values import Grid

SAMPLE = 16
"""Cells that are looked at first for each centre."""
Cells = tuple[Numbers, Numbers, Numbers]
"""Rows, columns and colours."""
MOST_CELLS, FEWEST_CELLS, MOST_CENTRES, MOST_THINGS = 300, 4, 400, 12
SHARE = 0.5
"""Of the cells of a thing whose images lie on cells of the same colour, at least."""
Image = tuple[bool, bool, bool]
"""Whether cells are transposed about the centre, then mirrored up-down, then left-right."""
ACROSS: tuple[Image, ...] = ((False, False, True),)
DOWN: tuple[Image, ...] = ((False, True, False),)
BOTH: tuple[Image, ...] = ((False, False, True), (False, True, False), (False, True, True))
TURNS: tuple[Image, ...] = ((True, True, False), (False, True, True), (True, False, True))
ALL: tuple[Image, ...] = (*BOTH, (True, False, False), *TURNS[::2], (True, True, True))
WAYS = {
    "left-right": ACROSS,
    "up-down": DOWN,
    "left-right and up-down": BOTH,
    "under turns": TURNS,
    "in all ways": ALL,
}


def things_completed(kind: str, images: tuple[Image, ...], s: Scene) -> Grid | None:
    """Complete each thing that is nearly symmetric about some centre; None if nothing is drawn.

    Args:
        kind: The way the grid is cut into things.
        images: The images of a cell that a symmetric thing has.
        s: The grid.
    """
    things = s.things(kind)
    if not 1 <= len(things) <= MOST_THINGS:
        return None
    out = s.grid.copy()
    for n in range(1, len(things) + 1):
        mine = s.labels(kind) == n
        _complete(out, mine, np.zeros_like(mine), images, s)
    return None if np.array_equal(out, s.grid) else out


def completed(images: tuple[Image, ...], s: Scene) -> Grid | None:
    """Complete all that is drawn, together."""
    out = s.grid.copy()
    _complete(out, s.front, np.zeros_like(s.front), images, s)
    return None if np.array_equal(out, s.grid) else out


def uncovered(images: tuple[Image, ...], cover: int, s: Scene) -> Grid | None:
    """Take away a colour that covers a part of the drawing, and complete the drawing below it."""
    hidden = s.grid == cover
    if not hidden.any() or cover == s.background:
        return None
    out = np.where(hidden, np.uint8(s.background), s.grid)
    return out if _complete(out, s.front & ~hidden, hidden, images, s) else None


def rectangle_uncovered(images: tuple[Image, ...], s: Scene) -> Grid | None:
    """Take away the only full rectangle of four cells or more in a colour of its own, and complete what it covered."""
    covers = [t for t in s.things("colour") if t.mask.all() and t.mask.size >= FEWEST_CELLS and min(t.mask.shape) > 1]
    return uncovered(images, covers[0].colour, s) if len(covers) == 1 else None


def about_colour(images: tuple[Image, ...], colour: int, s: Scene) -> Grid | None:
    """Draw the images of all that is drawn about the middle of the box of one colour's cells, over what is empty."""
    r, c = np.nonzero(s.grid == colour)
    if not len(r) or colour == s.background:
        return None
    return _about(int(r.min() + r.max()), int(c.min() + c.max()), images, s)


def about_middle(images: tuple[Image, ...], s: Scene) -> Grid | None:
    """Draw the images of all that is drawn about the middle of the grid, over what is empty."""
    return _about(s.grid.shape[0] - 1, s.grid.shape[1] - 1, images, s)


def _about(down: int, across: int, images: tuple[Image, ...], s: Scene) -> Grid | None:
    if any(i[0] for i in images) and (down + across) % 2:
        return None
    r, c = np.nonzero(s.front)
    out = s.grid.copy()
    for image in images:
        y, x = _image(r, c, down, across, image)
        inside = (y >= 0) & (x >= 0) & (y < out.shape[0]) & (x < out.shape[1])
        inside[inside] = ~s.front[y[inside], x[inside]]
        out[y[inside], x[inside]] = s.grid[r[inside], c[inside]]
    return None if np.array_equal(out, s.grid) else out


def _complete(out: Grid, mine: Mask, hidden: Mask, images: tuple[Image, ...], s: Scene) -> bool:
    """Draw the images of some cells about their best centre; return whether there is one."""
    r, c = np.nonzero(mine)
    if not FEWEST_CELLS <= len(r) <= MOST_CELLS:
        return False
    colours = s.grid[r, c]
    best: tuple[float, Numbers, Numbers] | None = None
    centres = np.array(_centres(r, c, images, bool(hidden.any())))
    few = np.linspace(0, len(r) - 1, min(len(r), SAMPLE)).astype(np.int64)
    possible = _possible(centres, (r[few], c[few], colours[few].astype(np.int64)), mine, hidden, images, s)
    for down, across in centres[possible].tolist():
        same, y, x = 0, [], []
        for image in images:
            rows, columns = _image(r, c, down, across, image)
            inside = (rows >= 0) & (columns >= 0) & (rows < out.shape[0]) & (columns < out.shape[1])
            at = np.where(inside, rows, 0), np.where(inside, columns, 0)
            drawn = mine[at] & inside
            equal = drawn & (s.grid[at] == colours)
            if (drawn & ~equal).any() or (inside & s.front[at] & ~drawn & ~hidden[at]).any():
                break
            same += int(equal.sum())
            y.append(np.where(inside, rows, -1))
            x.append(columns)
        else:
            share = same / (len(r) * len(images))
            if best is None or share > best[0]:
                best = share, np.concatenate(y), np.concatenate(x)
    if best is None or best[0] < SHARE:
        return False
    y_, x_ = best[1:]
    inside = y_ >= 0
    out[y_[inside], x_[inside]] = np.tile(colours, len(images))[inside]
    return True


def _possible(centres: Numbers, cells: Cells, mine: Mask, hidden: Mask, images: tuple[Image, ...], s: Scene) -> Mask:
    """Return which centres put no image of some cells on a drawn cell that differs."""
    r, c, colours = cells
    possible = np.ones(len(centres), dtype=bool)
    for image in images:
        y, x = _image(r[None], c[None], centres[:, :1], centres[:, 1:], image)
        inside = (y >= 0) & (x >= 0) & (y < mine.shape[0]) & (x < mine.shape[1])
        at = np.where(inside, y, 0), np.where(inside, x, 0)
        other = s.front[at] & ~hidden[at] & ~(mine[at] & (s.grid[at] == colours))
        possible &= ~(inside & other).any(axis=1)
    return possible


def _image(r: Numbers, c: Numbers, down: int | Numbers, across: int | Numbers, image: Image) -> tuple[Numbers, Numbers]:
    """Return cells about a centre, given in half cells."""
    y, x = 2 * r - down, 2 * c - across
    if image[0]:
        y, x = x, y
    y, x = (-y if image[1] else y) + down, (-x if image[2] else x) + across
    return y // 2, x // 2


def _centres(r: Numbers, c: Numbers, images: tuple[Image, ...], far: bool) -> list[tuple[int, int]]:
    """Return possible centres in half cells, those nearest to the middle of the cells first."""
    middle = int(r.min() + r.max()), int(c.min() + c.max())
    reach = [int(a.max() - a.min()) // (1 if far else 2) + 1 for a in (r, c)]
    rows = range(middle[0] - reach[0], middle[0] + reach[0] + 1) if any(i[0] or i[1] for i in images) else [middle[0]]
    columns = (
        range(middle[1] - reach[1], middle[1] + reach[1] + 1) if any(i[0] or i[2] for i in images) else [middle[1]]
    )
    transposes = any(i[0] for i in images)
    found = [(y, x) for y in rows for x in columns if not transposes or (y + x) % 2 == 0]
    found.sort(key=lambda at: (abs(at[0] - middle[0]) + abs(at[1] - middle[1]), at))
    return found[:MOST_CENTRES]


ARGS = {words: (images,) for words, images in WAYS.items()}
SYMMETRIES = (
    Line("all that is drawn made symmetric {}", completed, 1.4, ARGS),
    Line("all that is drawn mirrored about the middle of the grid {}", about_middle, 1.2, ARGS),
    Line("all that is drawn mirrored about the middle of colour {colour} {}", about_colour, 1.4, ARGS, IN),
    Line(
        "each {}",
        things_completed,
        1.5,
        {
            f"{words} made symmetric {w}": (kind, i)
            for kind, words in (("object", "object"), ("piece", "one-colour piece"))
            for w, i in WAYS.items()
        },
    ),
    Line(
        "the full rectangle taken away, and what it covered made symmetric {}",
        rectangle_uncovered,
        1.5,
        ARGS,
    ),
    Line(
        "colour {colour} taken away, and what it covered made symmetric {}",
        uncovered,
        1.6,
        ARGS,
        IN,
    ),
)
