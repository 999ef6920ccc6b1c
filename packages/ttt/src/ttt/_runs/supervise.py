"""Solves one task in a process of its own and holds it to its budget."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from ttt._backend import Backend
from ttt._budget import Budget
from ttt._events import Event, Finished, Improved, Started, Status, TaskResult
from ttt._runs.child import ENDED, Child
from ttt._runs.wire import progress_in, task_out
from ttt.results import AS_CLAIMED, Calibration, choose
from ttt.values import Progress, Task

POLL = 0.02
"""Seconds between two checks of a task's memory."""
INTERRUPT_GRACE = 2.0
"""Seconds that a task has to end by itself after Ctrl-C."""
# One thread per process: two threads on two busy cores were many times slower than one.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Job:
    """One task to solve, with its backend, budget, seed, folder for checkpoints, and confidence curves."""

    task: Task
    backend: Backend
    budget: Budget
    seed: int
    workdir: Path | None = None
    calibration: Calibration = AS_CLAIMED


def supervise(job: Job, stop: threading.Event, env: Mapping[str, str] | None = None) -> Iterator[Event]:
    """Solve one task, yielding Started, any number of Improved, and Finished.

    Errors of the task do not propagate: they are part of its result.

    Args:
        job: What to solve, and how.
        stop: Once set, the backend is asked to end; 2 s later its process is killed.
        env: Environment variables of its process, besides those of this one.
    """
    yield Started(job.task.id)
    with _scratch() as stderr:
        attempt = _Attempt(job, stderr, env or {})
        with attempt.child:
            yield from attempt.events(stop)
    yield Finished(job.task.id, replace(attempt.result, seconds=round(time.monotonic() - attempt.begun, 3)))


def _scratch() -> IO[bytes]:
    """Return a temporary file for what a task prints, or the null device where none can be made."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


class _Attempt:
    """One attempt at a task: its process, and the result so far."""

    def __init__(self, job: Job, stderr: IO[bytes], env: Mapping[str, str]) -> None:
        self.begun = time.monotonic()
        self.result = TaskResult(job.task.id, choose(job.task, None), "failed")
        self._job, self._stderr = job, stderr
        self._asked = False
        seconds = job.budget.seconds
        self._kill_at = float("inf") if seconds is None else self.begun + seconds + job.budget.grace
        self.child = Child("ttt._runs.worker", _lines, env={**ONE_THREAD, **env}, stderr=stderr, own_session=True)
        self._send(
            {
                "task": task_out(job.task),
                "backend": base64.b64encode(pickle.dumps(job.backend)).decode(),
                "budget": asdict(job.budget),
                "seed": job.seed,
                "deadline": None if seconds is None else self.begun + seconds,
                "workdir": None if job.workdir is None else str(job.workdir),
            }
        )

    def _send(self, message: dict[str, Any] | str) -> None:
        self.child.send((json.dumps(message) + "\n").encode())

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """Yield improvements until the process has ended or must be killed."""
        while True:
            message = self.child.next_message(POLL)
            if message is None:
                if stop.is_set() and not self._asked:
                    self._asked = True
                    self._send("stop")
                    self._kill_at = min(self._kill_at, time.monotonic() + INTERRUPT_GRACE)
                if self._must_be_killed():
                    self.child.kill()
                    return
            elif message is ENDED:
                self._update(status="failed", error=self._how_it_died())
                return
            else:
                peak = max(self.result.peak_memory, message["peak_memory"])
                self._update(cpu_seconds=message["cpu_seconds"], peak_memory=peak)
                if message["kind"] != "progress":
                    self._update(**_ending(message))
                    return
                yield self._improved(progress_in(message))

    def _update(self, **fields: Any) -> None:
        self.result = replace(self.result, **fields)

    def _improved(self, best: Progress) -> Improved:
        found = choose(self._job.task, best, self._job.calibration)
        self._update(predictions=found, stage=best.stage, fraction=best.fraction, steps=best.steps_done)
        return Improved(self._job.task.id, found, best.stage, best.fraction, time.monotonic() - self.begun)

    def _must_be_killed(self) -> bool:
        """Check memory and time; if a limit is broken, note it in the result."""
        memory = self.child.memory()
        if memory > self.result.peak_memory:
            self._update(peak_memory=memory, cpu_seconds=self.child.cpu_seconds(self.result.cpu_seconds))
        verdict = _verdict(self._job.budget, memory, time.monotonic() >= self._kill_at, self._asked)
        if verdict is None:
            return False
        self._update(cpu_seconds=self.child.cpu_seconds(self.result.cpu_seconds), **verdict)
        return True

    def _how_it_died(self) -> str:
        code = self.child.exit_status()
        if code < 0:
            name = signal.Signals(-code).name
            text = f"the worker was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
        else:
            text = f"the worker exited with status {code} and no result"
        said = _last_line(self._stderr)
        return f"WorkerDiedError: {text}{': ' + said if said else ''}"


def _lines(pipe: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in pipe:
        with contextlib.suppress(ValueError):  # a line cut short by a kill
            yield json.loads(line)


def _last_line(stderr: IO[bytes]) -> str:
    if not stderr.seekable():
        return ""
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - 2000))
    lines = stderr.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""


def _verdict(budget: Budget, memory: int, late: bool, asked: bool) -> dict[str, Any] | None:
    """Return why a task's process must be killed now, as fields of its result; None if it need not."""
    failed: Status = "failed"
    if budget.memory is not None and memory > budget.memory:
        text = f"MemoryLimitError: held {memory / 1e6:.0f} MB, the limit is {budget.memory / 1e6:.0f} MB; raise memory"
        return {"status": failed, "reason": "memory", "error": text}
    if late and asked:
        return {"status": "stopped", "reason": "interrupt"}
    if late and budget.seconds is not None:
        text = f"TimeLimitError: did not stop within {budget.seconds:g} s and {budget.grace:g} s of grace"
        return {"status": failed, "reason": "time", "error": text}
    return None


def _ending(message: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the result that a worker's last message decides."""
    if message["kind"] == "done":
        reason = message["reason"]
        return {"status": "stopped" if reason else "done", "reason": reason, "steps": message["steps"]}
    reason = "memory" if message["type"] == "MemoryLimitError" else None
    return {"status": "failed", "reason": reason, "error": f"{message['type']}: {message['message']}"}
