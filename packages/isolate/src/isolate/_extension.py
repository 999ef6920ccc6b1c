"""One extension and its supervision: which of its workers answers, and what follows when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

from isolate import _contracts, _sandbox, _sharing
from isolate._environments import Environment
from isolate._manifest import Manifest
from isolate._methods import Contract, MethodTable
from isolate._policy import grant
from isolate._requirements import parse
from isolate._states import State, check
from isolate._versions import reload_on_change, versions
from isolate._worker.calls import seconds_of
from isolate._worker.link import Link
from isolate._worker.protocol import PROTOCOL
from isolate._worker.spelling import suggest
from isolate._worker_handle import HostContext, WorkerHandle
from isolate.errors import (
    ExtensionStartError,
    HostClosedError,
    NotReadyError,
    SandboxUnavailableError,
    UnknownMethodError,
    WorkerDiedError,
)

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did.

    Attributes:
        name: The extension.
        environment: Its environment; None for `isolated: false`.
        python: The version of its interpreter.
        start_seconds: From the start of the process to its first reply.
        sandbox: What confines it.
        refused: What its manifest asks for and the host's policy does not grant, a readable line each.

    Example:
        >>> with Host(store) as host:
        ...     report = host.load(extensions / "stats").report
        >>> report.name, report.environment.origin
        ('stats', 'ready')
    """

    name: str
    environment: Environment | None
    python: str
    start_seconds: float
    sandbox: _sandbox.SandboxReport
    refused: tuple[str, ...] = ()


