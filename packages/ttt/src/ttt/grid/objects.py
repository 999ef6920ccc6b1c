"""What one thing of a grid can do to the grid around it: be moved, copied, recoloured, extended; knows no outputs."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from ttt.grid.features import Numbers
from ttt.grid.painting import DIAGONALS, STEPS
from ttt.grid.scene import Mask, Scene, Thing

Strokes = tuple[Numbers, Numbers, Numbers]
"""Rows, columns and colours of painted cells; cells outside the grid are dropped by whoever paints."""
Step = tuple[int, int]


class Stage:
    """The things of one kind on one grid, with what actions ask about them.

    Args:
        scene: The grid.
        kind: The way it is cut into things.
    """

    def __init__(self, scene: Scene, kind: str) -> None:
        self.scene, self.kind = scene, kind
        self.things: Sequence[Thing] = scene.things(kind)
        self.labels = scene.labels(kind)
        self.cells: list[Strokes] = []
        for t in self.things:
            r, c = np.nonzero(t.mask)
            self.cells.append((r + t.top, c + t.left, t.patch[t.mask].astype(np.int64)))
        self.boxes = [(t.top, t.left, t.top + t.height - 1, t.left + t.width - 1) for t in self.things]
        self.area = [len(c[0]) for c in self.cells]
        self.memo: dict[tuple[str, int], int | None] = {}

    def blocked(self, i: int) -> Mask:
        """Where something is drawn that is not thing i."""
        return self.scene.front & (self.labels != i + 1)

    def other(self, which: str, i: int) -> int | None:
        """The other thing that thing i refers to, None where there is none."""
        key = (which, i)
        if key not in self.memo:
            self.memo[key] = self._other(which, i)
        return self.memo[key]

    def _other(self, which: str, i: int) -> int | None:
        rest = [j for j in range(len(self.things)) if j != i]
        if not rest:
            return None
        if which == "nearest":
            return min(rest, key=lambda j: (max(map(abs, self.gap(i, j))), sum(map(abs, self.gap(i, j))), -self.area[j]))
        if which == "biggest":
            return max(rest, key=lambda j: (self.area[j], -j))
        if which == "most coloured":
            return max(rest, key=lambda j: (np.count_nonzero(self.things[j].colours), self.area[j], -j))
        if which == "like-shaped":
            me = self.things[i]
            rest = [j for j in rest if np.array_equal(self.things[j].mask, me.mask) and self.things[j].colour != me.colour]
            return rest[0] if len({self.things[j].colour for j in rest}) == 1 else None
        if which == "one that holds its colour":
            own = self.things[i].colours > 0
            held = [j for j in rest if (self.things[j].colours[own] > 0).all() and self.area[j] > self.area[i]]
            return max(held, key=lambda j: self.area[j]) if held else None
        if which in STEPS:
            step = STEPS[which]
            seen = [j for j in rest if self.way(i, j) == step]
            return min(seen, key=lambda j: max(map(abs, self.gap(i, j)))) if seen else None
        rest = [j for j in rest if self.things[j].colour == int(which)]
        return rest[0] if len(rest) == 1 else None

    def gap(self, i: int, j: int) -> Step:
        """Signed rows and columns that one has to go from the box of thing i until the box of thing j; 0 if beside."""
        (t, le, b, ri), (t2, le2, b2, ri2) = self.boxes[i], self.boxes[j]
        return (
            t2 - b if t2 > b else b2 - t if b2 < t else 0,
            le2 - ri if le2 > ri else ri2 - le if ri2 < le else 0,
        )

    def way(self, i: int, j: int) -> Step:
        """Direction from thing i to thing j, straight where they are beside one another."""
        dr, dc = self.gap(i, j)
        return int(np.sign(dr)), int(np.sign(dc))


Paint = Callable[[Stage, int], Strokes | None]


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a thing does.

    Args:
        name: Words, read as "each thing ...".
        cost: Length of that description.
        paint: Takes a stage and a thing's number, returns what is painted; None where it makes no sense.
    """

    name: str
    cost: float
    paint: Paint


Way = Callable[[Stage, int], Step | None]
Ink = Callable[[Stage, int], int | None]


def _fixed(step: Step, s: Stage, i: int) -> Step | None:
    return step


def _to(which: str, sign: int, s: Stage, i: int) -> Step | None:
    j = s.other(which, i)
    if j is None:
        return None
    dr, dc = s.way(i, j)
    return (sign * dr, sign * dc) if dr or dc else None


