"""Threads for synchronous methods, shared fairly; a nested call never waits behind the calls that wait for it."""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable

from .errors import OverloadedError

Job = Callable[[], None]
GUARANTEED = 2
"""Threads that each share gets however busy the others are."""


_Task = tuple[Job, "Share", bool]
"""A job, the share it counts in, and whether it is nested."""


class _Worker:
    __slots__ = ("task", "wake")

    def __init__(self) -> None:
        self.task: _Task | None = None
        self.wake = _thread.allocate_lock()
        self.wake.acquire()


class Share:
    """What one link uses of the threads.

    Args:
        limit: Most outermost calls that run at once; more of them wait.
        nested_limit: Most nested calls that run at once. They cannot wait, since outer calls wait for them, so more of
            them are refused.
    """

    def __init__(self, limit: int = 32, nested_limit: int = 1_000_000) -> None:
        self.limit = limit
        self.nested_limit = nested_limit
        self.outer = 0
        self.nested = 0
        self.abandoned = 0
        self.waiting: deque[Job] = deque()


class Threads:
    """Runs jobs on daemon threads, newest idle thread first.

    Args:
        limit: Outermost calls of all shares that run at once, beyond the few that each share is guaranteed.
        name: Prefix of the threads' names.
    """

    def __init__(self, limit: int = 32, name: str = "isolate") -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._queues: deque[Share] = deque()
        self._outer = 0
        self._closed = False
        self._serial = 0

    def submit(self, job: Job, share: Share, nested: bool = False) -> None:
        """Run a job soon; the job must not raise.

        Raises:
            OverloadedError: Too many nested calls run already, or the process can start no thread.
        """
        with self._lock:
            if nested:
                if share.nested >= share.nested_limit:
                    raise OverloadedError(f"{share.nested} nested calls are running; the limit is {share.nested_limit}")
                share.nested += 1
            elif self._may_run(share):
                share.outer += 1
                self._outer += 1
            else:
                if not share.waiting:
                    self._queues.append(share)
                share.waiting.append(job)
                return
            try:
                self._start((job, share, nested))
            except RuntimeError as failure:
                self._count_down(share, nested)
                raise OverloadedError(f"the call cannot run: {failure}") from None

    def abandon(self, share: Share, count: int) -> None:
        """Add to the calls that were cancelled and still run: they no longer count against the share's limit."""
        with self._lock:
            share.abandoned += count
            self._run_waiting()

    def close(self) -> None:
        """End idle threads now and busy ones after their job; drop jobs that have not begun."""
        with self._lock:
            self._closed = True
            for share in self._queues:
                share.waiting.clear()
            self._queues.clear()
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()

    def _may_run(self, share: Share) -> bool:
        own = share.outer - share.abandoned
        return own < min(GUARANTEED, share.limit) or (own < share.limit and self._outer < self._limit + share.abandoned)

    def _count_down(self, share: Share, nested: bool) -> None:
        if nested:
            share.nested -= 1
        else:
            share.outer -= 1
            self._outer -= 1

    def _run_waiting(self) -> None:
        """Begin what may run now, one job of each share in turn; called under the lock."""
        for _ in range(len(self._queues)):
            share = self._queues.popleft()
            while share.waiting and self._may_run(share):
                share.outer += 1
                self._outer += 1
                try:
                    self._start((share.waiting.popleft(), share, False))
                except RuntimeError:
                    self._count_down(share, False)
                    break
            if share.waiting:
                self._queues.append(share)

    def _start(self, task: _Task) -> None:
        if self._idle:
            worker = self._idle.pop()
            worker.task = task
            worker.wake.release()
            return
        self._serial += 1
        worker = _Worker()
        worker.task = task
        # Not by `Thread.start` here: it waits until the thread runs, which takes long where many want the processor.
        _thread.start_new_thread(self._start_thread, (worker, f"{self._name}-{self._serial}"))

    def _start_thread(self, worker: _Worker, name: str) -> None:
        try:
            threading.Thread(target=self._run, args=(worker,), daemon=True, name=name).start()
        except RuntimeError:  # there can be no more threads, but this is one
            self._run(worker)

    def _run(self, worker: _Worker) -> None:
        while True:
            task, worker.task = worker.task, None
            if task is None:
                return
            job, share, nested = task
            goes_on = False
            try:
                job()
                goes_on = True
            finally:
                del job, task
                with self._lock:
                    self._count_down(share, nested)
                    goes_on = goes_on and not self._closed and len(self._idle) < self._limit
                    if goes_on:
                        self._idle.append(worker)
                    if self._queues:
                        self._run_waiting()
            if not goes_on:
                return
            worker.wake.acquire()
