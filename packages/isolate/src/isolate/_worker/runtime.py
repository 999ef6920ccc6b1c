"""The worker's life: handshake, confinement, loading the extension, serving, stopping."""

from __future__ import annotations

import asyncio
import inspect
import os
import platform
import socket
import sys
from typing import Any

from . import confine, failures, layer, loading
from .calls import Export
from .errors import WireError
from .link import Link
from .protocol import FAILED, LOAD, PROTOCOL, READY, STOP
from .proxies import HostProxy
from .threads import Threads

MEMORY_EXIT = 137


class Worker:
    """One extension, served over one socket.

    Args:
        sock: The connection to the host.
        loop: The running event loop.
        in_process: Whether the host's own process runs this: no confinement, no changes to `sys.path`, no exit.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, in_process: bool = False) -> None:
        self._loop = loop
        self._in_process = in_process
        self._exports: dict[str, Export] = {}
        self._instance: Any = None
        self._threads = Threads(name="extension")
        self._loading: asyncio.Task[None] | None = None
        self.finished: asyncio.Future[None] = loop.create_future()
        self._link = Link(
            sock,
            loop,
            self._threads,
            self._exports,
            on_control=self._on_control,
            on_closed=self._on_closed,
            name="the host",
        )

    def _on_control(self, kind: int, config: Any) -> None:
        if kind == LOAD and self._loading is None:
            self._loading = self._loop.create_task(self._load(config))
        elif kind == STOP and self._loading is not None:
            self._loading = self._loop.create_task(self._stop(self._loading))
        else:
            raise WireError(f"a frame of kind {kind} came out of turn")

    def _on_closed(self, failure: BaseException | None) -> None:
        self._link.close()
        self._threads.close()
        if not self._in_process:
            os._exit(0 if failure is None else 1)
        if not self.finished.done():
            self.finished.set_result(None)

    async def _load(self, config: dict[str, Any]) -> None:
        try:
            if config["protocol"] != PROTOCOL:
                raise RuntimeError(f"the host speaks protocol {config['protocol']}, this worker {PROTOCOL}")
            enforced: list[str] = []
            missing: list[str] = []
            if not self._in_process:
                enforced, missing = confine.confine(config["sandbox"])
                if missing and config["sandbox"].get("required"):
                    raise PermissionError(f"the sandbox is required and not complete: {'; '.join(missing)}")
                layer.install(config.get("layer"))
                limits = config["sandbox"].get("limits") or {}
                if limits.get("memory"):
                    self._link.serving.answer = self._memory_guard(self._link.serving.answer)  # type: ignore[method-assign]
            host = HostProxy(self._link, config["name"], config["apis"])
            private = f"isolate_in_process_{config['name']}" if self._in_process else None
            module, attribute = loading.import_entry(config["directory"], config["entry"], private)
            # On a thread: a constructor may call the host, and blocking the loop would be a deadlock.
            self._instance = await self._in_thread(loading.make_instance, module, attribute, host)
            methods = loading.public_methods(self._instance)
            self._exports.update(loading.exports_of(methods))
            self._link.control(
                READY,
                {
                    "protocol": PROTOCOL,
                    "python": platform.python_version(),
                    "executable": sys.executable,
                    "methods": loading.describe_methods(methods),
                    "enforced": enforced,
                    "missing": missing,
                },
            )
        except BaseException as failure:
            self._link.control(FAILED, failures.describe(failure))

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        future = self._loop.create_future()

        def done(value: Any, failure: BaseException | None) -> None:
            if not future.done():
                future.set_result((value, failure))

        def job() -> None:
            value, caught = None, None
            try:
                value = function(*args)
            except BaseException as failure:
                caught = failure
            self._loop.call_soon_threadsafe(done, value, caught)

        self._threads.submit(job)
        value, failure = await future
        if failure is not None:
            raise failure
        return value

    def _memory_guard(self, answer: Any) -> Any:
        def guarded(kind: str, number: int, value: Any) -> None:
            if kind == "ERROR" and isinstance(value, MemoryError):
                # The state after a MemoryError is unknown: exit, so that the host can restart the worker.
                sys.stderr.write("isolate: the memory limit was reached\n")
                sys.stderr.flush()
                os._exit(MEMORY_EXIT)
            answer(kind, number, value)

        return guarded

    async def _stop(self, loading_task: asyncio.Task[None]) -> None:
        await loading_task
        hook = getattr(self._instance, "on_stop", None)
        if hook is not None:
            try:
                if inspect.iscoroutinefunction(hook):
                    await hook()
                else:
                    await self._in_thread(hook)
            except BaseException as failure:
                sys.stderr.write(f"isolate: on_stop failed: {failure!r}\n")
        self._link.close(flush=True)
        self._threads.close()
        if not self._in_process:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        if not self.finished.done():
            self.finished.set_result(None)


async def serve(sock: socket.socket, in_process: bool = False) -> None:
    """Serve one host until it stops us or is gone."""
    worker = Worker(sock, asyncio.get_running_loop(), in_process)
    await worker.finished


def main(fd: int, parent: int) -> None:
    """The worker process."""
    confine.die_with_parent(parent)
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    asyncio.run(serve(sock))
