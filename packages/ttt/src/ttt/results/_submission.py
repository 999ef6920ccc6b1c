"""Kaggle's submission.json: two attempts for every test input of every task."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ttt._events import TaskResult
from ttt._files import write_atomically
from ttt._tasks.loader import Rejected, read_json
from ttt.errors import InvalidSubmissionError, InvalidTaskError
from ttt.values import Grid, as_grid

Answers = dict[str, tuple[tuple[Grid, Grid], ...]]
"""Task id to, per test input, its two attempts."""


def submission_text(results: Iterable[TaskResult], rejected: Sequence[Rejected] = ()) -> str:
    """Return a submission as JSON text, ordered by id, the same bytes for the same answers.

    Refused tasks are included, with a single black cell: a submission must have every id.

    Example:
        >>> result = ttt.TaskResult("t", (ttt.Prediction(ttt.Attempt(two, 0.9), ttt.Attempt(one, 0.1)),), "done")
        >>> print(ttt.results.submission_text([result]), end="")
        {"t":[{"attempt_1":[[0,1]],"attempt_2":[[1,0]]}]}
    """
    entries: dict[str, Any] = {
        r.id: [{"attempt_1": [[0]], "attempt_2": [[0]]} for _ in range(r.tests)] for r in rejected
    }
    for result in results:
        entries[result.task_id] = [
            {"attempt_1": p.first.grid.tolist(), "attempt_2": p.second.grid.tolist()} for p in result.predictions
        ]
    return json.dumps(entries, sort_keys=True, separators=(",", ":")) + "\n"


def write_submission(
    path: str | os.PathLike[str], results: Iterable[TaskResult], rejected: Sequence[Rejected] = ()
) -> None:
    """Write a submission file, whole or not at all.

    Example:
        >>> result = ttt.TaskResult("t", (ttt.Prediction(ttt.Attempt(one, 0.9), ttt.Attempt(two, 0.1)),), "done")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ttt.write_submission(f"{folder}/submission.json", [result])
        ...     print(list(ttt.read_submission(f"{folder}/submission.json")))
        ['t']

    Args:
        path: The file to write.
        results: The results of the solved tasks.
        rejected: Refused tasks, which get fallback answers.
    """
    write_atomically(Path(path), submission_text(results, rejected).encode())


def read_submission(path: str | os.PathLike[str]) -> Answers:
    """Read and check a submission file.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ttt.write_submission(f"{folder}/submission.json", [])
        ...     ttt.read_submission(f"{folder}/submission.json")
        {}

    Raises:
        UnreadableFileError: Not readable as JSON.
        InvalidSubmissionError: Not in Kaggle's format; the message names task, test input and attempt.

    Args:
        path: The file.
    """
    value = read_json(Path(path))
    if not isinstance(value, dict):
        raise InvalidSubmissionError(f"{path}: got {type(value).__name__}, wanted an object of answers by task id")
    return {task_id: _entry(task_id, entry) for task_id, entry in value.items()}


def _entry(task_id: str, entry: Any) -> tuple[tuple[Grid, Grid], ...]:
    if not isinstance(entry, list) or not entry:
        raise InvalidSubmissionError(f"task {task_id}: wanted a list with one object per test input")
    return tuple(
        (_attempt(task_id, i, e, "attempt_1"), _attempt(task_id, i, e, "attempt_2")) for i, e in enumerate(entry)
    )


def _attempt(task_id: str, i: int, value: Any, key: str) -> Grid:
    where = f"task {task_id}, test input {i}, {key}"
    if not isinstance(value, dict) or key not in value:
        raise InvalidSubmissionError(f"{where}: is missing")
    try:
        return as_grid(value[key], where)
    except InvalidTaskError as error:
        raise InvalidSubmissionError(str(error)) from error
