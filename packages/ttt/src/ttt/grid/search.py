"""The exact search: programs that are right on every training cell, cheapest first; knows nothing of the learners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ttt.grid.answers import Candidate, Grid
from ttt.grid.columns import cells_of, telling
from ttt.grid.images import Group, Image, groups_of
from ttt.grid.lenses import Restated, restated
from ttt.grid.object_rules import object_programs
from ttt.grid.rules import Program, Rules
from ttt.grid.work import Work

GROUPS = 3
"""Size groups that rules are looked for in, cheapest first."""


@dataclass(slots=True)
class Found:
    """What the search knows so far.

    Args:
        programs: Verified programs, in no order.
        groups: Groups of images by implied output sizes, likeliest first.
    """

    programs: list[Program] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


STAGES = 4
"""Views of the input whose things are let act where nothing else fits."""
LENS_BASES = 130
"""Views of a restated task that are looked at again; most of what restating adds is one view deep."""


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
    pairs = len(outputs)
    for groups in groups_of(inputs, outputs, work):
        found.groups = groups
        programs = [
            Program(image.name, image.cost, "view", image.grids[pairs:])
            for group in groups
            for image in group.images
            if all(np.array_equal(a, b) for a, b in zip(image.grids, outputs, strict=False))
        ]
        found.programs = programs
        yield found
    for group in found.groups[:GROUPS]:
        if work.over:
            return
        found.programs = found.programs + _programs(group, inputs, outputs, seed, work, bool(found.programs))
        yield found
    for base in _stages(found.groups, outputs):
        if work.over or (base.cost and found.programs):
            return
        found.programs = found.programs + object_programs(base, outputs)
        work.spend(3)
        yield found
    if found.programs:
        return
    for lens in restated(inputs, outputs):
        groups = list(groups_of(lens.inputs, lens.outputs, work, LENS_BASES))[-1]
        if work.over:
            return
        if groups:
            made = _programs(groups[0], lens.inputs, lens.outputs, seed, work, False)
            found.programs = found.programs + [_seen_back(p, lens) for p in made]
            yield found


def _stages(groups: Sequence[Group], outputs: Sequence[Grid]) -> Iterator[Image]:
    """Where things are let act: the input if it has the outputs' sizes, then the views of it that tell most."""
    for group in groups[:1]:
        if not group.images[0].cost:
            yield group.images[0]
            yield from [i for i in telling(group, outputs, STAGES + 1) if i.cost][:STAGES]


def _seen_back(program: Program, lens: Restated) -> Program:
    """A program of a restated task as one of the task."""
    grids = tuple(None if g is None else undo(g) for g, undo in zip(program.grids, lens.undo, strict=True))
    return Program(f"with {lens.name}: {program.why}", program.cost + lens.cost, program.kind, grids)


def _programs(
    group: Group, inputs: Sequence[Grid], outputs: Sequence[Grid], seed: int, work: Work, solved: bool
) -> list[Program]:
    """Verified rules over one group; the widest kind only if nothing else fits."""
    cells = cells_of(group, inputs, outputs)
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


def votes(programs: Sequence[Program], tests: int, warmth: float = 1.0) -> list[list[tuple[float, Program, Grid]]]:
    """Per test the distinct outputs with their summed weight and their cheapest program, heaviest first."""
    result = []
    for t in range(tests):
        by_grid: dict[bytes, tuple[float, Program, Grid]] = {}
        for p in sorted(programs, key=lambda p: p.cost):
            grid = p.grids[t]
            if grid is None:
                continue
            key = bytes(grid.shape) + grid.tobytes()
            weight = math.exp(-p.cost / warmth)
            old = by_grid.get(key)
            by_grid[key] = (weight, p, grid) if old is None else (old[0] + weight, old[1], old[2])
        result.append(sorted(by_grid.values(), key=lambda v: -v[0]))
    return result


def candidates(found: Found, tests: int) -> list[list[Candidate]]:
    """The search's answers per test, best first, with the program in words."""
    result = []
    for ranked in votes(found.programs, tests):
        total = sum(w for w, _, _ in ranked) or 1.0
        result.append(
            [
                Candidate(g, belief(p) * (0.4 * w / total if i else 0.6 + 0.4 * w / total), "search", p.why)
                for i, (w, p, g) in enumerate(ranked[:6])
            ]
        )
    return result


def belief(program: Program) -> float:
    """Chance that a program of this kind is right, from tasks that it was not written for."""
    return {
        "view": 0.92,
        "table 1": 0.93,
        "choice 1": 0.75,
        "table 2": 0.75,
        "choice 2": 0.55,
        "table 3": 0.5,
        "things": 0.9,
        "things by property": 0.8,
    }[program.kind]
