"""Solves one task in a process and holds it to its budget."""

from __future__ import annotations

import base64
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ttt._backend import Backend, stays_loaded
from ttt._budget import Budget
from ttt._events import Event, Finished, Improved, Started, Status, TaskResult
from ttt._runs.child import ENDED
from ttt._runs.slot import Slot, Worker
from ttt._runs.wire import progress_in, task_out
from ttt.results import AS_CLAIMED, Calibration, choose
from ttt.values import Progress, Task

POLL = 0.02
"""Seconds between two checks of a task's memory."""
INTERRUPT_GRACE = 2.0
"""Seconds that a task has to end by itself after Ctrl-C."""


@dataclass(frozen=True)
class Job:
    """One task to solve, with its backend, budget, seed, folder for checkpoints, and confidence curves."""

    task: Task
    backend: Backend
    budget: Budget
    seed: int
    workdir: Path | None = None
    calibration: Calibration = AS_CLAIMED


def supervise(job: Job, stop: threading.Event, slot: Slot | None = None) -> Iterator[Event]:
    """Solve one task, yielding Started, any number of Improved, and Finished.

    Errors of the task do not propagate: they are part of its result. A task that fails in a process that has solved
    others, other than by its time, is tried again in a new process, in what is left of its time.

    Args:
        job: What to solve, and how.
        stop: Once set, the backend is asked to end; 2 s later its process is killed.
        slot: Where its process is started, or waits; None for a slot that ends with the task.
    """
    yield Started(job.task.id)
    attempt = _Attempt(job, slot or Slot(), keep=slot is not None and stays_loaded(job.backend))
    try:
        while True:
            yield from attempt.events(stop)
            if not attempt.begins_again(stop):
                break
    finally:
        attempt.leave()
    yield Finished(job.task.id, replace(attempt.result, seconds=round(time.monotonic() - attempt.begun, 3)))


class _Attempt:
    """One attempt at a task: its process, and the result so far."""

    def __init__(self, job: Job, slot: Slot, *, keep: bool) -> None:
        self.begun = time.monotonic()
        self.result = TaskResult(job.task.id, choose(job.task, None), "failed")
        self._job, self._slot, self._keep = job, slot, keep
        self._asked = False
        seconds = job.budget.seconds
        self._deadline = None if seconds is None else self.begun + seconds
        self._kill_at = float("inf") if self._deadline is None else self._deadline + job.budget.grace
        self._backend = pickle.dumps(job.backend)
        self._worker = self._start()

    def _start(self) -> Worker:
        worker = self._slot.take(self._backend)
        worker.send(
            {
                "task": task_out(self._job.task),
                "backend": base64.b64encode(self._backend).decode(),
                "keep": self._keep,
                "budget": asdict(self._job.budget),
                "seed": self._job.seed,
                "deadline": self._deadline,
                "workdir": None if self._job.workdir is None else str(self._job.workdir),
            }
        )
        return worker

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """Yield improvements until the process has reported its end, has ended, or must be killed."""
        while True:
            message = self._worker.child.next_message(POLL)
            if message is None:
                if stop.is_set() and not self._asked:
                    self._asked = True
                    self._worker.send("stop")
                    self._kill_at = min(self._kill_at, time.monotonic() + INTERRUPT_GRACE)
                if self._must_be_killed():
                    return
            elif message is ENDED:
                self._update(status="failed", error=self._how_it_died())
                return
            else:
                self._count(message)
                if message["kind"] != "progress":
                    self._update(**_ending(message))
                    return
                yield self._improved(progress_in(message))

    def begins_again(self, stop: threading.Event) -> bool:
        """Begin again in a new process if what ended the task may come from the tasks before it; return whether."""
        spoiled = self.result.reason == "memory" or self.result.may_succeed_later
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if not (spoiled and self._worker.solved) or late or stop.is_set():
            return False
        self._worker.close()
        found = self.result
        # As if it had not been tried, but for the answers, which stay until there are new ones.
        self.result = TaskResult(found.task_id, found.predictions, "failed", stage=found.stage, fraction=found.fraction)
        self._worker = self._start()
        return True

    def leave(self) -> None:
        """Leave the process to the slot if it can solve more tasks, else end it."""
        ended = self.result.status == "done" or (
            self.result.status == "stopped" and self.result.reason in ("time", "steps")
        )
        if self._keep and ended and self._worker.child.is_alive():
            self._slot.keep(self._worker)
        else:
            self._worker.close()

    def _count(self, message: dict[str, Any]) -> None:
        self._update(
            cpu_seconds=message["cpu_seconds"],
            peak_memory=max(self.result.peak_memory, message["peak_memory"]),
            peak_gpu_memory=max(self.result.peak_gpu_memory, message["peak_gpu_memory"]),
        )

    def _update(self, **fields: Any) -> None:
        self.result = replace(self.result, **fields)

    def _improved(self, best: Progress) -> Improved:
        found = choose(self._job.task, best, self._job.calibration)
        self._update(predictions=found, stage=best.stage, fraction=best.fraction, steps=best.steps_done)
        return Improved(self._job.task.id, found, best.stage, best.fraction, time.monotonic() - self.begun)

    def _must_be_killed(self) -> bool:
        """Check memory and time; if a limit is broken, note it in the result."""
        memory = self._worker.child.memory()
        if memory > self.result.peak_memory:
            self._update(peak_memory=memory, cpu_seconds=self._worker.cpu_seconds(self.result.cpu_seconds))
        verdict = _verdict(self._job.budget, memory, time.monotonic() >= self._kill_at, self._asked)
        if verdict is None:
            return False
        self._update(cpu_seconds=self._worker.cpu_seconds(self.result.cpu_seconds), **verdict)
        return True

    def _how_it_died(self) -> str:
        code = self._worker.child.exit_status()
        if code < 0:
            name = signal.Signals(-code).name
            text = f"the worker was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
        else:
            text = f"the worker exited with status {code} and no result"
        said = self._worker.last_line()
        return f"WorkerDiedError: {text}{': ' + said if said else ''}"


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
