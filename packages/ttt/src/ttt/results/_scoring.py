"""Scores answers: how many test inputs and tasks they solve, in every cell."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ttt._events import TaskResult
from ttt.errors import InvalidSubmissionError
from ttt.results._submission import Answers, read_submission
from ttt.values import Grid, Task, same


@dataclass(frozen=True, slots=True)
class Score:
    """A score. Each task counts the share of its test inputs that an attempt matches in every cell.

    Example:
        >>> print(ttt.Score(pass1=1.0, pass2=1.0, solved=("a",), missed=("b",)))
        solved 1 of 2 tasks; pass@2 50.0 %, 95 % interval of tasks solved 9 to 91 %

    Attributes:
        pass1: Sum over tasks, first attempts only.
        pass2: Sum over tasks, both attempts: the ARC score.
        solved: Ids of the tasks with all test inputs solved.
        missed: Ids of the other tasks that were scored.
        unknown: Ids of the tasks that were not scored, since not all their test outputs are known.
    """

    pass1: float
    pass2: float
    solved: tuple[str, ...]
    missed: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Number of tasks that were scored."""
        return len(self.solved) + len(self.missed)

    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the share of tasks solved whole."""
        return wilson(len(self.solved), self.total)

    def __str__(self) -> str:
        low, high = self.interval()
        share = 100 * self.pass2 / self.total if self.total else 0.0
        return (
            f"solved {len(self.solved)} of {self.total} tasks; pass@2 {share:.1f} %, "
            f"95 % interval of tasks solved {100 * low:.0f} to {100 * high:.0f} %"
            + (f"; not scored, as their outputs are not known: {len(self.unknown)}" if self.unknown else "")
        )


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval for a share (Wilson 1927); (0, 1) for n = 0.

    Example:
        >>> [round(bound, 2) for bound in ttt.results.wilson(5, 10)]
        [0.24, 0.76]
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


def attempts_solve(attempts: Iterable[Grid], truth: Grid) -> bool:
    """Return whether one of the attempts equals the truth in size and in every cell."""
    return any(same(a, truth) for a in attempts)


def solved(task: Task, result: TaskResult) -> bool | None:
    """Return whether a result is right, None where the task's outputs are not known.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> result = ttt.TaskResult("t", (ttt.Prediction(ttt.Attempt(two, 0.9), ttt.Attempt(one, 0.1)),), "done")
        >>> ttt.results.solved(task, result)
        True
    """
    if not task.has_solutions:
        return None
    return all(
        p.output is not None and guess.solves(p.output) for p, guess in zip(task.test, result.predictions, strict=True)
    )


def score(answers: Iterable[TaskResult] | Answers | str | os.PathLike[str], tasks: Iterable[Task]) -> Score:
    """Score answers against the tasks whose test outputs are known.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> ttt.score({"t": ((one, two),)}, [task]).pass2
        1.0

    Args:
        answers: Results of a run, what `read_submission` gave, or the path of a submission.
        tasks: The tasks; those without known test outputs are listed in `unknown`. Other answers are ignored.

    Raises:
        InvalidSubmissionError: A task has no answer, too few or too many, or no task has known test outputs.
    """
    if isinstance(answers, str | os.PathLike):
        answers = read_submission(answers)
    if not isinstance(answers, Mapping):
        answers = {r.task_id: tuple((p.first.grid, p.second.grid) for p in r.predictions) for r in answers}
    pass1 = pass2 = 0.0
    solved: list[str] = []
    missed: list[str] = []
    unknown: list[str] = []
    for task in tasks:
        if not task.has_solutions:
            unknown.append(task.id)
            continue
        given = answers.get(task.id)
        if given is None:
            raise InvalidSubmissionError(f"task {task.id}: the submission has no answer for it")
        if len(given) != len(task.test):
            raise InvalidSubmissionError(f"task {task.id}: {len(given)} answers for {len(task.test)} test inputs")
        truths = [p.output for p in task.test if p.output is not None]
        first = sum(attempts_solve(a[:1], t) for a, t in zip(given, truths, strict=True))
        both = sum(attempts_solve(a, t) for a, t in zip(given, truths, strict=True))
        pass1 += first / len(truths)
        pass2 += both / len(truths)
        (solved if both == len(truths) else missed).append(task.id)
    if unknown and not solved and not missed:
        raise InvalidSubmissionError(
            f"the test outputs of none of the {len(unknown)} tasks are known: nothing to score"
        )
    return Score(pass1, pass2, tuple(solved), tuple(missed), tuple(unknown))
