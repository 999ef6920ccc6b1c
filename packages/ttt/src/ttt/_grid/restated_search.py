"""The search of a task's restatements: the stage between the search and the learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ttt._grid.cell_rules import Program
from ttt._grid.restating import FURTHER, restated
from ttt._grid.search import Found, compositions_in_full, search_as_given, undone
from ttt._grid.work import Work
from ttt.values import Grid

UNITS = 5
"""Work units for each restatement; its search took about 0.25 s where a unit is about 0.05 s."""
MOST_UNITS = 120
"""Work units, of those of the search, after which a restatement's search ends."""


def search_restated(
    inputs: Sequence[Grid], outputs: Sequence[Grid], seed: int, work: Work, to_the_end: bool = False
) -> Iterator[list[Program]]:
    """Compose more transformations of a task, then search every restatement of it as the search does the task itself.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: As in the search.
        work: Counts work and says when to stop.
        to_the_end: Whether to search the task as given once more, behind a short composition too.

    Yields:
        All programs so far, as programs of the task: after composing, if there are any, and after each restatement.
    """
    programs = [] if work.over else compositions_in_full(inputs, outputs, work)
    if programs:
        yield programs
    if to_the_end and not work.over:
        programs = programs + _programs(search_as_given(inputs, outputs, seed, _inside(work), short=0.0), work)
        yield programs
    for restatement in restated(inputs, outputs, FURTHER):
        if work.over:
            return
        found = search_as_given(restatement.inputs, restatement.outputs, seed, _inside(work))
        made = (undone(p, restatement) for p in _programs(found, work))
        programs = programs + [p for p in made if any(g is not None for g in p.grids)]
        yield programs


def _inside(work: Work) -> Work:
    return Work(lambda: work.over, MOST_UNITS)


def _programs(search: Iterator[Found], work: Work) -> list[Program]:
    """Return all programs of a search."""
    found: list[Program] = []
    for state in search:
        found = state.programs
    work.spend(UNITS)
    return found
