"""Candidates of several stages per test, merged into two answers; knows nothing of how they were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttt.grid.answers import Candidate, Grid
from ttt.grid.deck import Deck


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


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known before the net; whoever receives it from another process loads nothing heavy by that.

    Args:
        stage: The stage that is at work.
        ballot: The candidates.
        spare: Per test grids to fall back on.
        steps_done: Work units spent so far.
        deck: The task for the net, last of all and only where the net is to be asked.
    """

    stage: str
    ballot: Ballot
    spare: list[list[Grid]]
    steps_done: int
    deck: Deck | None = None


def spare_grids(
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
