"""The actions that the things of a task may take, each with its words, its cost and what it paints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ttt._grid.geometry import DIAGONALS, STEPS, Step
from ttt._grid.objects import strokes
from ttt._grid.objects.relations import (
    Colour,
    Direction,
    Relations,
    Strokes,
    colour_of_other,
    constant,
    fixed,
    heading,
    own_colour,
    rarest_colour,
    to_other,
)
from ttt._grid.scene import Scene

Draw = Callable[[Relations, int], Strokes | None]
Colours = Mapping[str, tuple[Colour, float]]
"""Colour choosers with their costs, by their words."""
Directions = Mapping[str, tuple[Direction, float]]
Others = Mapping[str, str]
"""Names of other things as `Relations.other` takes them, by their words."""


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a thing does.

    Args:
        name: Words, read as "each object NAME".
        cost: Length of that description.
        draw: Takes the relations on a grid and a thing's number; returns what is painted, None where it does not apply.
    """

    name: str
    cost: float
    draw: Draw


ERASED = Action("is erased", 0.5, strokes.erased)

PARTS = (
    "upper half",
    "lower half",
    "left half",
    "right half",
    "top row",
    "bottom row",
    "left column",
    "right column",
    "corners",
    "edge",
    "core",
)
"""Parts of a thing that may be painted."""

LINE_ENDS = {
    "border": "",
    "anything": ", stopping before anything in the way",
    "something": ", only where it meets something",
    "end": ", only its last cell",
    "dotted": ", alternating with its own colour",
}
LINE_STARTS = {"side": "", "middle": ", from its middle"}
FILLED = {
    "inside": "its inside",
    "box": "its box",
    "outline": "its outline",
    "frame": "a frame around it",
    "row": "the row through its middle",
    "column": "the column through its middle",
    "cross": "the cross through its middle",
}
FLIPS = {"left-right": (False, True), "up-down": (True, False), "both ways": (True, True)}
NEXT = {
    "the next one up": "up",
    "the next one down": "down",
    "the next one left": "left",
    "the next one right": "right",
}


def actions(inputs: Sequence[Scene], colours: Sequence[int], vectors: Sequence[Step]) -> Iterator[Action]:
    """Yield everything that a thing could do, given what occurs in a task.

    Args:
        inputs: All inputs.
        colours: Colours that are painted in the outputs.
        vectors: Rows and columns by which things are seen to move.
    """
    others = _others(inputs)
    directions = _directions(others)
    own: Colours = {
        "its colour": (own_colour, 0.0),
        **{f"colour {c}": (partial(constant, c), 0.2) for c in colours},
        "its rarest colour": (rarest_colour, 0.3),
    }
    yield from _recolourings(own)
    yield from _movements(directions, own, vectors)
    yield from _fillings(own, others)
    yield from _partial_recolourings(own)
    yield from _reflections(others)
    yield from _copies(others)


def _others(inputs: Sequence[Scene]) -> Others:
    always = np.logical_and.reduce([s.counts > 0 for s in inputs])
    named = [str(c) for c in np.flatnonzero(always) if any(s.background != c for s in inputs)][:4]
    return {
        "the nearest other": "nearest",
        "the biggest other": "biggest",
        **{f"the one of colour {c}": c for c in named},
    }


def _directions(others: Others) -> Directions:
    directions: dict[str, tuple[Direction, float]] = {
        name: (partial(fixed, step), 0.3) for name, step in {**STEPS, **DIAGONALS}.items()
    }
    for words, which in others.items():
        directions[f"towards {words}"] = (partial(to_other, which, 1), 0.5)
        directions[f"away from {words}"] = (partial(to_other, which, -1), 0.5)
    for off_colour, words in ((False, "its heavier side"), (True, "its off-colour cells")):
        directions[f"towards {words}"] = (partial(heading, off_colour, 1), 0.5)
        directions[f"away from {words}"] = (partial(heading, off_colour, -1), 0.5)
    return directions


