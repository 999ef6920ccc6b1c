"""What a run tells while it goes on, and what remains of each task. Knows no process and no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ttt._budget import StopReason
from ttt.values import Prediction

Status = Literal["done", "stopped", "failed", "skipped"]


@dataclass(frozen=True, eq=False, slots=True)
class TaskResult:
    """What came of one task.

    Attributes:
        task_id: its id.
        predictions: two attempts per test input, in order; fallbacks of confidence 0 where nothing was found.
        status: ``done``: the backend had no more to try; ``stopped``: by the budget or by Ctrl-C, see ``reason``;
            ``failed``: see ``error``; ``skipped``: never started. Answers reported before a stop or failure count.
        reason: which limit stopped it.
        error: name and message of the error that ended it.
        seconds: wall time, from the start of its process.
        cpu_seconds: user and system time of its process.
        peak_memory: largest resident memory of its process, bytes, as the kernel counts it, or together with
            what processes that it started held, where that was more.
        steps: work units that the backend counted.
        stage: the backend's last stage.
        fraction: how far the backend thought it was.
        reused: whether it comes from an earlier run's record.
    """

    task_id: str
    predictions: tuple[Prediction, ...]
    status: Status
    reason: StopReason | None = None
    error: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    steps: int = 0
    stage: str = ""
    fraction: float = 0.0
    reused: bool = False

    @property
    def confidence(self) -> float:
        """Probability that every test input is solved, taking them as independent and the attempts as exclusive."""
        result = 1.0
        for p in self.predictions:
            result *= min(1.0, p.first.confidence + p.second.confidence)
        return result

    @property
    def answered(self) -> bool:
        """Whether every test input has at least one answer that is not a fallback."""
        return all(p.first.stage != "fallback" for p in self.predictions)


@dataclass(frozen=True, eq=False, slots=True)
class Started:
    """A task's process was started."""

    task_id: str


@dataclass(frozen=True, eq=False, slots=True)
class Improved:
    """A task's backend reported better answers, or that it came further."""

    task_id: str
    predictions: tuple[Prediction, ...]
    stage: str
    fraction: float
    seconds: float


@dataclass(frozen=True, eq=False, slots=True)
class Finished:
    """A task ended, well or not; every task of a run finishes exactly once."""

    task_id: str
    result: TaskResult


Event: TypeAlias = Started | Improved | Finished
