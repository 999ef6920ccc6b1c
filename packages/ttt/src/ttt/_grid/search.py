"""The exact search: programs that are right on every training cell, cheapest first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ttt._grid.cell_rules import Program, Rules
from ttt._grid.compose.compositions import Composition, Compositions, compositions
from ttt._grid.compose.rows import Limits
from ttt._grid.counted import programs_by_count
from ttt._grid.derived import DerivedInput, Group, by_cost, groups_of
from ttt._grid.drawing.programs import drawn
from ttt._grid.features.columns import cells_of, most_informative
from ttt._grid.objects.rules import object_programs
from ttt._grid.restating import Restated, restated
from ttt._grid.scene import Scenes
from ttt._grid.size_guess import guessed_groups, sizes_by_rule
from ttt._grid.work import Work
from ttt.values import Candidate, Grid

GROUPS = 3
"""How many size groups are searched for rules, cheapest first."""
OBJECT_RULE_INPUTS = 4
"""How many derived inputs the object rules are tried on when no other rule fits."""
COMPOSED_INPUTS = 960
"""How many compositions of a size group the rules may look at."""
COMPOSING = 5
"""Work units for composing transformations of the task."""
COMPOSING_IN_FULL = 25
"""Work units for composing them once more where the search is not sure: nearly all tasks then reach the dearest."""
COMPOSING_RESTATED = 2
"""Work units for composing transformations of each restated task."""
SHORT_COMPOSITION = 2.5
"""With a composition of at most this cost nothing else is tried. Longer ones were right in 1 of 3 develop tasks."""
LIKELY_COST = 7.0
"""The search goes on behind dearer programs. Of 60 develop tasks, the cheapest program was right in 31 of 34 where it
cost at most this, and in 6 of 12 where it cost more."""
PER_UNIT = 20_000_000
"""Work units of the compositional search in one of the solver's."""
EXPLAINED_COST = 10.0
"""Tables of three columns are tried beside dearer programs: of 20 layers that cost more, 2 were right."""
IN_FULL_TRUST = 0.3
"""Factor of the confidence of layers found by the compositions in full: of 2 on 27 develop tasks 1 was right."""
GUESSED_SIZE = 0.3
"""Factor of the confidence where the size of the output is a guess."""


@dataclass(slots=True)
class Found:
    """What the search has found so far.

    Args:
        programs: Verified programs, in no order.
        groups: Groups of derived inputs by implied output sizes, likeliest first.
        scenes: The inputs and what was computed from them.
    """

    programs: list[Program] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    scenes: Scenes = field(default_factory=Scenes)


def search(inputs: Sequence[Grid], outputs: Sequence[Grid], seed: int, work: Work) -> Iterator[Found]:
    """Look for programs until nothing more is tried.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: Decides which cells rules are screened on.
        work: Counts work and says when to stop.

    Yields:
        The same `Found`, fuller each time.
    """
    found = Found()
    for found in search_as_given(inputs, outputs, seed, work):
        yield found
    if work.over or _settled(found.programs):
        return
    for restatement in restated(inputs, outputs):
        if work.over:
            return
        found.programs = found.programs + _restated_programs(restatement, seed, work)
        yield found


def search_as_given(
    inputs: Sequence[Grid], outputs: Sequence[Grid], seed: int, work: Work, short: float = SHORT_COMPOSITION
) -> Iterator[Found]:
    """Look for programs without restating the task; arguments and results as of `search`.

    With a composition that costs at most `short` nothing else is tried.
    """
    found = Found()
    composed = _composed(inputs, outputs, work, COMPOSING)
    found.programs = _programs_of(composed, len(outputs))
    found.groups = _with_composed([], composed)
    yield found
    if work.over or _settled(found.programs, short):
        return
    for derived in groups_of(inputs, outputs, work, bases=1):
        found.groups = _with_composed(derived, composed)
    found.groups = _with_members(found.groups, drawn(inputs, outputs, found.scenes), len(outputs))
    work.spend(2)
    found.programs = found.programs + transform_programs(found.groups, outputs)
    found.programs = found.programs + programs_by_count(inputs, outputs, found.scenes)
    yield found
    if not found.groups:
        found.groups = guessed_groups(inputs, outputs)
        yield found
    for n, group in enumerate(found.groups[:GROUPS]):
        if work.over:
            return
        known = None if n else found.scenes
        made = cell_programs(group, inputs, outputs, seed, work, _explained(found.programs), known)
        found.programs = found.programs + [replace(p, trust=GUESSED_SIZE) if group.guessed else p for p in made]
        yield found
    for base in _object_rule_inputs(found.groups, outputs):
        if work.over or (base.cost and _settled(found.programs)):
            return
        found.programs = found.programs + object_programs(base, outputs, None if base.cost else found.scenes)
        work.spend(3)
        yield found


