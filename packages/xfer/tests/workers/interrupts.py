"""Raises an error at each moment at which Python may run a signal handler, in `put`, `get` and `release`.

A handler, such as that of Ctrl-C, runs as a function starts and after a call has returned. A profiler is called at the
same moments, and its error comes out of the same call.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import xfer
from xfer._shared.reader import READER

faulthandler.dump_traceback_later(50, exit=True)  # a lock that was not given back
sys.unraisablehook = lambda _: None  # an error in a finalizer is dropped by Python


class Interrupted(BaseException):
    """What the handler raises."""


class Handler:
    """Raises Interrupted at one moment."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __call__(self, frame: Any, event: str, argument: object) -> None:
        """Count the moments in xfer's own code."""
        if event in ("call", "return", "c_return") and "/xfer/_" in frame.f_code.co_filename:
            self.left -= 1
            if self.left == 0:
                raise Interrupted


def check(pool: xfer.Pool, held: dict[xfer.Handle, int]) -> None:
    """Check that every array is its own, and that new ones get slots that nobody has."""
    views = {handle: xfer.get(handle) for handle in held}
    new = {pool.put(np.full(16 << 10, value, np.uint8)): value for value in range(100, 106)}
    for handle, value in (held | new).items():
        array = views[handle] if handle in views else xfer.get(handle)
        if not (array == value).all():
            raise SystemExit(f"wrong data: {value} is {array[0]}")
        if len(array) > 16 << 10 and not (READER.array(bytes(handle), private=True)[0] == value).all():
            raise SystemExit(f"what was written to a private mapping of {value} is in the next one")
    for handle in new:
        pool.release(handle)


def interrupted(moment: int, step: Callable[[], object]) -> bool:
    """Run a step with an error at one of its moments; return False where it has fewer."""
    handler = Handler(moment)
    sys.setprofile(handler)
    try:
        step()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
    return handler.left <= 0


def main() -> None:
    """Interrupt each step at every moment."""
    pool = xfer.Pool("256MiB")
    held = {pool.put(np.full(16 << 10, value, np.uint8)): value for value in (1, 2, 3)}
    large = pool.put(np.full(300 << 10, 4, np.uint8))
    held[large] = 4
    array = np.full(16 << 10, 7, np.uint8)
    made: list[xfer.Handle] = []
    steps: list[Callable[[], object]] = [
        lambda: made.append(pool.put(array)),
        lambda: made.append(pool.put({"a": array[:15000], "b": 1})),
        lambda: xfer.get(next(iter(held))),
        lambda: pool.release(made.pop()),
        lambda: (pool.release(made.pop()), pool.trim()),
        lambda: READER.array(bytes(large), private=True)[0].fill(9),  # and drops it
    ]
    counts = []
    for step in steps:
        moment = 1
        while True:
            made += [pool.put(array), pool.put(array)]
            if not interrupted(moment, step):
                break
            check(pool, held)
            while made:
                with contextlib.suppress(xfer.errors.DoubleReleaseError):
                    pool.release(made.pop())
            moment += 1
        counts.append(moment)
    print("fewest moments of a step:", min(counts))


main()
