"""The actions that a thing may take, with their words and costs; knows nothing of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ttt.grid import deeds
from ttt.grid.painting import DIAGONALS, STEPS
from ttt.grid.scene import Scene
from ttt.grid.stage import (
    Ink,
    Stage,
    Step,
    Strokes,
    Way,
    colour_of_other,
    constant,
    fixed,
    heading,
    own_colour,
    rarest_colour,
    to_other,
)

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


ERASED = Action("vanishes", 0.5, deeds.erased)


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


def actions(inputs: Sequence[Scene], inks: Sequence[int], vectors: Sequence[Step]) -> Iterator[Action]:
    """Everything that a thing could do, given what occurs in a task.

    Args:
        inputs: All inputs.
        inks: Colours that are painted in the outputs.
        vectors: Rows and columns by which things are seen to move.
    """
    always = np.logical_and.reduce([s.counts > 0 for s in inputs])
    named = [str(c) for c in np.flatnonzero(always) if any(s.background != c for s in inputs)][:4]
    others = {
        "nearest": "the nearest other",
        "biggest": "the biggest other",
        **{c: f"the one of colour {c}" for c in named},
    }
    ways: dict[str, tuple[Way, float]] = {n: (partial(fixed, st), 0.3) for n, st in {**STEPS, **DIAGONALS}.items()}
    for which, words in others.items():
        ways[f"towards {words}"] = (partial(to_other, which, 1), 0.5)
        ways[f"away from {words}"] = (partial(to_other, which, -1), 0.5)
    for odd, words in ((False, "its weight"), (True, "its odd cells")):
        ways[f"towards {words}"] = (partial(heading, odd, 1), 0.5)
        ways[f"away from {words}"] = (partial(heading, odd, -1), 0.5)
    colours: dict[str, tuple[Ink, float]] = {"its colour": (own_colour, 0.0)}
    colours.update({f"colour {c}": (partial(constant, c), 0.2) for c in inks})
    rarest: dict[str, tuple[Ink, float]] = {"its rarest colour": (rarest_colour, 0.3)}
    taken = {"the nearest other": "nearest", "the biggest other": "biggest", "one like it": "like-shaped"}
    taken.update({f"the next one {d}": d for d in STEPS})
    relative: dict[str, tuple[Ink, float]] = {
        f"the colour of {words}": (partial(colour_of_other, which), 0.5) for words, which in taken.items()
    }
    for words, (ink, cost) in {**colours, **rarest, **relative}.items():
        yield Action(f"takes {words}", 0.6 + cost, partial(deeds.recoloured, ink))
    for dr, dc in vectors:
        yield Action(
            f"is drawn {dr} rows and {dc} columns on", 0.8 + 0.1 * (abs(dr) + abs(dc)), partial(deeds.shifted, (dr, dc))
        )
    for words, (way, cost) in ways.items():
        yield Action(f"is slid {words}", 1.0 + cost, partial(deeds.slid, way))
        for apart in (0, 1):
            gap = " with gaps" if apart else ""
            yield Action(f"is repeated{gap} {words}", 1.0 + cost + 0.2 * apart, partial(deeds.repeated, way, apart))
        for ink_words, (ink, ink_cost) in {**colours, **rarest}.items():
            for start in ("side", "middle"):
                for until in ("border", "anything", "something", "end", "dotted"):
                    text = (
                        f"sends a line of {ink_words} {words}"
                        + {
                            "border": "",
                            "anything": " until something is in the way",
                            "something": " to what is there",
                            "end": ", only its last cell",
                            "dotted": ", every other cell in its own colour",
                        }[until]
                        + (" from its middle" if start == "middle" else "")
                    )
                    yield Action(
                        text,
                        0.9 + cost + ink_cost + 0.1 * (start == "middle") + 0.1 * (until == "something"),
                        partial(deeds.line, way, ink, start, until),
                    )
    for ink_words, (ink, ink_cost) in {**colours, **rarest}.items():
        for what, words in {
            "inside": "its inside",
            "box": "its box",
            "outline": "its outline",
            "frame": "a frame around it",
            "row": "the row through its middle",
            "column": "the column through its middle",
            "cross": "the cross through its middle",
        }.items():
            yield Action(f"fills {words} with {ink_words}", 1.0 + ink_cost, partial(deeds.box_cells, what, ink))
        for which, words in others.items():
            for inner in (False, True):
                yield Action(
                    f"is joined by {ink_words} to {words}" + (", inner part" if inner else ""),
                    1.3 + ink_cost,
                    partial(deeds.bridge, which, ink, inner),
                )
    for ink_words, (ink, ink_cost) in {**colours, **rarest}.items():
        for what in PARTS:
            yield Action(f"takes {ink_words} in its {what}", 1.2 + ink_cost, partial(deeds.part, what, ink))
    flips = {"left-right": (False, True), "up-down": (True, False), "both ways": (True, True)}
    for words, flip in flips.items():
        yield Action(f"is mirrored {words}", 1.0, partial(deeds.turned_over, flip))
    for d, step in STEPS.items():
        yield Action(f"is reflected {d}", 1.1, partial(deeds.reflected, step))
    for which, words in others.items():
        yield Action(f"moves into the rows of {words}", 1.4, partial(deeds.aligned, which, 0))
        yield Action(f"moves into the columns of {words}", 1.4, partial(deeds.aligned, which, 1))
        for text, flip in flips.items():
            yield Action(f"is mirrored {text} over {words}", 1.5, partial(deeds.mirrored, which, flip))
        yield Action(f"repeats {words} in its colour over itself and on", 1.8, partial(deeds.chain, which))
    for which, words in {**others, "most coloured": "the most coloured"}.items():
        for how in ("middle", "corner"):
            for recolour in (False, True):
                yield Action(
                    f"gets {words} drawn on its {how}" + (" in its colour" if recolour else ""),
                    1.5 + 0.2 * recolour,
                    partial(deeds.stamped, which, how, recolour),
                )
    for how in ("as it is", "mirrored left-right", "mirrored up-down", "turned"):
        text = f"gets the one that holds its colour drawn around it, {how}"
        paint = partial(deeds.stamped, "one that holds its colour", how, False)
        yield Action(text, 1.6 + 0.2 * (how != "as it is"), paint)
