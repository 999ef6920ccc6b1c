"""Rules that build the output thing by thing: each thing does what a property of it says, right on every training cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt.grid.answers import Grid
from ttt.grid.columns import dense
from ttt.grid.features import Numbers
from ttt.grid.images import Image
from ttt.grid.objects import ERASED, Action, Stage, Step, Strokes, actions
from ttt.grid.rules import ENTRY, Program
from ttt.grid.scene import KINDS, Scene

MOST_THINGS = 24
"""Things on one grid above which nobody asks what each of them does."""
MOST_VALUES = 10
MOST_PROGRAMS = 40
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Split:
    """A property by which things are told apart: a code for every thing of all grids, training first."""

    name: str
    cost: float
    codes: Numbers


class _Play:
    """The things of one kind on all grids and what each could have done."""

    def __init__(self, scenes: Sequence[Scene], outputs: Sequence[Grid], kind: str) -> None:
        self.scenes, self.outputs, self.kind = scenes, outputs, kind
        self.stages = [Stage(s, kind) for s in scenes]
        self.owner = np.repeat(np.arange(len(scenes)), [len(s.things) for s in self.stages])
        self.within = np.concatenate([np.arange(len(s.things)) for s in self.stages])
        self.known = int((self.owner < len(outputs)).sum())
        changed = [s.grid != o for s, o in zip(scenes, outputs, strict=False)]
        ends = np.cumsum([0, *(int(c.sum()) for c in changed)])
        self.cells = int(ends[-1])
        self.number = []
        for c, start in zip(changed, ends, strict=False):
            number = np.full(c.shape, -1, dtype=np.int64)
            number[c] = start + np.arange(c.sum())
            self.number.append(number)

    @property
    def sensible(self) -> bool:
        """Whether there are things everywhere and not too many."""
        return all(1 <= len(s.things) <= MOST_THINGS for s in self.stages)

    def vectors(self) -> list[Step]:
        """Ways by which two or more things are found again elsewhere in the output, commonest first."""
        count: dict[Step, int] = {}
        for o in range(self.known):
            stage, i = self.stages[self.owner[o]], int(self.within[o])
            out, number = self.outputs[self.owner[o]], self.number[self.owner[o]]
            r, c, k = stage.cells[i]
            h, w = out.shape
            top, left, bottom, right = stage.boxes[i]
            for dr in range(-top, h - bottom):
                for dc in range(-left, w - right):
                    if out[r[0] + dr, c[0] + dc] == k[0] and number[r + dr, c + dc].max() >= 0:
                        if (out[r + dr, c + dc] == k).all():
                            count[dr, dc] = count.get((dr, dc), 0) + 1
        best = sorted(count, key=lambda v: (-count[v], abs(v[0]) + abs(v[1]), v))
        return [v for v in best if count[v] > 1][:10]

    def perform(self, cast: Sequence[Action]) -> tuple[list[Action], Flags, Flags]:
        """Which actions could have been done by which training things, and which changed cells each explains."""
        useful, right, explained = [], [], []
        first_two = int((self.owner < 2).sum())
        for action in cast:
            ok = np.ones(self.known, dtype=bool)
            gain = np.zeros((self.known, self.cells), dtype=bool)
            for o in range(self.known):
                if o == first_two and not gain.any():
                    break
                self._try(action, o, ok, gain)
            if gain.any():
                useful.append(action)
                right.append(ok)
                explained.append(gain)
        return useful, np.array(right), np.array(explained)

    def _try(self, action: Action, o: int, ok: Flags, gain: Flags) -> None:
        at = int(self.owner[o])
        made = inside(action.paint(self.stages[at], int(self.within[o])), self.outputs[at].shape)
        if made is None:
            return
        r, c, k = made
        number = self.number[at][r, c]
        hit = self.outputs[at][r, c] == k
        if action is ERASED:
            ok[o] = (number >= 0).any()
        else:
            ok[o] = hit.all()
        if ok[o]:
            gain[o, number[hit & (number >= 0)]] = True

    def splits(self) -> Iterator[_Split]:
        """Properties by which things may be told apart, each partition once, plain ones first."""
        yield _Split("", 0.0, np.zeros(len(self.owner), dtype=np.int64))
        tables = [s.measures(self.kind) for s in self.scenes]
        seen = set()
        for how in ("value", "most", "least"):
            for name in tables[0]:
                parts = [t[name] for t in tables]
                if how != "value":
                    parts = [(v == (v.max() if how == "most" else v.min())).astype(np.int64) for v in parts]
                codes, keys = dense(np.concatenate(parts))
                if 1 < keys <= MOST_VALUES and codes.tobytes() not in seen:
                    seen.add(codes.tobytes())
                    text = name if how == "value" else f"having the {how} {name}"
                    yield _Split(text, 1.2 if how == "value" else 1.3, codes)

    def play(self, at: int, parts: Sequence[tuple[Flags, Action]]) -> Grid:
        """What grid number `at` becomes if the things marked in each part do its action, erasures first."""
        grid = self.scenes[at].grid.copy()
        for marked, action in sorted(parts, key=lambda p: p[1] is not ERASED):
            for o in np.flatnonzero(marked & (self.owner == at)):
                made = inside(action.paint(self.stages[at], int(self.within[o])), grid.shape)
                if made is not None:
                    grid[made[0], made[1]] = made[2]
        return grid


def inside(made: Strokes | None, shape: tuple[int, int]) -> Strokes | None:
    """The part of some strokes that lies on the grid."""
    if made is None:
        return None
    r, c, k = made
    keep = (r >= 0) & (c >= 0) & (r < shape[0]) & (c < shape[1])
    return (r[keep], c[keep], k[keep]) if keep.any() else None


def object_programs(base: Image, outputs: Sequence[Grid]) -> list[Program]:
    """Verified programs in which each thing of an image of the inputs acts by one of its properties."""
    scenes = [Scene(g) for g in base.grids]
    found: list[Program] = []
    drawn: set[bytes] = set()
    for kind in ("object", "piece", "joined"):
        play = _Play(scenes, outputs, kind)
        mark = b"".join(s.labels.tobytes() for s in play.stages)
        if mark in drawn or not play.sensible or not play.cells:
            continue
        drawn.add(mark)
        found += _learned(play, base, 0.2 * (kind == "joined"))
    return found


def _learned(play: _Play, base: Image, extra: float) -> list[Program]:
    fresh = [o[n >= 0] for o, n in zip(play.outputs, play.number, strict=True)]
    always = np.logical_and.reduce([np.bincount(f, minlength=10) > 0 for f in fresh])
    useful, right, explained = play.perform([ERASED, *actions(play.scenes, np.flatnonzero(always).tolist(), play.vectors())])
    if not useful or not explained.any(axis=(0, 1)).all():
        return []
    found: list[Program] = []
    for split in play.splits():
        for chosen in _covers(play, split, useful, right, explained):
            made = _program(play, base, split, chosen, extra)
            if made:
                found.append(made)
        if len(found) >= MOST_PROGRAMS:
            break
    return found


Part = tuple[int, Action]


def _covers(play: _Play, split: _Split, useful: list[Action], right: Flags, explained: Flags) -> list[list[Part]]:
    """Who does what so that all changed cells are explained: the greedy choice and those that tie with it."""
    codes = split.codes[: play.known]
    parts: list[Part] = []
    masks = []
    for v in range(int(split.codes.max()) + 1):
        mine = codes == v
        if mine.any():
            for a in np.flatnonzero(right[:, mine].all(axis=1)):
                mask = explained[a][mine].any(axis=0)
                if mask.any():
                    parts.append((v, useful[a]))
                    masks.append(mask)
    if not parts or not np.logical_or.reduce(masks).all():
        return []
    stack = np.array(masks)
    costs = np.array([a.cost for _, a in parts])
    left = np.ones(play.cells, dtype=bool)
    chosen: list[int] = []
    ties: list[list[int]] = []
    while left.any():
        new = (stack & left).sum(axis=1)
        order = np.lexsort((costs, -new))
        best = int(order[0])
        chosen.append(best)
        same = (stack & left == stack[best] & left).all(axis=1)
        ties.append([int(i) for i in order if same[i] and i != best][:5])
        left &= ~stack[best]
    plans = [chosen]
    for n, more in enumerate(ties):
        plans += [[*chosen[:n], i, *chosen[n + 1 :]] for i in more]
    return [[parts[i] for i in plan] for plan in plans]


def _program(play: _Play, base: Image, split: _Split, chosen: list[Part], extra: float) -> Program | None:
    marked = [(split.codes == v, action) for v, action in chosen]
    for at, wanted in enumerate(play.outputs):
        if not np.array_equal(play.play(at, marked), wanted):
            return None
    seen = np.unique(split.codes[: play.known])
    grids: list[Grid | None] = []
    for at in range(len(play.outputs), len(play.scenes)):
        mine = split.codes[play.owner == at]
        grids.append(play.play(at, marked) if np.isin(mine, seen).all() else None)
    if all(g is None for g in grids):
        return None
    names: dict[str, float] = {}
    for _, action in chosen:
        names.setdefault(action.name, action.cost)
    word = KINDS[play.kind]
    who = f"each {word}" if not split.name else f"each {word} by its {split.name}"
    of = "" if base.cost == 0 else f"{base.name}, then "
    cost = base.cost + split.cost + sum(names.values()) + 0.5 + ENTRY * (len(seen) + len(chosen)) + extra
    return Program(f"{of}{who} {'; '.join(names)}", cost, "things" if not split.name else "things by property", tuple(grids))
