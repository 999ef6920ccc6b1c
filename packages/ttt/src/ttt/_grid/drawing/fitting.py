"""Fitting: pieces move to where they fit, or are laid over one another at a cell that all have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttt._grid.drawing.registry import IN, Line
from ttt._grid.geometry import STEPS, Mask, Numbers, framed, poses
from ttt._grid.scene import Scene
from ttt._grid.things import Thing
from ttt.values import Grid

MOST_THINGS, MOST_FITS = 12, 300


def fitted(kind: str, turns: Sequence[int], s: Scene) -> Grid | None:
    """Move each thing but the largest into the hollow of the largest that it fills best; None if one has no place.

    Args:
        kind: The way the grid is cut into things.
        turns: Poses that a thing may take, in the order of `geometry.poses`.
        s: The grid.
    """
    things = s.things(kind)
    if not 2 <= len(things) <= MOST_THINGS:
        return None
    size = [int(t.mask.sum()) for t in things]
    largest = max(range(len(things)), key=lambda n: (size[n], -n))
    out = np.where(s.labels(kind) == largest + 1, s.grid, np.uint8(s.background))
    for t in sorted((t for n, t in enumerate(things) if n != largest), key=lambda t: -t.mask.sum()):
        if not _placed(out, t, things[largest], turns, s.background):
            return None
    return None if np.array_equal(out, s.grid) else out


def _placed(out: Grid, t: Thing, goal: Thing, turns: Sequence[int], background: int) -> bool:
    """Draw a thing in or at the box of another where most sides touch; return whether one place is the best."""
    front = out != background
    sides = _sides(front)
    best = 0
    where: list[tuple[tuple[Numbers, Numbers], Grid]] = []
    for k in turns:
        mask, patch = poses(t.mask)[k], poses(t.patch)[k]
        r, c = np.nonzero(mask)
        height, width = (n - side for n, side in zip(out.shape, mask.shape, strict=True))
        for top in range(max(0, goal.top - mask.shape[0]), min(height, goal.top + goal.height) + 1):
            for left in range(max(0, goal.left - mask.shape[1]), min(width, goal.left + goal.width) + 1):
                at = r + top, c + left
                if front[at].any():
                    continue
                touching = int(sides[at].sum())
                if touching >= best:
                    where = [*(where if touching == best else []), (at, patch[r, c])]
                    best = touching
    cells = {bytes(np.sort(at[0] * 32 + at[1])) for at, _ in where}
    if not best or len(cells) != 1:
        return False
    out[where[0][0]] = where[0][1]
    return True


def _sides(front: Mask) -> Numbers:
    """Return for each cell how many of its sides touch what is drawn."""
    wide = framed(front, False)
    h, w = front.shape
    near = [wide[1 + dr : 1 + dr + h, 1 + dc : 1 + dc + w] for dr, dc in STEPS.values()]
    found: Numbers = np.sum(near, axis=0, dtype=np.int64)
    return found


def laid_over(colour: int, s: Scene) -> Grid | None:
    """Lay the objects over one another so that the only cell of a colour that each has is one cell."""
    things = s.things("object")
    if not 2 <= len(things) <= MOST_THINGS:
        return None
    cells = []
    for t in things:
        at = np.argwhere(t.mask & (t.patch == colour))
        if len(at) != 1:
            return None
        r, c = np.nonzero(t.mask)
        cells.append((r - at[0, 0], c - at[0, 1], t.patch[r, c]))
    r, c, k = (np.concatenate(part) for part in zip(*cells, strict=True))
    out = np.full((np.ptp(r) + 1, np.ptp(c) + 1), s.background, dtype=np.uint8)
    out[r - r.min(), c - c.min()] = k
    return out


def holes_filled(turns: Sequence[int], moved: bool, s: Scene) -> Grid | None:
    """Fill each enclosed empty region of the shape of a thing with that thing; None if no region is filled.

    Args:
        turns: Poses that a thing may take, in the order of `geometry.poses`.
        moved: Whether the thing leaves its place.
        s: The grid.
    """
    holes, things = s.things("enclosed"), s.things("object")
    if not holes or len(things) < 2 or len(holes) * len(things) > MOST_FITS:
        return None
    out, filled = s.grid.copy(), False
    for hole in holes:
        for t in things:
            k = next((k for k in turns if np.array_equal(poses(t.mask)[k], hole.mask)), None)
            if k is not None:
                if moved:
                    out[t.box][t.mask] = s.background
                out[hole.box][hole.mask] = poses(t.patch)[k][hole.mask]
                filled = True
                break
    return out if filled else None


FITTINGS = (
    Line(
        "each hole filled with the object of its shape{}",
        holes_filled,
        1.3,
        {
            f"{pose}{end}": (turns, moved)
            for turns, pose in (((0,), ""), (tuple(range(8)), " in any pose"))
            for moved, end in ((False, ""), (True, ", which leaves its place"))
        },
    ),
    Line(
        "every other {} into the hollow of the largest that it fills",
        fitted,
        1.4,
        {
            f"{words} moved{end}": (kind, turns)
            for kind, words in (("piece", "one-colour piece"), ("object", "object"))
            for turns, end in (((0,), ""), ((0, 1, 2, 3), ", turned as it fits,"))
        },
    ),
    Line("its objects laid over one another at their cell of colour {colour}", laid_over, 1.2, colours=IN),
)
