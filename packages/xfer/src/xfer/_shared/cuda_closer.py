"""Gives leases of CUDA arrays back, once the device has done the work that was queued while they were held.

The last array over a memory may go while kernels that read it are still queued, and on any stream. A thread waits for
the device, so that no finalizer waits, and then closes the memory on the device that opened it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from xfer._convert.move import load_cupy
from xfer.errors import DeviceUnavailableError

_PAUSE = 0.05
_CAPTURE = range(900, 910)  # errors of a stream capture that is going on: waiting is not allowed meanwhile


class _Item(NamedTuple):
    device: int
    base: int | None  # of memory that was opened; None for this process's own
    lease: object


class _Signal:
    """Sets an event when it goes, which is after the leases that were queued before it."""

    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def __del__(self) -> None:
        self._done.set()


class CudaCloser:
    """A queue of memory to close, and the thread that works on it."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread unless it runs."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="xfer-cuda-closer", daemon=True)
                self._thread.start()
                atexit.register(self._stop)

    def close_later(self, device: int, base: int | None, lease: object) -> None:
        """Close memory and give its lease back after all work that is queued now; a finalizer may call it."""
        self._queue.put(_Item(device, base, lease))

    def settle(self, timeout: float = 10.0) -> bool:
        """Wait until everything that was queued before is closed; return whether it is."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._queue.put(_Item(-1, None, _Signal(done)))
        return done.wait(timeout)

    def _work(self) -> None:
        while items := self._next():
            for device in {one.device for one in items if one.device >= 0}:
                _close(device, [one for one in items if one.device == device])
            del items  # the leases go back here

    def _next(self) -> list[_Item]:
        """Wait for an item and return all that are there; none at the end."""
        items = []
        item = self._queue.get()
        while item is not None:
            items.append(item)
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
        else:
            if items:
                self._queue.put(None)
        return items

    def _stop(self) -> None:
        thread, pid = self._thread, os.getpid()
        self._queue.put(None)
        if thread is not None and pid == os.getpid():
            thread.join(timeout=2)

    def after_fork_in_child(self) -> None:
        """Forget the parent's memory and thread; the leases that were queued go."""
        self._queue, self._thread, self._lock = SimpleQueue(), None, threading.Lock()
        atexit.unregister(self._stop)


def _close(device: int, items: list[_Item]) -> None:
    try:
        cupy = load_cupy()
    except DeviceUnavailableError:
        return
    error_type: Any = cupy.cuda.runtime.CUDARuntimeError
    while True:
        try:
            cupy.cuda.Device(device).synchronize()
            break
        except error_type as error:
            if error.status not in _CAPTURE:
                break  # the device's context is lost, and all its work with it
            time.sleep(_PAUSE)
    for item in items:
        if item.base is not None:
            try:
                with cupy.cuda.Device(device):
                    cupy.cuda.runtime.ipcCloseMemHandle(item.base)
            except error_type:
                continue  # the mapping is gone with its context


CLOSER = CudaCloser()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CLOSER.after_fork_in_child)
