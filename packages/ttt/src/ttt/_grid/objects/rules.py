"""Rules in which each thing takes an action by one of its properties; right on every training cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ttt._grid.cell_rules import ENTRY, Program
from ttt._grid.derived import DerivedInput
from ttt._grid.features.columns import dense
from ttt._grid.geometry import Numbers, Step
from ttt._grid.objects.actions import ERASED, Action, actions
from ttt._grid.objects.outcomes import Outcomes, on_grid, relations_of
from ttt._grid.objects.relations import Relations, Strokes
from ttt._grid.objects.tries import Table, Tries
from ttt._grid.scene import Scene, Scenes, odd_one_out
from ttt._grid.things import FORMS, KINDS, PROPERTIES, RELATED, REPEATS, words_for
from ttt.values import Grid

CUTS = ("object", "piece", "joined", "solid", "region", "enclosed", "panel", "colour")
"""Ways to cut a grid into the things that take actions, likeliest first."""
CUTS_OF_DERIVED = 4
"""How many of them are tried on derived inputs: only these made programs of them on develop tasks."""
MOST_THINGS = 48
"""Object rules are skipped for grids with more things than this."""
MOST_EVIDENCE = 100_000
"""Also skipped above this product of training things and changed cells, since each action keeps one byte per pair."""
MOST_VALUES = 10
"""Properties with more values than this do not decide actions."""
MOST_PROGRAMS = 40
MOST_HALVES = 60
"""Values of properties that are tried two at once."""
MOST_COLOURS = 4
"""Colours that things are painted in, of those that not every pair has."""
REACH = 4
"""How far around things of equal value cells are compared to find what all of them get drawn around them."""
AROUND_BY = ("", "its colour")
"""Partitions of the things, by name, for which cells drawn alike around them are looked for."""
AROUND = "gets {} cells drawn around it"
Flags = npt.NDArray[np.bool_]
Part = tuple[int, Action]
"""A code of a split, and the action of the things with that code."""


@dataclass(frozen=True, slots=True)
class Split:
    """A partition of the things by a property.

    Args:
        name: The property in words, read as "each object, by NAME, ..."; empty where all things are alike.
        cost: Length of that description.
        codes: Its value for every thing of all grids, training first; dense from 0.
        values: What each code stands for, in words.
        double: Whether it is by two properties.
    """

    name: str
    cost: float
    codes: Numbers
    values: Sequence[str] = ()
    double: bool = False


class ObjectTask:
    """The things of one kind on all grids, and the changed training cells that their actions must explain.

    Args:
        scenes: All inputs, training first.
        outputs: The training outputs, of the inputs' sizes.
        kind: The way the inputs are cut into things.
    """

    def __init__(self, scenes: Sequence[Scene], outputs: Sequence[Grid], kind: str) -> None:
        self.scenes, self.outputs, self.kind = scenes, outputs, kind
        self.relations = [relations_of(s, kind) for s in scenes]
        self.pairs = [Outcomes.of(s, o, kind) for s, o in zip(scenes, outputs, strict=False)]
        sizes = [len(s.things) for s in self.relations]
        self.owner = np.repeat(np.arange(len(scenes)), sizes)
        self.within = np.concatenate([np.arange(n) for n in sizes])
        self.known = sum(sizes[: len(outputs)])
        self.first: list[int] = np.cumsum([0, *sizes]).tolist()
        self.offset = np.cumsum([0, *(p.cells for p in self.pairs)])
        self.cells = int(self.offset[-1])
        few = all(1 <= n <= MOST_THINGS for n in sizes)
        self._made: dict[tuple[tuple[str, bytes], ...], bool] = {}
        self.sensible = few and 0 < self.known * self.cells <= MOST_EVIDENCE

    def vectors(self) -> list[Step]:
        """Return the vectors by which two or more things reappear in their outputs, most frequent first."""
        count: Counter[Step] = Counter()
        for pair in self.pairs:
            count.update(pair.vectors())
        best = sorted(count, key=lambda v: (-count[v], abs(v[0]) + abs(v[1]), v))
        return [v for v in best if count[v] > 1][:10]

    def colours(self) -> list[int]:
        """Return the colours of changed training cells, those of the most pairs first, at most `MOST_COLOURS`.

        Those that every pair has are all among them.
        """
        count: Counter[int] = Counter()
        for pair in self.pairs:
            count.update(set(pair.output[pair.number >= 0].tolist()))
        ranked = sorted(count, key=lambda c: (-count[c], c))
        return sorted(c for n, c in enumerate(ranked) if count[c] == len(self.pairs) or n < MOST_COLOURS)

    def attempt(self, action: Action, o: int) -> Numbers | None:
        """Return the changed cells that an action of training thing `o` explains, None if it paints a cell wrongly."""
        at = int(self.owner[o])
        found = self.pairs[at].drawn(action, int(self.within[o]))
        return None if found is None else found + self.offset[at]

    def by_colour(self) -> Iterator[Split]:
        """Yield the partitions by which things may have cells drawn around them."""
        yield Split("", 0.0, np.zeros(len(self.owner), dtype=np.int64))
        codes, keys = dense(np.array([t.colour for s in self.relations for t in s.things], dtype=np.int64))
        if 1 < keys <= MOST_VALUES:
            yield Split("its colour", 1.2, codes)

    def splits(self) -> Iterator[Split]:
        """Yield the partitions of the things by their properties, each once, plain ones first."""
        yield Split("", 0.0, np.zeros(len(self.owner), dtype=np.int64))
        names = (*PROPERTIES, *REPEATS, *RELATED)
        values = {name: [s.measure(self.kind, name) for s in self.scenes] for name in names}
        seen = set()
        for name, cost, numbers in _partitions(values, self.known):
            codes, keys = dense(numbers.astype(np.int64))
            if 1 < keys <= MOST_VALUES and codes.tobytes() not in seen:
                seen.add(codes.tobytes())
                yield Split(name, cost, codes, _in_words(numbers))
        odd = np.concatenate([np.arange(len(s.things)) == odd_one_out(s.scene, self.kind) for s in self.relations])
        codes, keys = dense(odd.astype(np.int64))
        if keys == 2 and codes.tobytes() not in seen:
            seen.add(codes.tobytes())
            yield Split("whether it is the odd one out", 1.3, codes, _in_words(odd))
        for name in FORMS:
            codes, keys = dense(np.concatenate([s.measure(self.kind, name) for s in self.scenes]))
            if 1 < keys <= MOST_VALUES and codes.tobytes() not in seen:
                seen.add(codes.tobytes())
                yield Split(f"its {name}", 1.3, codes, [f"number {n + 1}" for n in range(keys)])

    def surroundings(self, mine: Flags) -> Action | None:
        """Return the action of drawing the cells that look the same around three or more things of one size."""
        who = [(int(self.owner[o]), self.relations[self.owner[o]].things[self.within[o]]) for o in np.flatnonzero(mine)]
        if len(who) < 3 or len({t.mask.shape for _, t in who}) != 1:
            return None
        after, fresh = [], []
        for at, t in who:
            box = np.s_[t.top : t.top + t.height + 2 * REACH, t.left : t.left + t.width + 2 * REACH]
            after.append(np.pad(self.outputs[at].astype(np.int64), REACH, constant_values=-1)[box])
            fresh.append(np.pad(self.pairs[at].number, REACH, constant_values=-1)[box] >= 0)
        windows, colours = np.array(after), np.array([t.colour for _, t in who])[:, None, None]
        visible, commonest = windows >= 0, windows.max(axis=0)
        enough = np.any(fresh, axis=0) & (visible.sum(axis=0) >= 2)
        same = enough & ((windows == commonest) | ~visible).all(axis=0)
        own = enough & ((windows == colours) | ~visible).all(axis=0) & bool((colours != colours[0]).any())
        r, c = np.nonzero(same | own)
        if not len(r):
            return None
        paint = partial(surrounded, r - REACH, c - REACH, np.where(own, -1, commonest)[r, c])
        return Action(AROUND.format(len(r)), 0.8 + ENTRY * len(r), paint)

    def after(self, at: int, parts: Sequence[tuple[Flags, Action]]) -> Grid:
        """Return grid number `at` after the things marked in each part take its action, erasures first."""
        grid = self.scenes[at].grid.copy()
        for marked, action in sorted(parts, key=lambda p: p[1] is not ERASED):
            for o in np.flatnonzero(marked & (self.owner == at)):
                made = on_grid(action.draw(self.relations[at], int(self.within[o])), grid.shape)
                if made is not None:
                    grid[made[0], made[1]] = made[2]
        return grid

    def makes_outputs(self, parts: Sequence[tuple[Flags, Action]]) -> bool:
        """Return whether every training output follows if the things marked in each part take its action.

        Many partitions mark the same training things; what they do is drawn once. Actions of one name are one action,
        but for those of cells drawn around things.
        """
        if any(isinstance(action.draw, partial) and action.draw.func is surrounded for _, action in parts):
            return self._makes_outputs(parts)
        key = tuple((action.name, marked[: self.known].tobytes()) for marked, action in parts)
        if key not in self._made:
            self._made[key] = self._makes_outputs(parts)
        return self._made[key]

    def _makes_outputs(self, parts: Sequence[tuple[Flags, Action]]) -> bool:
        return all(np.array_equal(self.after(at, parts), wanted) for at, wanted in enumerate(self.outputs))


def _in_words(numbers: Numbers) -> list[str]:
    """Return what stands for each code of some numbers, as `dense` counts them."""
    present = dict.fromkeys(numbers.tolist())
    return [("yes" if n else "no") if numbers.dtype == bool else str(n) for n in present]


def _partitions(values: dict[str, list[Numbers]], known: int) -> Iterator[tuple[str, float, Numbers]]:
    """Yield ways to partition things: the name, the cost, and a number for each thing of all grids."""
    for name, parts in values.items():
        yield f"its {name}", 1.2, np.concatenate(parts)
    for name, parts in values.items():
        yield f"whether it is one {words_for(name, 'most')}", 1.3, np.concatenate([p == p.max() for p in parts])
        yield f"whether it is one {words_for(name, 'least')}", 1.3, np.concatenate([p == p.min() for p in parts])
    for name, parts in values.items():
        for sign, end in ((-1, "highest first"), (1, "lowest first")):
            ranks = [np.minimum(np.unique(sign * p, return_inverse=True)[1], 4) for p in parts]
            yield f"its rank by {name}, {end}", 1.4, np.concatenate(ranks)
    for name, parts in values.items():
        joint = np.concatenate(parts)
        present = np.unique(joint[:known])
        if 2 < len(present) <= 12:
            for v in present:
                yield f"whether its {name} is {v}", 1.5, joint == v


def surrounded(rows: Numbers, columns: Numbers, colours: Numbers, s: Relations, i: int) -> Strokes:
    """Paint cells at fixed places around a thing; its own colour where the given colour is negative."""
    t = s.things[i]
    return rows + t.top, columns + t.left, np.where(colours < 0, t.colour, colours)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Actions, which training things could have taken each, and which changed cells each of those explains."""

    useful: list[Action]
    right: Flags
    explained: Flags

    @property
    def whole(self) -> bool:
        """Whether some action explains every changed cell."""
        return bool(len(self.useful) and self.explained.any(axis=(0, 1)).all())


