"""The events of a run, and the result of each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ttt._budget import StopReason
from ttt.values import Prediction

Status = Literal["done", "stopped", "failed", "skipped"]


@dataclass(frozen=True, eq=False, slots=True)
class TaskResult:
    """The result of one task.

    Example:
        >>> run = ttt.run([ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one),))], budget="20 steps")
        >>> results = [event.result for event in run if isinstance(event, ttt.Finished)]
        >>> results[0].status, len(results[0].predictions)
        ('done', 1)

    Attributes:
        task_id: The task's id.
        predictions: Two attempts per test input, in order; fallbacks of confidence 0 where nothing was found.
        status: `done`: the backend finished; `stopped`: by the budget or Ctrl-C, see `reason`; `failed`: see `error`;
            `skipped`: never started. Answers reported before a stop or failure count.
        reason: Which limit stopped it.
        error: Name and message of the error that ended it.
        seconds: Wall time, from the start of its process.
        cpu_seconds: User and system time of its process.
        peak_memory: Largest resident memory in bytes: of its process, as the kernel counts it, or of that and the
            processes it started, whichever is more.
        peak_gpu_memory: Most GPU memory in bytes that PyTorch reserved in its process while it was solved.
        steps: Work units that the backend counted.
        stage: The backend's last stage.
        fraction: Share of the work done, as the backend reported it.
        reused: Whether it comes from an earlier run's record.
    """

    task_id: str
    predictions: tuple[Prediction, ...]
    status: Status
    reason: StopReason | None = None
    error: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    peak_gpu_memory: int = 0
    steps: int = 0
    stage: str = ""
    fraction: float = 0.0
    reused: bool = False

    @property
    def confidence(self) -> float:
        """Probability that every test input is solved, if inputs are independent and the two attempts exclusive."""
        result = 1.0
        for p in self.predictions:
            result *= min(1.0, p.first.confidence + p.second.confidence)
        return result

    @property
    def may_succeed_later(self) -> bool:
        """Whether it failed, but not at a limit: its process died or its backend raised an error."""
        return self.status == "failed" and self.reason is None

    @property
    def answered(self) -> bool:
        """Whether every test input has at least one answer that is not a fallback."""
        return all(p.first.stage != "fallback" for p in self.predictions)


@dataclass(frozen=True, eq=False, slots=True)
class Started:
    """Work on a task has started.

    Example:
        >>> ttt.Started("007bbfb7").task_id
        '007bbfb7'

    Attributes:
        task_id: Which task.
    """

    task_id: str


@dataclass(frozen=True, eq=False, slots=True)
class Improved:
    """A task's backend reported better answers or progress.

    Example:
        >>> ttt.Improved("007bbfb7", (), "search", fraction=0.5, seconds=1.2).stage
        'search'

    Attributes:
        task_id: Which task.
        predictions: Two attempts for each test input.
        stage: Which part of the backend is at work.
        fraction: How much of the budget is used, 0 to 1.
        seconds: Wall seconds since the task started.
    """

    task_id: str
    predictions: tuple[Prediction, ...]
    stage: str
    fraction: float
    seconds: float


@dataclass(frozen=True, eq=False, slots=True)
class Finished:
    """A task ended, with or without success; every task of a run finishes exactly once.

    Example:
        >>> ttt.Finished("007bbfb7", ttt.TaskResult("007bbfb7", (), "done")).result.status
        'done'

    Attributes:
        task_id: Which task.
        result: Its answers and how it ended.
    """

    task_id: str
    result: TaskResult


Event: TypeAlias = Started | Improved | Finished
"""What a run yields while it solves."""
