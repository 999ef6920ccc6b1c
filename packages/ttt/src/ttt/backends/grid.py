"""The default backend: the solver in `ttt._grid` behind the Backend protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ttt._budget import Clock
from ttt._grid import solve
from ttt._grid.compose.core import library
from ttt._grid.solve import STAGES
from ttt.errors import InvalidBackendError
from ttt.values import Candidate, Progress, Task, as_grid

__all__ = ["GridBackend", "solve"]


@dataclass(frozen=True)
class GridBackend:
    """Exact search, randomised trees and a small net, trained per task on one CPU thread; nothing is downloaded.

    Example:
        >>> from ttt.backends.grid import GridBackend
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> run = ttt.run([task], backend=GridBackend(stages=("search",)), budget="20 steps")
        >>> len(list(run)) > 0
        True
    """

    stages: tuple[str, ...] = ("search", "restated", "trees", "net")
    name: str = "grid"

    def preflight(self) -> None:
        """Check the stages, and that the compiled part of the search, where there is one, is of the sources beside it.

        Raises:
            InvalidBackendError: A stage is unknown, or there is none.
            StaleCoreError: The compiled part was compiled from other sources.
        """
        if not isinstance(self.stages, list | tuple) or not self.stages or not set(self.stages) <= set(STAGES):
            raise InvalidBackendError(f"stages: got {self.stages!r}, wanted a list of some of {', '.join(STAGES)}")
        library()

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Run search, restatements, trees and net, and yield their answers with checked grids."""
        del workdir  # nothing is kept: with a budget in work units a task that starts anew comes to the same answer
        train = [(p.input, p.output) for p in task.train if p.output is not None]
        tests = [p.input for p in task.test]
        # The solver checks about once a second, so it must stop a little early to finish its current piece in time.
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