def _evidence(task: ObjectTask) -> _Evidence:
    """Return what the training things could have done, of the actions that explain something.

    The first two grids are looked at first, before the others that with fewer things: if something in it is left
    unexplained, nothing is learned, and the others need not be looked at.
    """
    nothing = _Evidence([], np.ones((0, task.known), dtype=bool), np.zeros((0, task.known, task.cells), dtype=bool))
    every = [ERASED, *actions(task.scenes, task.colours(), task.vectors())]
    table = Table(every)
    tries: dict[int, Tries] = {}
    first = sorted(range(min(2, len(task.pairs))), key=lambda at: len(task.relations[at].things))
    for at in [*first, *range(len(first), len(task.pairs))]:
        tries[at] = task.pairs[at].tried(table, every)
        if at in first and len(np.unique(tries[at].cell)) < task.pairs[at].cells:
            return nothing
    chosen = np.unique(np.concatenate([tried.action for tried in tries.values()]))
    if not len(chosen):
        return nothing
    useful = [every[n] for n in chosen]
    right = np.ones((len(useful), task.known), dtype=bool)
    gain = np.zeros((len(useful), task.known, task.cells), dtype=bool)
    for at in range(len(task.pairs)):
        tried = tries[at].of(chosen)
        right[:, task.first[at] : task.first[at + 1]] = tried.able
        gain[tried.action, tried.thing + task.first[at], tried.cell + task.offset[at]] = True
    return _Evidence(useful, right, gain)