def _settled(programs: Sequence[Program], cost: float = LIKELY_COST) -> bool:
    """Return whether a program is cheap enough to stop at; one that rests on a guessed size never is."""
    return any(p.cost <= cost and p.trust == 1.0 for p in programs)


def _explained(programs: Sequence[Program]) -> bool:
    """Return whether a program is cheap enough to be no accident."""
    return any(p.cost <= EXPLAINED_COST for p in programs)


def _composed(inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work, units: int) -> Compositions:
    """Compose transformations, within some work units."""
    units = units if work.left is None else min(units, work.left)
    sizes = sizes_by_rule(inputs, outputs)
    limits = Limits(work=units * PER_UNIT)
    made = compositions(inputs, outputs, limits, lambda: work.over, COMPOSED_INPUTS, sizes=sizes)
    work.spend(units)
    return made


def _programs_of(composed: Compositions, pairs: int) -> list[Program]:
    """Return the compositions, and layers of them, that make every training output."""

    def program(made: Composition, kind: str) -> Program:
        return Program(made.words, made.cost, kind, made.grids[pairs:])

    return [program(c, "composed") for c in composed.exact] + [program(c, "layered") for c in composed.layered]


def compositions_in_full(inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work) -> list[Program]:
    """Return the compositions that make every training output, for more work than the search takes.

    Of the layers only those that are cheap enough to be no accident are kept, and they claim little.
    """
    composed = _composed(inputs, outputs, work, COMPOSING_IN_FULL)
    exact = _programs_of(Compositions(exact=composed.exact), len(outputs))
    layered = [c for c in composed.layered if c.cost <= EXPLAINED_COST]
    programs = _programs_of(Compositions(layered=layered), len(outputs))
    return exact + [replace(p, trust=IN_FULL_TRUST) for p in programs]


def _with_composed(groups: Sequence[Group], composed: Compositions) -> list[Group]:
    """Return the groups with the compositions of their sizes as further members."""
    by_sizes = {g.sizes: Group(g.sizes, list(g.members)) for g in groups}
    for sizes, made in composed.groups.items():
        group = by_sizes.setdefault(sizes, Group(sizes))
        known = {m.key for m in group.members}
        members = [DerivedInput(c.words, c.cost, c.grids) for c in made]
        group.members += [m for m in members if m.key not in known]
    return by_cost(by_sizes)


def _with_members(groups: Sequence[Group], more: Sequence[DerivedInput], pairs: int) -> list[Group]:
    """Return the groups with more derived inputs, each in the group of its sizes."""
    by_sizes = {g.sizes: Group(g.sizes, list(g.members)) for g in groups}
    for made in more:
        sizes = tuple(g.shape for g in made.grids[pairs:])
        group = by_sizes.setdefault(sizes, Group(sizes))
        if made.key not in {m.key for m in group.members}:
            group.members.append(made)
    return by_cost(by_sizes)


def _restated_programs(restatement: Restated, seed: int, work: Work) -> list[Program]:
    """Return the programs of a restated task, as programs of the task."""
    inputs, outputs = restatement.inputs, restatement.outputs
    composed = _composed(inputs, outputs, work, COMPOSING_RESTATED)
    programs = _programs_of(composed, len(outputs))
    if not composed.exact:
        groups = _with_composed(list(groups_of(inputs, outputs, work, bases=1))[-1], composed)
        if groups and not work.over:
            programs += cell_programs(groups[0], inputs, outputs, seed, work, _explained(programs))
    return [undone(p, restatement) for p in programs]


def transform_programs(groups: Sequence[Group], outputs: Sequence[Grid]) -> list[Program]:
    """Return the derived inputs that are the outputs as they are."""
    return [
        Program(m.name, m.cost, "transform", m.grids[len(outputs) :])
        for group in groups
        for m in group.members
        if all(np.array_equal(a, b) for a, b in zip(m.grids, outputs, strict=False))
    ]


