"""The form of the tables of drawings: the words of an answer, the function that draws, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ttt._grid.scene import Scene
from ttt.values import Grid

Draw = Callable[..., Grid | None]
"""Takes the arguments of a line and a scene; returns a grid, or None where the drawing does not apply."""
IN, OUT = "colours of the inputs", "colours of the outputs"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: one drawing for each of its arguments.

    Args:
        words: What it does; `{}` stands for the words of the arguments, `{colour}` for the colour.
        draw: The function.
        cost: Length of that description; 1 is a plain operation.
        args: Arguments by their words.
        colours: Which colours are tried as one more argument, none if empty.
    """

    words: str
    draw: Draw
    cost: float
    args: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: {"": ()})
    colours: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing with its arguments.

    Args:
        words: What it does.
        cost: Length of that description.
        draw: Takes a scene.
    """

    words: str
    cost: float
    draw: Callable[[Scene], Grid | None]


def drawings(lines: Sequence[Line], inputs: Sequence[Scene], outputs: Sequence[Grid]) -> Iterator[Drawing]:
    """Yield the drawings of a table with the colours of a task.

    Args:
        lines: The table.
        inputs: All inputs.
        outputs: The training outputs.
    """
    every = np.logical_and.reduce([s.counts > 0 for s in inputs])
    painted = np.logical_and.reduce([np.bincount(g.ravel(), minlength=10) > 0 for g in outputs])
    colours = {
        IN: [c for c in np.flatnonzero(every).tolist() if any(s.background != c for s in inputs)],
        OUT: np.flatnonzero(painted).tolist(),
    }
    for line in lines:
        for words, given in line.args.items():
            if not line.colours:
                yield Drawing(line.words.format(words), line.cost, partial(line.draw, *given))
            for c in colours[line.colours] if line.colours else ():
                yield Drawing(line.words.format(words, colour=c), line.cost, partial(line.draw, *given, c))
