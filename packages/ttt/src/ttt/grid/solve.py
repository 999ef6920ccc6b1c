"""The three stages in order, their answers combined into two per test; knows nothing of files or processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttt.grid.answers import Candidate, Grid, Progress
from ttt.grid.columns import entropy, flat
from ttt.grid.images import LARGEST, Group
from ttt.grid.search import Found, search
from ttt.grid.search import candidates as searched
from ttt.grid.work import Work

STAGES = ("search", "trees", "net")
ENOUGH = 0.8
"""With a search answer surer than this for every test the learners are not asked."""
NET_STEPS = 600
"""Steps of the net where no work budget is given."""
SEARCH_UNITS, TREE_UNITS = 90, 70
"""About what the first stages spend; used for the fraction that is done."""


@dataclass(slots=True)
class Ballot:
    """Candidates of all stages per test, equal grids merged."""

    tests: int
    best: list[dict[bytes, Candidate]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = [{} for _ in range(self.tests)]

    def with_stage(self, answers: Sequence[Sequence[Candidate]]) -> Ballot:
        """A new ballot with one more stage's candidates; two stages that agree raise the confidence."""
        new = Ballot(self.tests)
        new.best = [dict(b) for b in self.best]
        for mine, theirs in zip(new.best, answers, strict=True):
            for c in theirs:
                key = bytes(c.grid.shape) + c.grid.tobytes()
                old = mine.get(key)
                if old is None:
                    mine[key] = c
                else:
                    first, other = (old, c) if old.confidence >= c.confidence else (c, old)
                    together = 1 - (1 - first.confidence) * (1 - other.confidence)
                    mine[key] = replace(first, confidence=together, why=f"{first.why}; {other.stage} agrees")
        return new

    def answers(self, spare: Sequence[Sequence[Grid]]) -> tuple[tuple[Candidate, ...], ...]:
        """Two distinct candidates per test, filled up with the spare grids."""
        result = []
        for mine, more in zip(self.best, spare, strict=True):
            ranked = sorted(mine.values(), key=lambda c: -c.confidence)
            taken = set(mine)
            for g in more:
                key = bytes(g.shape) + g.tobytes()
                if len(ranked) < 2 and key not in taken:
                    taken.add(key)
                    ranked.append(Candidate(g, 0.0, "fallback", "nothing better was found"))
            top = ranked[0].confidence
            result.append((ranked[0], replace(ranked[1], confidence=min(ranked[1].confidence, max(0.0, 1.0 - top)))))
        return tuple(result)


def solve(
    train: Sequence[tuple[Grid, Grid]],
    tests: Sequence[Grid],
    *,
    seed: int,
    stop: Callable[[], bool],
    steps: int | None = None,
    stages: Sequence[str] = STAGES,
    seconds_left: Callable[[], float] | None = None,
) -> Iterator[Progress]:
    """Solve one ARC task, yielding better answers as they are found.

    With `steps` the result depends on the task, the seed and the steps alone, whatever the machine's speed.

    Args:
        train: Pairs of input and output, 2-D uint8 arrays of colours 0..9.
        tests: Test inputs.
        seed: Of all randomness.
        stop: Asked between pieces of work (at most about a second apart); true ends the work.
        steps: Work units to spend, about 0.05 s each on a 2020s core; None for the default amount.
        stages: Which of "search", "trees", "net" take part.
        seconds_left: Seconds until `stop` will be true, so that the net's learning rate ends in time; not used where
            `steps` is given.

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
    spare = _spare(inputs, outputs, [])

    def progress(stage: str, done: bool = False) -> Progress:
        share = 1.0 if done else min(0.99, work.done / (steps or expected))
        return Progress(ballot.answers(spare), stage, work.done, share)

    yield progress("search")
    if work.over:
        return
    found = Found()
    for found in search(inputs, outputs, seed, work) if "search" in stages else _sizes_only(inputs, outputs, work):
        spare = _spare(inputs, outputs, [g.sizes for g in found.groups])
        if "search" in stages:
            ballot = Ballot(len(tests)).with_stage(searched(found, len(tests)))
        yield progress("search")
    sure = all(max((c.confidence for c in b.values()), default=0.0) > ENOUGH for b in ballot.best)
    if found.groups and not sure:
        if "trees" in stages and not work.over:
            from ttt.grid import trees

            before = ballot
            for forecast in trees.trees(found.groups[0], inputs, outputs, seed, work, turned=False):
                ballot = before.with_stage(trees.candidates(forecast))
                yield progress("trees")
        if "net" in stages and not work.over:
            from ttt.grid import net

            shown, *more = inputs_for_net(inputs, outputs, found.groups[0])
            before = ballot
            amount = NET_STEPS if work.left is None else work.left
            for verdict in net.train(shown, outputs, seed, work, amount, list(zip(*more, strict=True)) or None):
                ballot = before.with_stage(net.candidates(verdict))
                yield progress("net")
    yield progress("done", done=True)


def inputs_for_net(inputs: Sequence[Grid], outputs: Sequence[Grid], group: Group) -> list[Sequence[Grid]]:
    """What the net sees per input, all of the output's size: the input, or else the views that say most."""
    if all(a.shape == b.shape for a, b in zip(inputs, outputs, strict=False)):
        return [inputs]
    return best_views(group, outputs)


def best_views(group: Group, outputs: Sequence[Grid], most: int = 4) -> list[Sequence[Grid]]:
    """The views of a group that leave the fewest bits about the outputs, each unlike the ones before."""
    target = flat(outputs).astype(np.uint8)
    bits = {
        i: entropy(flat(image.grids)[: len(target)].astype(np.int64), 10, target) + 0.05 * image.cost
        for i, image in enumerate(group.images)
    }
    return [group.images[i].grids for i in sorted(bits, key=lambda i: bits[i])[:most]]


def _sizes_only(inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work) -> Iterator[Found]:
    """The learners need the views even where no program is wanted."""
    from ttt.grid.images import groups_of

    for groups in groups_of(inputs, outputs, work):
        yield Found([], groups)


def _checked(grid: Grid) -> Grid:
    array = np.asarray(grid)
    if array.ndim != 2 or not array.size or max(array.shape) > LARGEST or array.min() < 0 or array.max() > 9:
        raise ValueError(f"got a grid of shape {array.shape}, wanted 2-D, 1 to {LARGEST} a side, colours 0..9")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _spare(
    inputs: Sequence[Grid], outputs: Sequence[Grid], sizes: Sequence[Sequence[tuple[int, int]]]
) -> list[list[Grid]]:
    """Per test grids to fall back on: of the likeliest size, the input or blank, then others."""
    result = []
    for t, grid in enumerate(inputs[len(outputs) :]):
        shapes = [s[t] for s in sizes] or ([grid.shape] if outputs[0].shape == inputs[0].shape else [outputs[0].shape])
        colours = np.argsort(-np.bincount(np.concatenate([o.ravel() for o in outputs]), minlength=10), kind="stable")
        mine: list[Grid] = [grid.copy()] if shapes[0] == grid.shape else []
        mine += [np.full(shapes[0], c, dtype=np.uint8) for c in colours[:3]]
        result.append(mine)
    return result
