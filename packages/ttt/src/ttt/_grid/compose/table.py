"""The table of primitives: the words of an answer, the function that does it, and what it costs.

Each function stands twice under one name: in C in `csrc/`, and in numpy in `shapes.py`, `painting.py`, `parts.py` or
`joins.py`. `{}` in the words stands for each of the values that the line lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt.values import Grid

GIVES_LIST = frozenset(
    {
        "cut_pieces",
        "cut_objects",
        "cut_colours",
        "cut_panels",
        "cut_parts",
        "cut_lines",
        "cut_marked",
        "keep_extreme",
        "drop_extreme",
        "sort_by",
    }
)
"""Functions whose result is several pieces for each input."""
TAKES_LIST = frozenset(
    {
        "keep_extreme",
        "drop_extreme",
        "take_extreme",
        "take_first",
        "take_odd",
        "sort_by",
        "overlay",
        "beside",
        "line_up",
        "pile",
        "pile_logic",
        "colours_in_line",
        "take_index",
        "as_they_lie",
        "numbers_in_line",
    }
)
"""Functions whose argument is several pieces for each input."""

FOR_OUTPUTS = frozenset({"fit_output", "tile_output", "mirror_output", "corner_of_output"})
"""Functions that need the size of every output."""

ALONE = frozenset(
    {
        "mosaic",
        "tile",
        "shift",
        "roll",
        "self_product",
        "product_with_input",
        "input_product",
        "fit_output",
        "fit_input",
        "over_input",
        "under_input",
        "in_frame",
    }
)
"""Functions of a piece that are not tried on each piece of a list. All others are."""

IN, OUT = "colours of the inputs", "colours of the outputs"


@dataclass(frozen=True, slots=True)
class Primitive:
    """A function with its argument.

    Args:
        words: What it does, read as "..., then WORDS".
        function: Its name in C and in numpy.
        arg: Its argument.
        cost: Length of its description, in tenths of a plain operation.
        maps: Whether it also works on each piece of a list.
    """

    words: str
    function: str
    arg: int
    cost: int
    maps: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: one primitive, or one for each value."""

    words: str
    function: str
    cost: int
    args: str | tuple[int] | dict[str, int] = (0,)

    @property
    def maps(self) -> bool:
        """Whether it also works on each piece of a list."""
        return self.function not in TAKES_LIST | GIVES_LIST | ALONE


UP, LEFT, RIGHT, DOWN, UP_LEFT, UP_RIGHT, DOWN_LEFT, DOWN_RIGHT = (1 << d for d in range(8))
SIDES = {"up": 0, "to the left": 1, "to the right": 2, "down": 3}
NUMBERS = {
    "number of drawn cells": 0,
    "box": 1,
    "height": 2,
    "width": 3,
    "number of colours": 4,
    "number of empty cells": 5,
    "number of symmetries": 6,
    "distance from the top": 7,
    "distance from the left": 8,
    "number of odd cells": 9,
    "number of enclosed cells": 10,
    "number of pieces of its shape": 11,
    "number of pieces like it": 12,
    "number of pieces of its colour": 13,
    "colour number": 14,
}
"""What pieces are compared by, as `PROPERTIES` in parts.py."""
MOST = {f"largest {name}": 2 * i for name, i in NUMBERS.items()}
EXTREME = MOST | {f"smallest {name}": 2 * i + 1 for name, i in NUMBERS.items()}

