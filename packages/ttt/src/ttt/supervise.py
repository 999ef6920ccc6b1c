"""Solves one task in a process of its own and holds it to its budget. Knows neither pool nor files of a run."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil

from ttt.backend import Backend
from ttt.budget import Budget
from ttt.calibration import AS_CLAIMED, Calibration
from ttt.events import Event, Finished, Improved, Started, Status, TaskResult
from ttt.selection import choose
from ttt.values import Progress, Task
from ttt.wire import progress_in, task_out

POLL = 0.02
"""Seconds between two looks at a task's memory."""
FAMILY = 0.5
"""Seconds between two looks for processes that the task's process has started; finding them reads all of /proc."""
INTERRUPT_GRACE = 2.0
"""Seconds that a task has to come to an end after Ctrl-C."""
# One thread per process: two threads on two busy cores were many times slower than one.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Job:
    """One task to be solved: by whom, within what, from which seed, where it may keep checkpoints, how it is judged."""

    task: Task
    backend: Backend
    budget: Budget
    seed: int
    workdir: Path | None = None
    calibration: Calibration = AS_CLAIMED


def supervise(job: Job, stop: threading.Event) -> Iterator[Event]:
    """Solve one task, yielding Started, any number of Improved, and Finished; raises nothing for what the task does.

    Args:
        job: what to do.
        stop: once set, the backend is asked to end and, 2 s later, made to.
    """
    task, budget = job.task, job.budget
    yield Started(task.id)
    begun = time.monotonic()
    with _Child(job, begun) as child:
        best: Progress | None = None
        result = TaskResult(task.id, choose(task, None), "failed")
        kill_at = float("inf") if budget.seconds is None else begun + budget.seconds + budget.grace
        asked = False
        while True:
            message = child.next_message(POLL)
            if message is not None:
                peak = max(result.peak_memory, message["peak_memory"])
                result = replace(result, cpu_seconds=message["cpu_seconds"], peak_memory=peak)
            if message is None:
                now = time.monotonic()
                if stop.is_set() and not asked:
                    asked = True
                    child.ask_to_stop()
                    kill_at = min(kill_at, now + INTERRUPT_GRACE)
                memory = child.memory()
                if memory > result.peak_memory:
                    result = replace(result, peak_memory=memory, cpu_seconds=child.cpu_seconds(result.cpu_seconds))
                verdict = _verdict(budget, memory, now >= kill_at, asked)
                if verdict is None:
                    continue
                result = replace(result, cpu_seconds=child.cpu_seconds(result.cpu_seconds), **verdict)
                child.kill()
                break
            if message["kind"] == "progress":
                best = progress_in(message)
                found = choose(task, best, job.calibration)
                result = replace(result, predictions=found, stage=best.stage, fraction=best.fraction)
                result = replace(result, steps=best.steps_done)
                yield Improved(task.id, found, best.stage, best.fraction, time.monotonic() - begun)
                continue
            result = replace(result, **_ending(message, child))
            break
    yield Finished(task.id, replace(result, seconds=round(time.monotonic() - begun, 3)))


def _verdict(budget: Budget, memory: int, late: bool, asked: bool) -> dict[str, Any] | None:
    """Why a task's process has to be ended now, as fields of its result."""
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


def _ending(message: dict[str, Any], child: _Child) -> dict[str, Any]:
    if message["kind"] == "done":
        reason = message["reason"]
        return {"status": "stopped" if reason else "done", "reason": reason, "steps": message["steps"]}
    if message["kind"] == "error":
        return {"status": "failed", "error": f"{message['type']}: {message['message']}"}
    said = child.last_words()
    return {"status": "failed", "error": f"WorkerDiedError: {child.how_it_ended()}{': ' + said if said else ''}"}


class _Child:
    """The worker process, its pipes and the thread that reads from it; leaving the block leaves nothing behind."""

    def __init__(self, job: Job, begun: float) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__, which outlives this
        # PYTHONPATH carries the parent's whole path: what the parent can import, the worker can.
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ttt.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent only, which then asks the workers
        )
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._last: dict[str, Any] = {"cpu_seconds": 0.0, "peak_memory": 0}
        self._seen: psutil.Process | None = None
        self._family: list[psutil.Process] = []
        self._looked = time.monotonic()
        with contextlib.suppress(psutil.Error):
            self._seen = psutil.Process(self._process.pid)
        seconds = job.budget.seconds
        self._send(
            {
                "task": task_out(job.task),
                "backend": base64.b64encode(pickle.dumps(job.backend)).decode(),
                "budget": asdict(job.budget),
                "seed": job.seed,
                "deadline": None if seconds is None else begun + seconds,
                "workdir": None if job.workdir is None else str(job.workdir),
            }
        )

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _send(self, message: dict[str, Any] | str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a worker that died is noticed by the reader
                self._process.stdin.write((json.dumps(message) + "\n").encode())
                self._process.stdin.flush()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                with contextlib.suppress(ValueError):  # a line cut short by a kill
                    self._last = json.loads(line)
                    self._inbox.put(self._last)
        self._inbox.put({**self._last, "kind": "eof"})

    def next_message(self, timeout: float) -> dict[str, Any] | None:
        """The next line of the worker, or None after ``timeout`` seconds; kind ``eof`` when it has ended."""
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def ask_to_stop(self) -> None:
        """Ask the backend, through its clock, to come to an end."""
        self._send("stop")

    def memory(self) -> int:
        """Resident bytes of the process now, and the shares of what it has started; 0 once it is gone."""
        try:
            if self._seen is None:
                return 0
            if time.monotonic() - self._looked > FAMILY:
                self._family = self._seen.children(recursive=True)
                self._looked = time.monotonic()
            return int(self._seen.memory_info().rss) + sum(map(_share, self._family))
        except psutil.Error:
            return 0

    def cpu_seconds(self, before: float) -> float:
        """User and system seconds of the process and of what it has started, or ``before`` if that is more."""
        total = 0.0
        for process in (self._seen, *self._family):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times() if process else None
                total += times.user + times.system + times.children_user + times.children_system if times else 0.0
        return max(before, total)

    def kill(self) -> None:
        """End the process and whatever it started in its session."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.name == "posix":
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
        self._process.wait()

    def how_it_ended(self) -> str:
        """Exit status in words."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"the worker was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
        return f"the worker exited with status {code} and no result"

    def last_words(self) -> str:
        """The last line that the worker wrote to stderr."""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 2000))
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


def _share(process: psutil.Process) -> int:
    """A process's memory with shared pages divided among those that share them, where the system tells; else all."""
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.Error:
        return 0