def _recolourings(own: Colours) -> Iterator[Action]:
    lenders = {
        "the nearest other": "nearest",
        "the biggest other": "biggest",
        "one of its shape": "like-shaped",
        "one of its shape in any pose": "like-posed",
        "one with as many cells": "as large",
        "one with as many holes": "as holed",
        "one that begins in its row": "in its rows",
        "one that begins in its column": "in its columns",
        "the one in its box": "inside",
        "the one around it": "around",
        **NEXT,
    }
    of_others: Colours = {
        f"the colour of {words}": (partial(colour_of_other, which), 0.5) for words, which in lenders.items()
    }
    for words, (colour, cost) in {**own, **of_others}.items():
        yield Action(f"takes {words}", 0.6 + cost, partial(strokes.recoloured, colour))


def _movements(directions: Directions, own: Colours, vectors: Sequence[Step]) -> Iterator[Action]:
    for dr, dc in vectors:
        cost = 0.8 + 0.1 * (abs(dr) + abs(dc))
        yield Action(f"is copied by {dr} rows and {dc} columns", cost, partial(strokes.shifted, (dr, dc)))
    for words, (direction, cost) in directions.items():
        yield Action(f"slides {words}", 1.0 + cost, partial(strokes.slid, direction))
        yield Action(f"repeats {words}", 1.0 + cost + 0.2 * 0, partial(strokes.repeated, direction, 0))
        yield Action(f"repeats with gaps {words}", 1.0 + cost + 0.2 * 1, partial(strokes.repeated, direction, 1))
        for colour_words, (colour, colour_cost) in own.items():
            for start, start_words in LINE_STARTS.items():
                for until, end_words in LINE_ENDS.items():
                    yield Action(
                        f"extends {words} in {colour_words}{end_words}{start_words}",
                        0.9 + cost + colour_cost + 0.1 * (start == "middle") + 0.1 * (until == "something"),
                        strokes.Line(direction, colour, start, until),
                    )


def _fillings(own: Colours, others: Others) -> Iterator[Action]:
    for colour_words, (colour, cost) in own.items():
        for what, words in FILLED.items():
            yield Action(f"fills {words} with {colour_words}", 1.0 + cost, partial(strokes.box_cells, what, colour))
        for words, which in others.items():
            yield Action(
                f"is connected to {words} in {colour_words}", 1.3 + cost, partial(strokes.bridge, which, colour, False)
            )
            yield Action(
                f"is connected to {words} in {colour_words}, sides left out",
                1.3 + cost,
                partial(strokes.bridge, which, colour, True),
            )


def _partial_recolourings(own: Colours) -> Iterator[Action]:
    for colour_words, (colour, cost) in own.items():
        for what in PARTS:
            yield Action(f"takes {colour_words} in its {what}", 1.2 + cost, partial(strokes.part, what, colour))


def _reflections(others: Others) -> Iterator[Action]:
    for words, flip in FLIPS.items():
        yield Action(f"is mirrored {words}", 1.0, partial(strokes.turned_over, flip))
    for direction, step in STEPS.items():
        yield Action(f"is reflected {direction}", 1.1, partial(strokes.reflected, step))
    for words, which in {**others, "the biggest other of its colour": "biggest of its colour"}.items():
        yield Action(f"moves up to {words}, past what is in the way", 1.4, partial(strokes.drawn_to, which))
    for words, which in others.items():
        yield Action(f"moves into the rows of {words}", 1.4, partial(strokes.aligned, which, 0))
        yield Action(f"moves into the columns of {words}", 1.4, partial(strokes.aligned, which, 1))
        for flip_words, flip in FLIPS.items():
            yield Action(f"is reflected {flip_words} across {words}", 1.5, partial(strokes.mirrored, which, flip))
        yield Action(
            f"continues a row of copies of {words} through itself, in its colour", 1.8, partial(strokes.chain, which)
        )


def _copies(others: Others) -> Iterator[Action]:
    for words, which in {**others, "the one with the most colours": "most coloured"}.items():
        for how in ("middle", "corner"):
            yield Action(
                f"gets a copy of {words} at its {how}", 1.5 + 0.2 * 0, partial(strokes.stamped, which, how, False)
            )
            yield Action(
                f"gets a copy of {words} at its {how}, in its colour",
                1.5 + 0.2 * 1,
                partial(strokes.stamped, which, how, True),
            )
    for how in ("as it is", "mirrored left-right", "mirrored up-down", "turned"):
        yield Action(
            f"gets a copy of the one that contains its colour around it, {how}",
            1.6 + 0.2 * (how != "as it is"),
            partial(strokes.stamped, "one that contains its colour", how, False),
        )
