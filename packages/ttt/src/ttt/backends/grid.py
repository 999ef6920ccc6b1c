"""The default backend: ttt.grid, which knows arrays only, behind the Backend protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ttt import grid
from ttt.budget import Clock
from ttt.values import Candidate, Progress, Task, as_grid


@dataclass(frozen=True)
class GridBackend:
    """Exact search, randomised trees and a small net, trained per task on one CPU thread; nothing is downloaded."""

    stages: tuple[str, ...] = ("search", "trees", "net")
    name: str = "grid"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Yield what ttt.grid.solve yields, in ttt's own values."""
        train = [(p.input, p.output) for p in task.train if p.output is not None]
        tests = [p.input for p in task.test]
        for found in grid.solve(
            train, tests, seed=clock.seed, stop=clock.stop, steps=clock.budget.steps, stages=self.stages
        ):
            clock.steps_done = found.steps_done
            yield Progress(
                tuple(
                    tuple(Candidate(as_grid(c.grid), float(c.confidence), c.stage, c.why) for c in options)
                    for options in found.answers
                ),
                found.stage,
                found.steps_done,
                found.fraction,
            )
