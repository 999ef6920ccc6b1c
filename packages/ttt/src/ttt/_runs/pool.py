"""Where tasks are solved: the protocol of a pool, and the pool of this machine's processes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from ttt._events import Event, Finished
from ttt._runs.slot import Slot
from ttt._runs.supervise import Job, supervise


@dataclass(frozen=True, slots=True)
class Lost:
    """A task's place failed (its node died, for example); the task itself did nothing wrong."""

    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the user about the run."""

    text: str


@dataclass(frozen=True, slots=True)
class Brought:
    """The files of a task's work folder, from the node where it ran."""

    folder: Path
    files: Mapping[str, bytes]


Message: TypeAlias = Event | Lost | Note | Brought


class Pool(Protocol):
    """Solves jobs on some number of slots and reports what happens."""

    def free(self) -> int:
        """Return how many more jobs can be submitted now."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job on a free slot."""
        ...

    def messages(self, timeout: float) -> list[Message]:
        """Return what has happened, waiting up to `timeout` seconds for the first of it."""
        ...

    def interrupt(self) -> None:
        """Ask all running jobs to end; each still reports Finished with its best answers."""
        ...

    def close(self) -> None:
        """End whatever still runs, and free what the pool holds."""
        ...


class LocalPool:
    """Processes of this machine, at most one per slot.

    Each job has a new process, or that of the job before in the same slot where its backend stays loaded.

    Args:
        slots: The environment variables of each slot, besides those of this process.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]]) -> None:
        self._slots = [Slot(env) for env in slots]
        self._all = tuple(self._slots)
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._stop = threading.Event()
        self._queue: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

    def free(self) -> int:
        """Return the number of free slots."""
        return len(self._slots)

    def submit(self, job: Job) -> None:
        """Start a job on a free slot."""
        with self._lock:
            slot = self._slots.pop()
            thread = threading.Thread(target=self._work, args=(job, slot), daemon=True)
            self._threads.add(thread)
        thread.start()

    def _work(self, job: Job, slot: Slot) -> None:
        last: Event | BaseException | None = None
        try:
            for event in supervise(job, self._stop, slot):
                if isinstance(event, Finished):
                    last = event
                else:
                    self._queue.put(event)
        except BaseException as error:
            last = error
        # The slot is free before the end is reported, so that the next job can start at once.
        with self._lock:
            self._slots.append(slot)
            self._threads.discard(threading.current_thread())
        if last is not None:
            self._queue.put(last)

    def messages(self, timeout: float) -> list[Message]:
        """Return the events so far, waiting up to `timeout` seconds for the first one."""
        found: list[Message] = []
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=timeout)
            while True:
                if isinstance(item, BaseException):
                    raise item
                found.append(item)
                item = self._queue.get_nowait()
        return found

    def interrupt(self) -> None:
        """Ask all running jobs to end, within about two seconds."""
        self._stop.set()

    def close(self) -> None:
        """End all jobs and all processes, and wait for them."""
        self._stop.set()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        for slot in self._all:
            slot.close()
