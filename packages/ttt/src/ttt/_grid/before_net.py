"""The stages before the net, in order, ending with the task encoded for it; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ttt._grid.candidates import CandidatePool, SearchState, spare_grids, trusted
from ttt._grid.derived import Group, groups_of
from ttt._grid.features.columns import most_informative
from ttt._grid.growing.programs import growing_candidates
from ttt._grid.learners.encoding import TaskEncoding
from ttt._grid.one_error import search_with_one_error
from ttt._grid.restated_search import search_restated
from ttt._grid.search import GUESSED_SIZE, Found, candidates, search
from ttt._grid.size_guess import guessed_groups
from ttt._grid.work import Work
from ttt.values import Grid

ENOUGH = 0.8
"""The learners run unless the search has an answer of more confidence than this for every test."""
PLAIN = 1.5
"""Beside a sure answer by a program of at most this cost no other is looked for."""
BESIDE_SURE = 0.25
"""Factor of the confidence of what is found beside an answer that the search is sure of."""
NET_INPUTS = 4
"""How many derived inputs the net gets where the input has not the output's size."""


def before_net(
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    steps: int | None,
    stages: Sequence[str],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[SearchState]:
    """Search, grow, search restatements and run the trees where that is not sure, and encode the task for the net.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: Of all randomness.
        steps: Work units to spend, None for no limit.
        stages: Which of "search", "restated", "trees", "net" take part.
        stop: Called between pieces of work; true ends the work.

    Yields:
        The whole state, whenever there is more.
    """
    work = Work(stop, steps)
    tests = len(inputs) - len(outputs)
    pool, spare, found = CandidatePool(tests), spare_grids(inputs, outputs, []), Found()
    for found in search(inputs, outputs, seed, work) if "search" in stages else _sizes_only(inputs, outputs, work):
        spare = spare_grids(inputs, outputs, [g.sizes for g in found.groups])
        if "search" in stages:
            pool = CandidatePool(tests).with_stage(candidates(found.programs, tests))
        yield SearchState("search", pool, spare, work.done)
    yield SearchState("search", pool, spare, work.done)  # with the work after the last program
    if "search" in stages and not pool.sure(ENOUGH) and not work.over:
        found.programs = found.programs + search_with_one_error(inputs, outputs, found, seed, work)
        pool = CandidatePool(tests).with_stage(candidates(found.programs, tests))
        yield SearchState("search", pool, spare, work.done)
    sure = pool.sure(ENOUGH)
    # Where the search is sure it may still be wrong: a second answer is worth the time.
    settled = sure and (pool.twice() or min(p.cost for p in found.programs) <= PLAIN)
    if "restated" in stages and not settled and not work.over:
        before = pool if sure else pool.with_stage(growing_candidates(inputs, outputs, work, found.scenes))
        pool = before
        yield SearchState("restated", pool, spare, work.done)
        known = {p.why for p in found.programs}  # a program found once more is no second opinion
        for programs in search_restated(inputs, outputs, seed, work, to_the_end=sure):
            new = candidates([p for p in programs if p.why not in known], tests, "restated")
            pool = before.with_stage(trusted(new, BESIDE_SURE if sure else 1.0))
            yield SearchState("restated", pool, spare, work.done)
    if not found.groups or pool.sure(ENOUGH):
        return
    trust = GUESSED_SIZE if found.groups[0].guessed else 1.0
    if "trees" in stages and not work.over:
        # Imported here: most tasks end before, and scikit-learn takes a second to load.
        from ttt._grid.learners import trees

        before = pool
        for forecast in trees.trees(found.groups[0], inputs, outputs, seed, work):
            pool = before.with_stage(trusted(trees.candidates(forecast), trust))
            yield SearchState("trees", pool, spare, work.done)
        yield SearchState("trees", pool, spare, work.done)  # with the work of a stage that ended early
    if "net" in stages and not work.over:
        yield SearchState("net", pool, spare, work.done, _encoded(inputs, outputs, found.groups[0]), trust)


def _encoded(inputs: Sequence[Grid], outputs: Sequence[Grid], group: Group) -> TaskEncoding:
    """Encode a task for the net: the inputs, or the most informative transforms where the outputs have another size."""
    if all(a.shape == b.shape for a, b in zip(inputs, outputs, strict=False)):
        return TaskEncoding(inputs, outputs, None)
    shown, *more = (m.grids for m in most_informative(group, outputs, NET_INPUTS))
    return TaskEncoding(shown, outputs, list(zip(*more, strict=True)) or None)


def _sizes_only(inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work) -> Iterator[Found]:
    """Derive inputs without looking for programs: the learners need them."""
    for groups in groups_of(inputs, outputs, work):
        yield Found([], groups)
    if not groups:
        yield Found([], guessed_groups(inputs, outputs))
