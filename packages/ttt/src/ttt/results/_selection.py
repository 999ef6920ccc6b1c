"""Chooses two attempts per test input from a backend's candidates, with calibrated confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ttt.errors import InvalidAnswerError
from ttt.results._calibration import AS_CLAIMED, Calibration
from ttt.values import Attempt, Candidate, Grid, Prediction, Progress, Task, as_grid, grid_bytes


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without repetition; the first of equal grids stays.

    Example:
        >>> len(ttt.results.distinct([ttt.Candidate(one, 0.9, "a"), ttt.Candidate(one, 0.8, "b")]))
        1
    """
    return list({grid_bytes(c.grid): c for c in reversed(candidates)}.values())[::-1]


def choose(task: Task, progress: Progress | None, calibration: Calibration = AS_CLAIMED) -> tuple[Prediction, ...]:
    """Return two attempts for every test input of a task, filled up with fallbacks of confidence 0.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> [prediction.first.why for prediction in ttt.results.choose(task, None)]
        ['no answer was found']

    Args:
        task: The task.
        progress: A backend's candidates, best first; None where it has none yet.
        calibration: Turns claimed into calibrated confidences.

    Raises:
        InvalidAnswerError: The answers do not match the task's test inputs.
    """
    if progress is None or not progress.answers:
        return tuple(_two(task, pair.input, (), calibration) for pair in task.test)
    if len(progress.answers) != len(task.test):
        raise InvalidAnswerError(
            f"task {task.id}: the backend answered {len(progress.answers)} test inputs, it has {len(task.test)}"
        )
    pairs = zip(task.test, progress.answers, strict=True)
    return tuple(_two(task, pair.input, options, calibration) for pair, options in pairs)


def recalibrated(predictions: tuple[Prediction, ...], calibration: Calibration) -> tuple[Prediction, ...]:
    """Return the same attempts with their claims calibrated by these curves.

    Example:
        >>> halved = ttt.results.Calibration("mine", {"": ttt.results.Curve((0.0, 1.0), (0.0, 0.5))})
        >>> claimed = ttt.Prediction(ttt.Attempt(one, 0.8, claimed=0.8), ttt.Attempt(two, 0.2, claimed=0.2))
        >>> ttt.results.recalibrated((claimed,), halved)[0].first.confidence
        0.4
    """

    def again(a: Attempt) -> Attempt:
        return a if a.stage == "fallback" else replace(a, confidence=calibration(a.stage, a.claimed))

    return tuple(Prediction(again(p.first), again(p.second)) for p in predictions)


def _two(task: Task, given: Grid, options: Sequence[Candidate], calibration: Calibration) -> Prediction:
    found = [
        Attempt(c.grid, calibration(c.stage, c.confidence), c.stage, c.why, c.confidence) for c in distinct(options)
    ]
    seen = {grid_bytes(a.grid) for a in found}
    spare = [g for g in fallbacks(task, given) if grid_bytes(g) not in seen]
    found += [Attempt(g, 0.0, "fallback", "no answer was found") for g in spare[: max(0, 2 - len(found))]]
    return Prediction(found[0], found[1])


def fallbacks(task: Task, given: Grid) -> list[Grid]:
    """Return at least two distinct fallback answers: the input itself, and blank grids of the likeliest size.

    Example:
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> len(ttt.results.fallbacks(task, one)) >= 2
        True
    """
    sizes = {p.output.shape for p in task.train if p.output is not None}
    shape = sizes.pop() if len(sizes) == 1 else given.shape
    blank = np.zeros(shape, np.uint8)
    options = [given, as_grid(blank), as_grid(blank + 1), as_grid(blank + 2)]
    return list({grid_bytes(g): g for g in options}.values())
