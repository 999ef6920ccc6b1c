"""One extension and its supervision: which of its workers answers, and what follows when one ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from isolate import contracts, sandbox, sharing
from isolate.environments import Environment
from isolate.errors import ExtensionStartError, NotReady, SandboxUnavailable, UnknownMethod, WorkerDied
from isolate.incarnation import Incarnation, Surroundings
from isolate.manifest import Manifest
from isolate.requirements import parse
from isolate.states import State, check
from isolate.worker.link import PROTOCOL, Link
from isolate.worker.proxies import AwaitableMethods, BlockingMethods, suggest


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did.

    Attributes:
        name: The extension.
        environment: Its environment; None for `isolated: false`.
        python: The version of the interpreter that runs it.
        start_seconds: From the start of the process to its first reply.
        sandbox: What confines it.
    """

    name: str
    environment: Environment | None
    python: str
    start_seconds: float
    sandbox: sandbox.SandboxReport


class Extension:
    """A loaded extension; made by `Host.load`.

    Attributes:
        manifest: What it asked for.
        state: Where it is in its life.
        report: What its last load did.
        call: Its methods, blocking: `extension.call.name(...)`, `extension.call(timeout=0.5).name(...)`.
        aio: Its methods, to be awaited.
    """

    def __init__(self, manifest: Manifest, surroundings: Surroundings, contract: type | None) -> None:
        self.manifest = manifest
        self.surroundings = surroundings
        self.name = manifest.name
        self.logger = logging.getLogger(f"isolate.{manifest.name}")
        self.state = State.NEW
        self.report: LoadReport | None = None
        self.call: Any = BlockingMethods(self._lookup, timeout=manifest.timeouts.call)
        self.aio: Any = AwaitableMethods(self._lookup, timeout=manifest.timeouts.call)
        self._contract = contract
        self._methods: dict[str, dict[str, Any]] = {}
        self._kinds: dict[str, str] = {}
        self._current: Incarnation | None = None
        self._held: Any = None
        self._crashes: deque[float] = deque()
        self._restart: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._busy = asyncio.Lock()
        self.failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Extension {self.name}, {self.state.value}>"

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Its methods: for each its kind, parameters and return annotation."""
        return dict(self._methods)

    @property
    def pid(self) -> int | None:
        """The worker's process id; None without a process."""
        process = self._current.process if self._current else None
        return process.pid if process else None

    def stats(self) -> dict[str, int]:
        """Calls in flight both ways, and the shared memory held for it."""
        if self._current is None:
            return {"pending": 0, "serving": 0}
        link = self._current.link
        return {"pending": link.pending, "serving": link.serving.count, **link.buffers.stats()}

    def _lookup(self, target: str) -> tuple[Link, str]:
        current = self._current
        if current is None:
            why = f": {self.failure}" if self.failure is not None and self.state is not State.STOPPED else ""
            raise NotReady(f"{self.name} is {self.state.value}{why}")
        kind = self._kinds.get(target)
        if kind is None:
            raise UnknownMethod(f"{self.name} has no method {target!r}{suggest(target, list(self._methods))}")
        return current.link, kind

    def _become(self, state: State) -> None:
        self.state = check(self.state, state)
        self._changed.set()
        self._changed = asyncio.Event()

    # Start

    async def start(self) -> None:
        """Build the environment if needed, start the worker, check the contracts."""
        async with self._busy:
            await self._start()

    async def _start(self) -> None:
        self._become(State.BUILDING)
        try:
            contracts.check_needs(self.manifest, self.surroundings.exports.names)
            sandbox.check(self.manifest)
            environment = await self._environment()
            self._become(State.STARTING)
            self._current = await self._launch(environment)
        except BaseException as failure:
            self.failure = failure
            self._release()
            self._become(State.FAILED)
            raise
        self._become(State.READY)

    async def _environment(self) -> Environment | None:
        if not self.manifest.isolated:
            return None
        loop = asyncio.get_running_loop()
        around = self.surroundings

        def prepare() -> Environment:
            excluded: list[str] = []
            if self.manifest.share_torch:
                sharing.check_before(self.manifest, parse(self.manifest.dependencies, around.store.policy, self.name))
                excluded = [sharing.SHARED]
            _, key = around.store.key_of(self.manifest, excluded)
            self._release()
            self._held = around.store.hold(key)
            environment = around.store.ensure(self.manifest, excluded)
            if self.manifest.share_torch:
                sharing.check_after(self.manifest, environment)
            return environment

        return await loop.run_in_executor(None, prepare)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    async def _launch(self, environment: Environment | None) -> Incarnation:
        began = time.perf_counter()
        incarnation = Incarnation(self.manifest, self.surroundings, environment, self.logger, self._worker_ended)
        try:
            async with asyncio.timeout(self.manifest.timeouts.start):
                described = await incarnation.ready
            if incarnation.died is not None:  # after its first word and before we have heard it
                raise incarnation.died
            if described["protocol"] != PROTOCOL:
                raise ExtensionStartError(
                    f"{self.name}: the worker speaks protocol {described['protocol']}, not {PROTOCOL}"
                )
            contracts.check_provides(self.manifest, described["methods"], self._contract)
            report = sandbox.report(self.manifest, incarnation.prefix, described["enforced"], described["missing"])
            if self.manifest.sandbox.required and report.missing:
                raise SandboxUnavailable(f"{self.name}: the sandbox is required and not complete: {report.missing}")
        except BaseException as failure:
            incarnation.reason = incarnation.reason or "it could not be loaded"
            await incarnation.stop(0.2)
            if isinstance(failure, TimeoutError) and not isinstance(failure, WorkerDied):
                raise ExtensionStartError(
                    f"{self.name} was not ready within {self.manifest.timeouts.start} s"
                ) from None
            raise
        self._methods = described["methods"]
        self._kinds = {name: method["kind"] for name, method in self._methods.items()}
        seconds = time.perf_counter() - began
        self.report = LoadReport(self.name, environment, described["python"], seconds, report)
        self.failure = None
        return incarnation

    # Crash and restart

    def _worker_ended(self, incarnation: Incarnation, death: WorkerDied) -> None:
        if incarnation is not self._current or incarnation.stopping or self.state is not State.READY:
            return
        self._current = None
        self._crashed(death, incarnation.environment)

    def _crashed(self, death: WorkerDied, environment: Environment | None) -> None:
        # A worker that dies while it is being restarted counts as one that died: the limit decides, not the moment.
        self.failure = death
        self._become(State.CRASHED)
        self.logger.error("%s", death)
        now = time.monotonic()
        policy = self.manifest.restart
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
                self._current = await self._launch(environment)
            except WorkerDied as death:
                self._crashed(death, environment)
            except Exception as failure:
                self.failure = failure
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
        """Wait until the state is one of those given; READY if none is."""
        wanted = states or (State.READY,)

        async def reach() -> State:
            while self.state not in wanted:
                if State.READY in wanted and self.state in (State.FAILED, State.STOPPED):
                    raise NotReady(f"{self.name} is {self.state.value}: {self.failure}")
                await self._changed.wait()
            return self.state

        if asyncio.get_running_loop() is not self.surroundings.loop:
            return await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(self.awhen(*states, timeout=timeout), self.surroundings.loop)
            )
        async with asyncio.timeout(timeout):
            return await reach()

    def when(self, *states: State, timeout: float | None = None) -> State:
        """As `awhen`, blocking."""
        state: State = self.surroundings.run(self.awhen(*states, timeout=timeout))
        return state

    async def areload(self) -> None:
        """Replace the worker by a fresh one: new calls go to it at once, calls that run may finish in the old one."""
        async with self._busy:
            if self.state is State.READY:
                fresh = await self._launch(await self._environment())
                if self.state is State.READY:
                    old, self._current = self._current, fresh
                    if old is not None:
                        await self._drain(old)
                        await old.stop(self.manifest.timeouts.stop)
                    return
                # The old one has died meanwhile, and with it the state that a fresh one could take over.
                await fresh.stop(self.manifest.timeouts.stop)
            self._cancel_restart()
            if self.state is State.BACKOFF:
                self._become(State.STOPPED)
            await self._start()

    def reload(self) -> None:
        """As `areload`, blocking."""
        self.surroundings.run(self.areload())

    async def _drain(self, incarnation: Incarnation) -> None:
        incarnation.stopping = True
        end = time.monotonic() + self.manifest.timeouts.stop
        while (incarnation.link.pending or incarnation.link.serving.count) and time.monotonic() < end:
            await asyncio.sleep(0.01)

    async def astop(self, drain: bool = True) -> None:
        """Stop it: running calls may finish within the stop timeout, then it is asked, then forced; idempotent."""
        self._cancel_restart()
        async with self._busy:
            current, self._current = self._current, None
            if current is not None:
                self._become(State.DRAINING)
                if drain:
                    await self._drain(current)
                await current.stop(self.manifest.timeouts.stop)
            if self.state is not State.STOPPED:
                self._become(State.STOPPED)
            self._release()

    def stop(self, drain: bool = True) -> None:
        """As `astop`, blocking."""
        self.surroundings.run(self.astop(drain))
