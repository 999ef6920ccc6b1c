"""The default solver: the stages before the net, in a process of their own if wanted, then the net."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ttt._grid.candidates import CandidatePool, SearchState, spare_grids, trusted
from ttt._grid.work import Work
from ttt._runs.child import Spent, in_child
from ttt.values import MAX_SIDE, Grid, Progress

STAGES = ("search", "restated", "trees", "net")
NET_STEPS = 600
"""Steps of the net where no work budget is given."""
SEARCH_UNITS, RESTATED_UNITS, TREE_UNITS = 90, 150, 70
"""Typical spending of the first stages, for the fraction that is done."""


def solve(  # long because more than half of it is documentation
    train: Sequence[tuple[Grid, Grid]],
    tests: Sequence[Grid],
    *,
    seed: int,
    stop: Callable[[], bool],
    steps: int | None = None,
    stages: Sequence[str] = STAGES,
    seconds_left: Callable[[], float] | None = None,
    spent: Spent | None = None,
) -> Iterator[Progress]:
    """Solve one ARC task, yielding better answers as they are found.

    With `steps` the result depends on the task, the seed and the steps alone, whatever the machine's speed.

    Example:
        >>> from ttt.backends.grid import solve
        >>> answers = solve([(one, two)], [one], seed=0, stop=lambda: False, steps=20, stages=("search",))
        >>> list(answers)[-1].stage
        'done'

    Args:
        train: Pairs of input and output, 2-D uint8 arrays of colours 0..9.
        tests: Test inputs.
        seed: Of all randomness.
        stop: Called between pieces of work of at most a few seconds; true ends the work.
        steps: Work units to spend, about 0.05 s each on a 2020s core; None for the default amount.
        stages: Which of "search", "restated", "trees", "net" take part.
        seconds_left: Returns the seconds until `stop` will be true; the net's learning rate falls over them. Not used
            where `steps` is given.
        spent: Called with what the process of the stages before the net takes. Without it they run in this process;
            with it they run in one of their own where that saves memory, so that their libraries and PyTorch are never
            in memory together.

    Yields:
        Progress with two distinct candidates per test; the first one at once.

    Raises:
        ValueError: On an unknown stage, no training pair, or a grid that is not 2-D with colours 0..9.
    """
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise ValueError(f"got stages {sorted(unknown)}, wanted some of {STAGES}")
    if not train:
        raise ValueError("got no training pair, wanted at least one")
    inputs = [_checked(a) for a, _ in train] + [_checked(a) for a in tests]
    outputs = [_checked(b) for _, b in train]
    work = Work(stop, steps, seconds_left if steps is None else None)
    expected = (
        SEARCH_UNITS
        + RESTATED_UNITS * ("restated" in stages)
        + TREE_UNITS * ("trees" in stages)
        + NET_STEPS * ("net" in stages)
    )
    pool = CandidatePool(len(tests))
    spare = spare_grids(inputs, outputs, [])

    def progress(stage: str, done: bool = False) -> Progress:
        share = 1.0 if done else min(0.99, work.done / (steps or expected))
        return Progress(pool.answers(spare), stage, work.done, share)

    yield progress("search")
    if work.over:
        return
    state = None
    for state in _search_and_trees(inputs, outputs, seed, steps, stages, stop, spent):
        pool, spare, work.done = state.pool, state.spare, state.steps_done
        yield progress(state.stage)
    if state is not None and state.encoding is not None and not work.over:
        # Imported here: PyTorch is loaded only for tasks that come this far.
        from ttt._grid.learners import net
        from ttt._grid.learners.release_memory import release_file_pages

        release_file_pages()
        before = pool
        for verdict in net.train(state.encoding, seed, work, NET_STEPS if work.left is None else work.left):
            pool = before.with_stage(trusted(net.candidates(verdict), state.trust))
            yield progress("net")
    yield progress("done", done=True)


def _checked(grid: Grid) -> Grid:
    array = np.asarray(grid)
    if array.ndim != 2 or not array.size or max(array.shape) > MAX_SIDE or array.min() < 0 or array.max() > 9:
        raise ValueError(f"got a grid of shape {array.shape}, wanted 2-D, 1 to {MAX_SIDE} a side, colours 0..9")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _search_and_trees(
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    steps: int | None,
    stages: Sequence[str],
    stop: Callable[[], bool],
    spent: Spent | None,
) -> Iterator[SearchState]:
    """Run the stages before the net, here or in a process of their own."""
    # Where the search is loaded already a second process saves nothing, and would miss what a user has registered.
    if spent is None or "ttt._grid.scene" in sys.modules:
        from ttt._grid.before_net import before_net

        yield from before_net(inputs, outputs, seed, steps, stages, stop)
    else:
        yield from in_child("ttt._grid.before_net:before_net", (inputs, outputs, seed, steps, stages), stop, spent)
