"""The parts of a grid that rules speak of, their whole-number properties, and the words for each."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from typing import Literal
from zlib import crc32

import numpy as np
from scipy import ndimage

from ttt._grid.geometry import EIGHT, Mask, Numbers, framed, poses
from ttt.values import Grid

KINDS: dict[str, str] = {
    "piece": "one-colour piece",
    "joined": "one-colour piece joined by sides",
    "object": "object",
    "solid": "object joined by sides",
    "region": "background region",
    "enclosed": "enclosed background region",
    "colour": "set of all cells of a colour",
    "panel": "panel",
}
"""The ways to cut a grid into things, each with its name in answers."""


class Thing:
    """A set of cells of one grid: a piece, an object, all of a colour, or a panel.

    Args:
        patch: The grid inside the thing's box.
        mask: Which cells of the box belong to it, same shape as `patch`.
        top: First row of the box.
        left: First column of the box.
        background: The grid's background colour.
        field: Height and width of the whole grid.
    """

    def __init__(self, patch: Grid, mask: Mask, top: int, left: int, background: int, field: tuple[int, int]) -> None:
        self.patch, self.mask, self.top, self.left = patch, mask, top, left
        self.background, self.field = background, field
        self.height, self.width = mask.shape

    @cached_property
    def colours(self) -> Numbers:
        """How many cells of each colour 0..9 it has."""
        return np.bincount(self.patch[self.mask], minlength=10)

    @cached_property
    def drawn(self) -> Numbers:
        """How many cells of each colour 0..9 it has, the background left out."""
        counts = self.colours.copy()
        counts[self.background] = 0
        return counts

    @cached_property
    def colour(self) -> int:
        """Its most frequent colour."""
        return int(self.colours.argmax())

    @cached_property
    def alone(self) -> Grid:
        """Its box, with every cell that does not belong to it in the background colour."""
        return np.where(self.mask, self.patch, np.uint8(self.background))

    @property
    def box(self) -> tuple[slice, slice]:
        """The rows and columns of its box."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def _cells(t: Thing) -> int:
    return int((t.alone != t.background).sum())


def _off_colour(t: Thing) -> int:
    return int(t.drawn.sum() - t.drawn.max())


def _holes(t: Thing) -> int:
    if min(t.mask.shape) < 3 or t.mask.all():
        return 0
    return int(ndimage.label(framed(~t.mask, True))[1]) - 1


def _symmetric_across(t: Thing) -> int:
    return int((t.alone == t.alone[:, ::-1]).all())


def _symmetric_down(t: Thing) -> int:
    return int((t.alone == t.alone[::-1]).all())


def _symmetric(t: Thing) -> int:
    square = t.height == t.width
    return _symmetric_across(t) | _symmetric_down(t) | int(square and (t.alone == t.alone.T).all())


def _borders(t: Thing) -> int:
    height, width = t.field
    return int(t.top == 0) + int(t.left == 0) + int(t.top + t.height == height) + int(t.left + t.width == width)


def _parts(t: Thing) -> int:
    drawn = t.alone != t.background
    return 1 if drawn.all() else int(ndimage.label(drawn, EIGHT)[1])


def _bends(t: Thing) -> int:
    padded = framed(t.mask, False).view(np.uint8)
    corners = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    return int((corners % 2).sum())


PROPERTIES: dict[str, Callable[[Thing], int]] = {
    "number of cells": _cells,
    "height": lambda t: t.height,
    "width": lambda t: t.width,
    "box size": lambda t: t.height * t.width,
    "longer side": lambda t: max(t.height, t.width),
    "orientation (wide, square, tall)": lambda t: int(np.sign(t.height - t.width)),
    "number of colours": lambda t: int(np.count_nonzero(t.colours)),
    "number of off-colour cells": _off_colour,
    "number of holes": _holes,
    "number of empty cells in its box": lambda t: int((~t.mask).sum()),
    "left-right symmetry": _symmetric_across,
    "up-down symmetry": _symmetric_down,
    "symmetry": _symmetric,
    "top row": lambda t: t.top,
    "left column": lambda t: t.left,
    "bottom row": lambda t: t.top + t.height,
    "right column": lambda t: t.left + t.width,
    "number of borders touched": _borders,
    "number of parts": _parts,
    "number of bends": _bends,
    "colour": lambda t: t.colour,
}
"""Every whole-number property of a thing, by its name in answers."""


def _drawn_mask(t: Thing) -> Mask:
    drawn: Mask = t.mask & (t.patch != t.background)
    return drawn


def _number(masks: Sequence[Mask]) -> int:
    """Return a number that is the same for equal sets of masks, whatever the grid."""
    return min(crc32(bytes(m.shape) + np.ascontiguousarray(m).tobytes()) for m in masks) >> 1


FORMS: dict[str, Callable[[Thing], int]] = {
    "shape": lambda t: _number([_drawn_mask(t)]),
    "shape in any pose": lambda t: _number(poses(_drawn_mask(t))),
}
"""Numbers that say nothing but whether two things, also of different grids, are alike, by their names in answers."""

