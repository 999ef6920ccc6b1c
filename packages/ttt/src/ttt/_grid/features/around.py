"""Cell features of what surrounds a cell: colours of its lines, thing, neighbours and region; its panel; its image."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ttt._grid.features.registry import Feature, Table
from ttt._grid.geometry import EIGHT, STEPS, Numbers, shift
from ttt._grid.scene import Scene
from ttt._grid.things import Thing


def _again(axis: int, s: Scene) -> Numbers:
    """Return how often a cell's colour occurs in its row (axis 1) or column, itself included."""
    counts = np.stack([(s.grid == c).sum(axis=axis) for c in range(10)])
    lines = np.indices(s.grid.shape)[1 - axis]
    return counts[s.grid, lines]


def _neighbours_colour(sides_only: bool, rarest: bool, s: Scene) -> Numbers:
    """Return the commonest (rarest) drawn colour of the cells around, the background where there is none."""
    kernel = ndimage.generate_binary_structure(2, 1).astype(int) if sides_only else EIGHT.copy()
    kernel[1, 1] = 0
    drawn = [c for c in np.flatnonzero(s.counts) if c != s.background]
    if not drawn:
        return s.grid.astype(np.int64)
    count = np.stack([ndimage.convolve((s.grid == c).astype(np.int64), kernel, mode="constant") for c in drawn])
    pick = np.where(count > 0, count, 99).argmin(axis=0) if rarest else count.argmax(axis=0)
    return np.where(count.any(axis=0), np.array(drawn)[pick], s.background)


def _as_set(present: npt.NDArray[np.bool_]) -> Numbers:
    """Return a number for each row of marks of the ten colours."""
    return (present << np.arange(10)).sum(axis=-1)


def _colours_of_line(axis: int, s: Scene) -> Numbers:
    """Return which colours a cell's row (axis 1) or column has."""
    sets = _as_set(np.stack([(s.grid == c).any(axis=axis) for c in range(10)], axis=-1))
    return sets[np.indices(s.grid.shape)[1 - axis]]


def _colours_of(kind: str, s: Scene) -> Numbers | None:
    """Return which colours the thing of each cell has, 0 where there is none."""
    things = s.things(kind)
    if not things:
        return None
    return np.array([0, *(int(_as_set(t.colours > 0)) for t in things)], dtype=np.int64)[s.labels(kind)]


def _colours_touched(s: Scene) -> Numbers | None:
    """Return which drawn colours touch the one-colour piece of each cell, 0 on the background."""
    things = s.things("piece")
    if not things:
        return None
    labels = s.labels("piece")
    touched = np.zeros((len(things) + 1, 10), dtype=bool)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            near = shift(labels, dr, dc, 0)
            where = s.front & (near > 0) & (near != labels)
            touched[near[where], s.grid[where]] = True
    return (1 + _as_set(touched))[labels] * (labels > 0)


AROUND: Table = {
    "which colours its row has": Feature(partial(_colours_of_line, 1)),
    "which colours its column has": Feature(partial(_colours_of_line, 0)),
    "which colours its object has": Feature(partial(_colours_of, "object")),
    "which colours its panel has": Feature(partial(_colours_of, "panel")),
    "which colours touch its one-colour piece": Feature(_colours_touched),
    "how often its row has its colour": Feature(partial(_again, 1)),
    "how often its column has its colour": Feature(partial(_again, 0)),
    "the commonest drawn colour at its sides": Feature(partial(_neighbours_colour, True, False), is_colour=True),
    "the commonest drawn colour around it": Feature(partial(_neighbours_colour, False, False), is_colour=True),
    "the rarest drawn colour around it": Feature(partial(_neighbours_colour, False, True), is_colour=True),
}


def _around_region(value: Callable[[Numbers], int], s: Scene) -> Numbers:
    """Return a value of the colours that touch each background region from outside; 0 on what is drawn."""
    key = ("around regions",)
    if key not in s.memo:
        labels, n = ndimage.label(~s.front)
        counts = np.zeros((n + 1, 10), dtype=np.int64)
        for dr, dc in STEPS.values():
            near = shift(labels.astype(np.int64), dr, dc, 0)
            where = s.front & (near > 0)
            np.add.at(counts, (near[where], s.grid[where]), 1)
        s.memo[key] = labels, counts
    labels, counts = s.memo[key]
    return np.array([0, *(value(c) for c in counts[1:])], dtype=np.int64)[labels]


def _colour_around_region(s: Scene) -> Numbers:
    found = _around_region(lambda c: int(c.argmax()) if c.any() else s.background, s)
    return np.where(s.front, s.background, found)


AROUND_REGIONS: Table = {
    "which colours touch its background region": Feature(partial(_around_region, lambda c: 1 + int(_as_set(c > 0)))),
    "how many colours touch its background region": Feature(partial(_around_region, lambda c: 1 + int((c > 0).sum()))),
    "the colour that touches its background region most": Feature(_colour_around_region, is_colour=True),
}


def _in_panel(axis: int, s: Scene) -> Numbers | None:
    """Return the row (column) in its panel of each cell, from 1; 0 on separators."""
    panels = s.things("panel")
    if not panels:
        return None
    out = np.zeros(s.grid.shape, dtype=np.int64)
    for t in panels:
        out[t.box] = 1 + np.indices(t.mask.shape)[axis]
    return out


