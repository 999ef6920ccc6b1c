"""Functions that run in an environment of their own: `run` and the decorator `function`."""

from __future__ import annotations

import asyncio
import atexit
import functools
import hashlib
import inspect
import logging
import re
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar, overload

from isolate._arguments import texts
from isolate._environments import typed_errors
from isolate._extension import Extension
from isolate._host import Host
from isolate._manifest import Manifest
from isolate._places import private_folder, read_private, write_atomically
from isolate._source import EXPORTED, Captured, capture, read_source, returns_of
from isolate._states import State
from isolate._worker import forks
from isolate._worker.convert import converter as conversion

P = ParamSpec("P")
R = TypeVar("R")


class _Default:
    """The host of functions that name none: made when first needed, closed at exit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._host: Host | None = None
        self._generation = -1
        self._registered = False

    def host(self) -> Host:
        """Return it."""
        with self._lock:
            if self._host is None or self._generation != forks.generation():
                self._host = Host(progress=_say, spares=1).__enter__()
                self._generation = forks.generation()
                if not self._registered:
                    self._registered = True
                    atexit.register(self.close)
            return self._host

    def close(self) -> None:
        """Stop all its functions."""
        host, self._host = self._host, None
        if host is not None and self._generation == forks.generation():
            host.close()


_DEFAULT = _Default()


def _say(name: str, stage: str) -> None:
    print(f"isolate: {name}: {stage}", file=sys.stderr, flush=True)


class _Printer(logging.Handler):
    """Prints what a function prints, where the program prints."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        print(self.format(record), file=sys.stderr if record.levelno > logging.INFO else sys.stdout, flush=True)


_RUNNING: weakref.WeakKeyDictionary[Host, dict[Any, Extension[Any]]] = weakref.WeakKeyDictionary()
"""For each host the extensions of functions, by the function's place."""
_LOCKS: weakref.WeakKeyDictionary[Host, dict[str, threading.Lock]] = weakref.WeakKeyDictionary()
"""For each host the locks under which extensions of functions are loaded, by their names."""
_LOCKS_LOCK = threading.Lock()