def object_programs(base: DerivedInput, outputs: Sequence[Grid], known: Scenes | None = None) -> list[Program]:
    """Return verified programs in which each thing of a derived input takes an action by one of its properties.

    Args:
        base: A derived input of the outputs' sizes.
        outputs: The training outputs.
        known: Scenes that others use too; what actions explain of them is worked out once.
    """
    scenes = (known or Scenes()).of(base.grids)
    found: list[Program] = []
    cuts: set[bytes] = set()
    for kind in CUTS[:CUTS_OF_DERIVED] if base.cost else CUTS:
        task = ObjectTask(scenes, outputs, kind)
        mark = b"".join(s.labels.tobytes() for s in task.relations)
        if mark not in cuts and task.sensible:
            cuts.add(mark)
            found += _learned(task, base)
    return found


def _learned(task: ObjectTask, base: DerivedInput) -> list[Program]:
    """Return the programs of one kind of thing."""
    evidence = _evidence(task)
    if not evidence.whole and not any(_made(task, base, split, evidence) for split in task.by_colour()):
        return []  # without a look at all properties, which would have to be measured
    found: list[Program] = []
    plain: list[Split] = []
    for split in task.splits():
        found += _made(task, base, split, evidence)
        plain.append(split)
        if len(found) >= MOST_PROGRAMS:
            break
    if not found and evidence.whole:
        for split in _both(plain, task.known, evidence):
            found += _made(task, base, split, evidence)
            if len(found) >= MOST_PROGRAMS:
                break
    return found


