"""How the things of a grid relate: which is nearest, biggest or alike, in which direction, in what colour."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ttt._grid.geometry import STEPS, Mask, Numbers, Step
from ttt._grid.scene import Scene
from ttt._grid.things import Thing

Strokes = tuple[Numbers, Numbers, Numbers]
"""Rows, columns and colours of painted cells; some may lie outside the grid."""


class Relations:
    """The things of one kind on one grid and how each relates to the others.

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
        self.lines: dict[tuple[int, Step, str, str], Strokes | None] = {}
        self.headings: dict[tuple[bool, int], Step] = {}
        self.rarest: dict[int, int | None] = {}
        self._others: dict[tuple[str, int], int | None] = {}

    def blocked(self, i: int) -> Mask:
        """Return where something other than thing i is drawn."""
        return self.scene.front & (self.labels != i + 1)

    def other(self, which: str, i: int) -> int | None:
        """Return the index of the other thing that `which` names for thing i, None where there is none."""
        key = (which, i)
        if key not in self._others:
            self._others[key] = self._other(which, i)
        return self._others[key]

    def _other(self, which: str, i: int) -> int | None:
        rest = [j for j in range(len(self.things)) if j != i]
        if not rest:
            return None
        if which == "nearest":
            return min(
                rest, key=lambda j: (max(map(abs, self.gap(i, j))), sum(map(abs, self.gap(i, j))), -self.area[j])
            )
        if which == "biggest":
            return max(rest, key=lambda j: (self.area[j], -j))
        if which == "most coloured":
            return max(rest, key=lambda j: (np.count_nonzero(self.things[j].colours), self.area[j], -j))
        if which == "like-shaped":
            me = self.things[i]
            rest = [
                j for j in rest if np.array_equal(self.things[j].mask, me.mask) and self.things[j].colour != me.colour
            ]
            return rest[0] if len({self.things[j].colour for j in rest}) == 1 else None
        if which in ALIKE:
            mine = ALIKE[which](self, i)
            rest = [j for j in rest if self.things[j].colour != self.things[i].colour and ALIKE[which](self, j) == mine]
            return rest[0] if len({self.things[j].colour for j in rest}) == 1 else None
        if which in ("inside", "around"):
            rest = [j for j in rest if (self._within(j, i) if which == "inside" else self._within(i, j))]
            return min(rest, key=lambda j: self.things[j].mask.size) if rest else None
        if which == "one that contains its colour":
            own = self.things[i].colours > 0
            held = [j for j in rest if (self.things[j].colours[own] > 0).all() and self.area[j] > self.area[i]]
            return max(held, key=lambda j: self.area[j]) if held else None
        if which == "biggest of its colour":
            rest = [j for j in rest if self.things[j].colour == self.things[i].colour and self.area[j] > self.area[i]]
            return max(rest, key=lambda j: (self.area[j], -j)) if rest else None
        if which in STEPS:
            step = STEPS[which]
            colour = self.things[i].colour
            seen = [j for j in rest if self.way(i, j) == step and self.things[j].colour != colour]
            return min(seen, key=lambda j: max(map(abs, self.gap(i, j)))) if seen else None
        rest = [j for j in rest if self.things[j].colour == int(which)]
        return rest[0] if len(rest) == 1 else None

    def _within(self, i: int, j: int) -> bool:
        """Return whether the box of thing i lies in that of thing j, larger than it."""
        (t, le, b, ri), (t2, le2, b2, ri2) = self.boxes[i], self.boxes[j]
        return t2 <= t and le2 <= le and b2 >= b and ri2 >= ri and self.boxes[i] != self.boxes[j]

    def gap(self, i: int, j: int) -> Step:
        """Return the signed rows and columns from the box of thing i to that of thing j; 0 where they overlap."""
        (t, le, b, ri), (t2, le2, b2, ri2) = self.boxes[i], self.boxes[j]
        return (
            t2 - b if t2 > b else b2 - t if b2 < t else 0,
            le2 - ri if le2 > ri else ri2 - le if ri2 < le else 0,
        )

    def way(self, i: int, j: int) -> Step:
        """Return the direction from thing i to thing j, straight where their rows or columns overlap."""
        dr, dc = self.gap(i, j)
        return int(np.sign(dr)), int(np.sign(dc))


ALIKE: dict[str, Callable[[Relations, int], int]] = {
    "like-posed": lambda s, i: int(s.scene.measure(s.kind, "shape in any pose")[i]),
    "as holed": lambda s, i: int(s.scene.measure(s.kind, "number of holes")[i]),
    "as large": lambda s, i: s.area[i],
    "in its rows": lambda s, i: s.boxes[i][0],
    "in its columns": lambda s, i: s.boxes[i][1],
}
"""What two things of different colours must share for one to be named for the other."""

Direction = Callable[[Relations, int], Step | None]
"""Returns a direction for thing i, None where it has none."""
Colour = Callable[[Relations, int], int | None]
"""Returns a colour for thing i, None where it has none."""


def fixed(step: Step, _s: Relations, _i: int) -> Step | None:
    """Return the same direction for all."""
    return step


def to_other(which: str, sign: int, s: Relations, i: int) -> Step | None:
    """Return the direction towards another thing (sign 1) or away from it (-1)."""
    j = s.other(which, i)
    if j is None:
        return None
    dr, dc = s.way(i, j)
    return (sign * dr, sign * dc) if dr or dc else None


def heading(off_colour: bool, sign: int, s: Relations, i: int) -> Step | None:
    """Return the direction in which more of a thing's cells (or of its off-colour cells) lie in its box."""
    key = (off_colour, i)
    if key not in s.headings:
        s.headings[key] = _lean(s.things[i], off_colour)
    step = s.headings[key]
    return (sign * step[0], sign * step[1]) if any(step) else None


def _lean(t: Thing, off_colour: bool) -> Step:
    """Return to which side of its box more of a thing's cells lie; zeros where to none."""
    mask = t.mask & (t.patch != t.colour) if off_colour else t.mask
    if not mask.any():
        return 0, 0
    r, c = np.nonzero(mask)
    lean = (2 * r.mean() - (t.height - 1), 2 * c.mean() - (t.width - 1))
    down, right = (int(np.sign(x)) if abs(x) > 1e-6 else 0 for x in lean)
    return down, right


def own_colour(s: Relations, i: int) -> int | None:
    """Return the thing's most frequent colour."""
    return s.things[i].colour


def rarest_colour(s: Relations, i: int) -> int | None:
    """Return the rarest of its colours if it has several."""
    if i not in s.rarest:
        t = s.things[i]
        present = np.flatnonzero(t.colours)
        s.rarest[i] = int(present[t.colours[present].argmin()]) if len(present) > 1 else None
    return s.rarest[i]


def constant(colour: int, _s: Relations, _i: int) -> int | None:
    """Return the same colour for all."""
    return colour


def colour_of_other(which: str, s: Relations, i: int) -> int | None:
    """Return the most frequent colour of another thing."""
    j = s.other(which, i)
    return None if j is None else s.things[j].colour