def _heading(odd: bool, sign: int, s: Stage, i: int) -> Step | None:
    """Where the weight of a thing (or of its odd cells) lies in its box."""
    t = s.things[i]
    mask = t.mask & (t.patch != t.colour) if odd else t.mask
    if not mask.any():
        return None
    r, c = np.nonzero(mask)
    lean = (2 * r.mean() - (t.height - 1), 2 * c.mean() - (t.width - 1))
    step = tuple(sign * int(np.sign(x)) if abs(x) > 1e-6 else 0 for x in lean)
    return (step[0], step[1]) if any(step) else None


def _own(s: Stage, i: int) -> int | None:
    return s.things[i].colour


def _odd(s: Stage, i: int) -> int | None:
    t = s.things[i]
    present = np.flatnonzero(t.colours)
    return int(present[t.colours[present].argmin()]) if len(present) > 1 else None


def _constant(colour: int, s: Stage, i: int) -> int | None:
    return colour


def _of_other(which: str, s: Stage, i: int) -> int | None:
    j = s.other(which, i)
    return None if j is None else s.things[j].colour


def _filled(r: Numbers, c: Numbers, colour: int) -> Strokes:
    return r, c, np.full(len(r), colour, dtype=np.int64)


def _erased(s: Stage, i: int) -> Strokes:
    r, c, _ = s.cells[i]
    return _filled(r, c, s.scene.background)


ERASED = Action("vanishes", 0.5, _erased)


def _recoloured(ink: Ink, s: Stage, i: int) -> Strokes | None:
    colour = ink(s, i)
    r, c, _ = s.cells[i]
    return None if colour is None else _filled(r, c, colour)


def _shifted(vector: Step, s: Stage, i: int) -> Strokes:
    r, c, k = s.cells[i]
    return r + vector[0], c + vector[1], k


def _slid(way: Way, past: int, s: Stage, i: int) -> Strokes | None:
    """As far as it goes: until the next cell is taken or outside."""
    step = way(s, i)
    if step is None:
        return None
    r, c, k = s.cells[i]
    wall = np.pad(s.blocked(i), 1, constant_values=True)
    n = 0
    while not wall[r + step[0] * (n + 1) + 1, c + step[1] * (n + 1) + 1].any():
        n += 1
    n += past
    return (r + step[0] * n, c + step[1] * n, k) if n > 0 else None


def _edged(way: Way, s: Stage, i: int) -> Strokes | None:
    """To the border, whatever is between."""
    step = way(s, i)
    if step is None:
        return None
    r, c, k = s.cells[i]
    h, w = s.labels.shape
    top, left, bottom, right = s.boxes[i]
    room = [x for x in ((top, 0, h - 1 - bottom)[step[0] + 1] if step[0] else None,
                        (left, 0, w - 1 - right)[step[1] + 1] if step[1] else None) if x is not None]
    n = min(room)
    return (r + step[0] * n, c + step[1] * n, k) if n else None


