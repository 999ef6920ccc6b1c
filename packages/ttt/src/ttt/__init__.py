"""Test-time training for ARC, from any ARC JSON to a valid submission."""

from __future__ import annotations

from ttt._backend import Backend, named_backend
from ttt._budget import Budget, Clock
from ttt._events import Event, Finished, Improved, Started, TaskResult
from ttt._moved import keep_old_paths
from ttt._runs.run import Run, run
from ttt._tasks.augment import SYMMETRIES, View, leave_one_out, random_views
from ttt._tasks.loader import Rejected
from ttt._tasks.sources import TaskSet, load
from ttt.errors import TTTError
from ttt.results import Score, read_submission, score, write_submission
from ttt.values import Attempt, Candidate, Grid, Pair, Prediction, Progress, Task, as_grid

keep_old_paths()

__all__ = [
    "SYMMETRIES",
    "Attempt",
    "Backend",
    "Budget",
    "Candidate",
    "Clock",
    "Event",
    "Finished",
    "Grid",
    "Improved",
    "Pair",
    "Prediction",
    "Progress",
    "Rejected",
    "Run",
    "Score",
    "Started",
    "TTTError",
    "Task",
    "TaskResult",
    "TaskSet",
    "View",
    "as_grid",
    "leave_one_out",
    "load",
    "named_backend",
    "random_views",
    "read_submission",
    "run",
    "score",
    "write_submission",
]
