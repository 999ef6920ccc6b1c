"""The registry of cell features: each gives a whole number per cell of a scene; knows nothing of outputs."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ttt.grid.painting import DIAGONALS, STEPS, enclosed, seen, shift
from ttt.grid.scene import EIGHT, KINDS, Scene

Numbers = npt.NDArray[np.int64]
Measure = Callable[[Scene], Numbers | None]


@dataclass(frozen=True, slots=True)
class Feature:
    """A named whole number per cell.

    Args:
        name: Words that a person understands.
        measure: Takes a scene, returns int64 of the grid's shape, or None where it does not apply.
        is_colour: Whether the number is a colour, so that it can also be what is painted.
        cost: Length of its description; 1 is a plain feature.
    """

    name: str
    measure: Measure
    is_colour: bool = False
    cost: float = 1.0


FEATURES: dict[str, Feature] = {}
"""Every cell feature that the search and the learners know, by name."""


def feature(name: str, *, is_colour: bool = False, cost: float = 1.0) -> Callable[[Measure], Measure]:
    """Register a cell feature; the decorator's arguments are those of `Feature`."""

    def register(measure: Measure) -> Measure:
        add(name, measure, is_colour=is_colour, cost=cost)
        return measure

    return register


def add(name: str, measure: Measure, *, is_colour: bool = False, cost: float = 1.0) -> None:
    """Register one member of a family of features, as `feature` does for a function."""
    if name in FEATURES:
        raise ValueError(f"two features are called {name!r}")
    FEATURES[name] = Feature(name, measure, is_colour, cost)


def _near(step: tuple[int, int], s: Scene) -> Numbers:
    return shift(s.grid, -step[0], -step[1], 10).astype(np.int64)


def _seen(step: tuple[int, int], s: Scene) -> Numbers:
    return seen(s, step).astype(np.int64)


for _d, _step in {**STEPS, **DIAGONALS}.items():
    add(f"colour of the neighbour {_d}", partial(_near, _step))
    add(f"first colour seen {_d}", partial(_seen, _step), is_colour=True)


def _agree(a: tuple[int, int], b: tuple[int, int], s: Scene) -> Numbers:
    one, two = seen(s, a), seen(s, b)
    return np.where(one == two, one, s.background).astype(np.int64)


for _text, _a, _b in (
    ("left and right", STEPS["left"], STEPS["right"]),
    ("above and below", STEPS["up"], STEPS["down"]),
    ("along one diagonal", DIAGONALS["up left"], DIAGONALS["down right"]),
    ("along the other diagonal", DIAGONALS["up right"], DIAGONALS["down left"]),
):
    add(f"the colour seen both {_text}", partial(_agree, _a, _b), is_colour=True)


def _neighbours(what: str, diagonal: bool, s: Scene) -> Numbers:
    kernel = EIGHT.copy() if diagonal else ndimage.generate_binary_structure(2, 1).astype(int)
    kernel[1, 1] = 0
    if what == "drawn":
        return ndimage.convolve(s.front.astype(np.int64), kernel, mode="constant")
    total = np.zeros(s.grid.shape, dtype=np.int64)
    for c in np.flatnonzero(s.counts):
        mask = s.grid == c
        total[mask] = ndimage.convolve(mask.astype(np.int64), kernel, mode="constant")[mask]
    return total


for _what, _text in (("drawn", "drawn"), ("equal", "equal")):
    add(f"number of {_text} neighbours at its sides", partial(_neighbours, _what, False))
    add(f"number of {_text} neighbours all around", partial(_neighbours, _what, True))


@feature("inside or outside")
def _enclosed(s: Scene) -> Numbers:
    return np.where(s.front, 2, enclosed(s)).astype(np.int64)


@feature("inside or outside, diagonal gaps open")
def _enclosed_diagonal(s: Scene) -> Numbers:
    return np.where(s.front, 2, enclosed(s, False)).astype(np.int64)


def _hole(what: str, s: Scene) -> Numbers:
    """Things about background regions: their size, box, shape."""
    labels, n = ndimage.label(~s.front)
    if not n:
        return np.zeros(s.grid.shape, dtype=np.int64)
    boxes = ndimage.find_objects(labels)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    values = np.zeros(n + 1, dtype=np.int64)
    for i, b in enumerate(boxes, 1):
        h, w = b[0].stop - b[0].start, b[1].stop - b[1].start
        full = sizes[i] == h * w
        inside = b[0].start > 0 and b[1].start > 0 and b[0].stop < s.grid.shape[0] and b[1].stop < s.grid.shape[1]
        values[i] = {
            "size": sizes[i],
            "rectangle": 1 + full,
            "square": 1 + int(full and h == w),
            "inside": 1 + inside,
            "height": h,
            "width": w,
            "largest": 1 + int(sizes[i] == sizes[1:].max()),
            "smallest": 1 + int(sizes[i] == sizes[1:].min()),
            "even": 1 + int(sizes[i] % 2),
        }[what]
    return values[labels]


