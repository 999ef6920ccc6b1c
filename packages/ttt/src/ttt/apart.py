"""Runs a generator in a process of its own and yields what it yields; knows nothing of what it does.

What the generator loads is in memory only while it runs. The process ends with the generator, when told to stop, and
when the process that started it goes away.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

import psutil

from ttt.budget import peak_bytes
from ttt.errors import WorkerDiedError

Spent = Callable[[float, int, int], None]
"""Told of a process that works for this one: CPU seconds, resident bytes now (0 once it has ended), and at most."""
POLL = 0.05
"""Seconds between two looks at whether to stop, and at the other process's memory."""


def apart(target: str, arguments: tuple[Any, ...], stop: Callable[[], bool], spent: Spent) -> Iterator[Any]:
    """Yield what a generator yields that runs in a fresh process.

    Args:
        target: The generator function, as ``package.module:function``.
        arguments: Its arguments; these and what it yields must be picklable.
        stop: Asked every 50 ms; true ends the process and the iteration.
        spent: Told what the process takes.

    Raises:
        WorkerDiedError: The process ended before its generator did.
        Exception: What the generator raised.
    """
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "ttt.apart"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process.stdout, inbox), daemon=True)
    reader.start()
    cpu, peak = 0.0, 0
    try:
        with contextlib.suppress(BrokenPipeError):  # a process that died is noticed below
            pickle.dump((target, arguments), process.stdin)
            process.stdin.flush()
        seen = psutil.Process(process.pid)
        while not stop():
            with contextlib.suppress(psutil.Error):
                now, times = int(seen.memory_info().rss), seen.cpu_times()
                cpu, peak = max(cpu, times.user + times.system), max(peak, now)
                spent(cpu, now, peak)
            try:
                kind, item, *taken = inbox.get(timeout=POLL)
            except queue.Empty:
                continue
            if taken:
                cpu, peak = taken
            if kind == "item":
                yield item
            elif kind == "end":
                return
            elif kind == "error":
                raise item
            else:
                raise WorkerDiedError(f"{target}: its process ended with status {process.wait()} and no result")
    finally:
        process.kill()
        process.wait()
        reader.join()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        spent(cpu, 0, peak)


def _read(pipe: IO[bytes], inbox: queue.SimpleQueue[tuple[Any, ...]]) -> None:
    # The pickles come from our own child, over a pipe that nobody else holds.
    with contextlib.suppress(EOFError, pickle.UnpicklingError):  # a message cut short by a kill
        while True:
            inbox.put(pickle.load(pipe))
    inbox.put(("gone", None))


def main() -> None:
    """Run the one generator that stdin names."""
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
    except Exception as error:  # whatever it is, it is told to the parent
        traceback.print_exc()
        send("error", error)
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