class Extension(MethodTable[Contract]):  # long because each change of its state is one method
    """A loaded extension; `Host.load` returns it.

    Args:
        manifest: What the extension asks for.
        context: What its host provides.
        contract: A Protocol whose methods it must have.

    Attributes:
        manifest: What the extension asks for.
        name: Its name.
        state: Its state.
        report: What its last load did.
        failure: Why its last start or worker failed; None after a success.
        logger: The logger of its output.
        context: What its host provides.
        call: Its methods, blocking, typed by the contract: `extension.call.name(...)`, `call(timeout=0.5).name(...)`.
        aio: Its methods, to be awaited: `await extension.aio.name(...)`.

    Example:
        >>> with Host(store) as host:
        ...     stats = host.load(extensions / "stats")
        ...     stats.call.mean([1, 2, 6]), sorted(stats.methods)
        (3.0, ['mean', 'wait'])
    """

    def __init__(self, manifest: Manifest, context: HostContext, contract: Callable[..., Contract] | None) -> None:
        self.manifest = manifest
        self._granted, self._refused = grant(manifest, context.store.policy)
        self.context = context
        self.name: str = manifest.name
        self.logger: logging.Logger = logging.getLogger(f"isolate.{manifest.name}")
        self.state: State = State.NEW
        self.report: LoadReport | None = None
        self._contract = cast("type | None", contract)
        super().__init__(self._lookup, self._granted.timeouts.call, _contracts.returns(self._contract))
        self._current: WorkerHandle | None = None
        self._held: Any = None
        self._crashes: deque[float] = deque()
        self._restart: asyncio.Task[None] | None = None
        self._watching: Future[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._preparing: asyncio.Task[Any] | None = None
        self._interrupted = False
        self._changed = asyncio.Event()
        self._busy = asyncio.Lock()
        self.failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Extension {self.name}, {self.state.value}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to its host's process and cannot be pickled or copied; load it there")

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if it has no process."""
        return self._current.pid if self._current else None

    def stats(self) -> dict[str, int]:
        """Return the calls in flight both ways, and the shared memory held for them."""
        return {"pending": 0, "serving": 0} if self._current is None else self._current.link.stats()

    def explain(self, value: Any) -> str:
        """Return how an array on a GPU goes to this extension: by handle, or by host memory and why; empty for others.

        The first call for a library and device has the extension open the array, which may import its libraries.
        """
        if self._current is None:
            raise NotReadyError(f"{self.name} is {self.state.value}")
        return self._current.link.values.devices.explain(value)

    def _lookup(self, target: str) -> tuple[Link, str]:
        current = self._current
        if current is None:
            why = f": {self.failure}" if self.failure is not None and self.state is not State.STOPPED else ""
            raise NotReadyError(f"{self.name} is {self.state.value}{why}")
        method = self._methods.get(target)
        if method is None:
            raise UnknownMethodError(f"{self.name} has no method {target!r}{suggest(target, list(self._methods))}")
        return current.link, method["kind"]

    def _become(self, state: State) -> None:
        self.state = check(self.state, state)
        self._changed.set()
        self._changed = asyncio.Event()

    # Start

    async def start(self) -> None:
        """Build the environment if needed, start the worker and check the contracts."""
        async with self._busy:
            await self._start()

    async def _start(self) -> None:
        self._become(State.BUILDING)
        try:
            _contracts.check_needs(self._granted, self.context.exports.names)
            _sandbox.check(self._granted)
            environment = await self._unless_interrupted(self._environment())
            self._become(State.STARTING)
            self._current = await self._unless_interrupted(self._launch(environment))
        except BaseException as failure:
            self.failure = failure
            self._release()
            self._become(State.FAILED)
            raise
        self._become(State.READY)

    async def _unless_interrupted(self, work: Coroutine[Any, Any, Prepared]) -> Prepared:
        """Wait for a build or a start, which a host that is closed ends."""
        if self._interrupted:
            work.close()
            raise HostClosedError("this host is closed")
        self._preparing = preparing = asyncio.get_running_loop().create_task(work)
        try:
            return await preparing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._interrupted and (task is None or not task.cancelling()):
                raise HostClosedError(f"this host was closed while it started {self.name}") from None
            raise
        finally:
            self._preparing = None

    def interrupt(self) -> None:
        """End a build or a start in progress, and prevent further ones: the host is being closed."""
        self._interrupted = True
        self._stop_watching()
        if self._preparing is not None:
            self._preparing.cancel()

    async def _environment(self) -> Environment | None:
        if not self._granted.isolated:
            return None
        loop = asyncio.get_running_loop()
        context = self.context

        cancel = threading.Event()

        def prepare() -> Environment:
            excluded: list[str] = []
            if self._granted.share_torch:
                _sharing.check_before(self._granted, parse(self._granted.dependencies, context.store.policy, self.name))
                excluded = [_sharing.SHARED]
            key, environment = "", None
            while environment is None or environment.key != key:  # its lock may be renewed meanwhile
                _, key = context.store.key_of(self._granted, excluded)
                self._release()
                self._held = context.store.hold(key)
                environment = context.store.ensure(self._granted, excluded, cancel)
            if self._granted.share_torch:
                _sharing.check_after(self._granted, environment)
            return environment

        building = loop.run_in_executor(None, prepare)
        try:
            return await asyncio.shield(building)
        except asyncio.CancelledError:
            cancel.set()
            with contextlib.suppress(Exception):
                await building
            raise

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    async def _launch(self, environment: Environment | None) -> WorkerHandle:
        began = time.perf_counter()
        try:
            worker = WorkerHandle(self._granted, self.context, environment, self.logger, self._worker_ended)
        except OSError as failure:
            raise ExtensionStartError(f"{self.name}: the host cannot start a worker: {failure}") from failure
        try:
            async with asyncio.timeout(self._granted.timeouts.start):
                described = await worker.ready
            if worker.died is not None:  # after it had sent READY and before that was read
                raise worker.died
            if described["protocol"] != PROTOCOL:
                raise ExtensionStartError(
                    f"{self.name}: the worker speaks protocol {described['protocol']}, not {PROTOCOL}"
                )
            _contracts.check_provides(self._granted, described["methods"], self._contract)
            report = _sandbox.report(self._granted, described)
            if self._granted.sandbox.required and report.missing:
                raise SandboxUnavailableError(
                    f"{self.name}: the sandbox is required and not complete: {report.missing}"
                )
        except BaseException as failure:
            worker.reason = worker.reason or "it could not be loaded"
            await self._end(worker, 0.2)
            if isinstance(failure, WorkerDiedError) and worker.waited:
                return await self._launch(environment)  # it had been started before; a new one may live
            if isinstance(failure, TimeoutError) and not isinstance(failure, WorkerDiedError):
                raise ExtensionStartError(
                    f"{self.name} was not ready within {self._granted.timeouts.start:g} s, its timeouts.start"
                ) from None
            raise
        self._methods = described["methods"]
        if not self._methods:
            self.logger.warning("%s has no public methods, so nothing of it can be called", self.name)
        seconds = time.perf_counter() - began
        self.report = LoadReport(self.name, environment, described["python"], seconds, report, self._refused)
        self.failure = None
        return worker

    # Crash and restart

    def _worker_ended(self, worker: WorkerHandle, death: WorkerDiedError) -> None:
        if worker is not self._current or worker.stopping or self.state is not State.READY:
            return
        self._current = None
        self._crashed(death, worker.environment)

    def _crashed(self, death: WorkerDiedError, environment: Environment | None) -> None:
        # Also for a worker that dies while it is being restarted: the limit counts every death.
        self.failure = death
        self._become(State.CRASHED)
        self.logger.error("%s", death)
        now = time.monotonic()
        policy = self._granted.restart
        self._crashes.append(now)
        while self._crashes and now - self._crashes[0] > policy.window:
            self._crashes.popleft()
        if policy.policy == "never" or len(self._crashes) > policy.limit:
            self._release()
            self._become(State.FAILED)
            return
        self._become(State.BACKOFF)
        delay = min(30.0, policy.backoff * 2 ** (len(self._crashes) - 1))
        self._restart = asyncio.get_running_loop().create_task(self._restart_after(delay, environment))

    async def _restart_after(self, delay: float, environment: Environment | None) -> None:
        await asyncio.sleep(delay)
        async with self._busy:
            if self.state is not State.BACKOFF:
                return
            self._become(State.STARTING)
            try:
                self._current = await self._unless_interrupted(self._launch(environment))
            except WorkerDiedError as death:
                self._crashed(death, environment)
            except Exception as failure:
                self.failure = failure
                if not self._interrupted:
                    self.logger.error("%s could not be restarted: %s", self.name, failure)
                self._release()
                self._become(State.FAILED)
            else:
                self._become(State.READY)

    def _cancel_restart(self) -> None:
        restart, self._restart = self._restart, None
        if restart is not None and self.state is State.BACKOFF:
            restart.cancel()

    # For users

    async def awhen(self, *states: State, timeout: float | None = None) -> State:
        """Wait until the state is one of those given (READY by default) and return it.

        Raises:
            NotReadyError: READY is waited for, and the extension has failed or is stopped.
            HostClosedError: The host is closed, so the state will not change any more.
            TimeoutError: The timeout has passed.
        """
        wanted = states or (State.READY,)

        async def reach() -> State:
            while self.state not in wanted:
                self.context.check_open()
                if State.READY in wanted and self.state in (State.FAILED, State.STOPPED):
                    raise NotReadyError(f"{self.name} is {self.state.value}: {self.failure}")
                await self._changed.wait()
            return self.state

        async def reach_in_time() -> State:
            async with asyncio.timeout(None if timeout is None else seconds_of(timeout)):
                return await reach()

        if self.state in wanted:
            return self.state
        state: State = await self.context.on_loop(reach_in_time())
        return state

    def when(self, *states: State, timeout: float | None = None) -> State:
        """Like `awhen`, blocking."""
        if self.state in (states or (State.READY,)):
            return self.state
        state: State = self.context.run(self.awhen(*states, timeout=timeout))
        return state

    async def areload(self) -> None:
        """Replace the worker by a fresh one. New calls go to it at once; running calls may finish in the old one."""
        await self.context.on_loop(self._reload())

    async def _reload(self) -> None:
        async with self._busy:
            if self.state is State.READY:
                environment = await self._unless_interrupted(self._environment())
                fresh = await self._unless_interrupted(self._launch(environment))
                if self.state is State.READY:
                    old, self._current = self._current, fresh
                    if old is not None:
                        await self._end(old, self._granted.timeouts.stop, drain=True)
                    return
                # The old one has died meanwhile: start from its state.
                await self._end(fresh, self._granted.timeouts.stop)
            self._cancel_restart()
            if self.state is State.BACKOFF:
                self._become(State.STOPPED)
            await self._start()

    def reload(self) -> None:
        """Like `areload`, blocking."""
        self.context.run(self._reload())

    async def _end(self, worker: WorkerHandle, grace: float, *, drain: bool = False) -> None:
        """End a worker, also if the caller is cancelled: nothing else would end it."""
        worker.stopping = True

        async def end() -> None:
            latest = time.monotonic() + grace
            while drain and (worker.link.pending or worker.link.serving.count) and time.monotonic() < latest:
                await asyncio.sleep(0.01)
            await worker.stop(grace)

        ending = asyncio.get_running_loop().create_task(end())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        await asyncio.shield(ending)

    def watch(self, seconds: float = 0.5) -> None:
        """Look every `seconds` for a changed Python file and reload; a version that cannot be loaded is only logged."""
        self.context.check_open()
        if seconds_of(seconds, "seconds") <= 0:
            raise ValueError(f"seconds is {seconds!r}; wanted more than 0 between two looks")
        self._stop_watching()
        before = versions(self.manifest.directory)  # now, so that a change right after this call is seen
        self._watching = asyncio.run_coroutine_threadsafe(reload_on_change(self, before, seconds), self.context.loop)

    def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()

    async def astop(self, drain: bool = True) -> None:
        """Stop it: wait for running calls within the stop timeout, ask it to exit, then kill it. Idempotent."""
        if self.state is State.STOPPED and self._watching is None:
            return
        await self.context.on_loop(self.stop_here(drain))

    async def stop_here(self, drain: bool = True) -> None:
        """Like `astop`, on the host's own loop, also while the host is being closed."""
        self._cancel_restart()
        self._stop_watching()
        async with self._busy:
            current, self._current = self._current, None
            if current is not None:
                self._become(State.DRAINING)
                await self._end(current, self._granted.timeouts.stop, drain=drain)
            if self._endings:  # those that others have stopped waiting for
                await asyncio.wait(self._endings)
            if self.state is not State.STOPPED:
                self._become(State.STOPPED)
            self._release()

    def abandon_calls(self) -> None:
        """Fail the calls that wait for an answer, at the interpreter's exit; callable from any thread."""
        if self._current is not None:
            self._current.link.fail_pending(NotReadyError(f"{self.name}: the interpreter exits"))

    def stop(self, drain: bool = True) -> None:
        """Like `astop`, blocking."""
        if self.state is State.STOPPED and self._watching is None:
            return
        self.context.run(self.stop_here(drain))