REPEATS: dict[str, Callable[[Thing], Hashable]] = {
    "number of things of its shape": lambda t: (t.mask.shape, t.mask.tobytes()),
    "number of things drawn like it": lambda t: (t.mask.shape, t.alone.tobytes()),
    "number of things of its colour": lambda t: t.colour,
    "number of things of its shape in any pose": lambda t: min((p.shape, p.tobytes()) for p in poses(t.mask)),
}
"""What must be equal for two things of a grid to count as equal, by the name of the count in answers."""


def _inside(things: Sequence[Thing]) -> Mask:
    """Return whether the box of each thing lies in that of each other, larger one."""
    top, left, bottom, right = _edges(things)
    within = (top[:, None] >= top) & (left[:, None] >= left) & (bottom[:, None] <= bottom) & (right[:, None] <= right)
    same = (top[:, None] == top) & (left[:, None] == left) & (bottom[:, None] == bottom) & (right[:, None] == right)
    found: Mask = within & ~same
    return found


def _edges(things: Sequence[Thing]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    boxes = np.array([(t.top, t.left, t.top + t.height, t.left + t.width) for t in things])
    return boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]


def _in_lane(across: bool, things: Sequence[Thing]) -> Numbers:
    """Return how many others share a row (a column) with each thing."""
    top, left, bottom, right = _edges(things)
    low, high = (left, right) if across else (top, bottom)
    shared: Numbers = ((low[:, None] < high) & (low < high[:, None])).sum(axis=1) - 1
    return shared


def _touching(things: Sequence[Thing]) -> Numbers:
    """Return how many others have a cell beside one of each thing, over sides and corners."""
    height, width = things[0].field
    labels = np.zeros((height + 2, width + 2), dtype=np.int64)
    for i, t in enumerate(things):
        labels[1:-1, 1:-1][t.box][t.mask] = i + 1
    near = np.zeros((len(things) + 1, len(things) + 1), dtype=bool)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        moved = np.roll(labels, (-down, -right), axis=(0, 1))
        near[labels, moved] = near[moved, labels] = True
    np.fill_diagonal(near, False)
    found: Numbers = near[1:, 1:].sum(axis=1)
    return found


def _larger_of_colour(things: Sequence[Thing]) -> Numbers:
    size, colour = (np.array([f(t) for t in things]) for f in (lambda t: int(t.mask.sum()), lambda t: t.colour))
    found: Numbers = ((colour[:, None] == colour) & (size[:, None] < size)).sum(axis=1)
    return found


