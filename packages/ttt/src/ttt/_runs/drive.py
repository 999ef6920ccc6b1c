"""The loop of a run: takes jobs from a plan, keeps a pool busy, and yields what happens."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from ttt._events import Finished, TaskResult
from ttt._runs.pool import Lost, Message, Note, Pool
from ttt._runs.supervise import INTERRUPT_GRACE, Job
from ttt.results import choose

POLL = 0.2
"""Seconds between two looks at the stop signal and the plan."""
LOSSES = 3
"""A task whose place failed this often has failed itself: it may be what brings places down."""
UNRESPONSIVE = 8.0
"""Seconds after an interrupt and its grace when a pool that reports nothing is given up."""


class Plan(Protocol):
    """Decides which job is next."""

    def next_job(self) -> Job | None:
        """Return the next job; None if there is none now."""
        ...

    def over(self) -> bool:
        """Return whether there will be no job any more once the running ones have ended."""
        ...

    def finished(self, result: TaskResult) -> None:
        """Take note of a result."""
        ...


class Once:
    """Every job once, in order."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = deque(jobs)

    def next_job(self) -> Job | None:
        """Return the next job, None after the last."""
        return self._waiting.popleft() if self._waiting else None

    def over(self) -> bool:
        """Return whether all jobs have been started."""
        return not self._waiting

    def finished(self, result: TaskResult) -> None:
        """Do nothing: every job runs once."""


def drive(plan: Plan, pool: Pool, stop: threading.Event) -> Iterator[Message]:
    """Solve a plan's jobs on a pool, yielding events, notes and work folders.

    A job whose place failed is given to another place. After `stop` no job starts, and the running ones hand over
    their answers.
    """
    running: dict[str, Job] = {}
    again: deque[Job] = deque()
    losses: Counter[str] = Counter()
    give_up = float("inf")
    try:
        while True:
            if stop.is_set() and give_up == float("inf"):
                pool.interrupt()
                give_up = time.monotonic() + INTERRUPT_GRACE + UNRESPONSIVE
            while not stop.is_set() and pool.free() > 0:
                job = again.popleft() if again else plan.next_job()
                if job is None:
                    break
                running[job.task.id] = job
                pool.submit(job)
            ended = stop.is_set() or (plan.over() and not again)
            if (ended and not running) or time.monotonic() > give_up:
                return
            for reported in pool.messages(POLL):
                messages = _lost(reported, running, again, losses) if isinstance(reported, Lost) else [reported]
                for message in messages:
                    if isinstance(message, Finished):
                        running.pop(message.task_id, None)
                        plan.finished(message.result)
                    yield message
    finally:
        pool.close()


def _lost(lost: Lost, running: dict[str, Job], again: deque[Job], losses: Counter[str]) -> Iterator[Message]:
    job = running.pop(lost.task_id, None)
    if job is None:
        return
    losses[lost.task_id] += 1
    if losses[lost.task_id] < LOSSES:
        again.append(job)
        yield Note(f"task {lost.task_id} is started again: {lost.reason}")
        return
    error = f"WorkerDiedError: its place failed {LOSSES} times, last: {lost.reason}"
    yield Finished(job.task.id, TaskResult(job.task.id, choose(job.task, None), "failed", error=error))
