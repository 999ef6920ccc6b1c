"""Answers with the newest version of a published model, by the protocol of OpenAI: `worker.py NAME`.

The first line of output is the port. The worker ends when its standard input ends, so it never outlives the fleet.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from contextlib import AsyncExitStack, suppress
from typing import Any

import psutil
import uvicorn

import xfer
import zerocopy
from ternary import llm
from ternary.errors import TernaryError


class Version:
    """One version of the model and the requests that it answers."""

    def __init__(self, ref: Any, file: Any) -> None:
        self.ref = ref
        self.application = llm.application(ref, name=file.path.stem, threads=1)
        self.requests = 0
        self.lifetime = AsyncExitStack()

    async def start(self) -> None:
        """Begin the application's lifespan, whose end closes the model."""
        await self.lifetime.enter_async_context(self.application.router.lifespan_context(self.application))


class Following:
    """An ASGI application that hands each request, whole, to the version that is newest when the request comes."""

    def __init__(self, name: str) -> None:
        self._live = zerocopy.follow(name)
        self._current: Version | None = None
        self.answered = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        version = await self._newest()
        version.requests += 1
        try:
            await version.application(scope, receive, send)
            self.answered += 1
        finally:
            version.requests -= 1
            await self._close_if_done(version)

    async def _newest(self) -> Version:
        ref, file = self._live.get()
        if self._current is None or self._current.ref != ref:
            try:
                newer = Version(ref, file)
            except (zerocopy.ZerocopyError, TernaryError, OSError, MemoryError):  # tried again at the next request
                if self._current is None:
                    raise
                return self._current
            older, self._current = self._current, newer
            await newer.start()
            if older is not None:
                await self._close_if_done(older)
        return self._current

    async def _close_if_done(self, version: Version) -> None:
        if version is not self._current and not version.requests:
            await version.lifetime.aclose()


def holdings(process: psutil.Process) -> dict[str, Any]:
    """Return a process's share of memory and of the published weights, the bytes of them it has written, and files."""
    maps = [each for each in process.memory_maps() if each.path.endswith(".zc")]
    return {
        "memory": process.memory_full_info().pss,
        "weights": sum(each.pss for each in maps),
        "written": sum(each.anonymous for each in maps),
        "files": [each.path for each in maps],
    }


def report(application: Following, name: str, ending: threading.Event) -> None:
    """Publish what this worker does and holds, five times a second."""
    process, metrics = psutil.Process(), xfer.Topic(name, keep=64)
    while not ending.wait(0.2):
        numbers = {"pid": process.pid, "answered": application.answered} | holdings(process)
        with suppress(xfer.errors.WaitTimeoutError):  # another writer was stopped while it published
            metrics.publish(numbers, timeout=1)


def main(name: str) -> None:
    """Serve until the standard input ends."""
    application = Following(name)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(application, log_level="critical", lifespan="off", timeout_graceful_shutdown=2)
    )

    def leave() -> None:
        sys.stdin.read()
        server.should_exit = True

    ending = threading.Event()
    reporting = threading.Thread(target=report, args=(application, name, ending))
    for thread in (reporting, threading.Thread(target=leave, daemon=True)):
        thread.start()
    print(listening.getsockname()[1], flush=True)
    try:
        asyncio.run(server.serve([listening]))
    finally:
        ending.set()
        reporting.join()


if __name__ == "__main__":
    main(sys.argv[1])
