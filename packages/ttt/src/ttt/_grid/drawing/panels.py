"""Panels: what one panel shows is shown by the others."""

from __future__ import annotations

import numpy as np

from ttt._grid.drawing.registry import Line
from ttt._grid.scene import Scene
from ttt._grid.things import Thing
from ttt.values import Grid

MOST_PARTS = 40
FULLEST, COLOURFUL, UNION = "fullest", "of most colours", "union"


def shared(source: str, own: bool, empty: bool, s: Scene) -> Grid | None:
    """Show one panel's drawing in the others.

    Args:
        source: The fullest panel, that of most colours, or what any panel shows.
        own: Whether others show it in their own colour.
        empty: Whether empty panels show it too.
        s: The grid.
    """
    panels = s.things("panel")
    if len(panels) < 2 or s.separators is None or len({t.patch.shape for t in panels}) != 1:
        return None
    pattern = _pattern(panels, source, s.background)
    if pattern is None:
        return None
    out = s.grid.copy()
    for t in panels:
        if not t.drawn.any() and not empty:
            continue
        drawn = pattern != s.background
        colour = int(t.drawn.argmax()) if own and t.drawn.any() else None
        out[t.box] = np.where(drawn, pattern if colour is None else np.uint8(colour), t.patch)
    return None if np.array_equal(out, s.grid) else out


def commonest(kind: str, s: Scene) -> Grid | None:
    """Return one part, each cell in the colour that most parts have there; None where two colours are as common.

    Args:
        kind: The way the grid is cut into parts of one size.
        s: The grid.
    """
    parts = [t.alone for t in s.things(kind)]
    if not 3 <= len(parts) <= MOST_PARTS or len({p.shape for p in parts}) != 1:
        return None
    counts = np.stack([np.sum([p == c for p in parts], axis=0) for c in range(10)])
    most: Grid = counts.max(axis=0)
    return None if ((counts == most).sum(axis=0) > 1).any() else counts.argmax(axis=0).astype(np.uint8)


def all_alike(kind: str, s: Scene) -> Grid | None:
    """Show in each part what most parts of its size show; nothing where two colours are as common.

    Args:
        kind: The way the grid is cut into parts.
        s: The grid.
    """
    out = s.grid.copy()
    parts = s.things(kind)
    for shape in {t.mask.shape for t in parts if min(t.mask.shape) > 1}:
        same = [t for t in parts if t.mask.shape == shape]
        if not 3 <= len(same) <= MOST_PARTS:
            continue
        counts = np.stack([np.sum([t.alone == c for t in same], axis=0) for c in range(10)])
        if (2 * counts.max(axis=0) <= len(same)).any():
            return None
        for t in same:
            out[t.box] = counts.argmax(axis=0)
    return None if np.array_equal(out, s.grid) else out


def _pattern(panels: list[Thing], source: str, background: int) -> Grid | None:
    if source == UNION:
        out = panels[0].patch
        for t in panels[1:]:
            out = np.where(out == background, t.patch, out)
        return out
    rated = [int(t.drawn.sum()) if source == FULLEST else int(np.count_nonzero(t.drawn)) for t in panels]
    best = max(rated)
    return panels[rated.index(best)].patch if rated.count(best) == 1 else None


PANELS = (
    Line(
        "each {} as most of its size",
        all_alike,
        1.3,
        {"panel": ("panel",), "object": ("object",)},
    ),
    Line(
        "each cell as in most {}",
        commonest,
        1.2,
        {"panels": ("panel",), "objects": ("object",)},
    ),
    Line(
        "the drawing of {}",
        shared,
        1.3,
        {
            f"{what} shown in {which} panels{end}": (source, own, empty)
            for source, what in (
                (FULLEST, "the fullest panel"),
                (COLOURFUL, "the panel of most colours"),
                (UNION, "all panels"),
            )
            for empty, which in ((True, "all"), (False, "all drawn"))
            for own, end in ((False, ""), (True, " in their colours"))
        },
    ),
)
