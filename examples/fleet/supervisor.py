"""Keeps the publisher and the workers of a fleet running, and collects what the workers report."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import xfer

HERE = Path(__file__).parent
SILENT = 10.0
"""A worker that has reported nothing for so many seconds is replaced."""
START = 180.0
"""Seconds that a worker may take to start, on a busy machine."""


class Child:
    """A child process that is spoken to by lines, and ends when this process does."""

    def __init__(self, program: str, *arguments: str) -> None:
        # In a session of its own: Ctrl-C at the terminal reaches this process alone, which then ends its children.
        command = [sys.executable, str(HERE / program), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self.port = self.open = 0
        self.seen = time.monotonic() + START

    def ask(self, line: str = "") -> str:
        """Return the answer to a line; an empty text if the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):
            if line:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
            return self.process.stdout.readline().strip()
        return ""

    def greet(self) -> None:
        """Wait for the port on which a worker listens."""
        self.port = int(self.ask() or 0)
        self.seen = time.monotonic()

    def end(self, patience: float = 3) -> None:
        """End the process in order, or kill it after some seconds."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Supervisor:
    """A publisher and its workers; they are started again when they die, and workers also when they hang.

    Args:
        name: The name that the weights are published under.
        count: How many workers there are.
        file: The first version of the model.
    """

    def __init__(self, name: str, count: int, file: Path) -> None:
        self.name, self.restarts = name, 0
        self.reports: dict[int, dict[str, Any]] = {}
        self._file, self._ending, self._lock = file, False, threading.Lock()
        self.publisher = Child("publisher.py", name)
        self.publish(file)
        self.workers = [self._worker() for _ in range(count)]
        self._threads = [threading.Thread(target=work) for work in (self._watch, self._listen)]
        for thread in self._threads:
            thread.start()

    def wait(self, count: int, seconds: float = START) -> None:
        """Wait until so many workers are ready.

        Raises:
            TimeoutError: They are not.
        """
        end = time.monotonic() + seconds
        while (ready := sum(worker.port != 0 for worker in self.workers)) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{ready} of {count} workers are ready after {seconds} s")
            time.sleep(0.05)

    def publish(self, file: Path) -> None:
        """Make a model file the newest version. Workers use it from their next request on."""
        with self._lock:
            self._file = file
            while not self.publisher.ask(str(file)) and not self._ending:
                self.publisher.end(0)
                self.publisher = Child("publisher.py", self.name)

    def end(self) -> None:
        """End all processes."""
        self._ending = True
        for thread in self._threads:
            thread.join()
        for child in [*self.workers, self.publisher]:
            child.end()
        xfer.Topic(self.name, keep=64).remove()

    def _worker(self) -> Child:
        worker = Child("worker.py", self.name)
        threading.Thread(target=worker.greet, daemon=True).start()
        return worker

    def _watch(self) -> None:
        while not self._ending:
            time.sleep(0.1)
            if self.publisher.process.poll() is not None:
                self.restarts += 1
                self.publish(self._file)
            for worker in [worker for worker in self.workers if worker.process.poll() is not None]:
                self._replace(worker)
            silent = min(self.workers, key=lambda worker: worker.seen)
            if time.monotonic() - silent.seen > SILENT:
                self._replace(silent)
                for worker in self.workers:  # it may have been stopped in its turn to report, which kept them silent
                    worker.seen = max(worker.seen, time.monotonic() - SILENT / 2)

    def _replace(self, worker: Child) -> None:
        self.restarts += 1
        worker.end(0)
        self.reports.pop(worker.process.pid, None)
        self.workers = [other for other in self.workers if other is not worker] + [self._worker()]

    def _listen(self) -> None:
        with xfer.Topic(self.name, keep=64).subscribe() as reader:
            while not self._ending:
                with suppress(xfer.errors.WaitTimeoutError):
                    report = reader.recv(timeout=0.2)
                    for worker in self.workers:
                        if worker.process.pid == report["pid"]:
                            self.reports[worker.process.pid] = report
                            worker.seen = max(worker.seen, time.monotonic())
