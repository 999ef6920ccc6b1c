"""The process that solves tasks: `python -m ttt._runs.worker`, jobs on stdin, JSON lines on stdout.

It exits when its parent goes away, so that no solver outlives a killed run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from ttt._backend import Backend, loaded
from ttt._budget import Budget, Clock, gpu_peak_bytes, peak_bytes, reset_peaks
from ttt._runs.wire import progress_out, task_in
from ttt.errors import MemoryLimitError
from ttt.results import choose
from ttt.values import Progress

SEND_EVERY = 0.1
"""Seconds between two progress lines."""


def main() -> None:
    """Solve the jobs that stdin carries: one, or more where the backend stays loaded."""
    # What a backend prints goes to stderr; the real stdout carries our lines only.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    interrupted = threading.Event()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, jobs, interrupted), daemon=True).start()
    reports = _Reports(out)
    backends = _Backends()
    while True:
        job = jobs.get()
        clock = Clock(Budget(**job["budget"]), job["seed"], deadline=job["deadline"])
        clock.interrupted = interrupted
        reports.begin(clock)
        if not _report(job, clock, reports, backends) or not job["keep"]:
            break
    out.flush()
    # Skips the interpreter's teardown, which with big libraries loaded can take seconds of the task's budget.
    sys.stderr.flush()
    os._exit(0)


def _report(job: dict[str, Any], clock: Clock, reports: _Reports, backends: _Backends) -> bool:
    """Solve a job and report how it ended; return whether it ended without an error."""
    try:
        last = _solve(job, clock, reports, backends)
    except MemoryLimitError as error:
        reports.send(kind="error", type="MemoryLimitError", message=str(error))
    except MemoryError as error:
        reports.send(kind="error", type="MemoryLimitError", message=f"the process ran out of memory: {error}")
    except Exception as error:  # every error of a backend is a failure of its task, and reported to the parent
        traceback.print_exc()
        reports.send(kind="error", type=type(error).__name__, message=str(error))
    else:
        steps = max(clock.steps_done, last.steps_done if last else 0)
        reason = clock.reason
        if reason is None and clock.budget.steps is not None and steps >= clock.budget.steps:
            reason = "steps"
        reports.send(kind="done", reason=reason, steps=steps)
        return True
    return False


def _solve(job: dict[str, Any], clock: Clock, reports: _Reports, backends: _Backends) -> Progress | None:
    task = task_in(job["task"])
    workdir = Path(job["workdir"]) if job["workdir"] else None
    last: Progress | None = None
    for last in backends.of(job).solve(task, clock, workdir):
        choose(task, last)  # refuses invalid answers here, where the traceback shows the backend
        reports.progress(last)
    return last


class _Backends:
    """The backend of the jobs, loaded for the first of them; its process ends with another backend's first job."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._loaded: Backend | None = None

    def of(self, job: dict[str, Any]) -> Backend:
        """Return a job's backend."""
        if self._loaded is None:
            # The pickle comes from our own parent, over a pipe that no other process holds.
            backend: Backend = pickle.loads(base64.b64decode(job["backend"]))
            self._loaded = self._open.enter_context(loaded(backend)) if job["keep"] else backend
        return self._loaded


class _Reports:
    """Writes JSON lines for the parent: progress at most every `SEND_EVERY` seconds, and none later than that."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._clock = Clock(Budget(seconds=None))
        self._cpu_before = 0.0
        self._first = True
        self._sent_at = 0.0
        self._pending: dict[str, Any] | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._send_late, daemon=True).start()

    def begin(self, clock: Clock) -> None:
        """Count for another task from now on; what the process has used before its first counts for that."""
        with self._changed:
            self._clock, self._sent_at = clock, 0.0
            if not self._first:
                self._cpu_before = time.process_time()
                reset_peaks()
            self._first = False

    def progress(self, progress: Progress) -> None:
        """Send the latest answers, now or within `SEND_EVERY` seconds."""
        with self._changed:
            self._pending = {"kind": "progress", **progress_out(progress)}
            if time.monotonic() - self._sent_at >= SEND_EVERY:
                self._send_pending()
            else:
                self._changed.notify()

    def send(self, **message: Any) -> None:
        """Send what is pending, then a message."""
        with self._changed:
            self._send_pending()
            self._write(message)

    def _send_late(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None)
            time.sleep(max(0.0, self._sent_at + SEND_EVERY - time.monotonic()))
            with self._changed:
                self._send_pending()

    def _send_pending(self) -> None:
        if self._pending is not None:
            self._write(self._pending)
            self._pending = None
            self._sent_at = time.monotonic()

    def _write(self, message: dict[str, Any]) -> None:
        message["cpu_seconds"] = time.process_time() - self._cpu_before + self._clock.helper_cpu
        message["peak_memory"] = max(peak_bytes(), self._clock.helper_peak)
        message["peak_gpu_memory"] = gpu_peak_bytes()
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def _listen(stdin: IO[bytes], jobs: queue.SimpleQueue[dict[str, Any]], interrupted: threading.Event) -> None:
    """Take jobs, and the word to stop; end this process when its parent goes away."""
    try:
        for line in stdin:
            message = json.loads(line)
            if isinstance(message, dict):
                jobs.put(message)
            else:
                interrupted.set()
    finally:  # also after half a line
        os._exit(1)


if __name__ == "__main__":
    main()
