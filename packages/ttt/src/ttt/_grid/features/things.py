"""Cell features of the thing that a cell belongs to, or of the box of a thing that it lies in."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ttt._grid.features.registry import Feature, Table
from ttt._grid.geometry import Numbers
from ttt._grid.scene import Scene, odd_one_out
from ttt._grid.things import FORMS, MEASURES, Thing, words_for


def _on_cells(own: Numbers, kind: str, s: Scene) -> Numbers:
    """Spread a number per thing over the thing's cells; 0 elsewhere."""
    return np.concatenate([[0], own])[s.labels(kind)]


def _value(kind: str, measure: str, s: Scene) -> Numbers | None:
    values = s.measure(kind, measure)
    return _on_cells(values + 1, kind, s) if len(values) else None


def _most(kind: str, measure: str, s: Scene) -> Numbers | None:
    values = s.measure(kind, measure)
    return _on_cells(1 + (values == values.max()), kind, s) if len(values) else None


def _least(kind: str, measure: str, s: Scene) -> Numbers | None:
    values = s.measure(kind, measure)
    return _on_cells(1 + (values == values.min()), kind, s) if len(values) else None


def _rank(kind: str, measure: str, s: Scene) -> Numbers | None:
    values = s.measure(kind, measure)
    if not len(values):
        return None
    return _on_cells(1 + np.searchsorted(np.unique(values)[::-1] * -1, -values), kind, s)


def _odd(kind: str, s: Scene) -> Numbers | None:
    odd = odd_one_out(s, kind)
    return None if odd is None else _on_cells(1 + (np.arange(len(s.things(kind))) == odd), kind, s)


RANKED = {
    "number of cells",
    "height",
    "width",
    "top row",
    "left column",
    "number of off-colour cells",
    "number of holes",
}


def _of_kind(kind: str, value: str, extreme: str, rank: str, extra: float) -> Table:
    """Return the features of one kind of thing; `{}` in a row's text stands for a measure, or a selection by it."""
    table: dict[str, Feature] = {}
    for measure in MEASURES:
        if measure == "colour":
            continue
        table[value.format(measure)] = Feature(partial(_value, kind, measure), cost=1.0 + extra)
        for end, take in (("most", _most), ("least", _least)):
            words = words_for(measure, "most" if end == "most" else "least")
            table[extreme.format(words)] = Feature(partial(take, kind, measure), cost=1.1 + extra)
        if measure in RANKED:
            table[rank.format(measure)] = Feature(partial(_rank, kind, measure), cost=1.1 + extra)
    table[extreme.format("that is the odd one out")] = Feature(partial(_odd, kind), cost=1.1 + extra)
    for form in FORMS:
        table[value.format(form)] = Feature(partial(_value, kind, form), cost=1.2 + extra)
    return table


OWN_THING: Table = {
    **_of_kind(
        "piece", "its one-colour piece's {}", "its one-colour piece is one {}", "its one-colour piece's rank by {}", 0.2
    ),
    **_of_kind(
        "joined",
        "its one-colour piece joined by sides: {}",
        "its one-colour piece joined by sides is one {}",
        "its one-colour piece joined by sides: rank by {}",
        0.4,
    ),
    **_of_kind("object", "its object's {}", "its object is one {}", "its object's rank by {}", 0.2),
    **_of_kind("colour", "its colour's cells: {}", "its colour is one {}", "its colour's cells: rank by {}", 0.4),
    **_of_kind("panel", "its panel's {}", "its panel is one {}", "its panel's rank by {}", 0.2),
}


def _colour_of(kind: str, rarest: bool, s: Scene) -> Numbers | None:
    things = s.things(kind)
    if not things:
        return None
    values = [s.background]
    for t in things:
        present = np.flatnonzero(t.drawn)
        if not len(present):
            values.append(s.background)
        else:
            values.append(int(present[t.drawn[present].argmin()] if rarest else t.drawn.argmax()))
    return np.array(values, dtype=np.int64)[s.labels(kind)]


OF_REGIONS: Table = {
    f"its background region's {form}": Feature(partial(_value, "region", form), cost=1.2) for form in FORMS
}

COLOURS: Table = {
    "its object's most frequent colour": Feature(partial(_colour_of, "object", False), is_colour=True, cost=1.2),
    "its object's rarest colour": Feature(partial(_colour_of, "object", True), is_colour=True, cost=1.2),
    "its panel's most frequent colour": Feature(partial(_colour_of, "panel", False), is_colour=True, cost=1.2),
    "its panel's rarest colour": Feature(partial(_colour_of, "panel", True), is_colour=True, cost=1.2),
}


