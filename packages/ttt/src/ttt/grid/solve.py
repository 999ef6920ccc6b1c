"""The three stages in order, the first two in a process of their own if wanted; knows nothing of files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ttt.apart import Spent, apart
from ttt.grid.answers import LARGEST, Grid, Progress
from ttt.grid.ballot import Ballot, Opening, spare_grids
from ttt.grid.work import Work

STAGES = ("search", "trees", "net")
NET_STEPS = 600
"""Steps of the net where no work budget is given."""
SEARCH_UNITS, TREE_UNITS = 90, 70
"""About what the first stages spend; used for the fraction that is done."""


def solve(
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

    Args:
        train: Pairs of input and output, 2-D uint8 arrays of colours 0..9.
        tests: Test inputs.
        seed: Of all randomness.
        stop: Asked between pieces of work (at most a few seconds apart); true ends the work.
        steps: Work units to spend, about 0.05 s each on a 2020s core; None for the default amount.
        stages: Which of "search", "trees", "net" take part.
        seconds_left: Seconds until `stop` will be true, so that the net's learning rate ends in time; not used where
            `steps` is given.
        spent: If given, what comes before the net runs in a process of its own where that saves memory, and this is
            told what that process takes. Its libraries and PyTorch are then never in memory together.

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
    expected = SEARCH_UNITS + TREE_UNITS * ("trees" in stages) + NET_STEPS * ("net" in stages)
    ballot = Ballot(len(tests))
    spare = spare_grids(inputs, outputs, [])

    def progress(stage: str, done: bool = False) -> Progress:
        share = 1.0 if done else min(0.99, work.done / (steps or expected))
        return Progress(ballot.answers(spare), stage, work.done, share)

    yield progress("search")
    if work.over:
        return
    deck = None
    for known in _opened(inputs, outputs, seed, steps, stages, stop, spent):
        ballot, spare, deck, work.done = known.ballot, known.spare, known.deck, known.steps_done
        yield progress(known.stage)
    if deck is not None and not work.over:
        from ttt.grid import net  # PyTorch is loaded here, and only for tasks that come this far
        from ttt.grid.pages import release_file_pages

        release_file_pages()
        before = ballot
        for verdict in net.train(deck, seed, work, NET_STEPS if work.left is None else work.left):
            ballot = before.with_stage(net.candidates(verdict))
            yield progress("net")
    yield progress("done", done=True)


def _checked(grid: Grid) -> Grid:
    array = np.asarray(grid)
    if array.ndim != 2 or not array.size or max(array.shape) > LARGEST or array.min() < 0 or array.max() > 9:
        raise ValueError(f"got a grid of shape {array.shape}, wanted 2-D, 1 to {LARGEST} a side, colours 0..9")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _opened(
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    steps: int | None,
    stages: Sequence[str],
    stop: Callable[[], bool],
    spent: Spent | None,
) -> Iterator[Opening]:
    """The stages before the net, here or in a process of their own."""
    # Where the search is loaded already nothing would be saved, and its registries may hold more than a fresh one's.
    if spent is None or "ttt.grid.scene" in sys.modules:
        from ttt.grid.opening import opening

        yield from opening(inputs, outputs, seed, steps, stages, stop)
    else:
        yield from apart("ttt.grid.opening:opening", (inputs, outputs, seed, steps, stages), stop, spent)