LINES = (
    Line("turned left", "pose", 10, (1,)),
    Line("turned upside down", "pose", 10, (2,)),
    Line("turned right", "pose", 10, (3,)),
    Line("mirrored left-right", "pose", 10, (4,)),
    Line("transposed", "pose", 10, (5,)),
    Line("mirrored up-down", "pose", 10, (6,)),
    Line("transposed over the other diagonal", "pose", 10, (7,)),
    Line("cropped to what is drawn", "crop", 7),
    Line("without its outermost cells", "trim", 9),
    Line("cut down to its {} half", "half", 10, {"left": 0, "right": 1, "upper": 2, "lower": 3}),
    Line(
        "with its mirror image {}",
        "mirror_out",
        10,
        {"to the right": 0, "to the left": 1, "below": 2, "above": 3},
    ),
    Line("mirrored out to four", "mosaic", 10, (0,)),
    Line("turned round a centre to four", "mosaic", 11, (1,)),
    Line(
        "repeated {} times",
        "tile",
        11,
        {"2 x 2": 22, "3 x 3": 33, "1 x 2": 12, "2 x 1": 21, "1 x 3": 13, "3 x 1": 31, "4 x 4": 44},
    ),
    Line("each cell {} cells wide and high", "scale_up", 11, {"2": 2, "3": 3, "4": 4, "5": 5}),
    Line("scaled down as far as it goes", "scale_down", 9),
    Line("equal neighbouring rows and columns once", "rows_once", 9),
    Line("without empty rows and columns", "drop_empty_lines", 9),
    Line("a copy of itself at each of its drawn cells", "self_product", 10),
    Line("a copy of it at each drawn cell of the input", "product_with_input", 10),
    Line("a copy of the input at each of its drawn cells", "input_product", 10),
    Line("repeated over the input's frame", "tile_input_frame", 10),
    Line("resized to its output's size", "fit_output", 11),
    Line("resized to the input's size", "fit_input", 11),
    Line("repeated {}from its place over the input's frame", "tile_input", 11, {"": 0, "with gaps of a cell ": 1}),
    Line(
        "repeated {}from its place over the input's frame, each second mirrored",
        "mirror_input",
        12,
        {"": 0, "with gaps of a cell ": 1},
    ),
    Line("repeated {}over its output's frame", "tile_output", 12, {"": 0, "with gaps of a cell ": 1}),
    Line(
        "repeated {}over its output's frame, each second mirrored",
        "mirror_output",
        13,
        {"": 0, "with gaps of a cell ": 1},
    ),
    Line(
        "{} in its commonest colour",
        "block",
        10,
        {
            f"{form} as its number of {what}": 3 * i + k
            for i, what in enumerate(("drawn cells", "colours", "objects"))
            for k, form in enumerate(("a square as wide", "a row as long", "a column as high"))
        },
    ),
    Line("with a frame of colour {}", "add_frame", 11, OUT),
    Line("with a frame of its commonest colour", "add_frame", 11, (0,)),
    Line("one cell of its commonest colour", "single_cell", 8),
    Line("only colour {} kept", "keep_colour", 9, IN),
    Line("colour {} removed", "drop_colour", 9, IN),
    Line("painted in colour {}", "paint", 9, OUT),
    Line("painted in its commonest colour", "paint_commonest", 9),
    Line("holes filled with its commonest colour", "fill_holes", 9, (0,)),
    Line("holes filled with colour {}", "fill_holes", 10, OUT),
    Line("only its holes, drawn", "holes_only", 10),
    Line("only the cells at its edge", "outline", 10),
    Line("only the cells not at its edge", "inner", 10),
    Line("filled up to its box", "fill_box", 10),
    Line("grown by one cell {}", "grow", 10, {"to the sides": 0, "all around": 1}),
    Line("surrounded by colour {}", "surround", 10, OUT),
    Line("drawn cells fallen {}", "fall", 10, SIDES),
    Line(
        "lines drawn {}",
        "rays",
        10,
        {
            "up": UP,
            "to the left": LEFT,
            "to the right": RIGHT,
            "down": DOWN,
            "up and down": UP | DOWN,
            "to both sides": LEFT | RIGHT,
            "in four directions": UP | DOWN | LEFT | RIGHT,
            "along both diagonals": UP_LEFT | UP_RIGHT | DOWN_LEFT | DOWN_RIGHT,
            "along one diagonal": UP_LEFT | DOWN_RIGHT,
            "along the other diagonal": UP_RIGHT | DOWN_LEFT,
        },
    ),
    Line(
        "rays drawn {}",
        "rays",
        12,
        {
            "up to the left": UP_LEFT,
            "up to the right": UP_RIGHT,
            "down to the left": DOWN_LEFT,
            "down to the right": DOWN_RIGHT,
            "in all eight directions": 255,
        },
    ),
    Line(
        "equal colours joined {}",
        "join_equal",
        10,
        {"in columns": 1, "in rows": 2, "in rows and columns": 3, "along diagonals": 12},
    ),
    Line("single cells removed", "drop_dots", 9),
    Line("drawn and empty cells exchanged", "invert", 10),
    Line("its two colours exchanged", "swap_colours", 10),
    Line(
        "completed by mirroring {}",
        "mirror_fill",
        10,
        {"left-right": 1, "up-down": 2, "left-right and up-down": 7, "over the diagonal": 8, "in all ways": 15},
    ),
    Line("empty cells completed by the repeating pattern", "mend_tiling", 10),
    Line("moved one cell {}", "shift", 11, SIDES),
    Line("rolled one cell {}", "roll", 12, SIDES),
    Line("grown until nothing is empty", "spread", 10),
    Line("all but its commonest colour grown until nothing is empty", "spread", 11, (1,)),
    Line("only the cells at its outer edge", "outer_edge", 10, (0,)),
    Line("only the cells not at its outer edge", "outer_edge", 10, (1,)),
    Line("its middle", "middle", 10),
    Line("all cells its commonest colour", "solid", 10),
    Line("at its place in the input's frame", "in_frame", 5),
    Line("over the input", "over_input", 6),
    Line("under the input", "under_input", 6),
    Line("where the input is drawn", "mask_by_input", 7),
    Line("where the input is empty", "mask_by_empty", 7),
    Line("moved to the top left", "to_origin", 5),
    Line("what the input has in its box", "input_in_box", 6),
    Line("every second row and column from the {} on", "sample", 10, {"first": 20, "second": 21}),
    Line(
        "its {}",
        "fall_objects",
        10,
        {
            f"{what} fallen {side}": n + 4 * k
            for k, what in enumerate(("one-colour pieces", "objects"))
            for side, n in SIDES.items()
        },
    ),
    Line(
        "its {} of the output's size",
        "corner_of_output",
        11,
        {"top left": 0, "top right": 1, "bottom left": 2, "bottom right": 3, "middle": 4},
    ),
    Line("cut into one-colour pieces", "cut_pieces", 5, (1,)),
    Line("cut into one-colour pieces joined by sides", "cut_pieces", 6, (0,)),
    Line("cut into objects", "cut_objects", 5, (1,)),
    Line("cut into objects joined by sides", "cut_objects", 7, (0,)),
    Line("cut into its colours", "cut_colours", 5),
    Line("cut into panels", "cut_panels", 5),
    Line("cut into the parts between one colour", "cut_parts", 6),
    Line("cut into boxes with marked corners", "cut_marked", 8),
    Line("cut into rows", "cut_lines", 7, (0,)),
    Line("cut into columns", "cut_lines", 7, (1,)),
    Line("those with the {} kept", "keep_extreme", 7, EXTREME),
    Line("those with the {} removed", "drop_extreme", 7, EXTREME),
    Line("the one with the {}", "take_extreme", 6, EXTREME),
    Line("the first with the {}", "take_first", 8, EXTREME),
    Line("the one with a unique {}", "take_odd", 6, NUMBERS),
    Line("the first of them", "take_index", 6, (0,)),
    Line("the second of them", "take_index", 7, (1,)),
    Line("the last of them", "take_index", 6, (-1,)),
    Line("sorted by {}, largest first", "sort_by", 7, NUMBERS),
    Line("laid together at their places", "overlay", 5, (0,)),
    Line("laid together at their places, the largest at the bottom", "overlay", 6, (1,)),
    Line(
        "joined {}",
        "beside",
        6,
        {
            "in a row": 0,
            "in a column": 1,
            "in a row, the smallest box first": 2,
            "in a column, the smallest box first": 3,
        },
    ),
    Line("joined in the line in which they lie", "line_up", 6),
    Line("piled up, the {} on top", "pile", 6, {"first": 0, "last": 1}),
    Line("piled up, only cells drawn in {}", "pile_logic", 6, {"all": 0, "exactly one": 1}),
    Line("piled up, colour 1 where none is drawn", "pile_logic", 6, (2,)),
    Line("one cell of its commonest colour for each as they lie", "as_they_lie", 7),
    Line(
        "their {}",
        "numbers_in_line",
        8,
        {
            f"{name} as colours in a {line}": 2 * i + k
            for i, name in enumerate(NUMBERS)
            for k, line in enumerate(("row", "column"))
        },
    ),
    Line("their commonest colours in a {}", "colours_in_line", 6, {"row": 0, "column": 1}),
)


def _colours_of(grids: Sequence[Grid]) -> list[int]:
    """The colours that occur, without 0."""
    return [c for c in np.unique(np.concatenate([g.ravel() for g in grids])).tolist() if c]


def primitives(inputs: Sequence[Grid], outputs: Sequence[Grid], sized: bool = True) -> list[Primitive]:
    """The primitives to try on a task, cheapest first, equals in the table's order.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        sized: Whether the sizes of the tests' outputs are known.
    """
    colours = {IN: _colours_of(inputs), OUT: _colours_of(outputs)}
    made = []
    for line in LINES:
        if line.function in FOR_OUTPUTS and not sized:
            continue
        if isinstance(line.args, str):
            args = {str(c): c for c in colours[line.args]}
        elif isinstance(line.args, dict):
            args = line.args
        else:
            args = {"": line.args[0]}
        made += [Primitive(line.words.format(w), line.function, a, line.cost, line.maps) for w, a in args.items()]
    return sorted(made, key=lambda p: p.cost)
