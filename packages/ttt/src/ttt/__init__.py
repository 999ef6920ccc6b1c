"""Test-time training for ARC, from any ARC JSON to a valid submission."""

from ttt.augment import View, leave_one_out, random_views
from ttt.backend import Backend, named_backend
from ttt.budget import Budget, Clock
from ttt.data import TaskSet, load
from ttt.errors import TTTError
from ttt.events import Event, Finished, Improved, Started, TaskResult
from ttt.loader import Rejected
from ttt.orchestrator import Run, run
from ttt.scoring import Score, score
from ttt.submission import read_submission, write_submission
from ttt.values import Attempt, Candidate, Grid, Pair, Prediction, Progress, Task, as_grid

__all__ = [
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
