"""The search of a task's restatements: the stage between the search and the learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ttt._grid.cell_rules import Program
from ttt._grid.restating import FURTHER, Restated, restated
from ttt._grid.search import compositions_in_full, search_as_given, undone
from ttt._grid.work import Work
from ttt.values import Grid

UNITS = 5
"""Work units for each restatement; its search took about 0.25 s where a unit is about 0.05 s."""
MOST_UNITS = 120
"""Work units, of those of the search, after which a restatement's search ends."""


def search_restated(inputs: Sequence[Grid], outputs: Sequence[Grid], seed: int, work: Work) -> Iterator[list[Program]]:
    """Compose more transformations of a task, then search every restatement of it as the search does the task itself.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: As in the search.
        work: Counts work and says when to stop.

    Yields:
        All programs so far, as programs of the task: after composing, if there are any, and after each restatement.
    """
    programs = [] if work.over else compositions_in_full(inputs, outputs, work)
    if programs:
        yield programs
    for restatement in restated(inputs, outputs, FURTHER):
        if work.over:
            return
        programs = programs + _programs(restatement, seed, work)
        yield programs


def _programs(restatement: Restated, seed: int, work: Work) -> list[Program]:
    """Return the programs of a restatement, as programs of the task."""
    inside = Work(lambda: work.over, MOST_UNITS)
    found: list[Program] = []
    for state in search_as_given(restatement.inputs, restatement.outputs, seed, inside):
        found = state.programs
    work.spend(UNITS)
    made = (undone(p, restatement) for p in found)
    return [p for p in made if any(g is not None for g in p.grids)]
