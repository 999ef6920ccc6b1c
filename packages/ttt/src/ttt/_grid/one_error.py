"""Programs that are right on all training pairs but one, and nearly right on that: one pair may hold an error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ttt._grid.cell_rules import Program
from ttt._grid.derived import DerivedInput, Group, groups_of
from ttt._grid.objects.rules import object_programs
from ttt._grid.scene import Scenes
from ttt._grid.search import Found, cell_programs, transform_programs
from ttt._grid.work import Work
from ttt.values import Grid

FAILED_PAIR = 2.0
"""What a program costs more for a pair that it does not reproduce."""
UNITS_PER_PAIR = 5
"""Work units for each pair that is left out; it took 0.1 to 0.4 s where a unit is about 0.05 s."""
SIMPLE = 1.5
"""Derived inputs of at most this cost are looked at: longer ones fit three pairs and an error by chance."""
TRUST = 0.85
"""Factor of the confidence of such a program."""
WRONG_CELLS, WRONG_CHANGES = 0.03, 0.25
"""Share of a pair's cells, and of the cells that it changes, that may be wrong; one cell may be in any case."""


def search_with_one_error(
    inputs: Sequence[Grid], outputs: Sequence[Grid], found: Found, seed: int, work: Work
) -> list[Program]:
    """Search without each training pair in turn; keep the programs that nearly make the pair that was left out.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs, two or more.
        found: The result of the search on all pairs.
        seed: As in the search.
        work: Counts work and says when to stop.
    """
    pairs = len(outputs)
    if pairs < 2:
        return []
    inside = Work(lambda: work.over)
    best: list[Program] = []
    for out in range(pairs):
        if work.over:
            return best
        work.spend(UNITS_PER_PAIR)
        order = [*(i for i in range(pairs) if i != out), *range(pairs, len(inputs)), out]
        rest = [outputs[i] for i in order[: pairs - 1]]
        shown = [inputs[i] for i in order]
        simple = [_simple(g) for g in found.groups[:1] if not g.guessed]
        groups = [_reordered(g, order, pairs) for g in simple if g.members]
        if not groups:
            groups = list(groups_of(shown, rest, inside, bases=1))[-1]
        near = [
            Program(f"{p.why}; one training pair differs", p.cost + FAILED_PAIR, p.kind, p.grids[:-1], TRUST)
            for p in _programs(groups, shown, rest, seed, inside, found.scenes)
            if p.grids[-1] is not None and nearly(p.grids[-1], outputs[out], inputs[out])
        ]
        best = min(best, near, key=lambda found: min((p.cost for p in found), default=math.inf))
    return best


def _simple(group: Group) -> Group:
    """Return a group with the simple ones of its members."""
    return Group(group.sizes, [m for m in group.members if m.cost <= SIMPLE])


def _reordered(group: Group, order: Sequence[int], pairs: int) -> Group:
    """Return a group with its inputs in another order, in which fewer are training inputs."""
    members = [replace(m, grids=tuple(m.grids[i] for i in order)) for m in group.members]
    return Group(tuple(members[0].grids[i].shape for i in range(pairs - 1, len(order))), members)


def _programs(
    groups: list[Group], inputs: Sequence[Grid], outputs: Sequence[Grid], seed: int, work: Work, known: Scenes
) -> Iterator[Program]:
    """Yield programs of the plain kinds, the next kind only if the one before has none."""
    found = transform_programs(groups, outputs)
    yield from found
    if found or not groups:
        return
    found = cell_programs(groups[0], inputs, outputs, seed, work, True, known)
    yield from found
    base: DerivedInput = groups[0].members[0]
    if not found and not base.cost and not work.over:
        yield from object_programs(base, outputs, known)


def nearly(made: Grid, wanted: Grid, given: Grid) -> bool:
    """Return whether a program nearly makes an output.

    Args:
        made: The program's grid: it may be wrong in a few cells, or by one row or column at its edge.
        wanted: The output.
        given: The input. A program must make most of what the output changes in it.
    """
    if made.shape == wanted.shape:
        wrong = int((made != wanted).sum())
        changed = int((given != wanted).sum()) if given.shape == wanted.shape else wanted.size
        return wrong <= max(min(1, changed - 1), min(WRONG_CELLS * wanted.size, WRONG_CHANGES * changed))
    gap = abs(made.shape[0] - wanted.shape[0]) + abs(made.shape[1] - wanted.shape[1])
    h, w = min(made.shape[0], wanted.shape[0]), min(made.shape[1], wanted.shape[1])
    return gap == 1 and any(
        np.array_equal(_corner(made, h, w, at_end), _corner(wanted, h, w, at_end)) for at_end in (False, True)
    )


def _corner(grid: Grid, height: int, width: int, at_end: bool) -> Grid:
    return grid[-height:, -width:] if at_end else grid[:height, :width]
