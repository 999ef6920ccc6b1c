"""Drawings inside parts of a grid: in each panel or each object's box by itself, or cut to a part afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from ttt._grid.drawing.registry import Drawing
from ttt._grid.scene import Scene
from ttt._grid.things import Thing
from ttt._grid.transforms import TRANSFORMS
from ttt._grid.transforms.sizes import POSES
from ttt.values import Grid

Make = Callable[[Scene], Grid | None]
PARTS = {"in each panel": "panel", "in each object's box": "object"}
"""The ways to cut a grid into parts, by their words."""
MOST_PARTS, SMALLEST = 16, 3
"""Parts in a grid, at most, and cells on the longer side of one, at least."""
COST = 0.4


def in_parts(kind: str, make: Make, s: Scene) -> Grid | None:
    """Change each part of a grid as if it were a grid of its own; None where one does not change its own size.

    Args:
        kind: The way the grid is cut into parts.
        make: What is made of each part.
        s: The grid.
    """
    out = s.grid.copy()
    for thing, part in _parts(kind, s):
        made = make(part)
        if made is None:
            continue
        if made.shape != part.grid.shape:
            return None
        if kind == "panel":
            out[thing.box] = made
        else:
            mine = thing.mask | (out[thing.box] == s.background)
            out[thing.box] = np.where(mine, made, out[thing.box])
    return None if np.array_equal(out, s.grid) else out


def _parts(kind: str, s: Scene) -> list[tuple[Thing, Scene]]:
    memo = ("parts", kind)
    if memo not in s.memo:
        things = s.things(kind)
        large = [t for t in things if max(t.mask.shape) >= SMALLEST]
        few = len(things) <= MOST_PARTS and (kind == "panel" or len(large) > 0)
        s.memo[memo] = [(t, Scene(t.alone, s.background)) for t in large] if few else []
    found: list[tuple[Thing, Scene]] = s.memo[memo]
    return found


def drawn_box(s: Scene) -> Grid | None:
    """Cut a grid to what is drawn."""
    r, c = np.nonzero(s.front)
    return s.grid[r.min() : r.max() + 1, c.min() : c.max() + 1] if len(r) else None


def largest_object(s: Scene) -> Grid | None:
    """Cut a grid to its largest object."""
    things = s.things("object")
    return max(things, key=lambda t: int(t.mask.sum())).alone if things else None


CUTS: dict[str, Make] = {
    "then cropped to what is drawn": drawn_box,
    "then cropped to the largest object": largest_object,
}
"""What is cut out of a grid after a drawing, by its words."""
CHANGED = "then cropped to what was changed"


def _once(words: str, make: Make, s: Scene) -> Grid | None:
    """Draw, unless the drawing of these words was made on the grid before."""
    memo = ("drawing", words)
    if memo not in s.memo:
        s.memo[memo] = make(s)
    found: Grid | None = s.memo[memo]
    return found


def cut(words: str, make: Make, crop: Make, s: Scene) -> Grid | None:
    """Return a part of a drawing."""
    made = _once(words, make, s)
    return None if made is None else crop(Scene(made, s.background))


def changed_part(words: str, make: Make, s: Scene) -> Grid | None:
    """Return the part of a drawing in which it differs from the grid."""
    made = _once(words, make, s)
    if made is None or made.shape != s.grid.shape:
        return None
    r, c = np.nonzero(made != s.grid)
    return made[r.min() : r.max() + 1, c.min() : c.max() + 1] if len(r) else None


def inside(drawings: Iterable[Drawing]) -> Iterator[Drawing]:
    """Yield drawings, and the transformations that are tried second and keep a size, for each part of a grid."""
    plain = [t for t in TRANSFORMS.values() if (t.keeps_size or t.name in POSES) and t.second]
    for drawing in (*(Drawing(t.name, t.cost, t.make) for t in plain), *drawings):
        for words, kind in PARTS.items():
            yield Drawing(f"{words}: {drawing.words}", drawing.cost + COST, partial(in_parts, kind, drawing.draw))


def cut_down(drawings: Iterable[Drawing]) -> Iterator[Drawing]:
    """Yield drawings of which a part is cut out."""
    for drawing in drawings:
        once, cost = (drawing.words, drawing.draw), drawing.cost + COST
        for words, crop in CUTS.items():
            yield Drawing(f"{drawing.words}, {words}", cost, partial(cut, *once, crop))
        yield Drawing(f"{drawing.words}, {CHANGED}", cost, partial(changed_part, *once))
