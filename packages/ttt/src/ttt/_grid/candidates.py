"""The candidates of several stages per test, merged into two answers; and the state that is handed on to the net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttt._grid.learners.encoding import TaskEncoding
from ttt.values import Candidate, Grid, grid_bytes


@dataclass(slots=True)
class CandidatePool:
    """The candidates of all stages per test; equal grids are one candidate."""

    tests: int
    best: list[dict[bytes, Candidate]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = [{} for _ in range(self.tests)]

    def with_stage(self, answers: Sequence[Sequence[Candidate]]) -> CandidatePool:
        """Return a new pool with one more stage's candidates; agreement of two stages raises the confidence."""
        new = CandidatePool(self.tests)
        new.best = [dict(b) for b in self.best]
        for mine, theirs in zip(new.best, answers, strict=True):
            for c in theirs:
                key = grid_bytes(c.grid)
                old = mine.get(key)
                if old is None:
                    mine[key] = c
                else:
                    first, other = (old, c) if old.confidence >= c.confidence else (c, old)
                    together = 1 - (1 - first.confidence) * (1 - other.confidence)
                    mine[key] = replace(first, confidence=together, why=f"{first.why}; {other.stage} agrees")
        return new

    def sure(self, enough: float) -> bool:
        """Return whether every test has a candidate of more than this confidence."""
        return all(max((c.confidence for c in b.values()), default=0.0) > enough for b in self.best)

    def twice(self) -> bool:
        """Return whether every test has two candidates."""
        return all(len(b) > 1 for b in self.best)

    def answers(self, spare: Sequence[Sequence[Grid]]) -> tuple[tuple[Candidate, ...], ...]:
        """Return two distinct candidates per test, filled up with the spare grids."""
        result = []
        for mine, more in zip(self.best, spare, strict=True):
            ranked = sorted(mine.values(), key=lambda c: -c.confidence)
            taken = set(mine)
            for g in more:
                key = grid_bytes(g)
                if len(ranked) < 2 and key not in taken:
                    taken.add(key)
                    ranked.append(Candidate(g, 0.0, "fallback", "nothing better was found"))
            top = ranked[0].confidence
            result.append((ranked[0], replace(ranked[1], confidence=min(ranked[1].confidence, max(0.0, 1.0 - top)))))
        return tuple(result)


@dataclass(frozen=True, slots=True)
class SearchState:
    """What the stages before the net have found; unpickling one loads no heavy library.

    Args:
        stage: The stage that is running.
        pool: The candidates.
        spare: Per test grids to fall back on.
        steps_done: Work units spent so far.
        encoding: The task for the net, with the last state and only if the net is to run.
        trust: Factor of the net's confidence.
    """

    stage: str
    pool: CandidatePool
    spare: list[list[Grid]]
    steps_done: int
    encoding: TaskEncoding | None = None
    trust: float = 1.0


def trusted(answers: Sequence[Sequence[Candidate]], trust: float) -> list[list[Candidate]]:
    """Return the same candidates with their confidence multiplied by a factor."""
    return [[replace(c, confidence=trust * c.confidence) for c in options] for options in answers]


def spare_grids(
    inputs: Sequence[Grid], outputs: Sequence[Grid], sizes: Sequence[Sequence[tuple[int, int]]]
) -> list[list[Grid]]:
    """Return per test grids to fall back on, of the likeliest size: the input if it fits, then blank grids."""
    result = []
    for t, grid in enumerate(inputs[len(outputs) :]):
        shapes = [s[t] for s in sizes] or ([grid.shape] if outputs[0].shape == inputs[0].shape else [outputs[0].shape])
        colours = np.argsort(-np.bincount(np.concatenate([o.ravel() for o in outputs]), minlength=10), kind="stable")
        mine: list[Grid] = [grid.copy()] if shapes[0] == grid.shape else []
        mine += [np.full(shapes[0], c, dtype=np.uint8) for c in colours[:3]]
        result.append(mine)
    return result
