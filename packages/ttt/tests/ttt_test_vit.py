"""A vit backend that tells where its weights lie; apart from the other solvers, as it needs PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ttt import Clock, Progress, Task
from ttt.backends.vit import VitBackend, VitTraining

SHAPE = {"side": 24, "patch": 4, "width": 32, "heads": 2, "depth": 1}
"""A canvas that the synthetic tasks fit on."""


def mapped_file(address: int) -> str:
    """The file that this process has mapped at an address, or an empty text."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, _, _, _, _, *path = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in bounds.split("-"))
        if start <= address < end:
            return path[0] if path else ""
    return ""


@dataclass(frozen=True)
class WhereWeightsLie(VitBackend):
    """A `vit` whose answers tell from which file their process has mapped the weights."""

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Look at the first weight, then solve as `vit` does."""
        training = VitTraining(self, task, clock.seed)
        lies = mapped_file(training.parameters["rule"].data_ptr())
        for progress in super().solve(task, clock, workdir):
            answers = tuple(tuple(replace(c, why=lies) for c in options) for options in progress.answers)
            yield replace(progress, answers=answers)
