"""Transformations that complete a pattern: mirror symmetry, tilings, stripes, and sorted or exchanged parts."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ttt._grid.compose.core import library
from ttt._grid.geometry import turned
from ttt._grid.scene import Scene
from ttt._grid.transforms.registry import Table, Transform, per_colour
from ttt.values import Grid

Repair = Callable[[Grid, int], Grid | None]
"""Replaces the cells of a colour in a grid, or returns None where the rest shows no pattern."""


def _axes(grid: Grid, colour: int, horizontal: bool, compiled: bool) -> Grid | None:
    """Repair by the mirror line with the most agreeing and no contradicting cells."""
    g = np.ascontiguousarray(grid if horizontal else grid.T)
    core = library() if compiled else None
    if core is not None:
        made = np.empty_like(g)
        agree = core.repair_mirror(g.ctypes.data, *g.shape, colour, made.ctypes.data)
        if agree < g.size // 4:
            return None
        return made if horizontal else made.T
    m = g == colour
    w = g.shape[1]
    best: tuple[int, Grid] | None = None
    for twice in range(w // 2, w + w // 2):  # the line is at twice/2
        partner = twice - np.arange(w)
        ok = (partner >= 0) & (partner < w)
        cols = np.flatnonzero(ok)
        other = g[:, partner[cols]]
        known = ~m[:, cols] & ~m[:, partner[cols]]
        if not known.any() or (g[:, cols] != other)[known].any():
            continue
        agree = int((known & (g[:, cols] == other)).sum())
        if best is None or agree > best[0]:
            out = g.copy()
            fill = m[:, cols] & ~m[:, partner[cols]]
            part = out[:, cols]
            part[fill] = other[fill]
            out[:, cols] = part
            best = (agree, out)
    if best is None or best[0] < g.size // 4:
        return None
    return best[1] if horizontal else best[1].T


def mended_by_mirror(grid: Grid, colour: int, compiled: bool = True) -> Grid | None:
    """Replace the cells of a colour by their mirror images, over any lines and the diagonal.

    Args:
        grid: The grid.
        colour: The colour.
        compiled: Whether to use the compiled core where there is one; the answers are the same.
    """
    hidden = grid == colour
    if not hidden.any() or hidden.all():
        return None
    out = grid.copy()
    for _ in range(2):
        for horizontal in (True, False):
            new = _axes(out, colour, horizontal, compiled)
            out = out if new is None else new
        if out.shape[0] == out.shape[1]:
            h = out == colour
            known = ~h & ~h.T
            if not (out != out.T)[known].any():
                out = np.where(h, out.T, out)
    return None if np.array_equal(out, grid) else out


def mended_by_tiling(grid: Grid, colour: int, compiled: bool = True) -> Grid | None:
    """Replace the cells of a colour by the smallest repeating pattern (also a sheared one) that fits the rest.

    Args:
        grid: The grid.
        colour: The colour.
        compiled: Whether to use the compiled core where there is one; the answers are the same.
    """
    h, w = grid.shape
    core = library() if compiled else None
    if core is not None:
        given, made = np.ascontiguousarray(grid), np.empty((h, w), dtype=np.uint8)
        return made if core.repair_tiling(given.ctypes.data, h, w, colour, made.ctypes.data) else None
    hidden = grid == colour
    rows, cols = np.indices(grid.shape)
    known = ~hidden.ravel()
    colours = grid.ravel()[known]
    periods = sorted(
        ((p, q) for p in range(1, h + 1) for q in range(1, w + 1) if p * q * 2 <= h * w), key=lambda x: x[0] * x[1]
    )
    for p, q in periods[:260]:
        for shear in (0,) if p > 6 or h <= p else (0, 1, q - 1):
            key = ((rows % p) * q + (cols + shear * (rows // p)) % q).ravel()
            tile = np.full(p * q, -1)
            tile[key[known]] = colours
            if (tile[key[known]] == colours).all() and (tile >= 0).all():
                return tile[key].reshape(h, w).astype(np.uint8)
    return None


MOST_HIDDEN: dict[Repair, float] = {mended_by_mirror: 0.6, mended_by_tiling: 0.9}
"""Share of a grid's cells that a repair may replace."""


