"""Strokes: the cells that an action paints: the thing recoloured, moved, copied, mirrored, extended or filled."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ttt._grid.geometry import Numbers, Step
from ttt._grid.objects.relations import Colour, Direction, Relations, Strokes


def filled(r: Numbers, c: Numbers, colour: int) -> Strokes:
    """Return cells in one colour."""
    return r, c, np.full(len(r), colour, dtype=np.int64)


def erased(s: Relations, i: int) -> Strokes:
    """Paint the thing in the background colour."""
    r, c, _ = s.cells[i]
    return filled(r, c, s.scene.background)


def recoloured(choose: Colour, s: Relations, i: int) -> Strokes | None:
    """Paint the thing in another colour."""
    colour = choose(s, i)
    r, c, _ = s.cells[i]
    return None if colour is None else filled(r, c, colour)


def shifted(vector: Step, s: Relations, i: int) -> Strokes:
    """Draw the thing some rows and columns further."""
    r, c, k = s.cells[i]
    return r + vector[0], c + vector[1], k


def slid(way: Direction, s: Relations, i: int) -> Strokes | None:
    """Draw the thing as far in a direction as it can go before it meets something or the border."""
    step = way(s, i)
    if step is None:
        return None
    r, c, k = s.cells[i]
    wall = np.pad(s.blocked(i), 1, constant_values=True)
    n = 0
    while not wall[r + step[0] * (n + 1) + 1, c + step[1] * (n + 1) + 1].any():
        n += 1
    return (r + step[0] * n, c + step[1] * n, k) if n > 0 else None


def aligned(which: str, axis: int, s: Relations, i: int) -> Strokes | None:
    """Draw the thing with its middle in the middle row (axis 0) or column (axis 1) of the other."""
    j = s.other(which, i)
    if j is None:
        return None
    a, b = s.boxes[i], s.boxes[j]
    twice = b[axis] + b[axis + 2] - a[axis] - a[axis + 2]
    if twice == 0 or twice % 2:
        return None
    r, c, k = s.cells[i]
    return (r + twice // 2, c, k) if axis == 0 else (r, c + twice // 2, k)


def drawn_to(which: str, s: Relations, i: int) -> Strokes | None:
    """Draw the thing beside the other, straight across all that lies between."""
    j = s.other(which, i)
    if j is None:
        return None
    gap = s.gap(i, j)
    down, right = (int(np.sign(d)) * max(0, abs(d) - 1) for d in gap)
    if bool(gap[0]) == bool(gap[1]) or not (down or right):
        return None
    r, c, k = s.cells[i]
    return r + down, c + right, k


def repeated(way: Direction, apart: int, s: Relations, i: int) -> Strokes | None:
    """Draw copies side by side in a direction until the border."""
    step = way(s, i)
    if step is None:
        return None
    top, left, bottom, right = s.boxes[i]
    return _copies(s, s.cells[i], (step[0] * (bottom - top + 1 + apart), step[1] * (right - left + 1 + apart)))


def _copies(s: Relations, cells: Strokes, vector: Step) -> Strokes | None:
    """Draw cells again and again, a vector further each time."""
    r, c, k = cells
    h, w = s.labels.shape
    parts = []
    for n in range(1, 31):
        rr, cc = r + vector[0] * n, c + vector[1] * n
        if not ((rr >= 0) & (cc >= 0) & (rr < h) & (cc < w)).any():
            break
        parts.append((rr, cc))
    if not parts:
        return None
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.tile(k, len(parts))


def mirrored(which: str, flips: tuple[bool, bool], s: Relations, i: int) -> Strokes | None:
    """Draw its mirror image over the middle of the other."""
    j = s.other(which, i)
    if j is None:
        return None
    r, c, k = s.cells[i]
    b = s.boxes[j]
    return (b[0] + b[2] - r if flips[0] else r), (b[1] + b[3] - c if flips[1] else c), k


def reflected(step: Step, s: Relations, i: int) -> Strokes:
    """Draw its mirror image over its own side."""
    r, c, k = s.cells[i]
    top, left, bottom, right = s.boxes[i]
    if step[0]:
        r = (2 * bottom + 1 if step[0] > 0 else 2 * top - 1) - r
    if step[1]:
        c = (2 * right + 1 if step[1] > 0 else 2 * left - 1) - c
    return r, c, k


def turned_over(flips: tuple[bool, bool], s: Relations, i: int) -> Strokes:
    """Draw its mirror image in its own box."""
    r, c, k = s.cells[i]
    b = s.boxes[i]
    return (b[0] + b[2] - r if flips[0] else r), (b[1] + b[3] - c if flips[1] else c), k


@dataclass(frozen=True, slots=True)
class Line:
    """Draws lines from a thing in a direction over background cells.

    Args:
        way: The direction.
        choose: The colour.
        start: "side" for lines from its whole side, "middle" for one from its middle.
        until: Where they end.
    """

    way: Direction
    choose: Colour
    start: str
    until: str

    def __call__(self, s: Relations, i: int) -> Strokes | None:
        """Draw them; None where there is no direction, no colour or no cell."""
        step, colour = self.way(s, i), self.choose(s, i)
        found = None if step is None or colour is None else self.cells(s, i, step)
        if found is None or colour is None:
            return None
        r, c, n = found
        if self.until == "dotted":
            return r, c, np.where(n % 2, colour, s.things[i].colour)
        return filled(r, c, colour)

    def cells(self, s: Relations, i: int, step: Step) -> Strokes | None:
        """Return rows, columns and distances of the cells in a direction, worked out once for a thing."""
        key = (i, step, self.start, "border" if self.until == "dotted" else self.until)
        if key not in s.lines:
            s.lines[key] = _line_cells(step, self.start, key[3], s, i)
        return s.lines[key]


def _line_cells(step: Step, start: str, until: str, s: Relations, i: int) -> Strokes | None:
    """Return rows, columns and distances of a line's cells."""
    top, left, bottom, right = s.boxes[i]
    if start == "middle":
        across = (right - left if not step[1] else 0) + (bottom - top if not step[0] else 0)
        if across % 2 or (across == 0 and not (step[0] and step[1])):
            return None
        r, c = np.array([(top + bottom) // 2]), np.array([(left + right) // 2])
    elif step[0] and step[1]:
        r, c = np.array([bottom if step[0] > 0 else top]), np.array([right if step[1] > 0 else left])
    else:
        r, c, _ = s.cells[i]
    h, w = s.labels.shape
    n = np.arange(1, max(h, w) + 1)[:, None]
    rr, cc = r + step[0] * n, c + step[1] * n
    free = (rr >= 0) & (cc >= 0) & (rr < h) & (cc < w)
    rr, cc = np.where(free, rr, 0), np.where(free, cc, 0)
    if until != "border":
        hit = s.blocked(i)[rr, cc] & free
        free &= ~np.logical_or.accumulate(hit, axis=0)
        if until == "something":
            free &= hit.any(axis=0)
    free &= s.scene.grid[rr, cc] == s.scene.background
    if until == "end":
        free &= free[::-1].cumsum(axis=0)[::-1] == 1
    return (rr[free], cc[free], np.broadcast_to(n, rr.shape)[free]) if free.any() else None


def bridge(which: str, choose: Colour, inner: bool, s: Relations, i: int) -> Strokes | None:
    """Paint the cells between the thing and the other, as wide as the rows or columns that they share."""
    j, colour = s.other(which, i), choose(s, i)
    if j is None or colour is None:
        return None
    a, b = s.boxes[i], s.boxes[j]
    dr, dc = s.way(i, j)
    if bool(dr) == bool(dc):
        return None
    spans = []
    for axis, d in ((0, dr), (1, dc)):
        if d:
            spans.append((min(a[axis + 2], b[axis + 2]) + 1, max(a[axis], b[axis])))
        else:
            spans.append((max(a[axis], b[axis]) + inner, min(a[axis + 2], b[axis + 2]) + 1 - inner))
    if spans[0][0] >= spans[0][1] or spans[1][0] >= spans[1][1]:
        return None
    r, c = np.mgrid[spans[0][0] : spans[0][1], spans[1][0] : spans[1][1]]
    return filled(r.ravel(), c.ravel(), colour)


def box_cells(what: str, choose: Colour, s: Relations, i: int) -> Strokes | None:
    """Paint background cells in or around the thing's box."""
    colour = choose(s, i)
    if colour is None:
        return None
    t = s.things[i]
    top, left, bottom, right = s.boxes[i]
    h, w = s.labels.shape
    if what in ("row", "column", "cross"):
        hit = np.zeros((h, w), dtype=bool)
        if what != "column" and (top + bottom) % 2 == 0:
            hit[(top + bottom) // 2] = True
        if what != "row" and (left + right) % 2 == 0:
            hit[:, (left + right) // 2] = True
        r, c = np.nonzero(hit & ~s.scene.front)
    elif what in ("inside", "box"):
        mask = ndimage.binary_fill_holes(t.mask) if what == "inside" else np.ones(t.mask.shape, dtype=bool)
        r, c = np.nonzero(mask & ~t.mask & (t.patch == s.scene.background))
        r, c = r + top, c + left
    else:
        grown = np.zeros((t.height + 2, t.width + 2), dtype=bool)
        grown[1:-1, 1:-1] = t.mask if what == "outline" else True
        r, c = np.nonzero(ndimage.binary_dilation(grown, np.ones((3, 3))) & ~grown)
        r, c = r + top - 1, c + left - 1
        inside = (r >= 0) & (c >= 0) & (r < h) & (c < w)
        r, c = r[inside], c[inside]
        free = ~s.scene.front[r, c]
        r, c = r[free], c[free]
    return filled(r, c, colour) if len(r) else None


def stamped(which: str, how: str, recolour: bool, s: Relations, i: int) -> Strokes | None:
    """Draw the other here too: middle on middle, corner on corner, or its cells of this colour on this thing."""
    j = s.other(which, i)
    if j is None:
        return None
    r, c, k = s.cells[j]
    a, b = s.boxes[i], s.boxes[j]
    if how == "corner":
        dr, dc = a[0] - b[0], a[1] - b[1]
    elif how == "middle":
        dr, dc = a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]
        if dr % 2 or dc % 2:
            return None
        dr, dc = dr // 2, dc // 2
    else:
        if how == "mirrored left-right":
            c = b[1] + b[3] - c
        elif how == "mirrored up-down":
            r = b[0] + b[2] - r
        elif how == "turned":
            r, c = b[0] + b[2] - r, b[1] + b[3] - c
        same = k == s.things[i].colour
        if not same.any() or same.all():
            return None
        dr, dc = a[0] - int(r[same].min()), a[1] - int(c[same].min())
        if dr + int(r[same].max()) != a[2] or dc + int(c[same].max()) != a[3]:
            return None
    return r + dr, c + dc, np.full(len(k), s.things[i].colour) if recolour else k


def chain(which: str, s: Relations, i: int) -> Strokes | None:
    """Repeat the other in this thing's colour, at the first distance where a copy covers this thing."""
    j = s.other(which, i)
    if j is None:
        return None
    a, b = s.boxes[j], s.boxes[i]
    dr, dc = int(np.sign(b[0] + b[2] - a[0] - a[2])), int(np.sign(b[1] + b[3] - a[1] - a[3]))
    if not (dr or dc):
        return None
    r, c, _ = s.cells[j]
    theirs = set(zip(r.tolist(), c.tolist(), strict=True))
    mine = set(zip(s.cells[i][0].tolist(), s.cells[i][1].tolist(), strict=True))
    for n in range(1, 20):
        moved = {(y + n * dr, x + n * dc) for y, x in theirs}
        if mine <= moved and not moved & theirs:
            return _copies(s, (r, c, np.full(len(r), s.things[i].colour)), (n * dr, n * dc))
    return None


def part(what: str, choose: Colour, s: Relations, i: int) -> Strokes | None:
    """Paint some of the thing's cells: a half, rounded down, an end, or its edge."""
    colour = choose(s, i)
    if colour is None:
        return None
    r, c, _ = s.cells[i]
    top, left, bottom, right = s.boxes[i]
    h, w = bottom - top + 1, right - left + 1
    keep = {
        "upper half": r < top + h // 2,
        "lower half": r > bottom - h // 2,
        "left half": c < left + w // 2,
        "right half": c > right - w // 2,
        "top row": r == top,
        "bottom row": r == bottom,
        "left column": c == left,
        "right column": c == right,
        "corners": ((r == top) | (r == bottom)) & ((c == left) | (c == right)),
        "edge": (r == top) | (r == bottom) | (c == left) | (c == right),
        "core": (r > top) & (r < bottom) & (c > left) & (c < right),
    }[what]
    return filled(r[keep], c[keep], colour) if keep.any() else None
