"""A run as its folder holds it, for reports, comparisons and pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttt._events import TaskResult
from ttt._runs.records import Records
from ttt._tasks.loader import Rejected, parse_collection, read_json
from ttt.errors import TTTError, UnknownSourceError, UnreadableFileError
from ttt.results import Calibration, Curve, recalibrated
from ttt.values import Task


@dataclass(frozen=True)
class SavedRun:
    """What a run's folder holds."""

    folder: Path
    about: dict[str, Any]
    tasks: tuple[Task, ...]
    results: dict[str, TaskResult]
    rejected: tuple[Rejected, ...]

    @property
    def calibrated(self) -> bool:
        """Whether its confidences are calibrated; without curves no percentages are shown."""
        return bool(self.about["curves"])

    def task(self, task_id: str) -> Task:
        """Return a task of the run by its id.

        Raises:
            UnknownSourceError: The run has no such task.
        """
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise UnknownSourceError(f"{self.folder}: has no task {task_id!r}")


def read_run(folder: Path) -> SavedRun:
    """Read a run's folder; tasks that have not finished have no result.

    Raises:
        UnreadableFileError: It is not the folder of a run, or its description is damaged.
    """
    if not (folder / "run.json").is_file():
        raise UnreadableFileError(f"{folder}: not the folder of a run (no run.json); use the folder that solve printed")
    about = read_json(folder / "run.json")
    tasks, _ = parse_collection(read_json(folder / "tasks.json"), str(folder / "tasks.json"))
    try:
        return _read(folder, about, tuple(tasks))
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, TTTError):
            raise
        text = f"{folder}: run.json is not what a run writes ({type(error).__name__}: {error})"
        raise UnreadableFileError(text) from error


def _read(folder: Path, about: dict[str, Any], tasks: tuple[Task, ...]) -> SavedRun:
    curves = {}
    for stage, (claimed, true) in about["curves"].items():
        if not claimed or len(claimed) != len(true):
            raise ValueError(f"the curve of {stage!r} has no points")
        curves[str(stage)] = Curve(tuple(map(float, claimed)), tuple(map(float, true)))
    calibration = Calibration(str(about["backend"]["name"]), curves)
    budget = about["budget"]
    for name in ("seconds", "memory", "steps"):
        if budget[name] is not None:
            float(budget[name])
    records = Records(folder / "records")
    results = {}
    for task in tasks:
        result = records.get(str(about["keys"][task.id]), task.id)
        if result is not None and len(result.predictions) == len(task.test):
            results[task.id] = replace(result, predictions=recalibrated(result.predictions, calibration))
    rejected = tuple(Rejected(str(r["id"]), int(r["tests"]), str(r["reason"])) for r in about["rejected"])
    return SavedRun(folder, about, tasks, results, rejected)
