"""The places for tasks on this machine: a process for each task, or one that stays while its backend is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from ttt._runs.child import Child

# One thread per process: two threads on two busy cores were many times slower than one.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class Worker:
    """A process that solves tasks one after another, and the file of what it prints.

    Attributes:
        child: The process.
        backend: The pickled backend that it solves with.
        solved: Tasks that it has ended before the current one.
        cpu_before: CPU seconds that it used for them.
    """

    def __init__(self, backend: bytes, env: Mapping[str, str]) -> None:
        self.backend = backend
        self.solved = 0
        self.cpu_before = 0.0
        self._stderr = _scratch()
        try:
            self.child = Child(
                "ttt._runs.worker", _lines, env={**ONE_THREAD, **env}, stderr=self._stderr, own_session=True
            )
        except BaseException:
            self._stderr.close()
            raise

    def send(self, message: dict[str, Any] | str) -> None:
        """Write a message to its stdin."""
        self.child.send((json.dumps(message) + "\n").encode())

    def cpu_seconds(self, before: float) -> float:
        """Return the CPU seconds of the current task, or `before` if that is more."""
        return max(before, self.child.cpu_seconds(0.0) - self.cpu_before)

    def last_line(self) -> str:
        """Return the last line that it has printed for the current task."""
        if not self._stderr.seekable():
            return ""
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 2000))
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def next_task(self) -> None:
        """Count from here for the next task."""
        self.solved += 1
        self.cpu_before = self.child.cpu_seconds(self.cpu_before)
        with contextlib.suppress(OSError):  # the null device
            self._stderr.seek(0)  # the process shares this file position
            self._stderr.truncate()

    def close(self) -> None:
        """End it, with all that it has started."""
        with self.child:
            pass
        self._stderr.close()


class Slot:
    """A place for one task at a time. It keeps the process of the last task where its backend stays loaded.

    Args:
        env: Environment variables of its processes, besides those of this one.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.env: Mapping[str, str] = env or {}
        self._kept: Worker | None = None

    def take(self, backend: bytes) -> Worker:
        """Return the kept process if it is alive and has this backend, else a new one."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept.backend == backend and kept.child.is_alive():
                return kept
            kept.close()
        return Worker(backend, self.env)

    def keep(self, worker: Worker) -> None:
        """Keep an idle process for the next task."""
        worker.next_task()
        self._kept = worker

    def close(self) -> None:
        """End the kept process."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()


def _scratch() -> IO[bytes]:
    """Return a temporary file for what a task prints, or the null device where none can be made."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


def _lines(pipe: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in pipe:
        with contextlib.suppress(ValueError):  # a line cut short by a kill
            yield json.loads(line)