def _aligned(which: str, axis: int, s: Stage, i: int) -> Strokes | None:
    """Into the rows (or columns) of the other, middles together."""
    j = s.other(which, i)
    if j is None:
        return None
    a, b = s.boxes[i], s.boxes[j]
    twice = b[axis] + b[axis + 2] - a[axis] - a[axis + 2]
    if twice == 0 or twice % 2:
        return None
    r, c, k = s.cells[i]
    return (r + twice // 2, c, k) if axis == 0 else (r, c + twice // 2, k)


def _repeated(way: Way, apart: int, free: bool, s: Stage, i: int) -> Strokes | None:
    """Copies side by side in a direction until the border, or until something is in the way."""
    step = way(s, i)
    return None if step is None else _copies(s, s.cells[i], s.boxes[i], step, apart, s.blocked(i) if free else None)


def _copies(s: Stage, cells: Strokes, box: tuple[int, int, int, int], step: Step, apart: int, wall: Mask | None) -> Strokes | None:
    r, c, k = cells
    h, w = s.labels.shape
    dr, dc = step[0] * (box[2] - box[0] + 1 + apart), step[1] * (box[3] - box[1] + 1 + apart)
    if not (dr or dc):
        return None
    parts = []
    for n in range(1, 31):
        rr, cc = r + dr * n, c + dc * n
        inside = (rr >= 0) & (cc >= 0) & (rr < h) & (cc < w)
        if not inside.any() or (wall is not None and wall[rr[inside], cc[inside]].any()):
            break
        parts.append((rr, cc, k))
    if not parts:
        return None
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.tile(k, len(parts))


def _mirrored(which: str, flips: tuple[bool, bool], s: Stage, i: int) -> Strokes | None:
    """Its mirror image over the middle of the other."""
    j = s.other(which, i)
    if j is None:
        return None
    r, c, k = s.cells[i]
    b = s.boxes[j]
    return (b[0] + b[2] - r if flips[0] else r), (b[1] + b[3] - c if flips[1] else c), k


def _reflected(step: Step, s: Stage, i: int) -> Strokes:
    """Its mirror image over its own side."""
    r, c, k = s.cells[i]
    top, left, bottom, right = s.boxes[i]
    if step[0]:
        r = (2 * bottom + 1 if step[0] > 0 else 2 * top - 1) - r
    if step[1]:
        c = (2 * right + 1 if step[1] > 0 else 2 * left - 1) - c
    return r, c, k


def _turned_over(flips: tuple[bool, bool], s: Stage, i: int) -> Strokes:
    r, c, k = s.cells[i]
    b = s.boxes[i]
    return (b[0] + b[2] - r if flips[0] else r), (b[1] + b[3] - c if flips[1] else c), k


def _ray(way: Way, ink: Ink, start: str, until: str, s: Stage, i: int) -> Strokes | None:
    """Lines from the thing in a direction over background cells."""
    step, colour = way(s, i), ink(s, i)
    if step is None or colour is None:
        return None
    top, left, bottom, right = s.boxes[i]
    if start == "side":
        if step[0] and step[1]:
            r, c = np.array([bottom if step[0] > 0 else top]), np.array([right if step[1] > 0 else left])
        else:
            r, c, _ = s.cells[i]
    else:
        r, c = np.array([(top + bottom) // 2]), np.array([(left + right) // 2])
        if (not step[1] and (left + right) % 2) or (not step[0] and (top + bottom) % 2):
            return None
    h, w = s.labels.shape
    n = np.arange(1, 31)[:, None]
    rr, cc = r + step[0] * n, c + step[1] * n
    inside = (rr >= 0) & (cc >= 0) & (rr < h) & (cc < w)
    rr, cc = np.where(inside, rr, 0), np.where(inside, cc, 0)
    free = inside
    if until != "border":
        hit = s.blocked(i)[rr, cc] & inside
        free = inside & ~np.logical_or.accumulate(hit, axis=0)
        if until == "something":
            free = free & hit.any(axis=0)
    free = free & (s.scene.grid[rr, cc] == s.scene.background)
    return _filled(rr[free], cc[free], colour) if free.any() else None


def _bridge(which: str, ink: Ink, inner: bool, s: Stage, i: int) -> Strokes | None:
    """The cells between the thing and the other, as wide as both are."""
    j, colour = s.other(which, i), ink(s, i)
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
    return _filled(r.ravel(), c.ravel(), colour)


def _box_cells(what: str, ink: Ink, s: Stage, i: int) -> Strokes | None:
    """Background cells in or around the thing's box."""
    colour = ink(s, i)
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
        r, c = np.nonzero(mask & ~t.mask & (t.patch == t.background))
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
    return _filled(r, c, colour) if len(r) else None


def _stamped(which: str, how: str, recolour: bool, s: Stage, i: int) -> Strokes | None:
    """The other drawn here too: middle on middle, corner on corner, or its cells of this colour on this."""
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


def _chain(which: str, apart: int, s: Stage, i: int) -> Strokes | None:
    """The other repeated away from it over this thing, in this colour."""
    j = s.other(which, i)
    if j is None:
        return None
    dr, dc = s.way(j, i)
    r, c, _ = s.cells[j]
    return _copies(s, (r, c, np.full(len(r), s.things[i].colour)), s.boxes[j], (dr, dc), apart, None)


def actions(inputs: Sequence[Scene], inks: Sequence[int], vectors: Sequence[Step]) -> Iterator[Action]:
    """Everything that a thing could do, given what occurs in a task.

    Args:
        inputs: All inputs.
        inks: Colours that are painted in the outputs.
        vectors: Rows and columns by which things are seen to move.
    """
    always = np.logical_and.reduce([s.counts > 0 for s in inputs])
    named = [str(c) for c in np.flatnonzero(always) if any(s.background != c for s in inputs)][:4]
    others = {"nearest": "the nearest other", "biggest": "the biggest other", **{c: f"the one of colour {c}" for c in named}}
    ways: dict[str, tuple[Way, float]] = {n: (partial(_fixed, st), 0.3) for n, st in {**STEPS, **DIAGONALS}.items()}
    for which, words in others.items():
        ways[f"towards {words}"] = (partial(_to, which, 1), 0.5)
        ways[f"away from {words}"] = (partial(_to, which, -1), 0.5)
    for odd, words in ((False, "its weight"), (True, "its odd cells")):
        ways[f"towards {words}"] = (partial(_heading, odd, 1), 0.5)
        ways[f"away from {words}"] = (partial(_heading, odd, -1), 0.5)
    colours: dict[str, tuple[Ink, float]] = {"its colour": (_own, 0.0)}
    colours.update({f"colour {c}": (partial(_constant, c), 0.2) for c in inks})
    yield from (
        Action(f"takes {words}", 0.6 + cost, partial(_recoloured, ink))
        for words, (ink, cost) in {
            **colours,
            "its rarest colour": (_odd, 0.5),
            **{f"the colour of {w}": (partial(_of_other, o), 0.5) for o, w in others.items() if not o.isdigit()},
            "the colour of one like it": (partial(_of_other, "like-shaped"), 0.5),
            **{f"the colour of the next one {d}": (partial(_of_other, d), 0.5) for d in STEPS},
        }.items()
        if words != "its colour"
    )
    for dr, dc in vectors:
        yield Action(f"is drawn {dr} rows and {dc} columns on", 0.8 + 0.1 * (abs(dr) + abs(dc)), partial(_shifted, (dr, dc)))
    for words, (way, cost) in ways.items():
        yield Action(f"is slid {words}", 1.0 + cost, partial(_slid, way, 0))
        yield Action(f"is moved to the border {words}", 1.0 + cost, partial(_edged, way))
        for apart in (0, 1):
            gap = " with gaps" if apart else ""
            yield Action(f"is repeated{gap} {words}", 1.0 + cost + 0.2 * apart, partial(_repeated, way, apart, False))
        for ink_words, (ink, ink_cost) in {**colours, "its rarest colour": (_odd, 0.3)}.items():
            for start in ("side", "middle"):
                for until in ("border", "anything", "something"):
                    text = f"sends a line of {ink_words} {words}" + {
                        "border": "", "anything": " until something is in the way", "something": " to what is there"
                    }[until] + (" from its middle" if start == "middle" else "")
                    yield Action(text, 0.9 + cost + ink_cost + 0.1 * (start == "middle") + 0.1 * (until == "something"),
                                 partial(_ray, way, ink, start, until))
    for ink_words, (ink, ink_cost) in {**colours, "its rarest colour": (_odd, 0.3)}.items():
        for what, words in {
            "inside": "its inside", "box": "its box", "outline": "its outline", "frame": "a frame around it",
            "row": "the row through its middle", "column": "the column through its middle",
            "cross": "the cross through its middle",
        }.items():
            yield Action(f"fills {words} with {ink_words}", 1.0 + ink_cost, partial(_box_cells, what, ink))
        for which, words in others.items():
            for inner in (False, True):
                yield Action(f"is joined by {ink_words} to {words}" + (", inner part" if inner else ""), 1.3 + ink_cost,
                             partial(_bridge, which, ink, inner))
    flips = {"left-right": (False, True), "up-down": (True, False), "both ways": (True, True)}
    for words, flip in flips.items():
        yield Action(f"is mirrored {words}", 1.0, partial(_turned_over, flip))
    for d, step in STEPS.items():
        yield Action(f"is reflected {d}", 1.1, partial(_reflected, step))
    for which, words in others.items():
        yield Action(f"moves into the rows of {words}", 1.4, partial(_aligned, which, 0))
        yield Action(f"moves into the columns of {words}", 1.4, partial(_aligned, which, 1))
        for text, flip in flips.items():
            yield Action(f"is mirrored {text} over {words}", 1.5, partial(_mirrored, which, flip))
        for apart in (-1, 0, 1):
            yield Action(f"repeats {words} in its colour, {apart} apart", 1.8, partial(_chain, which, apart))
    for which, words in {**others, "most coloured": "the most coloured"}.items():
        for how in ("middle", "corner"):
            for recolour in (False, True):
                yield Action(f"gets {words} drawn on its {how}" + (" in its colour" if recolour else ""), 1.5 + 0.2 * recolour,
                             partial(_stamped, which, how, recolour))
    for which, words in {"most coloured": "the most coloured", "one that holds its colour": "the one that holds its colour"}.items():
        for how in ("as it is", "mirrored left-right", "mirrored up-down", "turned"):
            yield Action(f"gets {words} drawn around it, {how}", 1.6 + 0.2 * (how != "as it is"), partial(_stamped, which, how, False))
