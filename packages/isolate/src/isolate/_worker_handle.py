"""One worker of an extension, from its start to its end: a process, or a thread for code that is not isolated."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isolate import _sandbox, _sharing
from isolate._canaries import Canaries
from isolate._cgroup import Group
from isolate._counting import Counter
from isolate._debugger import TERMINAL
from isolate._environments import Environment, EnvironmentStore
from isolate._exports import Exports
from isolate._guardian import Guardian
from isolate._manifest import Manifest
from isolate._policy import Quotas, variables_of
from isolate._process import WorkerProcess
from isolate._spares import Spares, Started, start
from isolate._worker import failures, processor_time
from isolate._worker.calls import Export
from isolate._worker.inline import WorkerThread
from isolate._worker.link import Link
from isolate._worker.protocol import CONFINED, FAILED, LOAD, PING, PROTOCOL, READY, STOP
from isolate._worker.quotas import LinkLimits
from isolate._worker.threads import Threads
from isolate._worker.turns import Turns
from isolate.errors import ExtensionStartError, OverloadedError, WireError, WorkerDiedError

_BASE_ENVIRONMENT = (
    *("PATH", "LANG", "LC_*", "TZ", "TMPDIR", "SYSTEMROOT"),
    *(
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "NVIDIA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
    ),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)
_NOT_CONFINED: dict[str, Any] = {"enforced": [], "missing": [], "tried": {}}
_MAIN = Path(__file__).parent / "_worker" / "__main__.py"


@dataclass(slots=True)
class HostContext:
    """What an extension needs of its host."""

    loop: asyncio.AbstractEventLoop
    threads: Threads
    exports: Exports
    store: EnvironmentStore
    guardian: Guardian
    canaries: Canaries
    spares: Spares
    max_depth: int
    decode: Callable[..., Future[Any]]
    count: Callable[..., Future[str]]
    turns: Turns
    run: Callable[[Any], Any]
    on_loop: Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]
    check_open: Callable[[], None]


class WorkerHandle:
    """One worker of an extension.

    Args:
        manifest: What the extension asked for.
        context: What its host offers.
        environment: Where it runs; None for a thread of this process.
        logger: Gets what the worker prints.
        ended: Called on the loop when it has ended for whatever reason, with that.

    Attributes:
        ready: Its description of itself, or why it cannot be had.
        link: The calls both ways.
        stopping: Whether its end is wanted.
        died: How it ended; None as long as it runs.
        waited: Whether its process had been started before, for any extension.
    """

    def __init__(
        self,
        manifest: Manifest,
        context: HostContext,
        environment: Environment | None,
        logger: logging.Logger,
        ended: Callable[[WorkerHandle, WorkerDiedError], None],
    ) -> None:
        self.environment = environment
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.reason = ""
        self.stopping, self._limits = False, manifest.limits.as_numbers()
        self.died: WorkerDiedError | None = None
        self.process: WorkerProcess | None = None
        self._counter: Counter | None = None
        self._confined: dict[str, Any] | None = None
        self.thread: WorkerThread | None = None
        self._asking = False
        self._wedged_seconds = context.store.policy.wedged_seconds
        self._context = context
        self._spare: tuple[list[str], dict[str, str]] | None = None
        self.waited = False
        self._name, self._loop, self._ended = manifest.name, context.loop, ended
        layer = _sharing.layer_config() if manifest.share_torch and environment is not None else None
        folders = layer["folders"] if layer else []
        theirs: socket.socket | None = None
        if environment is None:
            ours, theirs = socket.socketpair()
        else:
            started = self._begin(manifest, environment, folders)
            ours = started.sock
        offered = context.exports.offered(manifest.needs)
        self.link = self._make_link(ours, manifest, offered)
        if theirs is not None:
            self.thread = WorkerThread(theirs, manifest.name)
        else:
            self.process = self._adopt(started, manifest, logger)
        confinement = _sandbox.worker_config(
            manifest,
            environment.path if environment else None,
            folders,
            context.canaries.targets() if manifest.sandbox.level in ("landlock", "bwrap") else None,
            context.store.policy.nice,
        )
        config = {
            "protocol": PROTOCOL,
            **_described(manifest, logger),
            "apis": {api: {method: export.kind for method, export in table.items()} for api, table in offered.items()},
            "sandbox": confinement,
            "layer": layer,
            "debug": TERMINAL.stop_at if context.store.policy.allow_debugger else None,
        }
        # Between our child and the worker proper: a supervisor, and the first process of a pid namespace.
        self._supervisors = 0 if confinement["contained"] else 1 + confinement["namespaces"]
        self.link.control(LOAD, config)
        if self.process is not None:
            # The first process of a pid namespace is none of the extension's.
            first = int(confinement["contained"] or confinement["namespaces"])
            self._counter = Counter(self._loop, context.count, self.process.pid, first, self._limits, self._over)

    def _make_link(self, ours: socket.socket, manifest: Manifest, offered: dict[str, dict[str, Export]]) -> Link:
        return Link(
            ours,
            self._context.loop,
            self._context.threads,
            {f"{api}.{method}": export for api, table in offered.items() for method, export in table.items()},
            on_control=self._on_control,
            on_closed=self._on_closed,
            name=manifest.name,
            max_depth=self._context.max_depth,
            import_torch=manifest.share_torch,
            limits=_link_limits(self._context.store.policy.quotas, manifest.sandbox.level),
            offload=self._context.decode,
            on_abandoned=self._on_abandoned,
            turns=self._context.turns,
        )

    def _begin(self, manifest: Manifest, environment: Environment, folders: list[str]) -> Started:
        """Start the process, or take one that has been started for such an extension."""
        prefix = _sandbox.command_prefix(manifest, environment.path, folders)
        command = [*prefix, str(environment.python), "-I", "-S", str(_MAIN)]
        variables = {**_variables(manifest), **variables_of(manifest.name, self._context.store.policy)}
        if self._context.store.policy.allow_debugger:
            return self._begin_debugged(manifest, command, variables, hidden_parent=bool(prefix))
        if not prefix:
            self._spare = command, variables
            spare = self._context.spares.take(command, variables)
            if spare is not None:
                self.waited = True
                return spare
        return start(command, variables, manifest.directory, self._context.guardian, hidden_parent=bool(prefix))

    def _begin_debugged(
        self, manifest: Manifest, command: list[str], variables: dict[str, str], hidden_parent: bool
    ) -> Started:
        """Start the process with a socket to the terminal as its standard input."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                started = start(
                    command, variables, manifest.directory, self._context.guardian, hidden_parent, stdin=theirs
                )
        except BaseException:
            ours.close()
            raise
        TERMINAL.serve(ours, manifest.name)
        return started

    def _adopt(self, started: Started, manifest: Manifest, logger: logging.Logger) -> WorkerProcess:
        try:
            return WorkerProcess(
                started,
                self._context.guardian,
                logger,
                self._on_exit,
                group=Group(manifest.limits.as_numbers().get("memory")),
                log_bytes=self._context.store.policy.quotas.log_bytes,
            )
        except BaseException:
            self.link.close()
            started.end(self._context.guardian)
            raise

    def _on_control(self, kind: int, value: Any) -> None:
        first = self.process is not None and self._confined is None
        if self.ready.done() or kind not in (CONFINED, READY, FAILED) or (kind == CONFINED) is not first:
            raise ValueError(f"a frame of kind {kind} came out of turn")
        if kind == CONFINED:
            self._confined = _checked_confined(value)
            return
        if kind == READY:
            self.ready.set_result({**_checked_ready(value), **(self._confined or _NOT_CONFINED)})
            if self._spare is not None:
                self._loop.run_in_executor(None, self._context.spares.prepare, *self._spare)
            return
        cause = failures.revive(value)
        hint = ""
        if isinstance(cause, ModuleNotFoundError) and str(cause).startswith("No module named"):
            hint = "; list the package that has it under `dependencies` in the manifest"
        failure = ExtensionStartError(f"{self._name} failed while it was loaded: {type(cause).__name__}: {cause}{hint}")
        failure.__cause__ = cause
        self.ready.set_exception(failure)

    def _on_closed(self, failure: BaseException | None) -> None:
        if failure is not None:
            guilty = isinstance(failure, (WireError, ValueError, OverloadedError))
            what = "it broke the protocol" if guilty else "the host failed while it read from it"
            self.reason = self.reason or f"{what}: {failure}"
        if self.process is None:
            self.end(self.death())
        elif failure is not None:
            self.process.kill()
        else:
            # The end of the stream is the first sign of an exit; a worker that only closed its socket is useless too.
            process = self.process
            self._loop.call_later(0.3, process.kill)

    def _on_abandoned(self) -> None:
        """After a call that was given up: find out whether the worker still handles messages at all."""
        if self.process is not None and not self._asking:
            self._asking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._ask)

    def _ask(self) -> None:
        self.link.tell(PING, 0, None)
        self._loop.call_later(self._wedged_seconds, self._check_answer, self.link.frames_received)

    def _check_answer(self, before: int) -> None:
        self._asking = False
        if self.link.frames_received == before and self.process is not None and self.died is None:
            self.reason = self.reason or f"it handled no message for {self._wedged_seconds:g} s"
            self.process.kill()

    def _over(self, what: str) -> None:
        assert self.process is not None
        self.reason = self.reason or f"it had more than {self._limits[what]} {what}, its limit"
        self.process.kill()

    def _on_exit(self) -> None:
        self.end(self.death())

    @property
    def pid(self) -> int | None:
        """The process id of the worker proper, as the host sees it; that of its sandbox where it cannot be found."""
        if self.process is None:
            return None
        found = self.process.pid
        for _ in range(self._supervisors):
            try:
                found = int(Path(f"/proc/{found}/task/{found}/children").read_text().split()[0])
            except (OSError, IndexError):
                break
        return found

    def death(self) -> WorkerDiedError:
        """Why this worker ended."""
        code, signal_number = self.process.status if self.process else (None, None)
        tail = self.process.stderr_tail if self.process else ()
        reason = self.reason
        if not reason and code == 137:
            reason = "it reached its memory limit"
        if not reason and (signal_number == processor_time.ALARM or code in processor_time.EXITS):
            reason = "a call did not end at its limit of processor time"
        if self.process is not None and code is None and signal_number is None:
            reason = reason or "it is being stopped"
        if not reason and not self.ready.done():
            reason = "before it had loaded the extension"
        return WorkerDiedError(self._name, code, signal_number, reason, tail)

    def end(self, death: WorkerDiedError) -> None:
        """Tell the owner, then fail what waits for this worker: who learns of the end finds the state that follows."""
        self.died = death
        if self._counter is not None:
            self._counter.end()
        self.link.channel.drain()
        if self.link.channel.paused and not self.link.channel.closed:  # its last answer is being decoded
            self._loop.call_later(0.002, self.end, death)
            return
        if not self.ready.done():
            self.ready.set_exception(death)
            self.ready.exception()
        self._ended(self, death)
        self.link.close(death)

    async def stop(self, grace: float) -> None:
        """End it: asked first, then forced."""
        self.stopping = True
        with contextlib.suppress(ConnectionError):
            self.link.control(STOP, None)
            self.link.channel.flush()
        if self.process is not None:
            if not await self.process.wait(grace):
                self.reason = f"it did not stop within {grace} s"
                self.process.kill()
                await self.process.wait(10)
        else:
            assert self.thread is not None
            await asyncio.get_running_loop().run_in_executor(None, self.thread.join, grace)
        self.link.close(self.death())


