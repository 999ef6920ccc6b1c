"""Whether this process is a fork of the one that made an object: its threads and event loop stayed behind."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

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


def end_child(failure: BaseException | None) -> NoReturn:
    """End a forked process that came back from a method as if the method were its program; its parent answers."""
    code: object = 0 if failure is None else 1
    if isinstance(failure, SystemExit):
        code = failure.code or 0
    elif failure is not None:
        traceback.print_exception(failure)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(code & 0xFF if isinstance(code, int) else 1)
