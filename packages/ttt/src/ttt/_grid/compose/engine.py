"""Best-first enumeration of compositions in numpy: the twin of csrc/engine.c, for where there is no compiler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ttt._grid.compose import arranging as _arranging
from ttt._grid.compose import joins as _joins
from ttt._grid.compose import painting as _painting
from ttt._grid.compose.parts import JOINS, MOST_PIECES, SPLITS
from ttt._grid.compose.pieces import Piece
from ttt._grid.compose.rows import EXACT, LONGEST_ROW, SIZES_FIT, Row, Start, grids_of
from ttt._grid.compose.shapes import SHAPES
from ttt._grid.compose.table import GIVES_LIST, TAKES_LIST, Primitive

TABLES = (_arranging, _joins, _painting)
"""Modules whose functions are in the tables once they are imported."""
Ints = npt.NDArray[np.int32]
Value = list[list[Piece]]
"""The pieces of each input."""
PER_TRY = 30
"""Work units of an application, besides one for each byte of its argument."""
FARTHEST = 100
"""Places stay within this many cells of the origin."""


def decoded(row: Row, inputs: int) -> Value:
    """The pieces of a row of bytes."""
    cells, at, value = np.frombuffer(row, dtype=np.uint8), 1, []
    for _ in range(inputs):
        count, at, pieces = int(cells[at]), at + 1, []
        for _ in range(count):
            y, x = (int(v) for v in cells[at : at + 2].view(np.int8))
            h, w = int(cells[at + 2]), int(cells[at + 3])
            pieces.append(Piece(y, x, cells[at + 4 : at + 4 + h * w].reshape(h, w)))
            at += 4 + h * w
        value.append(pieces)
    return value


def encoded(value: Value, several: bool) -> Row | None:
    """A value as a row of bytes; None where nothing is drawn, a place is too far, or it is too long."""
    parts = [bytes((several,))]
    drawn = False
    for pieces in value:
        parts.append(bytes((len(pieces),)))
        for p in pieces:
            if max(abs(p.y), abs(p.x)) > FARTHEST:
                return None
            drawn = drawn or bool(p.cells.any())
            parts.append(bytes((p.y % 256, p.x % 256, *p.cells.shape)) + p.cells.tobytes())
    row = b"".join(parts)
    return row if drawn and len(row) < LONGEST_ROW else None


def applied(primitive: Primitive, pieces: Sequence[Piece], source: Piece) -> list[Piece] | None:
    """A primitive's result for one input."""
    if primitive.function in JOINS:
        return JOINS[primitive.function](pieces, primitive.arg)
    if primitive.function in SPLITS:
        found = SPLITS[primitive.function](pieces[0], primitive.arg)
        return found if found and len(found) <= MOST_PIECES else None
    made = []
    for p in pieces:
        shape = SHAPES[primitive.function](p, source, primitive.arg)
        if shape is None:
            return None
        made.append(shape)
    return made


class Enumeration:
    """An enumeration of compositions, each value stored once, cheapest first.

    Args:
        start: The task and the limits.
        primitives: What is tried, sorted by cost.
    """

    def __init__(self, start: Start, primitives: Sequence[Primitive]) -> None:
        self._start, self._primitives = start, primitives
        sizes = [(start.sizes[2 * i], start.sizes[2 * i + 1]) for i in range(start.inputs)]
        grids = grids_of(start.row, start.inputs)
        self._sources = [Piece(0, 0, g, s if all(s) else None) for g, s in zip(grids, sizes, strict=True)]
        self._rows: list[Row] = []
        self._fields: list[tuple[int, int, int, int, int]] = []
        self._known: set[Row] = set()
        self._memory, self._full, self._deepest = 0, False, start.limits.cost
        self.work = 0
        self._keep(start.row, -1, -1, 0)
        self._first = [0, 1]
        self._turns = self._enumerate()

    def run(self, units: int) -> bool:
        """Go on for some work units; whether the end is reached."""
        until = self.work + units
        while self.work < until:
            if next(self._turns, None) is None:
                return True
        return False

    def _enumerate(self) -> Iterator[bool]:
        """Apply all primitives of one cost to one value at a time."""
        costs = sorted({p.cost for p in self._primitives})
        level = 1
        while level <= self._deepest:
            for cost in costs:
                base = level - cost
                if base < 0:
                    break
                mine = [(i, p) for i, p in enumerate(self._primitives) if p.cost == cost]
                for at in range(self._first[base], self._first[base + 1]):
                    if self._full or self.work >= self._start.limits.work:
                        return
                    value = decoded(self._rows[at], self._start.inputs)
                    for i, p in mine:
                        if not self._full:
                            self._attempt(at, value, i, p)
                    yield True
            level += 1
            self._first.append(len(self._rows))

    def _attempt(self, parent: int, value: Value, which: int, primitive: Primitive) -> None:
        row = self._rows[parent]
        takes_list = primitive.function in TAKES_LIST
        if not (takes_list or primitive.maps if row[0] else not takes_list):
            return
        self.work += PER_TRY + len(row)
        made: Value = []
        for pieces, source in zip(value, self._sources, strict=True):
            result = applied(primitive, pieces, source)
            if not result:
                return
            made.append(result)
        new = encoded(made, primitive.function in GIVES_LIST or bool(row[0] and primitive.maps))
        if new is not None:
            self._keep(new, parent, which, self._fields[parent][2] + primitive.cost)

    def _keep(self, row: Row, parent: int, primitive: int, cost: int) -> None:
        """Store a value unless it is known."""
        if row in self._known:
            return
        limits = self._start.limits
        if len(self._rows) >= limits.nodes or self._memory + len(row) > limits.memory:
            self._full = True
            return
        self._known.add(row)
        self._rows.append(row)
        self._memory += len(row)
        flags = self._fit(row)
        self._fields.append((parent, primitive, cost, flags, len(row)))
        if flags & EXACT:
            self._deepest = min(self._deepest, cost + limits.spare)

    def _fit(self, row: Row) -> int:
        if row[0]:
            return 0
        shown = b"".join(bytes(g.shape) + g.tobytes() for g in grids_of(row, self._start.pairs))
        if shown == self._start.targets:
            return SIZES_FIT | EXACT
        shapes = [g.shape for g in grids_of(row, self._start.pairs)]
        return SIZES_FIT if shapes == self._start.target_shapes else 0

    def nodes(self) -> Ints:
        """Parent, primitive, cost, flags and length of all values found, in order."""
        return np.array(self._fields, dtype=np.int32)

    def row(self, at: int) -> Row:
        """The bytes of a value."""
        return self._rows[at]

    def test_sizes(self, at: Ints) -> npt.NDArray[np.uint8]:
        """Height and width of each test's piece, for values with one piece for each input."""
        tests = [grids_of(self._rows[i], self._start.inputs)[self._start.pairs :] for i in at]
        shapes = [[g.shape for g in grids] for grids in tests]
        return np.array(shapes, dtype=np.uint8).reshape(len(at), self._start.inputs - self._start.pairs, 2)

    def cells(self, at: Ints, stride: int) -> npt.NDArray[np.uint8]:
        """The cells of such values, one row each, where all have `stride` cells."""
        rows = [np.concatenate([g.ravel() for g in grids_of(self._rows[i], self._start.inputs)]) for i in at]
        return np.array(rows, dtype=np.uint8).reshape(len(at), stride)