for _what, _text in {
    "size": "size",
    "rectangle": "being a rectangle",
    "square": "being a square",
    "inside": "not touching the border",
    "height": "height",
    "width": "width",
    "largest": "being the largest",
    "smallest": "being the smallest",
    "even": "being of even size",
}.items():
    add(f"background region's {_text}", partial(_hole, _what))


def _of_thing(kind: str, name: str, how: str, s: Scene) -> Numbers | None:
    values = s.measure(kind, name)
    if not len(values):
        return None
    if how == "value":
        own = values + 1
    elif how == "most":
        own = 1 + (values == values.max())
    elif how == "least":
        own = 1 + (values == values.min())
    else:
        own = 1 + np.searchsorted(np.unique(values)[::-1] * -1, -values)
    return np.concatenate([[0], own])[s.labels(kind)]


_RANKED = {
    "number of cells",
    "height",
    "width",
    "row of its top",
    "column of its left side",
    "number of odd cells",
    "holes",
}


def _thing_names() -> list[str]:
    from ttt.grid.shaping import SELECTORS

    return [n for n in SELECTORS if n != "colour"]


for _kind, _word in KINDS.items():
    for _name in _thing_names():
        _extra = 0.4 if _kind in ("joined", "colour") else 0.2
        add(f"its {_word}'s {_name}", partial(_of_thing, _kind, _name, "value"), cost=1.0 + _extra)
        add(f"its {_word} having the most {_name}", partial(_of_thing, _kind, _name, "most"), cost=1.1 + _extra)
        add(f"its {_word} having the least {_name}", partial(_of_thing, _kind, _name, "least"), cost=1.1 + _extra)
        if _name in _RANKED:
            add(f"its {_word}'s rank by {_name}", partial(_of_thing, _kind, _name, "rank"), cost=1.1 + _extra)


def _thing_colour(kind: str, what: str, s: Scene) -> Numbers | None:
    things = s.things(kind)
    if not things:
        return None
    values = [s.background]
    for t in things:
        drawn = t.colours.copy()
        drawn[t.background] = 0
        present = np.flatnonzero(drawn)
        rare = int(present[drawn[present].argmin()]) if len(present) else s.background
        values.append(rare if what == "rarest" else int(drawn.argmax()) if len(present) else s.background)
    return np.array(values, dtype=np.int64)[s.labels(kind)]


for _kind in ("object", "panel"):
    for _what in ("commonest", "rarest"):
        add(f"its {KINDS[_kind]}'s {_what} colour", partial(_thing_colour, _kind, _what), is_colour=True, cost=1.2)


def _box_place(what: str, kind: str, s: Scene) -> Numbers | None:
    """Where a cell lies in the bounding box of a thing, small boxes over large ones."""
    things = s.things(kind)
    if not things:
        return None
    out = np.zeros(s.grid.shape, dtype=np.int64)
    for t in sorted(things, key=lambda t: -t.mask.size):
        r, c = np.indices(t.mask.shape)
        ring = np.minimum.reduce([r, c, t.height - 1 - r, t.width - 1 - c])
        part = {
            "in": np.ones(t.mask.shape, dtype=np.int64),
            "ring": ring + 1,
            "row": r + 1,
            "column": c + 1,
            "row parity": r % 2 + 1,
            "column parity": c % 2 + 1,
            "parity": (r + c) % 2 + 1,
            "colour": np.full(t.mask.shape, t.colour),
            "corner": 1 + ((r == 0) | (r == t.height - 1)) * ((c == 0) | (c == t.width - 1)),
            "middle": 1 + (2 * r + 1 == t.height) + 2 * (2 * c + 1 == t.width),
        }[what]
        out[t.top : t.top + t.height, t.left : t.left + t.width] = part
    return out


for _kind in ("piece", "object"):
    for _what, _text in {
        "in": "lying in the box of",
        "ring": "ring in the box of",
        "row": "row in the box of",
        "column": "column in the box of",
        "row parity": "row parity in the box of",
        "column parity": "column parity in the box of",
        "parity": "chessboard parity in the box of",
        "corner": "being at a corner of the box of",
        "middle": "being in the middle row or column of the box of",
    }.items():
        add(
            f"{_text} an {KINDS[_kind]}" if _kind == "object" else f"{_text} a {KINDS[_kind]}",
            partial(_box_place, _what, _kind),
            cost=1.2,
        )
add("colour of the object whose box it lies in", partial(_box_place, "colour", "object"), is_colour=True, cost=1.2)


def _position(what: str, s: Scene) -> Numbers:
    h, w = s.grid.shape
    r, c = np.indices((h, w))
    values: Numbers = {
        "row": r,
        "column": c,
        "row from the bottom": h - 1 - r,
        "column from the right": w - 1 - c,
        "row parity": r % 2,
        "column parity": c % 2,
        "chessboard parity": (r + c) % 2,
        "row modulo 3": r % 3,
        "column modulo 3": c % 3,
        "diagonal modulo 3": (r + c) % 3,
        "other diagonal modulo 3": (r - c) % 3,
        "ring from the border": np.minimum.reduce([r, c, h - 1 - r, w - 1 - c]),
        "lying on the border": np.minimum.reduce([r, c, h - 1 - r, w - 1 - c]) == 0,
        "lying on the diagonal": r == c,
        "lying on the other diagonal": r + c == w - 1,
        "ring parity": np.minimum.reduce([r, c, h - 1 - r, w - 1 - c]) % 2,
        "half, up or down": np.sign(2 * r + 1 - h),
        "half, left or right": np.sign(2 * c + 1 - w),
    }[what].astype(np.int64)
    return values


