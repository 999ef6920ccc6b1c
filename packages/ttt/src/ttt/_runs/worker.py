"""The process that solves one task: `python -m ttt._runs.worker`, a job on stdin, JSON lines on stdout.

It exits when its parent goes away, so that no solver outlives a killed run.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from ttt._backend import Backend
from ttt._budget import Budget, Clock, peak_bytes
from ttt._runs.wire import progress_out, task_in
from ttt.results import choose
from ttt.values import Progress

SEND_EVERY = 0.1
"""Seconds between two progress lines; the last one is always sent."""


def main() -> None:
    """Solve the one job that stdin carries."""
    # What a backend prints goes to stderr; the real stdout carries our lines only.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.readline())
    clock = Clock(Budget(**job["budget"]), job["seed"], deadline=job["deadline"])
    threading.Thread(target=_listen, args=(sys.stdin.buffer, clock), daemon=True).start()
    try:
        last = _solve(job, clock, out)
        steps = max(clock.steps_done, last.steps_done if last else 0)
        reason = clock.reason
        if reason is None and clock.budget.steps is not None and steps >= clock.budget.steps:
            reason = "steps"
        _send(out, clock, kind="done", reason=reason, steps=steps)
    except MemoryError as error:
        _send(out, clock, kind="error", type="MemoryLimitError", message=f"the process ran out of memory: {error}")
    except Exception as error:  # every error of a backend is a failure of its task, and reported to the parent
        traceback.print_exc()
        _send(out, clock, kind="error", type=type(error).__name__, message=str(error))
    out.flush()
    # Skips the interpreter's teardown, which with big libraries loaded can take seconds of the task's budget.
    sys.stderr.flush()
    os._exit(0)


def _solve(job: dict[str, Any], clock: Clock, out: IO[str]) -> Progress | None:
    # The pickle comes from our own parent, over a pipe that no other process holds.
    backend: Backend = pickle.loads(base64.b64decode(job["backend"]))
    task = task_in(job["task"])
    workdir = Path(job["workdir"]) if job["workdir"] else None
    last: Progress | None = None
    unsent = False
    sent_at = 0.0
    for last in backend.solve(task, clock, workdir):
        choose(task, last)  # refuses invalid answers here, where the traceback shows the backend
        unsent = time.monotonic() - sent_at < SEND_EVERY
        if not unsent:
            _send(out, clock, kind="progress", **progress_out(last))
            sent_at = time.monotonic()
    if last is not None and unsent:
        _send(out, clock, kind="progress", **progress_out(last))
    return last


def _send(out: IO[str], clock: Clock, **message: Any) -> None:
    message["cpu_seconds"] = time.process_time() + clock.helper_cpu
    message["peak_memory"] = max(peak_bytes(), clock.helper_peak)
    out.write(json.dumps(message) + "\n")
    out.flush()


def _listen(stdin: IO[bytes], clock: Clock) -> None:
    if stdin.readline():
        clock.interrupted.set()
        stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