def _place(things: Sequence[Thing]) -> Numbers:
    """Return 1 for the first thing in reading order, 3 for the last, 2 for the one in the middle, 0 for others."""
    found = np.zeros(len(things), dtype=np.int64)
    if len(things) % 2:
        found[len(things) // 2] = 2
    found[0], found[-1] = 1, 3
    return found


RELATED: dict[str, Callable[[Sequence[Thing]], Numbers]] = {
    "number of others in its box": lambda things: _inside(things).sum(axis=0),
    "number of others around it": lambda things: _inside(things).sum(axis=1),
    "number of others that touch it": _touching,
    "number of others in its rows": partial(_in_lane, False),
    "number of others in its columns": partial(_in_lane, True),
    "number of larger ones of its colour": _larger_of_colour,
    "place in reading order (first, middle, last)": _place,
}
"""Whole numbers of every thing of a grid that rest on the others, by their names in answers."""

MEASURES = (*PROPERTIES, *REPEATS, *RELATED)
"""Every name that `Scene.measure` knows when this module is loaded."""

Extreme = Literal["most", "least", "odd"]

SELECTIONS: dict[str, tuple[str, Extreme]] = {
    "with the most cells": ("number of cells", "most"),
    "with the fewest cells": ("number of cells", "least"),
    "with a unique number of cells": ("number of cells", "odd"),
    "of greatest height": ("height", "most"),
    "of least height": ("height", "least"),
    "of unique height": ("height", "odd"),
    "of greatest width": ("width", "most"),
    "of least width": ("width", "least"),
    "of unique width": ("width", "odd"),
    "with the largest box": ("box size", "most"),
    "with the smallest box": ("box size", "least"),
    "with a unique box size": ("box size", "odd"),
    "with the greatest longer side": ("longer side", "most"),
    "with the least longer side": ("longer side", "least"),
    "with a unique longer side": ("longer side", "odd"),
    "that is tall rather than square or wide": ("orientation (wide, square, tall)", "most"),
    "that is wide rather than square or tall": ("orientation (wide, square, tall)", "least"),
    "of unique orientation": ("orientation (wide, square, tall)", "odd"),
    "with the most colours": ("number of colours", "most"),
    "with the fewest colours": ("number of colours", "least"),
    "with a unique number of colours": ("number of colours", "odd"),
    "with the most off-colour cells": ("number of off-colour cells", "most"),
    "with the fewest off-colour cells": ("number of off-colour cells", "least"),
    "with a unique number of off-colour cells": ("number of off-colour cells", "odd"),
    "with the most holes": ("number of holes", "most"),
    "with the fewest holes": ("number of holes", "least"),
    "with a unique number of holes": ("number of holes", "odd"),
    "with the most empty cells in its box": ("number of empty cells in its box", "most"),
    "with the fewest empty cells in its box": ("number of empty cells in its box", "least"),
    "with a unique number of empty cells in its box": ("number of empty cells in its box", "odd"),
    "that is symmetric left-right": ("left-right symmetry", "most"),
    "that is not symmetric left-right": ("left-right symmetry", "least"),
    "unlike the others in left-right symmetry": ("left-right symmetry", "odd"),
    "that is symmetric up-down": ("up-down symmetry", "most"),
    "that is not symmetric up-down": ("up-down symmetry", "least"),
    "unlike the others in up-down symmetry": ("up-down symmetry", "odd"),
    "that is symmetric": ("symmetry", "most"),
    "that is not symmetric": ("symmetry", "least"),
    "unlike the others in symmetry": ("symmetry", "odd"),
    "whose top is lowest": ("top row", "most"),
    "whose top is highest": ("top row", "least"),
    "with a unique top row": ("top row", "odd"),
    "whose left side is furthest right": ("left column", "most"),
    "whose left side is furthest left": ("left column", "least"),
    "with a unique left column": ("left column", "odd"),
    "whose bottom is lowest": ("bottom row", "most"),
    "whose bottom is highest": ("bottom row", "least"),
    "with a unique bottom row": ("bottom row", "odd"),
    "whose right side is furthest right": ("right column", "most"),
    "whose right side is furthest left": ("right column", "least"),
    "with a unique right column": ("right column", "odd"),
    "that touches the most borders": ("number of borders touched", "most"),
    "that touches the fewest borders": ("number of borders touched", "least"),
    "that touches a unique number of borders": ("number of borders touched", "odd"),
    "with the most parts": ("number of parts", "most"),
    "with the fewest parts": ("number of parts", "least"),
    "with a unique number of parts": ("number of parts", "odd"),
    "with the most bends": ("number of bends", "most"),
    "with the fewest bends": ("number of bends", "least"),
    "with a unique number of bends": ("number of bends", "odd"),
    "whose colour has the highest number": ("colour", "most"),
    "whose colour has the lowest number": ("colour", "least"),
    "of unique colour": ("colour", "odd"),
    "of the most frequent shape": ("number of things of its shape", "most"),
    "of the rarest shape": ("number of things of its shape", "least"),
    "whose shape has a unique frequency": ("number of things of its shape", "odd"),
    "of the most frequent drawing": ("number of things drawn like it", "most"),
    "of the rarest drawing": ("number of things drawn like it", "least"),
    "whose drawing has a unique frequency": ("number of things drawn like it", "odd"),
    "of the most frequent colour": ("number of things of its colour", "most"),
    "of the rarest colour": ("number of things of its colour", "least"),
    "whose colour has a unique frequency": ("number of things of its colour", "odd"),
    "of the most frequent shape in any pose": ("number of things of its shape in any pose", "most"),
    "of the rarest shape in any pose": ("number of things of its shape in any pose", "least"),
    "whose shape in any pose has a unique frequency": ("number of things of its shape in any pose", "odd"),
    "with the most others in its box": ("number of others in its box", "most"),
    "with the fewest others in its box": ("number of others in its box", "least"),
    "with a unique number of others in its box": ("number of others in its box", "odd"),
    "with the most others around it": ("number of others around it", "most"),
    "with the fewest others around it": ("number of others around it", "least"),
    "with a unique number of others around it": ("number of others around it", "odd"),
    "that the most others touch": ("number of others that touch it", "most"),
    "that the fewest others touch": ("number of others that touch it", "least"),
    "that a unique number of others touch": ("number of others that touch it", "odd"),
    "with the most others in its rows": ("number of others in its rows", "most"),
    "with the fewest others in its rows": ("number of others in its rows", "least"),
    "with a unique number of others in its rows": ("number of others in its rows", "odd"),
    "with the most others in its columns": ("number of others in its columns", "most"),
    "with the fewest others in its columns": ("number of others in its columns", "least"),
    "with a unique number of others in its columns": ("number of others in its columns", "odd"),
    "with the most larger ones of its colour": ("number of larger ones of its colour", "most"),
    "with the fewest larger ones of its colour": ("number of larger ones of its colour", "least"),
    "with a unique number of larger ones of its colour": ("number of larger ones of its colour", "odd"),
    "that is last in reading order": ("place in reading order (first, middle, last)", "most"),
    "that is not first, last or in the middle": ("place in reading order (first, middle, last)", "least"),
    "of unique place in reading order": ("place in reading order (first, middle, last)", "odd"),
}
"""Ways to single out things by a property, in the words of answers: the property, and which of its values."""


def words_for(measure: str, extreme: Extreme) -> str:
    """Return the selection in words, also for a property that was added to `PROPERTIES` later."""
    for words, meaning in SELECTIONS.items():
        if meaning == (measure, extreme):
            return words
    return {"most": "with the greatest", "least": "with the least", "odd": "with a unique"}[extreme] + f" {measure}"
