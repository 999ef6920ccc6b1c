"""Evaluates a solver on tasks of known outputs: pass@1, pass@2, cost and calibration, by kind of task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ttt._events import TaskResult
from ttt.results._calibration import calibration_error, calibration_json, reliability
from ttt.results._scoring import Score, score, solved
from ttt.values import Task, same


def output_size_is_input_size(task: Task) -> bool:
    """Return whether every training output has its input's size."""
    return all(p.output is not None and p.output.shape == p.input.shape for p in task.train)


def output_size_is_constant(task: Task) -> bool:
    """Return whether all training outputs have one size."""
    return len({p.output.shape for p in task.train if p.output is not None}) == 1


KINDS: tuple[tuple[str, Callable[[Task], bool]], ...] = (
    ("output as large as input", output_size_is_input_size),
    ("output of one other size", lambda t: output_size_is_constant(t) and not output_size_is_input_size(t)),
    ("other output sizes", lambda t: not output_size_is_constant(t) and not output_size_is_input_size(t)),
    ("several test inputs", lambda t: len(t.test) > 1),
    ("two training pairs", lambda t: len(t.train) <= 2),
)


@dataclass(frozen=True)
class Evaluation:
    """Figures of a finished run over tasks of known outputs.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> result = ttt.TaskResult("t", (ttt.Prediction(ttt.Attempt(two, 0.9), ttt.Attempt(one, 0.1)),), "done")
        >>> ttt.results.evaluate([result], [task]).to_json()["total"]
        1
    """

    score: Score
    kinds: tuple[tuple[str, int, int], ...]
    cpu_seconds: float
    seconds: float
    peak_memory: int
    confidence_solved: float | None
    confidence_missed: float | None
    calibration_error: float
    reliability: tuple[tuple[float, float, int], ...]
    failed: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        low, high = self.score.interval()
        return {**asdict(self), "total": self.score.total, "low": low, "high": high}


def evaluate(results: Sequence[TaskResult], tasks: Sequence[Task]) -> Evaluation:
    """Return the figures of these results; `kinds` are (name, solved, total), times are means per task.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> result = ttt.TaskResult("t", (ttt.Prediction(ttt.Attempt(two, 0.9), ttt.Attempt(one, 0.1)),), "done")
        >>> ttt.results.evaluate([result], [task]).score.solved
        ('t',)

    Raises:
        InvalidSubmissionError: A task has no result or its outputs are not known.
    """
    scored = score(results, tasks)
    tasks = [t for t in tasks if t.has_solutions]
    by_id = {r.task_id: r for r in results}
    mine = [by_id[t.id] for t in tasks]
    right = [solved(t, r) is True for t, r in zip(tasks, mine, strict=True)]
    claims = [r.confidence for r in mine]
    n = max(1, len(tasks))

    def mean(wanted: bool) -> float | None:
        group = [c for c, r in zip(claims, right, strict=True) if r is wanted]
        return sum(group) / len(group) if group else None

    kinds = []
    for name, belongs in KINDS:
        members = [r for t, r in zip(tasks, right, strict=True) if belongs(t)]
        kinds.append((name, sum(members), len(members)))
    return Evaluation(
        scored,
        tuple(kinds),
        sum(r.cpu_seconds for r in mine) / n,
        sum(r.seconds for r in mine) / n,
        max((r.peak_memory for r in mine), default=0),
        mean(True),
        mean(False),
        calibration_error(claims, right),
        tuple(reliability(claims, right)),
        sum(r.status == "failed" for r in mine),
    )


def calibration_text(backend: str, results: Sequence[TaskResult], tasks: Sequence[Task], about: str) -> str:
    """Fit confidence curves to these results; return the text of a calibration file.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> result = ttt.TaskResult("t", (ttt.Prediction(ttt.Attempt(two, 0.9), ttt.Attempt(one, 0.1)),), "done")
        >>> "curves" in ttt.results.calibration_text("mine", [result], [task], "an example")
        True
    """
    by_id = {r.task_id: r for r in results}
    outcomes = []
    for task in tasks:
        for pair, guess in zip(task.test, by_id[task.id].predictions, strict=True):
            outcomes += [
                (attempt.stage, attempt.claimed, same(attempt.grid, pair.output))
                for attempt in (guess.first, guess.second)
                if attempt.stage != "fallback" and pair.output is not None
            ]
    return calibration_json(backend, outcomes, about)
