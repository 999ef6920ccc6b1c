"""Rules that look a whole output up by how many of something the input has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ttt._grid.cell_rules import ENTRY, Program
from ttt._grid.scene import Scene, Scenes
from ttt.values import Grid

REPEATED = 2
"""How many training pairs must have the same number as an earlier one."""

COUNTED: dict[str, Callable[[Scene], int]] = {
    "drawn cells": lambda s: int(s.front.sum()),
    "colours": lambda s: int(np.count_nonzero(s.counts)),
    "objects": lambda s: len(s.things("object")),
    "objects joined by sides": lambda s: len(s.things("solid")),
    "one-colour pieces": lambda s: len(s.things("piece")),
    "one-colour pieces joined by sides": lambda s: len(s.things("joined")),
}
"""What is counted, by its words."""


def programs_by_count(inputs: Sequence[Grid], outputs: Sequence[Grid], known: Scenes) -> list[Program]:
    """Return the rules "the output of the training pairs with as many", right on all pairs, some of which repeat.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        known: Scenes that others use too.
    """
    shown = [(o.shape, o.tobytes()) for o in outputs]
    if len(set(shown)) < 2 or len(set(shown)) > len(outputs) - REPEATED:
        return []
    found = []
    for what, count in COUNTED.items():
        numbers = [count(s) for s in known.of(inputs)]
        first = {n: k for k, n in reversed(list(enumerate(numbers[: len(outputs)])))}
        same = all(shown[first[n]] == o for n, o in zip(numbers, shown, strict=False))
        if not same or len(first) > len(outputs) - REPEATED:
            continue
        grids = tuple(outputs[first[n]] if n in first else None for n in numbers[len(outputs) :])
        if any(g is not None for g in grids):
            why = f"the whole output by its number of {what} ({len(first)} cases)"
            found.append(Program(why, 1.5 + ENTRY * len(first), "table 2", grids))
    return found