def _panel_place(rows: bool, ends: bool, s: Scene) -> Numbers | None:
    """Return the row (column) of panels that a cell lies in; 1 first, 2 between, 3 last if only the ends count."""
    spans = s.panel_layout[0 if rows else 1]
    if len(s.panel_layout[0]) * len(s.panel_layout[1]) < 2:
        return None
    line = np.zeros(s.grid.shape[0 if rows else 1], dtype=np.int64)
    for i, (a, b) in enumerate(spans):
        line[a:b] = (1 if i == 0 else 3 if i == len(spans) - 1 else 2) if ends else i + 1
    return np.broadcast_to(line[:, None] if rows else line[None, :], s.grid.shape).copy()


def _end_of(i: int, count: int) -> int:
    """Return 0 for the first, 1 for the last, 2 for the middle and 3 for any other of some panels in line."""
    return 0 if i == 0 else 1 if i == count - 1 else 2 if 2 * i + 1 == count else 3


def _panel_corner(s: Scene) -> Numbers | None:
    """Return 1 to 4 in the panels at the corners, 5 in the middle one, 6 in all others, 0 on separators."""
    rows, columns = s.panel_layout
    if len(rows) * len(columns) < 2:
        return None
    out = np.zeros(s.grid.shape, dtype=np.int64)
    for i, (a, b) in enumerate(rows):
        for j, (c, d) in enumerate(columns):
            ends = _end_of(i, len(rows)), _end_of(j, len(columns))
            out[a:b, c:d] = 1 + 2 * ends[0] + ends[1] if max(ends) < 2 else 5 if ends == (2, 2) else 6
    return out


def _equal_panels(s: Scene) -> list[Thing]:
    """Return the panels where all are of one size, else none."""
    panels = s.things("panel")
    return panels if len(panels) > 1 and len({t.mask.shape for t in panels}) == 1 else []


def _fullest(panels: list[Thing]) -> Thing | None:
    drawn = [int(t.drawn.sum()) for t in panels]
    return panels[drawn.index(max(drawn))] if drawn.count(max(drawn)) == 1 else None


def _in_other_panel(which: str, s: Scene) -> Numbers | None:
    """Return the colour at the place of each cell in another panel; its own on separators and where there is none."""
    panels = _equal_panels(s)
    if not panels:
        return None
    fullest = _fullest(panels) if which == "fullest" else None
    if which == "fullest" and fullest is None:
        return None
    out = s.grid.astype(np.int64)
    across = len(s.panel_layout[1])
    for n, t in enumerate(panels):
        row, column = divmod(n, across)
        if which in STEPS:
            row, column = row + STEPS[which][0], column + STEPS[which][1]
            if not (0 <= row < len(panels) // across and 0 <= column < across):
                continue
            other = panels[row * across + column]
        else:
            other = fullest or panels[0 if which == "first" else -1]
        out[t.box] = other.patch
    return out


def _at_panels_place(s: Scene) -> Numbers | None:
    """Return for each panel the colour of the fullest panel's cell that lies in it as the panel lies in the grid."""
    panels, layout = _equal_panels(s), (len(s.panel_layout[0]), len(s.panel_layout[1]))
    fullest = _fullest(panels) if panels and panels[0].mask.shape == layout else None
    if fullest is None:
        return None
    out = s.grid.astype(np.int64)
    for t, colour in zip(panels, fullest.patch.ravel().tolist(), strict=True):
        out[t.box] = colour
    return out


PANELS: Table = {
    **{
        f"colour at its place in {words}": Feature(partial(_in_other_panel, which), is_colour=True, cost=1.2)
        for which, words in {
            "first": "the first panel",
            "last": "the last panel",
            "fullest": "the fullest panel",
            "up": "the panel above",
            "down": "the panel below",
            "left": "the panel to the left",
            "right": "the panel to the right",
        }.items()
    },
    "colour in the fullest panel at the place of its panel": Feature(_at_panels_place, is_colour=True, cost=1.2),
    "row of panels": Feature(partial(_panel_place, True, False), cost=1.2),
    "column of panels": Feature(partial(_panel_place, False, False), cost=1.2),
    "first, last or other row of panels": Feature(partial(_panel_place, True, True), cost=1.2),
    "first, last or other column of panels": Feature(partial(_panel_place, False, True), cost=1.2),
    "its panel lies at which corner, or in the middle": Feature(_panel_corner, cost=1.2),
    "row in its panel": Feature(partial(_in_panel, 0), cost=1.2),
    "column in its panel": Feature(partial(_in_panel, 1), cost=1.2),
}


def _mirrored_in(kind: str, how: str, s: Scene) -> Numbers | None:
    """Return the colour of the mirror image of each cell in its object's (or panel's) box; its own elsewhere."""
    things = s.things(kind)
    if not things:
        return None
    out = s.grid.astype(np.int64)
    for t in things:
        patch = t.patch
        if how == "left-right":
            out[t.box] = patch[:, ::-1]
        elif how == "up-down":
            out[t.box] = patch[::-1]
        elif how == "both ways":
            out[t.box] = patch[::-1, ::-1]
        elif t.height == t.width:
            out[t.box] = patch.T
    return out


MIRRORED: Table = {
    "colour of its image in its object mirrored left-right": Feature(
        partial(_mirrored_in, "object", "left-right"), is_colour=True, cost=1.2
    ),
    "colour of its image in its object mirrored up-down": Feature(
        partial(_mirrored_in, "object", "up-down"), is_colour=True, cost=1.2
    ),
    "colour of its image in its object turned upside down": Feature(
        partial(_mirrored_in, "object", "both ways"), is_colour=True, cost=1.2
    ),
    "colour of its image in its object transposed": Feature(
        partial(_mirrored_in, "object", "transposed"), is_colour=True, cost=1.2
    ),
}