def _object_rule_inputs(groups: Sequence[Group], outputs: Sequence[Grid]) -> Iterator[DerivedInput]:
    """Yield the inputs for the object rules: the input itself if sizes match, then its most informative transforms.

    Where outputs have other sizes, those of the two likeliest sizes.
    """
    for group in groups[:2]:
        as_given = not group.members[0].cost
        if as_given:
            yield group.members[0]
        ranked = most_informative(group, outputs, OBJECT_RULE_INPUTS + 1)
        yield from [m for m in ranked if m.cost][: OBJECT_RULE_INPUTS if as_given else OBJECT_RULE_INPUTS - 1]
        if as_given:
            return


def undone(program: Program, restatement: Restated) -> Program:
    """Return a program of a restated task as one of the task."""
    grids = tuple(None if g is None else undo(g) for g, undo in zip(program.grids, restatement.undo, strict=True))
    why = f"with {restatement.name}: {program.why}"
    return Program(why, program.cost + restatement.cost, program.kind, grids)


def cell_programs(
    group: Group,
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    work: Work,
    solved: bool,
    known: Scenes | None = None,
) -> list[Program]:
    """Return verified rules over one group; tables of three columns only if nothing else fits."""
    cells = cells_of(group, inputs, outputs, known)
    work.spend(4)
    if not cells.columns:
        return []
    rules = Rules(cells, len(outputs), np.random.default_rng(seed))
    here: list[Program] = []
    kinds: list[Callable[[], list[Program]]] = [
        rules.plain,
        partial(rules.tables, 1),
        partial(rules.choices, 1),
        partial(rules.tables, 2),
        partial(rules.choices, 2),
    ]
    for make in kinds:
        if work.over:
            return here
        here += make()
        work.spend(2)
    if not here and not solved:
        here += rules.tables(3)
    return here


def votes(programs: Sequence[Program], tests: int) -> list[list[tuple[float, Program, Grid]]]:
    """Return per test the distinct outputs with their summed weight and their cheapest program, heaviest first."""
    result = []
    for t in range(tests):
        by_grid: dict[bytes, tuple[float, Program, Grid]] = {}
        for p in sorted(programs, key=lambda p: p.cost):
            grid = p.grids[t]
            if grid is None:
                continue
            key = bytes(grid.shape) + grid.tobytes()
            weight = p.trust * math.exp(-p.cost)
            old = by_grid.get(key)
            if old is None:
                by_grid[key] = (weight, p, grid)
            elif p.trust == 1.0:  # others rest on one guess, or on one pair left out: they do not add up
                by_grid[key] = (old[0] + weight, old[1], old[2])
        result.append(sorted(by_grid.values(), key=lambda v: -v[0]))
    return result


def candidates(programs: Sequence[Program], tests: int, stage: str = "search") -> list[list[Candidate]]:
    """Return the answers of programs per test, best first, with the program in words."""
    result = []
    for ranked in votes(programs, tests):
        total = sum(w for w, _, _ in ranked) or 1.0
        result.append(
            [
                Candidate(g, _belief(p) * (0.4 * w / total if i else 0.6 + 0.4 * w / total), stage, p.why)
                for i, (w, p, g) in enumerate(ranked[:6])
            ]
        )
    return result


def _belief(program: Program) -> float:
    """Return the chance that a program is right, by its kind, and by its cost where compositions are long."""
    most, belief = LONG.get(program.kind, (math.inf, 0.0))
    return program.trust * (belief if program.cost > most else BELIEF[program.kind])


BELIEF = {
    "composed": 0.92,
    "layered": 0.6,  # 17 of the 28 develop tasks where layers were found; that of "composed" is the one of "transform"
    "transform": 0.92,
    "table 1": 0.93,
    "choice 1": 0.75,
    "table 2": 0.75,
    "choice 2": 0.55,
    "table 3": 0.5,
    "things": 0.9,
    "things by property": 0.8,
    "things by two properties": 0.4,
}
"""Chance that a program of a kind is right, measured on tasks that the kind was not written for."""
LONG = {"composed": (SHORT_COMPOSITION, 0.4), "layered": (10.0, 0.15)}
"""Cost above which a program of a kind claims less, and how much. Set by hand on a few develop tasks, not fitted."""
