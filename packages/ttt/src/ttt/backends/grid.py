"""The default backend: ttt._grid, which knows arrays only, behind the Backend protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ttt._budget import Clock
from ttt._grid import solve
from ttt.values import Candidate, Progress, Task, as_grid


@dataclass(frozen=True)
class GridBackend:
    """Exact search, randomised trees and a small net, trained per task on one CPU thread; nothing is downloaded."""

    stages: tuple[str, ...] = ("search", "trees", "net")
    name: str = "grid"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Yield what ttt._grid.solve yields, in ttt's own values."""
        train = [(p.input, p.output) for p in task.train if p.output is not None]
        tests = [p.input for p in task.test]
        # The solver asks about once a second, so it is told a little early: the piece in hand still fits the budget.
        reserve = 0.0 if clock.budget.seconds is None else min(2.0, 0.1 * clock.budget.seconds)

        def seconds_left() -> float:
            return clock.seconds_left - reserve

        def stop() -> bool:
            return clock.must_end() or seconds_left() < 0

        steps = clock.budget.steps
        for found in solve(
            train,
            tests,
            seed=clock.seed,
            stop=stop,
            steps=steps,
            stages=self.stages,
            seconds_left=seconds_left,
            spent=clock.count_helper,
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
        if seconds_left() < 0:
            clock.end_early("time")