def _both(splits: Sequence[Split], known: int, evidence: _Evidence) -> Iterator[Split]:
    """Yield the partitions by whether things have one value of each of two others, plain ones first.

    Among those that have both must be every thing that alone explains some changed cell, and none that can do nothing.
    """
    explains: Flags = np.asarray(evidence.explained.any(axis=0))
    needed = (explains & (explains.sum(axis=0) == 1)).any(axis=1)
    able: Flags = np.asarray(evidence.right.any(axis=0))
    halves: dict[bytes, tuple[float, str, Flags]] = {}
    for split in splits:
        for v in range(int(split.codes.max()) + 1):
            marked = split.codes == v
            if marked[:known][needed].all() and not marked[:known].all():
                name = f"{split.name} ({split.values[v]})" if split.values else split.name
                halves.setdefault(marked.tobytes(), (split.cost, name, marked))
    ranked = sorted(halves.values(), key=lambda h: h[0])[:MOST_HALVES]
    seen = set()
    for n, (cost, name, marked) in enumerate(ranked):
        for other_cost, other_name, other in ranked[:n]:
            both = marked & other
            few = explains[both[:known]].any(axis=0).all() and able[both[:known]].all()
            if few and both.tobytes() not in seen and not (both == marked).all() and not (both == other).all():
                seen.add(both.tobytes())
                codes, _ = dense(both.astype(np.int64))
                yield Split(f"{other_name} and {name}", cost + other_cost, codes, double=True)


