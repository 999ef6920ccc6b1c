"""A Python process that does one job for this one, and a generator that runs in such a process."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import psutil

from ttt._budget import peak_bytes
from ttt.errors import WorkerDiedError

Spent = Callable[[float, int, int], None]
"""Called with a helper process's CPU seconds, resident bytes (0 once it has exited) and peak bytes."""
POLL = 0.05
"""Seconds between two checks of whether to stop, and of the helper's memory."""
FAMILY = 0.5
"""Seconds between two searches for the processes that a process has started; a search reads all of /proc."""
ENDED = object()
"""The last message of every child."""


class Child:
    """A process that runs a module, its pipes, and the thread that reads from it; leaving the block ends them all.

    Args:
        module: What it runs, as `python -m` does, with this process's whole import path.
        read: Yields messages from its stdout until that ends.
        env: Environment variables besides those of this process.
        stderr: Where its stderr goes; None for that of this process.
        own_session: Whether it leads a session of its own: Ctrl-C in a terminal then reaches this process only, and
            `kill` also ends what it has started.
    """

    def __init__(
        self,
        module: str,
        read: Callable[[IO[bytes]], Iterator[Any]],
        *,
        env: Mapping[str, str] | None = None,
        stderr: IO[bytes] | None = None,
        own_session: bool = False,
    ) -> None:
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self._own_session = own_session and os.name == "posix"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **(env or {}), "PYTHONPATH": path},
            start_new_session=self._own_session,
        )
        self._read = read
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._fill, daemon=True)
        self._reader.start()
        self._watched: psutil.Process | None = None
        self._family: list[psutil.Process] = []
        self._searched = time.monotonic()
        with contextlib.suppress(psutil.Error):
            self._watched = psutil.Process(self._process.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _fill(self) -> None:
        if self._process.stdout is not None:
            for message in self._read(self._process.stdout):
                self._inbox.put(message)
        self._inbox.put(ENDED)

    def send(self, data: bytes) -> None:
        """Write to its stdin; a process that has ended is noticed by `next_message`."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(data)
                self._process.stdin.flush()

    def next_message(self, timeout: float) -> Any | None:
        """Return its next message, None after `timeout` seconds, `ENDED` once its stdout has ended."""
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def memory(self) -> int:
        """Return its resident bytes now, plus the shares of the processes it has started; 0 once it has exited."""
        try:
            if self._watched is None:
                return 0
            if time.monotonic() - self._searched > FAMILY:
                self._family = self._watched.children(recursive=True)
                self._searched = time.monotonic()
            return int(self._watched.memory_info().rss) + sum(map(_share, self._family))
        except psutil.Error:
            return 0

    def cpu_seconds(self, before: float) -> float:
        """Return its user and system seconds and those of what it has started, or `before` if that is more."""
        total = 0.0
        for process in (self._watched, *self._family):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times() if process else None
                total += times.user + times.system + times.children_user + times.children_system if times else 0.0
        return max(before, total)

    def kill(self) -> None:
        """End it, and with a session of its own also what it has started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self._own_session:
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
        self._process.wait()

    def is_alive(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def exit_status(self) -> int:
        """Wait for its end and return its status, negative for the signal that ended it."""
        return self._process.wait()


def _share(process: psutil.Process) -> int:
    """Return a process's memory, shared pages divided among their users where the system tells."""
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.Error:
        return 0


def in_child(target: str, arguments: tuple[Any, ...], stop: Callable[[], bool], spent: Spent) -> Iterator[Any]:
    """Yield what a generator yields that runs in a fresh process.

    What the generator imports is in memory only while it runs. The process ends with the generator, when `stop` is
    true, and when this process goes away.

    Args:
        target: The generator function, as `package.module:function`.
        arguments: Its arguments; these and what it yields must be picklable.
        stop: Called every 50 ms; true ends the process and the iteration.
        spent: Called with what the process has used.

    Raises:
        WorkerDiedError: The process ended before its generator did.
        Exception: What the generator raised.
    """
    cpu, peak = 0.0, 0
    try:
        with Child("ttt._runs.child", _pickles) as child:
            child.send(pickle.dumps((target, arguments)))
            while not stop():
                now = child.memory()
                cpu, peak = child.cpu_seconds(cpu), max(peak, now)
                spent(cpu, now, peak)
                message = child.next_message(POLL)
                if message is None:
                    continue
                if message is ENDED:
                    status = child.exit_status()
                    raise WorkerDiedError(f"{target}: its process ended with status {status} and no result")
                kind, item, cpu, peak = message
                if kind == "item":
                    yield item
                elif kind == "end":
                    return
                else:
                    raise item
    finally:
        spent(cpu, 0, peak)


def _pickles(pipe: IO[bytes]) -> Iterator[tuple[str, Any, float, int]]:
    # The pickles come from our own child, over a pipe that no other process holds.
    with contextlib.suppress(EOFError, pickle.UnpicklingError):  # a message cut short by a kill
        while True:
            yield pickle.load(pipe)


def main() -> None:
    """Run the one generator that stdin names, and write what it yields to stdout as pickles."""
    # What the generator prints goes to stderr; the real stdout carries our messages only.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(kind: str, item: Any = None) -> None:
        out.write(pickle.dumps((kind, item, time.process_time(), peak_bytes())))
        out.flush()

    target, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        module, _, name = target.partition(":")
        for item in getattr(importlib.import_module(module), name)(*arguments):
            send("item", item)
        send("end")
    except Exception as error:  # every error of the generator is raised again in the parent
        traceback.print_exc()
        send("error", error)
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
