"""A ttt backend that adds the candidates of an isolated extension to those of the grid backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import isolate
import ttt
from ttt.backends.grid import GridBackend


@dataclass(frozen=True)
class WithPlugin:
    """The grid backend's search together with the candidates of a plugin.

    Attributes:
        plugin: The extension's folder.
        store: The folder of environments.
    """

    plugin: str
    store: str
    name: str = "with-plugin"

    def solve(self, task: ttt.Task, clock: ttt.Clock, workdir: Path | None) -> Iterator[ttt.Progress]:
        """Yield the search's candidates and the plugin's, ordered by confidence."""
        with isolate.Host(self.store) as host:
            train = [(pair.input.tolist(), pair.output.tolist()) for pair in task.train if pair.output is not None]
            found = host.load(self.plugin).call(timeout=30).propose(train, [p.input.tolist() for p in task.test])
        proposed = [ttt.Candidate(ttt.as_grid(grid), 0.95, "plugin", "a step of Life") for grid in found]
        own = GridBackend(stages=("search",))
        for progress in own.solve(task, clock, workdir):
            yield replace(progress, answers=_joined(progress.answers, proposed)) if proposed else progress


def _joined(
    answers: tuple[tuple[ttt.Candidate, ...], ...], proposed: list[ttt.Candidate]
) -> tuple[tuple[ttt.Candidate, ...], ...]:
    rows = answers or tuple(() for _ in proposed)
    together = ((*row, candidate) for row, candidate in zip(rows, proposed, strict=True))
    return tuple(tuple(sorted(row, key=lambda c: -c.confidence)) for row in together)