class Function(Generic[P, R]):
    """A function that runs in an environment and a process of its own; `isolate.function` makes it.

    Calling it is like calling the function: it blocks and returns; a coroutine function returns an awaitable, a
    generator function an iterator. The first call builds the environment if needed and starts the process, which later
    calls use.

    Args:
        function: The function. Its source travels, with the imports, constants, functions and classes that it uses.
        dependencies: Requirement lines.
        python: A version of Python such as "3.12"; this interpreter's if not given.
        timeout: Seconds for each call.
        host: Runs it, under its policy; a host of the program's own if not given.

    Attributes:
        local: The function itself, for calls here.

    Example:
        >>> def double(x):
        ...     return 2 * x
        >>> with Host(store) as host:
        ...     there = Function(double, host=host)
        ...     there(4), there.local(4)
        (8, 8)
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        dependencies: Sequence[str] = (),
        python: str | None = None,
        timeout: float | None = None,
        host: Host | None = None,
    ) -> None:
        if not isinstance(function, FunctionType):
            raise TypeError(f"{function!r:.80} is no Python function; wanted one made with def")
        functools.update_wrapper(self, function)
        self.local: Callable[P, R] = function
        if not isinstance(host, Host | None):
            raise TypeError(f"host is {host!r:.80}; wanted an isolate.Host")
        if not isinstance(python, str | None):
            raise TypeError(f"python is {python!r:.80}; wanted a text such as '3.12'")
        self._dependencies = texts(dependencies, "dependencies")
        self._python = python
        self._timeout = timeout
        self._host = host
        self._lock = threading.Lock()
        self._text = read_source(function)
        self._captured: Captured | None = None
        self._extension: Extension[Any] | None = None
        self._returns = conversion(returns_of(function))

    def __repr__(self) -> str:
        return f"<isolated function {self.local.__qualname__}>"

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        raise TypeError(f"{self.local.__qualname__} is a method; isolate functions outside of classes")

    @property
    def extension(self) -> Extension[Any]:
        """The extension that runs it, started if needed."""
        with self._lock:
            if not self._is_ready():
                if self._captured is None or not self._captured.is_current():
                    self._captured = capture(self.local, function, self._text)  # type: ignore[arg-type]
                self._extension = self._start(self._captured.text)
            assert self._extension is not None
            return self._extension

    def _is_ready(self) -> bool:
        extension, captured = self._extension, self._captured
        runs = extension is not None and extension.state is State.READY
        return runs and captured is not None and captured.is_current()

    def _start(self, text: str) -> Extension[Any]:
        host = self._host or _DEFAULT.host()
        manifest = self._manifest(host, text)
        with _lock_of(host, manifest.name):  # other functions may have the same source, and other threads call them
            extension = self._loaded(host, manifest)
            if "<locals>" not in self.local.__qualname__:
                self._replace(host, extension)
        return extension

    def _loaded(self, host: Host, manifest: Manifest) -> Extension[Any]:
        extension = host.extensions.get(manifest.name)
        if extension is None or extension.state is State.STOPPED:
            extension = host.load(manifest)
            if self._returns is not None:
                extension.expect({EXPORTED: self._returns})
            if self._host is None:
                extension.logger.handlers, extension.logger.propagate = [_Printer()], False
                extension.logger.setLevel(logging.INFO)
        elif extension.state is State.FAILED:
            extension.reload()
        elif extension.state is not State.READY:
            extension.when(State.READY, timeout=extension.manifest.timeouts.start)
        return extension

    def _replace(self, host: Host, extension: Extension[Any]) -> None:
        """Stop what ran an earlier definition of the function, as that of a notebook's cell before it was run again."""
        running = _RUNNING.setdefault(host, {})
        place = (self.local.__module__, self.local.__qualname__, self._dependencies, self._python)
        before, running[place] = running.get(place), extension
        if before is not None and before is not extension:
            before.stop(drain=True)

    def _manifest(self, host: Host, text: str) -> Manifest:
        key = hashlib.sha256("\0".join((text, *self._dependencies, self._python or "")).encode()).hexdigest()[:16]
        name = re.sub(r"[^a-z0-9]+", "-", self.local.__name__.lower()).strip("-")[:40] or "function"
        folder = host.store.root / "functions" / key
        main = folder / "main.py"
        with typed_errors(name, host.store.root):
            if _content(main) != text:
                private_folder(folder)
                write_atomically(main, text.encode())
        return Manifest(
            name=f"{name}-{key}",
            dependencies=self._dependencies,
            python=self._python,
            directory=folder,
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it there."""
        made: Any
        if inspect.iscoroutinefunction(self.local):
            made = self.aio(*args, **kwargs)
        elif inspect.isasyncgenfunction(self.local):
            made = self._astream(args, kwargs)
        else:
            made = self._bounded(self.extension.call)(*args, **kwargs)
        result: R = made
        return result

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call it there from a coroutine, whatever kind of function it is."""
        extension = await self._aready()
        return await self._bounded(extension.aio)(*args, **kwargs)

    async def _aready(self) -> Extension[Any]:
        if self._extension is not None and self._is_ready():
            return self._extension
        return await asyncio.to_thread(lambda: self.extension)

    async def _astream(self, args: Any, kwargs: Any) -> AsyncIterator[Any]:
        extension = await self._aready()
        async for item in self._bounded(extension.aio)(*args, **kwargs):
            yield item

    def _bounded(self, methods: Any) -> Any:
        """Return the method, with this function's time: others may share the extension and have other times."""
        return getattr(methods if self._timeout is None else methods(timeout=self._timeout), EXPORTED)

    def stop(self) -> None:
        """End its process; the next call starts another."""
        with self._lock:
            extension, self._extension = self._extension, None
        if extension is not None:
            extension.stop()


def _lock_of(host: Host, name: str) -> threading.Lock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(host, {}).setdefault(name, threading.Lock())


def _content(path: Path) -> str | None:
    try:
        return read_private(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


@overload
def function(
    wrapped: Callable[P, R],
    /,
    *,
    dependencies: Sequence[str] = ...,
    python: str | None = ...,
    timeout: float | None = ...,
    host: Host | None = ...,
) -> Function[P, R]: ...


@overload
def function(
    *,
    dependencies: Sequence[str] = ...,
    python: str | None = ...,
    timeout: float | None = ...,
    host: Host | None = ...,
) -> Callable[[Callable[P, R]], Function[P, R]]: ...


def function(
    wrapped: Callable[..., Any] | None = None,
    /,
    *,
    dependencies: Sequence[str] = (),
    python: str | None = None,
    timeout: float | None = None,
    host: Host | None = None,
) -> Any:
    """Make a function run in an environment of its own: a decorator.

    Args:
        wrapped: The function.
        dependencies: Requirement lines.
        python: A version of Python such as "3.12"; this interpreter's if not given.
        timeout: Seconds for each call.
        host: Runs it, under its policy; a host of the program's own if not given.

    Returns:
        A `Function`, which is called like the function.

    Example:
        >>> host = Host(store).__enter__()
        >>> @function(host=host)
        ... def total(values):
        ...     return sum(values)
        >>> total([1, 2, 6])
        9
        >>> host.close()
    """
    dependencies = texts(dependencies, "dependencies")  # read once: the decorator may be used for many functions
    if wrapped is None:
        return functools.partial(function, dependencies=dependencies, python=python, timeout=timeout, host=host)
    return Function(wrapped, dependencies=dependencies, python=python, timeout=timeout, host=host)


def run(
    called: Callable[..., R],
    /,
    *args: Any,
    dependencies: Sequence[str] = (),
    python: str | None = None,
    timeout: float | None = None,
    host: Host | None = None,
    **kwargs: Any,
) -> R:
    """Call a function in an environment of its own, and return what it returns.

    The environment is built once for the same dependencies. The process stays for further calls of the function; a
    function that is defined again, as in a notebook cell, replaces it.

    Args:
        called: The function. Its source travels, with the imports, constants, functions and classes that it uses.
        args: Its arguments.
        dependencies: Requirement lines.
        python: A version of Python such as "3.12"; this interpreter's if not given.
        timeout: Seconds for the call.
        host: Runs it, under its policy; a host of the program's own if not given.
        kwargs: Its keyword arguments.

    Example:
        >>> def version():
        ...     import packaging
        ...     return packaging.__version__
        >>> with Host(store) as host:
        ...     run(version, dependencies=["packaging==23.2"], host=host)
        '23.2'
    """
    if isinstance(called, Function):
        return called(*args, **kwargs)  # type: ignore[no-any-return]
    if not isinstance(called, FunctionType):
        raise TypeError(f"{called!r:.80} is no Python function; wanted one made with def")
    dependencies = texts(dependencies, "dependencies")
    key = (dependencies, python, timeout, host)
    known: dict[Any, Function[Any, R]] = vars(called).setdefault("__isolated__", {})
    if key not in known:  # set by one of the threads that come here at once
        known.setdefault(key, Function(called, dependencies=dependencies, python=python, timeout=timeout, host=host))
    return known[key](*args, **kwargs)
