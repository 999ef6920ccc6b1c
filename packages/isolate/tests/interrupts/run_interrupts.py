"""Raises an error at each moment at which Python may run a signal handler, in blocking calls and streams.

A handler, such as that of Ctrl-C, runs as a function starts and after a call has returned. A profiler is called at the
same moments, and its error comes out of the same call.

Run as `run_interrupts.py STORE FOLDER`; the folder has the extension. It prints the number of moments of each step.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from isolate import Extension, Host

faulthandler.dump_traceback_later(100, exit=True)  # a call that never returns
sys.unraisablehook = lambda _: None  # an error in a finalizer is dropped by Python
MOST = 400
"""Moments of one step that are tried."""
SIGNALS = 60
"""Calls that a real signal interrupts."""


class Interrupted(BaseException):
    """What the handler raises."""


class Handler:
    """Raises Interrupted at one moment."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __call__(self, frame: Any, event: str, argument: object) -> None:
        """Count the moments in the package's own code."""
        if event in ("call", "return", "c_return") and "/isolate/_" in frame.f_code.co_filename:
            self.left -= 1
            if self.left == 0:
                raise Interrupted


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


def signalled(step: Callable[[], object], seconds: float) -> None:
    """Run a step with a real signal in it, or after it."""
    armed = True

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, seconds))
        step()
        armed = False
    except Interrupted:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)


def settle(extension: Extension[Any], pid: int | None) -> None:
    """Wait until nothing of the interrupted step is left, on either side."""
    end = time.monotonic() + 30
    while True:
        gc.collect(0)
        left = extension.stats()
        working = extension.call(timeout=60).working()
        if not (left["pending"] or left["serving"] or left.get("lent") or working):
            break
        if time.monotonic() > end:
            raise SystemExit(f"left: {left}, working: {working}")
        time.sleep(0.002)
    if extension.pid != pid:
        raise SystemExit(f"the worker ended: {extension.failure}")


def main() -> None:
    """Interrupt each step at every moment."""
    shared, text = bytes(1 << 18), "x" * (1 << 20)
    with Host(sys.argv[1]) as host:
        extension = host.load(sys.argv[2])
        call, pid = extension.call, extension.pid
        steps: dict[str, Callable[[], object]] = {
            "call": lambda: call.count(1),
            "deadline": lambda: call(timeout=60).count(1),
            "late": lambda: late(call),
            "shared": lambda: call.count(shared),
            "back": lambda: call.back(shared),
            "text": lambda: call.count(text),
            "callable": lambda: call.apply(abs),
            "stream": lambda: list(call.stream(3)),
            "left": lambda: next(call.stream(3)),
        }
        for name, step in steps.items():
            step()
            moment = 1
            while moment < MOST and interrupted(moment, step):
                settle(extension, pid)
                moment += 1
            print(name, moment, flush=True)
        began = time.perf_counter()
        steps["text"]()
        seconds = time.perf_counter() - began
        for _ in range(SIGNALS):
            signalled(steps["text"], seconds)
        settle(extension, pid)


def late(call: Any) -> None:
    """Call what does not answer in time."""
    with contextlib.suppress(TimeoutError):
        call(timeout=0.01).sleep(60)


if __name__ == "__main__":
    main()
