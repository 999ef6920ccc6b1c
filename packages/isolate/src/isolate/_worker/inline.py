"""Runs the worker's side in a thread of the host: the same protocol, results and errors, without a process."""

from __future__ import annotations

import asyncio
import socket
import threading

from .runtime import serve


class WorkerThread:
    """A worker that lives in the host's process.

    Args:
        sock: The worker's end of the connection.
        name: For the thread's name.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._thread = threading.Thread(target=self._run, name=f"isolate-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(serve(self._sock, in_process=True))

    def join(self, timeout: float) -> bool:
        """Wait for the thread; return whether it ended in time."""
        self._thread.join(timeout)
        return not self._thread.is_alive()
