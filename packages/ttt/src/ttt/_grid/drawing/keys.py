"""Keys: pairs of colours that stand beside one another in the grid say which colour becomes which."""

from __future__ import annotations

import numpy as np

from ttt._grid.drawing.registry import Line
from ttt._grid.geometry import Mask
from ttt._grid.scene import Scene
from ttt._grid.things import Thing
from ttt.values import Grid

FORWARDS, BACKWARDS, BOTH = "forwards", "backwards", "both"
KEPT, REMOVED, CUT = "kept", "removed", "cut"


def recoloured(way: str, rest: str, s: Scene) -> Grid | None:
    """Recolour all but the key.

    Args:
        way: From the first colour of each pair to the second, from the second to the first, or both.
        rest: What becomes of the key: it is kept, removed, or left outside when the grid is cut to the rest.
        s: The grid.
    """
    key = _key(s)
    if key is None:
        return None
    pairs, where = key
    to = np.arange(10, dtype=np.uint8)
    named: dict[int, int] = {}
    for a, b in pairs:
        for before, after in ((a, b),) if way == FORWARDS else ((b, a),) if way == BACKWARDS else ((a, b), (b, a)):
            if named.setdefault(before, after) != after:
                return None
    for before, after in named.items():
        to[before] = after
    drawn = s.front & ~where & ~_separators(s)
    out = np.where(drawn, to[s.grid], s.grid)
    if np.array_equal(out, s.grid):
        return None
    if rest == KEPT:
        return out
    out = np.where(where, np.uint8(s.background), out)
    if rest == REMOVED:
        return out
    r, c = np.nonzero(drawn)
    return out[r.min() : r.max() + 1, c.min() : c.max() + 1]


def _key(s: Scene) -> tuple[list[tuple[int, int]], Mask] | None:
    """Return the pairs of the key, and where it lies; None where there is none."""
    memo = ("key",)
    if memo not in s.memo:
        s.memo[memo] = _found(s)
    found: tuple[list[tuple[int, int]], Mask] | None = s.memo[memo]
    return found


def _found(s: Scene) -> tuple[list[tuple[int, int]], Mask] | None:
    for kind in ("object", "panel"):
        marked = [(n, _pairs(t)) for n, t in enumerate(s.things(kind), 1)]
        read = [(n, pairs) for n, pairs in marked if pairs]
        if read and len(read) < len(marked):
            return [p for _, pairs in read for p in pairs], np.isin(s.labels(kind), [n for n, _ in read])
    return None


def _separators(s: Scene) -> Mask:
    """Return the lines through the grid that cut it into panels."""
    found = np.zeros(s.grid.shape, dtype=bool)
    if s.separators is not None:
        found[s.separators[0]], found[:, s.separators[1]] = True, True
    return found


def _pairs(t: Thing) -> list[tuple[int, int]]:
    """Return the pairs that a thing shows if it is a full rectangle two cells wide or high, each of two colours."""
    if not t.mask.all() or 2 not in t.mask.shape or (t.patch == t.background).any():
        return []
    patch = t.patch if t.width == 2 else t.patch.T
    pairs = [(int(a), int(b)) for a, b in patch]
    return pairs if all(a != b for a, b in pairs) and len(set(pairs)) == len(pairs) else []


KEYS = (
    Line(
        "each colour changed {}",
        recoloured,
        1.4,
        {
            f"{words} by the key of pairs of colours{end}": (way, rest)
            for way, words in (
                (FORWARDS, "from the first to the second"),
                (BACKWARDS, "from the second to the first"),
                (BOTH, "to the other"),
            )
            for rest, end in ((KEPT, ""), (REMOVED, ", which is removed"), (CUT, ", which is left outside"))
        },
    ),
)
