"""Public errors and values, and a program that sends them to other processes and back."""

from __future__ import annotations

import inspect
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

import ttt
from ttt import errors

ERRORS = [
    cls("what happened", "and where") if issubclass(cls, OSError) else cls("what happened, and where")
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.TTTError)
]
GRID = ttt.as_grid([[1, 2], [3, 4]])
PAIR = ttt.Pair(GRID, GRID)
TASK = ttt.Task("t", (PAIR,), (ttt.Pair(GRID),))
ATTEMPT = ttt.Attempt(GRID, 0.5, "search", "as it is", 0.9)
PREDICTION = ttt.Prediction(ATTEMPT, ATTEMPT)
RESULT = ttt.TaskResult("t", (PREDICTION,), "stopped", "steps", steps=3)
VALUES: list[Any] = [
    PAIR,
    TASK,
    ttt.Candidate(GRID, 0.5),
    ttt.Progress(((ttt.Candidate(GRID, 0.5),),), "search", 3, 0.1),
    ATTEMPT,
    PREDICTION,
    RESULT,
    ttt.Started("t"),
    ttt.Improved("t", (PREDICTION,), "search", 0.5, 1.0),
    ttt.Finished("t", RESULT),
    ttt.Budget(seconds=3, steps=4),
    ttt.View(1, True),
    ttt.Rejected("t", 1, "why"),
    ttt.Score(1.0, 1.0, ("t",), ()),
    ttt.TaskSet((TASK,)),
    ttt.named_backend("grid"),
]


def plain(value: Any) -> Any:
    """A value as something that compares: arrays as lists, objects as their fields."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__name__, {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def same(value: Any) -> Any:
    """What another process returns is what it got."""
    return value


def fail(error: Exception) -> None:
    """Raises in another process what it got."""
    raise error


def cross() -> None:
    """Send everything through an executor, and every error through a pool; print what does not come back."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        for error in ERRORS:
            got = executor.submit(fail, error).exception(timeout=250)
            if (type(got), str(got)) != (type(error), str(error)):
                print("executor", repr(error), repr(got))
        for value in VALUES:
            if plain(executor.submit(same, value).result(timeout=250)) != plain(value):
                print("executor", value)
    with spawn.Pool(1) as pool:
        for error in ERRORS:
            try:
                pool.apply_async(fail, (error,)).get(timeout=250)
            except errors.TTTError as got:
                if (type(got), str(got)) == (type(error), str(error)):
                    continue
            print("pool", repr(error))
    print("all tried:", len(ERRORS), len(VALUES))


if __name__ == "__main__":
    cross()