def _made(task: ObjectTask, base: DerivedInput, split: Split, evidence: _Evidence) -> list[Program]:
    """Return the programs of one partition of the things."""
    around = split.name in AROUND_BY
    if not (around or evidence.whole):
        return []
    parts, stack = _parts(task, split.codes[: task.known], evidence, around)
    plans = _plans(stack, np.array([a.cost for _, a in parts]))
    made = [_program(task, base, split, [parts[i] for i in plan]) for plan in plans]
    return [program for program in made if program]


def _parts(task: ObjectTask, codes: Numbers, evidence: _Evidence, around: bool) -> tuple[list[Part], Flags]:
    """Return per code the actions that all its things could have taken, and the changed cells that each explains."""
    parts: list[Part] = []
    masks = [np.zeros((0, task.cells), dtype=bool)]
    for v in range(int(codes.max()) + 1):
        mine = codes == v
        if not mine.any():
            continue
        for a in np.flatnonzero(evidence.right[:, mine].all(axis=1)) if evidence.useful else ():
            mask = evidence.explained[a][mine].any(axis=0)
            if mask.any():
                parts.append((v, evidence.useful[a]))
                masks.append(mask[None])
        action = task.surroundings(mine) if around else None
        if action:
            mask = np.zeros((1, task.cells), dtype=bool)
            for o in np.flatnonzero(mine):
                mask[0, task.attempt(action, int(o))] = True
            parts.append((v, action))
            masks.append(mask)
    return parts, np.concatenate(masks)


def _plans(stack: Flags, costs: npt.NDArray[np.float64]) -> list[list[int]]:
    """Choose rows that together explain all columns, greedily, and the same with one row exchanged for an equal one."""
    left = np.ones(stack.shape[1], dtype=bool)
    chosen: list[int] = []
    likes: list[list[int]] = []
    while left.any():
        new = (stack & left).sum(axis=1)
        order = np.lexsort((costs, -new))
        if not len(order) or not new[order[0]]:
            return []
        best = int(order[0])
        like = (stack & left == stack[best] & left).all(axis=1)
        likes.append([int(i) for i in order if like[i] and i != best][:5])
        chosen.append(best)
        left &= ~stack[best]
    return [chosen, *([*chosen[:n], i, *chosen[n + 1 :]] for n, like in enumerate(likes) for i in like)]


def _program(task: ObjectTask, base: DerivedInput, split: Split, chosen: list[Part]) -> Program | None:
    """Make the program of a plan; None if it is wrong on a training cell or answers no test."""
    marked = [(split.codes == v, action) for v, action in chosen]
    if not task.makes_outputs(marked):
        return None
    seen = np.unique(split.codes[: task.known])
    grids: list[Grid | None] = []
    for at in range(len(task.outputs), len(task.scenes)):
        known = np.isin(split.codes[task.owner == at], seen).all()
        grids.append(task.after(at, marked) if known else None)
    if all(g is None for g in grids):
        return None
    taken = {action.name: action.cost for _, action in chosen}
    who = f"each {KINDS[task.kind]}" + (f", by {split.name}," if split.name else "")
    why = ("" if base.cost == 0 else f"{base.name}, then ") + f"{who} {'; '.join(taken)}"
    cost = base.cost + split.cost + sum(taken.values()) + 0.5 + ENTRY * (len(seen) + len(chosen))
    cost += 0.2 * (task.kind in ("joined", "solid"))
    kind = "things by two properties" if split.double else "things by property" if split.name else "things"
    return Program(why, cost, kind, tuple(grids))
