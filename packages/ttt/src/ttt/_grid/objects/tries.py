"""What all actions explain of a training pair, asked of the compiled core; `Outcomes.explained` is the twin."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ttt._grid.geometry import Mask, Numbers, Step
from ttt._grid.objects import strokes
from ttt._grid.objects.actions import FILLED, LINE_ENDS, LINE_STARTS, PARTS, Action
from ttt._grid.objects.relations import Relations
from ttt.values import MAX_SIDE, Grid

Ints = npt.NDArray[np.int32]
NONE = -1
"""Stands for a chooser that an action does not have, and for a thing that has no colour or no other thing."""
_COPIES = ("middle", "corner", "as it is", "mirrored left-right", "mirrored up-down", "turned")
_ENDS, _STARTS, _FILLED, _PLACES, _PARTS = (
    {words: n for n, words in enumerate(table)} for table in (LINE_ENDS, LINE_STARTS, FILLED, _COPIES, PARTS)
)
CHOOSERS = ("way", "colour", "other")
"""What an action may choose for each thing: a direction, a colour, another thing."""
STROKES: dict[Any, tuple[Any, ...]] = {
    strokes.erased: (),
    strokes.recoloured: ("colour",),
    strokes.shifted: ("numbers",),
    strokes.slid: ("way",),
    strokes.aligned: ("other", "number"),
    strokes.repeated: ("way", "number"),
    strokes.mirrored: ("other", "numbers"),
    strokes.reflected: ("numbers",),
    strokes.turned_over: ("numbers",),
    strokes.Line: ("way", "colour", _ENDS, _STARTS),
    strokes.bridge: ("other", "colour", "number"),
    strokes.box_cells: (_FILLED, "colour"),
    strokes.stamped: ("other", _PLACES, "number"),
    strokes.chain: ("other",),
    strokes.part: (_PARTS, "colour"),
    strokes.drawn_to: ("other",),
}
"""What the arguments of each stroke are, in the order of the core: a chooser, a number or two, or words by number."""
_NUMBER = {stroke: n for n, stroke in enumerate(STROKES)}


@dataclass(frozen=True, slots=True)
class Tries:
    """What some actions would explain of a pair, if all of its things took them.

    Args:
        able: Whether each thing could have taken each action (rows): it paints no cell wrongly.
        action: For every explained cell, the number of the action.
        thing: The number of the thing.
        cell: The number of the changed cell.
    """

    able: Mask
    action: Numbers
    thing: Numbers
    cell: Numbers

    def of(self, chosen: Numbers) -> Tries:
        """Those of some of the actions, among which are all that explain something; `chosen` in rising order."""
        return Tries(self.able[chosen], np.searchsorted(chosen, self.action), self.thing, self.cell)


class _Pair(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("h", "w", "background", "things")),
        *(
            (name, ctypes.c_void_p)
            for name in ("grid", "output", "label", "number", "first", "row", "column", "box", "colour")
        ),
    )


class _Choosers:
    """Numbers for the functions by which actions choose, in order of first use."""

    def __init__(self) -> None:
        self.known: dict[Hashable, int] = {}

    def number(self, chooser: Hashable) -> int:
        """The number of a function or a name."""
        return self.known.setdefault(chooser, len(self.known))

    def table(self, choose: Callable[[Any, int], Any], things: int, none: Any) -> Ints:
        """What each of them chooses for each thing."""
        chosen = [[choose(chooser, i) for i in range(things)] for chooser in self.known] or [[none] * things]
        return np.array([[none if c is None else c for c in row] for row in chosen], dtype=np.int32)


class Table:
    """Actions as the core reads them.

    Args:
        actions: The actions, each with a function of `strokes` as its `draw`.
    """

    def __init__(self, actions: Sequence[Action]) -> None:
        self.choosers = {role: _Choosers() for role in CHOOSERS}
        self.rows = np.array([self._row(action.draw) for action in actions], dtype=np.int32).reshape(-1, 6)

    def _row(self, draw: Any) -> list[int]:
        """Stroke, two settings, and the numbers of what chooses the direction, the colour and the other thing."""
        stroke: Any
        given: tuple[Any, ...]
        if isinstance(draw, strokes.Line):
            stroke, given = strokes.Line, (draw.way, draw.choose, draw.until, draw.start)
        else:
            stroke, given = (draw.func, draw.args) if isinstance(draw, partial) else (draw, ())
        settings: list[int] = []
        chosen = dict.fromkeys(CHOOSERS, NONE)
        for role, value in zip(STROKES[stroke], given, strict=True):
            if isinstance(role, dict):
                settings.append(role[value])
            elif role in chosen:
                chosen[role] = self.choosers[role].number(value)
            else:
                settings += value if role == "numbers" else (value,)
        return [_NUMBER[stroke], *(*settings, 0, 0)[:2], *chosen.values()]


class CompiledPair:
    """A training pair in the compiled core.

    Args:
        core: The compiled core.
        relations: The things of its input.
        output: Its output, of the input's size.
        number: The number of each changed cell, -1 elsewhere.
    """

    def __init__(self, core: ctypes.CDLL, relations: Relations, output: Grid, number: Numbers) -> None:
        scene, cells = relations.scene, relations.cells
        self._core, self._relations = core, relations
        self._things = len(cells)
        empty = np.empty(0, dtype=np.int32)
        self._kept = (
            np.ascontiguousarray(scene.grid, dtype=np.uint8),
            np.ascontiguousarray(output, dtype=np.uint8),
            np.ascontiguousarray(relations.labels, dtype=np.int32),
            np.ascontiguousarray(number, dtype=np.int32),
            np.cumsum([0, *relations.area], dtype=np.int32),
            np.concatenate([empty, *(r for r, _, _ in cells)]).astype(np.int32),
            np.concatenate([empty, *(c for _, c, _ in cells)]).astype(np.int32),
            np.array(relations.boxes, dtype=np.int32),
            np.array([t.colour for t in relations.things], dtype=np.int32),
        )
        self._pair = _Pair(*scene.grid.shape, scene.background, self._things, *(a.ctypes.data for a in self._kept))

    def tried(self, table: Table) -> Tries:
        """What the actions of a table would explain."""
        s, n = self._relations, self._things
        ways = table.choosers["way"].table(lambda way, i: way(s, i), n, (0, 0))
        colours = table.choosers["colour"].table(lambda choose, i: choose(s, i), n, NONE)
        others = table.choosers["other"].table(s.other, n, NONE)
        rows = np.ascontiguousarray(table.rows)
        counts, room = np.empty((len(rows), n), dtype=np.int32), 1 << 14
        chosen = [a.ctypes.data for a in (ways, colours, others)]
        while True:
            cells = np.empty(room, dtype=np.int32)
            made = self._core.things_tried(
                ctypes.byref(self._pair),
                rows.ctypes.data,
                len(rows),
                *chosen,
                counts.ctypes.data,
                cells.ctypes.data,
                room,
            )
            if made <= room:
                break
            room = made
        explained = np.maximum(counts.ravel(), 0)
        which = np.repeat(np.arange(counts.size), explained)
        return Tries(counts >= 0, which // n, which % n, cells[:made].astype(np.int64))

    def vectors(self) -> dict[Step, int]:
        """How many things reappear in the output moved by each vector, with a changed cell among their new ones."""
        side = 2 * MAX_SIDE - 1
        counts = np.zeros((side, side), dtype=np.int32)
        self._core.things_vectors(ctypes.byref(self._pair), counts.ctypes.data)
        return {
            (int(r) - MAX_SIDE + 1, int(c) - MAX_SIDE + 1): int(counts[r, c])
            for r, c in zip(*np.nonzero(counts), strict=True)
        }
