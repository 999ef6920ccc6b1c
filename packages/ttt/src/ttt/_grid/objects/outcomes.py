"""What each action of each thing would explain of one training pair, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL

import numpy as np

from ttt._grid.compose.core import library
from ttt._grid.geometry import Numbers, Step
from ttt._grid.objects.actions import ERASED, Action
from ttt._grid.objects.relations import Relations, Strokes
from ttt._grid.objects.strokes import Line
from ttt._grid.objects.tries import CompiledPair, Table, Tries
from ttt._grid.scene import Scene
from ttt.values import Grid

NOTHING: Numbers = np.empty(0, dtype=np.int64)


def on_grid(made: Strokes | None, shape: tuple[int, int]) -> Strokes | None:
    """Return the part of some strokes that lies on a grid, None for nothing."""
    if made is None:
        return None
    r, c, k = made
    if r.size and r.min() >= 0 and c.min() >= 0 and r.max() < shape[0] and c.max() < shape[1]:
        return made
    keep = (r >= 0) & (c >= 0) & (r < shape[0]) & (c < shape[1])
    return (r[keep], c[keep], k[keep]) if keep.any() else None


def relations_of(scene: Scene, kind: str) -> Relations:
    """Return the relations of a scene's things, made once."""
    key = ("relations", kind)
    if key not in scene.memo:
        scene.memo[key] = Relations(scene, kind)
    found: Relations = scene.memo[key]
    return found


class Outcomes:
    """A training pair and the things of its input; use `Outcomes.of`.

    Args:
        scene: The input.
        output: Its output, of the input's size.
        kind: The way the input is cut into things.
    """

    def __init__(self, scene: Scene, output: Grid, kind: str) -> None:
        self.relations, self.output = relations_of(scene, kind), output
        changed = scene.grid != output
        self.number: Numbers = np.where(changed, np.cumsum(changed).reshape(changed.shape) - 1, -1)
        """The number of each changed cell, -1 elsewhere."""
        self.cells = int(changed.sum())
        self._compiled: CompiledPair | None = None
        self._known: dict[str, list[Numbers | None]] = {}
        self._lines: dict[tuple[int, Step, str, str], tuple[Numbers, int]] = {}

    @classmethod
    def of(cls, scene: Scene, output: Grid, kind: str) -> Outcomes:
        """Return those of a scene with an output, made once."""
        key = ("outcomes", kind, output.tobytes())
        if key not in scene.memo:
            scene.memo[key] = cls(scene, output, kind)
        found: Outcomes = scene.memo[key]
        return found

    def tried(self, table: Table, actions: Sequence[Action], compiled: bool = True) -> Tries:
        """Return what actions would explain if all things took them.

        Args:
            table: The actions for the compiled core.
            actions: The same actions.
            compiled: Whether to use the compiled core where there is one; the answers are the same.
        """
        core = library() if compiled else None
        if core is not None:
            return self._in(core).tried(table)
        able = np.ones((len(actions), len(self.relations.things)), dtype=bool)
        hits: list[tuple[int, int, int]] = []
        for n, action in enumerate(actions):
            for i, cells in enumerate(self.explained(action)):
                able[n, i] = cells is not None
                hits += [(n, i, cell) for cell in (() if cells is None else cells.tolist())]
        return Tries(able, *np.array(hits, dtype=np.int64).reshape(-1, 3).T)

    def vectors(self, compiled: bool = True) -> dict[Step, int]:
        """Return by which vectors things reappear in the output, each with the number of things.

        Args:
            compiled: Whether to use the compiled core where there is one; the answers are the same.
        """
        core = library() if compiled else None
        if core is not None:
            return self._in(core).vectors()
        count: dict[Step, int] = {}
        out, number = self.output, self.number
        for (r, c, k), (top, left, bottom, right) in zip(self.relations.cells, self.relations.boxes, strict=True):
            for dr in range(-top, len(out) - bottom):
                for dc in range(-left, out.shape[1] - right):
                    at = (r + dr, c + dc)
                    if out[at[0][0], at[1][0]] == k[0] and number[at].max() >= 0 and (out[at] == k).all():
                        count[dr, dc] = count.get((dr, dc), 0) + 1
        return count

    def _in(self, core: CDLL) -> CompiledPair:
        if self._compiled is None:
            self._compiled = CompiledPair(core, self.relations, self.output, self.number)
        return self._compiled

    def explained(self, action: Action) -> list[Numbers | None]:
        """Return for each thing the changed cells that its action explains, None if it paints a cell wrongly.

        An action is known by its name.
        """
        if action.name not in self._known:
            draw, things = action.draw, range(len(self.relations.things))
            if isinstance(draw, Line) and draw.until != "dotted":
                self._known[action.name] = [self._by_lines(draw, i) for i in things]
            else:
                self._known[action.name] = [self.drawn(action, i) for i in things]
        return self._known[action.name]

    def drawn(self, action: Action, i: int) -> Numbers | None:
        """Return the same for one thing, and for an action that others may share the name with."""
        made = on_grid(action.draw(self.relations, i), self.output.shape)
        if made is None:
            return NOTHING
        r, c, k = made
        number, hit = self.number[r, c], self.output[r, c] == k
        right = (number >= 0).any() if action is ERASED else hit.all()  # others may be drawn where it was
        return number[hit & (number >= 0)] if right else None

    def _by_lines(self, draw: Line, i: int) -> Numbers | None:
        """Return the same for lines of one thing: many actions draw the same ones, in different colours."""
        step, colour = draw.way(self.relations, i), draw.choose(self.relations, i)
        if step is None or colour is None:
            return NOTHING
        key = (i, step, draw.start, draw.until)
        if key not in self._lines:
            cells = draw.cells(self.relations, i, step)
            self._lines[key] = (NOTHING, -1) if cells is None else self._crossed(cells[0], cells[1])
        number, only = self._lines[key]
        if only == -1:
            return NOTHING
        return number if only == colour else None

    def _crossed(self, r: Numbers, c: Numbers) -> tuple[Numbers, int]:
        """Return the changed cells among some, and the one colour that the output has in all of them, else -2."""
        there, number = self.output[r, c], self.number[r, c]
        return number[number >= 0], int(there[0]) if (there == there[0]).all() else -2
