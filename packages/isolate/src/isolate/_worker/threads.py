"""Threads for synchronous methods; a nested call never waits behind the calls that wait for it."""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class _Worker:
    __slots__ = ("job", "wake")

    def __init__(self) -> None:
        self.job: Job | None = None
        self.wake = _thread.allocate_lock()
        self.wake.acquire()


class Threads:
    """Runs jobs on daemon threads, newest idle thread first.

    Args:
        limit: Threads for outermost calls. Nested calls (`urgent`) may exceed it: if they waited for outer calls, both
            would wait for ever.
        name: Prefix of the threads' names.
    """

    def __init__(self, limit: int = 32, name: str = "isolate") -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._backlog: deque[Job] = deque()
        self._count = 0
        self._closed = False
        self._serial = 0

    def submit(self, job: Job, urgent: bool = False) -> None:
        """Run a job soon; the job must not raise."""
        with self._lock:
            if self._idle:
                worker = self._idle.pop()
            elif self._count < self._limit or urgent:
                self._count += 1
                self._serial += 1
                worker = _Worker()
                worker.job = job
                threading.Thread(
                    target=self._run, args=(worker,), daemon=True, name=f"{self._name}-{self._serial}"
                ).start()
                return
            else:
                self._backlog.append(job)
                return
        worker.job = job
        worker.wake.release()

    def close(self) -> None:
        """End idle threads now and busy ones after their job; drop jobs that have not begun."""
        with self._lock:
            self._closed = True
            self._backlog.clear()
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()

    def _run(self, worker: _Worker) -> None:
        while True:
            job, worker.job = worker.job, None
            if job is None:
                return
            job()
            del job
            with self._lock:
                if self._closed or self._count > self._limit:
                    self._count -= 1
                    return
                if self._backlog:
                    worker.job = self._backlog.popleft()
                    continue
                self._idle.append(worker)
            worker.wake.acquire()