def _described(manifest: Manifest, logger: logging.Logger) -> dict[str, Any]:
    """Return what a worker needs to know of its extension."""
    return {
        "name": manifest.name,
        "directory": str(manifest.directory.absolute()),
        "entry": manifest.entry,
        "serial": manifest.serial,
        "log_level": logger.getEffectiveLevel(),
    }


def _link_limits(quotas: Quotas, level: str) -> LinkLimits:
    names = set(LinkLimits._fields)
    numbers = {name: value for name, value in asdict(quotas).items() if name in names}
    # A confined extension cannot open handles of its host; the host, which could, must not open what it has forged.
    return LinkLimits(**numbers, device_handles=level in ("none", "limits"))


def _variables(manifest: Manifest) -> dict[str, str]:
    """Return the variables that a worker sees: a short list, and those of the manifest that the policy grants."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in manifest.env or any(fnmatch.fnmatch(name, pattern) for pattern in _BASE_ENVIRONMENT)
    }


def _checked_ready(sent: Any) -> dict[str, Any]:
    """A worker's description of itself, checked: it comes from the extension's process."""
    value = _of_shape(sent, {"protocol": int, "python": str, "executable": str, "methods": dict})
    for name, method in value["methods"].items():
        good = type(method) is dict and method.get("kind") in ("sync", "async", "stream", "astream")
        params = method.get("params") if good else ()
        texts = [method.get("returns"), method.get("doc")] if good else []
        good = good and all(isinstance(text, str) for text in texts) and (params is None or type(params) is list)
        for item in params or ():
            good = good and type(item) is list and [type(part) for part in item] == [str, str, bool, str]
        if not good or not name.isidentifier():
            raise ValueError(f"the handshake describes {name!r:.80} in an unknown way")
    return value


def _of_shape(value: Any, shape: dict[str, type]) -> dict[str, Any]:
    if type(value) is not dict or any(type(value.get(key)) is not kind for key, kind in shape.items()):
        raise ValueError("the handshake is malformed")
    return value


def _checked_confined(sent: Any) -> dict[str, Any]:
    """What a worker found of its confinement, checked."""
    value = _of_shape(sent, {"enforced": list, "missing": list, "tried": dict})
    tried = value["tried"]
    lines = (*value["enforced"], *value["missing"], *tried)
    if not all(type(line) is str for line in lines) or not all(type(item) is bool for item in tried.values()):
        raise ValueError("the handshake's sandbox report is malformed")
    return value
