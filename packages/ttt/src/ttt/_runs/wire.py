"""Values as JSON, for the processes of a run and for records."""

from __future__ import annotations

from typing import Any

from ttt._tasks.loader import parse_task, task_json
from ttt.values import Attempt, Candidate, Prediction, Progress, Task, as_grid


def task_out(task: Task) -> dict[str, Any]:
    """Return a task as JSON, with its id and without its test outputs."""
    return {"id": task.id, **task_json(task.without_solutions())}


def task_in(value: dict[str, Any]) -> Task:
    """Read what `task_out` wrote."""
    return parse_task(value["id"], value)


def progress_out(progress: Progress) -> dict[str, Any]:
    """Return a Progress as JSON."""

    def candidate(c: Candidate) -> dict[str, Any]:
        grid = as_grid(c.grid, "the backend's answer").tolist()
        return {"grid": grid, "confidence": float(c.confidence), "stage": c.stage, "why": c.why}

    return {
        "answers": [[candidate(c) for c in options] for options in progress.answers],
        "stage": progress.stage,
        "steps_done": int(progress.steps_done),
        "fraction": float(progress.fraction),
    }


def progress_in(value: dict[str, Any]) -> Progress:
    """Read what `progress_out` wrote."""
    answers = tuple(
        tuple(Candidate(as_grid(c["grid"], "an answer"), c["confidence"], c["stage"], c["why"]) for c in options)
        for options in value["answers"]
    )
    return Progress(answers, value["stage"], value["steps_done"], value["fraction"])


def predictions_out(predictions: tuple[Prediction, ...]) -> list[list[dict[str, Any]]]:
    """Return predictions as JSON: per test input its two attempts."""

    def attempt(a: Attempt) -> dict[str, Any]:
        known = {"confidence": a.confidence, "claimed": a.claimed, "stage": a.stage, "why": a.why}
        return {"grid": a.grid.tolist(), **known}

    return [[attempt(p.first), attempt(p.second)] for p in predictions]


def predictions_in(value: list[list[dict[str, Any]]]) -> tuple[Prediction, ...]:
    """Read what `predictions_out` wrote."""

    def attempt(a: dict[str, Any]) -> Attempt:
        return Attempt(as_grid(a["grid"], "an attempt"), a["confidence"], a["stage"], a["why"], a["claimed"])

    return tuple(Prediction(attempt(first), attempt(second)) for first, second in value)
