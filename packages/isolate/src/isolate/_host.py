"""The host: exports APIs, loads extensions, runs the event loop for them, and stops them when it closes."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Self, overload

from isolate._arguments import whole
from isolate._canaries import Canaries
from isolate._environments import EnvironmentStore, Progress
from isolate._exports import Exports
from isolate._extension import Extension
from isolate._guardian import Guardian
from isolate._manifest import Manifest, check_manifest, is_extension, read_manifest
from isolate._methods import Contract
from isolate._policy import Policy
from isolate._spares import Spares
from isolate._states import State
from isolate._worker import forks
from isolate._worker.threads import Threads
from isolate._worker.turns import Turns
from isolate._worker_handle import HostContext
from isolate.errors import (
    ExtensionDisabledError,
    HostClosedError,
    HostRunningError,
    InvalidManifestError,
    WouldDeadlockError,
)


@dataclass(slots=True)
class Loaded:
    """The result of `Host.load_all`.

    Attributes:
        extensions: The extensions that run, by name.
        errors: The errors of the others, by name (by folder if the manifest has no name).
        disabled: Names of extensions whose manifest says `enabled: false`.

    Example:
        >>> with Host(store) as host:
        ...     loaded = host.load_all(extensions)
        >>> list(loaded.extensions), loaded.errors, loaded.disabled
        (['stats'], {}, [])
    """

    extensions: dict[str, Extension[Any]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    disabled: list[str] = field(default_factory=list)


class Host:  # long because each public method stands twice, blocking and awaited
    """Runs extensions; use it as a context manager, `with` or `async with`.

    With `with`, a thread of its own runs the event loop. With `async with`, the running loop is used; make blocking
    calls from other threads then.

    Args:
        store: The folder of the environments; the user's cache folder if not given.
        policy: What extensions may ask for.
        offline: Whether to build environments only from what uv has in its cache.
        max_depth: The largest nesting depth of calls between host and extensions.
        threads: Threads for blocking methods that extensions call on the host.
        spares: Processes kept ready for extensions in environments that are in use; each takes about 20 MB.
        progress: Called from any thread with an extension's name and the stage that begins.

    Example:
        >>> with Host(store) as host:
        ...     stats = host.load(extensions / "stats")
        ...     stats.call.mean([1, 2, 6])
        3.0
    """

    def __init__(
        self,
        store: str | Path | None = None,
        *,
        policy: Policy | None = None,
        offline: bool = False,
        max_depth: int = 64,
        threads: int = 32,
        spares: int = 0,
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(policy, Policy | None):
            raise TypeError(f"policy is {policy!r:.80}; wanted an isolate.Policy")
        options = {"progress": progress} if progress is not None else {}
        self.store: EnvironmentStore = EnvironmentStore(
            Path(store) if store else None, policy, offline=offline, **options
        )
        self._exports = Exports()
        self._extensions: dict[str, Extension[Any]] = {}
        self._guardian = Guardian()
        self.store.variables = self._guardian.variables
        self._canaries = Canaries()
        self._spares = Spares(whole(spares, "spares", 0), self._guardian)
        self._threads = Threads(whole(threads, "threads", 1), "isolate-host")
        self._max_depth = whole(max_depth, "max_depth", 1)
        # One thread for all: more would only take turns with the loop more often.
        self._decoder, self._census = (ThreadPoolExecutor(1, f"isolate-{work}") for work in ("decode", "count"))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: Turns | None = None
        self._thread: threading.Thread | None = None
        self._closing = self._closed = self._finished = False
        self._close_lock, self._generation = threading.RLock(), forks.generation()  # a signal handler may close too

    def __enter__(self) -> Self:
        self._own_loop()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._check_open()
        if self._loop is not None:
            raise HostRunningError("this host is already running; use it, or make another Host")
        self._loop = asyncio.get_running_loop()
        _open.add(self)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Host belongs to its process and cannot be pickled or copied; make one where it is needed")

    def _check_open(self) -> None:
        forks.check(self._generation)
        if self._closing:
            raise HostClosedError("this host is closed")
        if self._loop is not None and self._loop.is_closed():
            raise HostClosedError("the event loop of this host has ended")

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        self._check_open()
        if self._loop is None:
            started = threading.Event()
            loop = self._loop = asyncio.new_event_loop()

            def run() -> None:
                asyncio.set_event_loop(loop)
                loop.call_soon(started.set)
                loop.run_forever()
                loop.run_until_complete(_cancel_all())
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

            self._thread = threading.Thread(target=run, name="isolate-loop", daemon=True)
            self._thread.start()
            started.wait()
            _open.add(self)
        return self._loop

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            loop = self._own_loop()
        except RuntimeError:  # closed, or a fork
            work.close()
            raise
        return self._run_on(loop, work)

    def _run_on(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
        if _running_loop() is loop:
            work.close()
            raise WouldDeadlockError(
                "a blocking method of the host was called on its own event loop; await the method with the prefix `a`"
            )
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except CancelledError:
            if self._closed:
                raise HostClosedError("this host was closed meanwhile") from None
            raise
        except BaseException:
            future.cancel()
            raise

    async def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            self._check_open()
            loop = self._loop or self._own_loop()
        except RuntimeError:
            work.close()
            raise
        return await self._await_on(loop, work)

    async def _await_on(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
        if asyncio.get_running_loop() is loop:
            return await work
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._closed and future.cancelled() and not _is_cancelled():
                raise HostClosedError("this host was closed meanwhile") from None
            raise

    def close(self) -> None:
        """Stop all extensions, the last one loaded first, and the host's threads. Idempotent.

        Who waits in another thread for the host, for a load or for the state of an extension gets `HostClosedError`. A
        build or a start in progress is ended, not waited for.
        """
        if self._finished:
            return
        forks.check(self._generation)
        if self._thread is None and self._loop is not None:
            raise WouldDeadlockError("this host was opened with `async with`; await aclose()")
        if self._loop is not None and _running_loop() is self._loop:
            raise WouldDeadlockError("this host was closed on its own event loop; await aclose()")
        with self._close_lock:
            self._closing = True
            if self._loop is not None and self._thread is not None and not self._closed:
                with contextlib.suppress(HostClosedError):  # a signal handler has closed it meanwhile
                    self._run_on(self._loop, self._stop_all())
                if not self._closed:
                    self._closed = True
                    self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
            self._finish()

    async def aclose(self) -> None:
        """Like `close`, from a coroutine."""
        if self._finished:
            return
        forks.check(self._generation)
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.close)
            return
        self._closing = True
        if self._loop is not None:
            await self._await_on(self._loop, self._stop_all())
        self._finish()

    def _finish(self) -> None:
        if self._finished:
            return
        self._closed = True
        _open.discard(self)
        self._threads.close()
        self._spares.close()
        self.store.variables = dict
        self._guardian.close()
        self._canaries.close()
        self._decoder.shutdown(cancel_futures=True)
        self._census.shutdown(cancel_futures=True)
        self._finished = True

    async def _stop_all(self, drain: bool = True) -> None:
        extensions = list(self._extensions.values())
        for extension in extensions:
            extension.interrupt()
        for extension in reversed(extensions):
            await extension.stop_here(drain)

    def close_at_exit(self) -> None:
        """Stop the extensions of a host that was left open, and fail the calls that threads wait for."""
        if self._generation != forks.generation():
            return
        if self._loop is not None and self._thread is not None and not self._closed:
            stopping = asyncio.run_coroutine_threadsafe(self._stop_all(drain=False), self._loop)
            with contextlib.suppress(Exception):
                stopping.result(_EXIT_SECONDS)
        for extension in self._extensions.values():
            extension.abandon_calls()

    def export(self, api: Any, *, name: str | None = None, methods: Iterable[str] | type | None = None) -> Any:
        """Export methods of an object to the extensions that are loaded from now on.

        Args:
            api: A `ProxiedSingleton` class or instance, or any object together with `methods`.
            name: The API's name; by default the class's, in lower case and without `Singleton`.
            methods: The names of the methods, or a Protocol with these methods.

        Returns:
            The object; for a `ProxiedSingleton` class, this host's one instance.

        Raises:
            HostClosedError: The host is closed.
        """
        self._check_open()
        return self._exports.add(api, name, methods)

    @property
    def extensions(self) -> Mapping[str, Extension[Any]]:
        """The extensions by name, in load order."""
        return MappingProxyType(self._extensions)

    def __getitem__(self, name: str) -> Extension[Any]:
        return self._extensions[name]

    @overload
    async def aload(self, source: str | Path | Manifest, contract: None = None) -> Extension[Any]: ...

    @overload
    async def aload(self, source: str | Path | Manifest, contract: Callable[..., Contract]) -> Extension[Contract]: ...

    async def aload(self, source: str | Path | Manifest, contract: Any = None) -> Extension[Any]:
        """Like `load`, from a coroutine."""
        extension: Extension[Any] = await self._on_loop(self._load(source, contract))
        return extension

    @overload
    def load(self, source: str | Path | Manifest, contract: None = None) -> Extension[Any]: ...

    @overload
    def load(self, source: str | Path | Manifest, contract: Callable[..., Contract]) -> Extension[Contract]: ...

    def load(self, source: str | Path | Manifest, contract: Any = None) -> Extension[Any]:
        """Load one extension: build its environment if needed, start it, check what it provides.

        Args:
            source: The folder, manifest file or script, or a manifest. A stopped extension may be loaded again.
            contract: A Protocol whose methods the extension must have.

        Raises:
            HostClosedError: The host is closed.
            IsolateError: Its subclass and message say what is wrong with the manifest, a requirement, the environment,
                the sandbox, the contract or the extension's own code.
        """
        extension: Extension[Any] = self._run(self._load(source, contract))
        return extension

    async def _load(self, source: str | Path | Manifest, contract: type | None) -> Extension[Any]:
        self._check_open()
        manifest = check_manifest(source) if isinstance(source, Manifest) else read_manifest(source)
        if not manifest.enabled:
            raise ExtensionDisabledError(f"{manifest.name} is disabled; its manifest says enabled: false")
        present = self._extensions.get(manifest.name)
        if present is not None and present.state is State.STOPPED:
            # Loaded now, so that it stops in that order.
            del self._extensions[manifest.name]
        elif present is not None:
            raise InvalidManifestError(
                f"{manifest.directory}: the name {manifest.name!r} is taken by {present.manifest.directory}, "
                f"which is {present.state.value}; stop that one first, or rename this one"
            )
        assert self._loop is not None
        self._turns = self._turns or Turns(self._loop)
        context = HostContext(
            self._loop,
            self._threads,
            self._exports,
            self.store,
            self._guardian,
            self._canaries,
            self._spares,
            self._max_depth,
            self._decoder.submit,
            self._census.submit,
            self._turns,
            self._run,
            self._on_loop,
            self._check_open,
        )
        extension: Extension[Any] = Extension(manifest, context, contract)
        self._extensions[manifest.name] = extension
        try:
            await extension.start()
        except BaseException:
            if self._extensions.get(manifest.name) is extension:  # else it was stopped, and another loaded meanwhile
                del self._extensions[manifest.name]
            raise
        return extension

    async def aload_all(self, folder: str | Path, contract: type | None = None) -> Loaded:
        """Like `load_all`, from a coroutine."""
        loaded: Loaded = await self._on_loop(self._load_all(Path(folder), contract))
        return loaded

    def load_all(self, folder: str | Path, contract: type | None = None) -> Loaded:
        """Load every extension in a folder concurrently; a failure affects no other extension."""
        loaded: Loaded = self._run(self._load_all(Path(folder), contract))
        return loaded

    async def _load_all(self, folder: Path, contract: type | None) -> Loaded:
        loaded = Loaded()
        found: list[tuple[str, Manifest]] = []
        for path in sorted(folder.iterdir()):
            try:
                if not is_extension(path):
                    continue
                manifest = read_manifest(path)
            except Exception as failure:
                loaded.errors[path.name] = failure
                continue
            if manifest.enabled:
                found.append((path.name, manifest))
            else:
                loaded.disabled.append(manifest.name)

        async def one(place: str, manifest: Manifest) -> None:
            key = manifest.name if manifest.name not in loaded.errors else place
            try:
                extension = await self._load(manifest, contract)
            except Exception as failure:
                loaded.errors[key if key not in loaded.extensions else place] = failure
            else:
                loaded.extensions[manifest.name] = extension

        await asyncio.gather(*(one(*item) for item in found))
        return loaded


async def _cancel_all() -> None:
    """Cancel what still runs on this loop, so that nobody waits for it for ever."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_EXIT_SECONDS)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_EXIT_SECONDS = 10
_open: weakref.WeakSet[Host] = weakref.WeakSet()


def _close_left_open() -> None:
    for host in list(_open):
        with contextlib.suppress(Exception):
            host.close_at_exit()


# Before the interpreter joins its threads, which may wait for an answer; `atexit` would come too late.
getattr(threading, "_register_atexit", atexit.register)(_close_left_open)