def _repaired(repair: Repair, colour: int, s: Scene) -> Grid | None:
    key = ("repaired", repair, colour)
    if key not in s.memo:
        fits = 0 < s.counts[colour] < MOST_HIDDEN[repair] * s.grid.size
        s.memo[key] = repair(s.grid, colour) if fits else None
    out: Grid | None = s.memo[key]
    return out


def _patch(repair: Repair, colour: int, s: Scene) -> Grid | None:
    """Return what the repair puts under the colour."""
    out = _repaired(repair, colour, s)
    if out is None:
        return None
    r, c = np.nonzero(s.grid == colour)
    return out[r.min() : r.max() + 1, c.min() : c.max() + 1]


REPAIRS: Table = per_colour(
    {
        "colour {} mended by mirror symmetry": lambda c: Transform(
            partial(_repaired, mended_by_mirror, c), keeps_size=True
        ),
        "the part under colour {} mended by mirror symmetry": lambda c: Transform(partial(_patch, mended_by_mirror, c)),
        "colour {} mended by its repeating pattern": lambda c: Transform(
            partial(_repaired, mended_by_tiling, c), keeps_size=True
        ),
        "the part under colour {} mended by its repeating pattern": lambda c: Transform(
            partial(_patch, mended_by_tiling, c)
        ),
    }
)


def _overlaid(images: Callable[[Grid], list[Grid]], s: Scene) -> Grid | None:
    """Overlay the box of what is drawn with images of itself."""
    if not s.front.any():
        return None
    r, c = np.nonzero(s.front)
    box = (slice(r.min(), r.max() + 1), slice(c.min(), c.max() + 1))
    g = s.grid[box]
    out = g.copy()
    for image in images(g):
        if image.shape != g.shape:
            return None
        out = np.where(out == s.background, image, out)
    full = s.grid.copy()
    full[box] = out
    return full


def _turns(g: Grid) -> list[Grid]:
    return [turned(g, k) for k in (1, 2, 3)]


def _swapped(s: Scene) -> Grid | None:
    present = np.flatnonzero(s.counts)
    if len(present) != 2:
        return None
    return np.where(s.grid == present[0], present[1], present[0]).astype(np.uint8)


def _rows_continued(s: Scene) -> Grid | None:
    return _continued(s.grid, s.background)


def _columns_continued(s: Scene) -> Grid | None:
    out = _continued(s.grid.T, s.background)
    return None if out is None else out.T


def _continued(g: Grid, background: int) -> Grid | None:
    """Repeat the drawn rows with their period to the end of the grid."""
    drawn = (g != background).any(axis=1)
    if not drawn.any() or (drawn[-1] and drawn[0]):
        return None
    n = int(np.flatnonzero(drawn)[-1]) + 1
    for p in range(1, n + 1):
        if (g[p:n] == g[: n - p]).all() and (n > p or drawn[0]):
            return g[np.arange(len(g)) % p]
    return None


COMPLETIONS: Table = {
    "the drawing overlaid with its left-right mirror image": Transform(
        partial(_overlaid, lambda g: [g[:, ::-1]]), second=True
    ),
    "the drawing overlaid with its up-down mirror image": Transform(
        partial(_overlaid, lambda g: [g[::-1]]), second=True
    ),
    "the drawing overlaid with its mirror images": Transform(
        partial(_overlaid, lambda g: [g[:, ::-1], g[::-1], g[::-1, ::-1]]), second=True
    ),
    "the drawing overlaid with its turns": Transform(partial(_overlaid, _turns), second=True),
    "the drawing overlaid with its turns and mirror images": Transform(
        partial(_overlaid, lambda g: [g[:, ::-1], g[::-1], *_turns(g), g.T]), second=True
    ),
    "rows sorted by how much is drawn": Transform(lambda s: s.grid[np.argsort(s.front.sum(axis=1), kind="stable")]),
    "columns sorted by how much is drawn": Transform(
        lambda s: s.grid[:, np.argsort(-s.front.sum(axis=0), kind="stable")]
    ),
    "two colours exchanged": Transform(_swapped, second=True),
    "the drawn rows repeated downwards": Transform(_rows_continued),
    "the drawn columns repeated to the right": Transform(_columns_continued),
}
COMPLETIONS = {name: replace(t, keeps_size=True) for name, t in COMPLETIONS.items()}
