"""Values of the compositional search as rows of bytes, and what a search starts from.

A row is one byte (1 for several pieces, 0 for one), then for each input the number of its pieces, then for each piece
its place (two signed bytes), height, width and cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt.values import Grid

Row = bytes
LONGEST_ROW = 40000
"""Bytes of a value; what is longer is dropped."""
SIZES_FIT, EXACT = 1, 2
"""Flags of a value: it has the training outputs' sizes; it is the training outputs."""


PARENT, PRIMITIVE, COST, FLAGS = range(4)
"""Columns of the table of values: which primitive made it of which value, its cost and its flags."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a search ends.

    Args:
        cost: The dearest composition, in tenths of a plain operation.
        spare: How much dearer than the first exact composition others may be.
        nodes: Values stored.
        work: Work units.
        memory: Bytes of the values stored.
    """

    cost: int = 34
    spare: int = 4
    nodes: int = 200_000
    work: int = 100_000_000
    memory: int = 100_000_000


@dataclass(frozen=True, slots=True)
class Start:
    """The inputs, the training outputs and the sizes of all outputs as bytes, with the limits of a search."""

    row: Row
    targets: bytes
    sizes: bytes
    inputs: int
    pairs: int
    limits: Limits

    @property
    def target_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the training outputs."""
        shapes: list[tuple[int, ...]] = []
        at = 0
        for _ in range(self.pairs):
            h, w = self.targets[at : at + 2]
            shapes.append((h, w))
            at += 2 + h * w
        return shapes

    @classmethod
    def of(
        cls,
        inputs: Sequence[Grid],
        outputs: Sequence[Grid],
        limits: Limits,
        tests: Sequence[tuple[int, int]] | None = None,
    ) -> Start:
        """Lay the grids of a task out as bytes; `tests` are the sizes of the tests' outputs, None where not known."""
        row = b"\0" + b"".join(bytes((1, 0, 0, *g.shape)) + g.tobytes() for g in inputs)
        targets = b"".join(bytes(g.shape) + g.tobytes() for g in outputs)
        sizes = bytes(2 * len(inputs))
        if tests is not None:
            sizes = b"".join(bytes(s) for s in [*(g.shape for g in outputs), *tests])
        return cls(row, targets, sizes, len(inputs), len(outputs), limits)


def grids_of(row: Row, inputs: int) -> tuple[Grid, ...]:
    """The grids of a row with one piece for each input."""
    cells, at, found = np.frombuffer(row, dtype=np.uint8), 1, []
    for _ in range(inputs):
        h, w = int(cells[at + 3]), int(cells[at + 4])
        found.append(cells[at + 5 : at + 5 + h * w].reshape(h, w))
        at += 5 + h * w
    return tuple(found)
