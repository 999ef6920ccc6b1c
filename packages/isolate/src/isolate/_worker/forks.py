"""Whether this process is a fork of the one that made an object: its threads and event loop stayed behind."""

from __future__ import annotations

import os

from .errors import ForkedError

_generation = 0


def _count() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_count)


def generation() -> int:
    """Return a number that differs in a fork of this process."""
    return _generation


def check(made_in: int) -> None:
    """Refuse to use an object in a fork of the process that made it.

    Raises:
        ForkedError: This is such a fork.
    """
    if made_in != _generation:
        raise ForkedError("this host belongs to the process that this one was forked from; open another one here")