POSITIONS = (
    "row",
    "column",
    "row from the bottom",
    "column from the right",
    "row parity",
    "column parity",
    "chessboard parity",
    "row modulo 3",
    "column modulo 3",
    "diagonal modulo 3",
    "other diagonal modulo 3",
    "ring from the border",
    "lying on the border",
    "lying on the diagonal",
    "lying on the other diagonal",
    "ring parity",
    "half, up or down",
    "half, left or right",
)
for _what in POSITIONS:
    add(_what, partial(_position, _what), cost=1.5 if _what in ("row", "column") else 1.2)


def _line(axis: int, what: str, s: Scene) -> Numbers:
    g = s.grid if axis == 0 else s.grid.T
    counts = np.stack([(g == c).sum(axis=1) for c in range(10)], axis=1)
    drawn = counts.copy()
    drawn[:, s.background] = 0
    total = drawn.sum(axis=1)
    rows = {
        "commonest": counts.argmax(axis=1),
        "colour": np.where(total > 0, drawn.argmax(axis=1), s.background),
        "count": total,
        "uniform": counts.max(axis=1) == g.shape[1],
        "empty": total == 0,
        "full": total == g.shape[1],
        "fullest": total == total.max(),
        "first": g[:, 0],
        "last": g[:, -1],
        "colours": (drawn > 0).sum(axis=1),
    }[what].astype(np.int64)
    out = np.repeat(rows[:, None], g.shape[1], axis=1)
    return out if axis == 0 else out.T


for _axis, _word in ((0, "row"), (1, "column")):
    for _what, _text, _is_colour in (
        ("commonest", "commonest colour", True),
        ("colour", "commonest drawn colour", True),
        ("count", "number of drawn cells", False),
        ("uniform", "being of one colour", False),
        ("empty", "being empty", False),
        ("full", "being fully drawn", False),
        ("fullest", "having the most drawn", False),
        ("first", "first cell", True),
        ("last", "last cell", True),
        ("colours", "number of colours", False),
    ):
        add(f"its {_word}'s {_text}", partial(_line, _axis, _what), is_colour=_is_colour)


def global_colours(s: Scene) -> dict[str, int]:
    """Colours that stand for a whole grid: its background, the commonest and rarest drawn ones, the corner's."""
    drawn = s.counts.copy()
    drawn[s.background] = 0
    present = np.flatnonzero(drawn)
    order = present[np.argsort(-drawn[present], kind="stable")]
    back = s.background
    return {
        "the background colour": back,
        "the commonest drawn colour": int(order[0]) if len(order) else back,
        "the second commonest drawn colour": int(order[1]) if len(order) > 1 else back,
        "the third commonest drawn colour": int(order[2]) if len(order) > 2 else back,
        "the rarest drawn colour": int(order[-1]) if len(order) else back,
        "the top left colour": int(s.grid[0, 0]),
        "the top right colour": int(s.grid[0, -1]),
        "the bottom left colour": int(s.grid[-1, 0]),
        "the bottom right colour": int(s.grid[-1, -1]),
        "the middle cell's colour": int(s.grid[s.grid.shape[0] // 2, s.grid.shape[1] // 2]),
        "the separators' colour": s.separators[2] if s.separators is not None else back,
    }


def _is_global(name: str, s: Scene) -> Numbers:
    return (s.grid == global_colours(s)[name]).astype(np.int64)


def _whole(what: str, s: Scene) -> Numbers:
    n = {
        "objects": lambda: len(s.things("object")),
        "pieces": lambda: len(s.things("piece")),
        "colours": lambda: int(np.count_nonzero(s.counts)),
        "drawn cells": lambda: int(s.front.sum()),
    }[what]()
    return np.full(s.grid.shape, n, dtype=np.int64)


for _name in (
    "the commonest drawn colour",
    "the second commonest drawn colour",
    "the rarest drawn colour",
    "the separators' colour",
):
    add(f"having {_name}", partial(_is_global, _name))
add("being drawn", lambda s: s.front.astype(np.int64), cost=0.8)
for _what in ("objects", "pieces", "colours", "drawn cells"):
    add(f"the grid's number of {_what}", partial(_whole, _what), cost=1.5)


def _between(s: Scene) -> Numbers:
    hits = [(seen(s, st) != s.background) | s.front for st in STEPS.values()]
    return sum((h.astype(np.int64) for h in hits), start=np.zeros(s.grid.shape, dtype=np.int64))


add("number of sides where something drawn is seen", _between)
