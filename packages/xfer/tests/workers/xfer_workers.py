"""Functions that tests run in other processes, which import them by name."""

from __future__ import annotations

from typing import Any

import numpy as np

import xfer
from xfer import errors


def made(name: str) -> Exception:
    """Return an error of each kind with every attribute set."""
    kind: Any = getattr(errors, name)
    if issubclass(kind, errors.BudgetExceededError):
        error: Exception = kind("a message", 7, 3)
    elif issubclass(kind, OSError):
        error = kind(5, "a message")
    else:
        error = kind("a message")
    return error


def fail(name: str) -> None:
    """Raise an error."""
    raise made(name)


def look(handle: xfer.Handle) -> Any:
    """Return the sum of the array behind a handle."""
    return xfer.get(handle).sum()


def results(count: int, size: int = 100) -> list[xfer.Handle]:
    """Put arrays that their reader takes over, and keep one that it does not."""
    xfer.put(np.zeros(9))
    return [xfer.put(np.full(size, number), consume=True) for number in range(count)]


def give_results(queue: Any, count: int) -> None:
    """Put such arrays, and their handles into a queue."""
    queue.put(results(count))