class Place(NamedTuple):
    """A thing, and the row and column in its box of every cell of the box."""

    t: Thing
    r: Numbers
    c: Numbers

    def inside(self) -> Numbers:
        """Return 1 in the whole box."""
        return np.ones_like(self.r)

    def ring(self) -> Numbers:
        """Return 1 on the edge of the box, 2 one cell further inside, and so on."""
        r, c, t = self.r, self.c, self.t
        return 1 + np.minimum.reduce([r, c, t.height - 1 - r, t.width - 1 - c])

    def corner(self) -> Numbers:
        """Return 2 in the box's corners, 1 elsewhere."""
        return 1 + ((self.r == 0) | (self.r == self.t.height - 1)) * ((self.c == 0) | (self.c == self.t.width - 1))

    def middle(self) -> Numbers:
        """Return 1, plus 1 in the middle row, plus 2 in the middle column of a box of odd sides."""
        return 1 + (2 * self.r + 1 == self.t.height) + 2 * (2 * self.c + 1 == self.t.width)


def _in_box(kind: str, value: Callable[[Place], Numbers], s: Scene) -> Numbers | None:
    """Measure the place of each cell in the box of a thing, small boxes over large ones; 0 outside all boxes."""
    things = s.things(kind)
    if not things:
        return None
    out = np.zeros(s.grid.shape, dtype=np.int64)
    for t in sorted(things, key=lambda t: -t.mask.size):
        at = np.indices(t.mask.shape)
        out[t.box] = value(Place(t, at[0], at[1]))
    return out


def _boxes_over(kind: str, s: Scene) -> Numbers | None:
    """Return in how many boxes of things each cell lies."""
    things = s.things(kind)
    if len(things) < 2:
        return None
    out = np.zeros(s.grid.shape, dtype=np.int64)
    for t in things:
        out[t.box] += 1
    return out


BOXES: Table = {
    "in how many boxes of objects it lies": Feature(partial(_boxes_over, "object"), cost=1.2),
    "in how many boxes of a colour's cells it lies": Feature(partial(_boxes_over, "colour"), cost=1.2),
    "lies in the box of a one-colour piece": Feature(partial(_in_box, "piece", Place.inside), cost=1.2),
    "ring in the box of a one-colour piece": Feature(partial(_in_box, "piece", Place.ring), cost=1.2),
    "row in the box of a one-colour piece": Feature(partial(_in_box, "piece", lambda p: p.r + 1), cost=1.2),
    "column in the box of a one-colour piece": Feature(partial(_in_box, "piece", lambda p: p.c + 1), cost=1.2),
    "row parity in the box of a one-colour piece": Feature(partial(_in_box, "piece", lambda p: p.r % 2 + 1), cost=1.2),
    "column parity in the box of a one-colour piece": Feature(
        partial(_in_box, "piece", lambda p: p.c % 2 + 1), cost=1.2
    ),
    "chessboard parity in the box of a one-colour piece": Feature(
        partial(_in_box, "piece", lambda p: (p.r + p.c) % 2 + 1), cost=1.2
    ),
    "lies at a corner of the box of a one-colour piece": Feature(partial(_in_box, "piece", Place.corner), cost=1.2),
    "lies in the middle row or column of the box of a one-colour piece": Feature(
        partial(_in_box, "piece", Place.middle), cost=1.2
    ),
    "lies in the box of an object": Feature(partial(_in_box, "object", Place.inside), cost=1.2),
    "ring in the box of an object": Feature(partial(_in_box, "object", Place.ring), cost=1.2),
    "row in the box of an object": Feature(partial(_in_box, "object", lambda p: p.r + 1), cost=1.2),
    "column in the box of an object": Feature(partial(_in_box, "object", lambda p: p.c + 1), cost=1.2),
    "row parity in the box of an object": Feature(partial(_in_box, "object", lambda p: p.r % 2 + 1), cost=1.2),
    "column parity in the box of an object": Feature(partial(_in_box, "object", lambda p: p.c % 2 + 1), cost=1.2),
    "chessboard parity in the box of an object": Feature(
        partial(_in_box, "object", lambda p: (p.r + p.c) % 2 + 1), cost=1.2
    ),
    "lies at a corner of the box of an object": Feature(partial(_in_box, "object", Place.corner), cost=1.2),
    "lies in the middle row or column of the box of an object": Feature(
        partial(_in_box, "object", Place.middle), cost=1.2
    ),
    "colour of the object whose box it lies in": Feature(
        partial(_in_box, "object", lambda p: np.full_like(p.r, p.t.colour)), is_colour=True, cost=1.2
    ),
}
