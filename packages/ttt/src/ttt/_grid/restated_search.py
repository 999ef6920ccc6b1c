"""The search of a task's restatements: the stage between the search and the learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ttt._grid.cell_rules import Program
from ttt._grid.growing.programs import growing_programs
from ttt._grid.restating import FURTHER, Restated, restated
from ttt._grid.scene import Scenes
from ttt._grid.search import Found, compositions_in_full, search_as_given, undone
from ttt._grid.work import Work
from ttt.values import Grid

UNITS = 5
"""Work units for each restatement; its search took about 0.25 s where a unit is about 0.05 s."""
MOST_UNITS = 120
"""Work units, of those of the search, after which a restatement's search ends."""


GROWN = ("colours ordered by frequency", "each input put into the top left of an empty grid of its output's size")
"""Restatements whose growing rules are learned, too."""


def search_restated(
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    work: Work,
    to_the_end: bool = False,
    known: Scenes | None = None,
) -> Iterator[list[Program]]:
    """Compose more transformations of a task, then search every restatement of it as the search does the task itself.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: As in the search.
        work: Counts work and says when to stop.
        to_the_end: Whether to search the task as given once more, behind a short composition too.
        known: Scenes of the inputs.

    Yields:
        All programs so far, as programs of the task: after composing and after growing, if there are any, and after
        each restatement.
    """
    programs = [] if work.over else compositions_in_full(inputs, outputs, work)
    if programs:
        yield programs
    further = restated(inputs, outputs, FURTHER)
    new = _grown(inputs, outputs, [r for r in further if r.name in GROWN], work, known)
    if new:
        programs = programs + new
        yield programs
    if to_the_end and not work.over:
        programs = programs + _programs(search_as_given(inputs, outputs, seed, _inside(work), short=0.0), work)
        yield programs
    for restatement in further:
        if work.over:
            return
        found = search_as_given(restatement.inputs, restatement.outputs, seed, _inside(work))
        programs = programs + _undone(_programs(found, work), restatement)
        yield programs


def _grown(
    inputs: Sequence[Grid], outputs: Sequence[Grid], further: Sequence[Restated], work: Work, known: Scenes | None
) -> list[Program]:
    """Return the programs of growing rules, of the task and of some restatements."""
    found = growing_programs(inputs, outputs, work, known)
    for restatement in further:
        grown = growing_programs(restatement.inputs, restatement.outputs, work)
        found += [replace(p, trust=q.trust) for q in grown for p in _undone([q], restatement)]
    return found


def _undone(programs: Sequence[Program], restatement: Restated) -> list[Program]:
    """Return programs of a restated task as those of the task, without the ones that answer no test."""
    made = (undone(p, restatement) for p in programs)
    return [p for p in made if any(g is not None for g in p.grids)]


def _inside(work: Work) -> Work:
    return Work(lambda: work.over, MOST_UNITS)


def _programs(search: Iterator[Found], work: Work) -> list[Program]:
    """Return all programs of a search."""
    found: list[Program] = []
    for state in search:
        found = state.programs
    work.spend(UNITS)
    return found
