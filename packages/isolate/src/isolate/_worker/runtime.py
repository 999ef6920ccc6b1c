"""A worker's life after its confinement: loading the extension, serving, stopping."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import inspect
import os
import platform
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from . import debugging, failures, inside, layer, loading, logs
from .calls import Export
from .errors import WireError
from .libraries import allow_imports
from .link import Link
from .processor_time import ProcessorTime
from .protocol import FAILED, LOAD, PROTOCOL, READY, STOP
from .proxies import HostProxy
from .threads import Share, Threads

MEMORY_EXIT = 137
STUCK_EXIT = 70


class Worker:
    """One extension, served over one socket.

    Args:
        sock: The connection to the host.
        loop: The running event loop.
        in_process: Whether this is the host's own process: there is no confinement, `sys.path` stays unchanged, and
            nothing exits.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, in_process: bool) -> None:
        self._loop = loop
        self._in_process = in_process
        self._exports: dict[str, Export] = {}
        self._instance: Any = None
        self._threads = Threads(name="extension")
        self._share = Share()
        self._loading: asyncio.Task[None] | None = None
        self._stop_first: Callable[[Callable[..., Any], str], Callable[..., Any]] | None = None
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

        if not self._in_process:
            self._link.serving.on_stuck = self._exit_stuck
            self._link.serving.shows_stacks = True

    @staticmethod
    def _exit_stuck(count: int) -> None:
        sys.stderr.write(f"isolate: {count} calls did not end after they were cancelled\n")
        sys.stderr.flush()
        os._exit(STUCK_EXIT)

    def load(self, config: dict[str, Any]) -> None:
        """Begin to load the extension."""
        self._loading = self._loop.create_task(self._load(config))

    def _on_control(self, kind: int, value: Any) -> None:
        if kind == LOAD and self._in_process and self._loading is None:
            self.load(value)
        elif kind == STOP and self._loading is not None:
            self._loading = self._loop.create_task(self._stop(self._loading))
        else:
            raise WireError(f"a frame of kind {kind} came out of turn")

    def _on_closed(self, failure: BaseException | None) -> None:
        self._link.close()
        self._threads.close()
        if not self._in_process:
            if failure is not None:
                with contextlib.suppress(OSError, ValueError):  # nobody may be left to read it
                    sys.stderr.write(f"isolate: {''.join(traceback.format_exception(failure))}")
                    sys.stderr.flush()
            os._exit(0 if failure is None else 1)
        if not self.finished.done():
            self.finished.set_result(None)

    async def _load(self, config: dict[str, Any]) -> None:
        try:
            if config["protocol"] != PROTOCOL:
                raise RuntimeError(f"the host speaks protocol {config['protocol']}, this worker {PROTOCOL}")
            if not self._in_process:
                layer.install(config.get("layer"))
                inside.install()
                allow_imports()
                logs.install(config["log_level"])
                self._prepare_debugger(config)
                if config["sandbox"]["limits"].get("memory"):
                    self._link.serving.answer = self._memory_guard(self._link.serving.answer)  # type: ignore[method-assign]
            host = HostProxy(self._link, config["name"], config["apis"])
            private = f"isolate_in_process_{config['name']}" if self._in_process else None
            module, attribute = loading.import_entry(config["directory"], config["entry"], private)
            # On a thread: a constructor may call the host, and blocking the loop would be a deadlock.
            self._instance = await self._in_thread(loading.make_instance, module, attribute, host)
            self._link.serving.serial = config["serial"]
            methods = loading.public_methods(self._instance)
            self._exports.update(self._stopping(self._bounded(loading.exports_of(methods), config), config["debug"]))
            self._link.control(
                READY,
                {
                    "protocol": PROTOCOL,
                    "python": platform.python_version(),
                    "executable": sys.executable,
                    "methods": loading.describe_methods(methods),
                },
            )
        except BaseException as failure:
            self._link.control(FAILED, failures.describe(failure))

    def _prepare_debugger(self, config: dict[str, Any]) -> None:
        if config["debug"] is None:
            debugging.refuse()
        else:
            self._stop_first = debugging.install(0, config["name"])

    def _bounded(self, exports: dict[str, Export], config: dict[str, Any]) -> dict[str, Export]:
        limit = None if self._in_process else config["sandbox"]["limits"].get("cpu_seconds")
        if limit is None:
            return exports
        meter = ProcessorTime(limit)
        return {name: meter.bounded(export) for name, export in exports.items()}

    def _stopping(self, exports: dict[str, Export], name: str | None) -> dict[str, Export]:
        """Return the methods; the one with that name stops at its first line."""
        found = exports.get(name) if name and self._stop_first is not None else None
        if found is not None and self._stop_first is not None:
            exports[str(name)] = found._replace(function=self._stop_first(found.function, found.kind))
        return exports

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

        self._threads.submit(job, self._share)
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
        if not self._in_process:
            with contextlib.suppress(BaseException):  # they have shown it
                await self._in_thread(_run_exit_functions)
        self._link.close(flush=True)
        self._threads.close()
        if not self._in_process:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        if not self.finished.done():
            self.finished.set_result(None)


def _run_exit_functions() -> None:
    """Run what the extension and its libraries have registered with `atexit`."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        atexit.unregister(util._exit_function)  # noqa: SLF001 - waits for children, which the supervisor ends
    atexit._run_exitfuncs()  # noqa: SLF001 - no public name, and the interpreter's own exit waits for every thread


async def serve(sock: socket.socket, config: dict[str, Any] | None = None) -> None:
    """Serve one host until it sends STOP or is gone; without a config, in the host's process, LOAD comes first."""
    worker = Worker(sock, asyncio.get_running_loop(), in_process=config is None)
    if config is not None:
        worker.load(config)
    await worker.finished


def run(sock: socket.socket, config: dict[str, Any]) -> None:
    """Serve in a process of its own that is confined already."""
    faulthandler.enable(all_threads=False)  # the end of what a worker says is kept, so let it be the thread that failed
    asyncio.run(serve(sock, config))
