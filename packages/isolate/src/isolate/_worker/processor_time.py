"""Bounds the processor time of each call: that of its thread, and for coroutines that of their steps on the loop.

Threads and processes that a call starts are not counted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from .calls import Export
from .errors import CpuLimitError

EXIT, ALARM = 73, signal.SIGPROF
"""How a worker ends that has a call which its limit did not stop: with that exit code, or by that signal."""
EXITS = (EXIT, 128 + ALARM)
"""The exit codes; bubblewrap turns a signal into the second."""
_GRACE = 1.0
"""Seconds of processor time after which a call that goes on beyond its limit ends the worker."""
_LONGEST_PAUSE = 0.25
_CORES = os.cpu_count() or 1


class _ExceededError(BaseException):
    """Raised where the call is; no `Exception`, so that a method's own handlers let it through."""


class _Use:
    """The processor time of one call.

    Attributes:
        spent: Seconds in the steps that have ended.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self.clock = 0
        self.thread = 0
        self.began = 0.0
        self.raised = False


class ProcessorTime:
    """Watches the calls that run, from a thread of its own.

    Args:
        limit: Seconds for each call.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._pause = min(_LONGEST_PAUSE, max(0.02, limit / 8))
        self._lock = threading.Condition()
        self._running: set[_Use] = set()
        threading.Thread(target=self._watch, daemon=True, name="isolate-processor-time").start()

    def bounded(self, export: Export) -> Export:
        """Return a method whose calls are bounded."""
        function, kind = export.function, export.kind

        def called(*args: Any, **keywords: Any) -> Any:
            return self._step(_Use(), function, *args, **keywords)

        def items(*args: Any, **keywords: Any) -> Any:
            use, iterator = _Use(), iter(function(*args, **keywords))
            try:
                while True:
                    try:
                        item = self._step(use, next, iterator)
                    except StopIteration:
                        return
                    yield item
            finally:
                if hasattr(iterator, "close"):
                    iterator.close()

        async def awaited(*args: Any, **keywords: Any) -> Any:
            return await _Steps(self._step, _Use(), function(*args, **keywords))

        async def stream(*args: Any, **keywords: Any) -> Any:
            use, iterator = _Use(), function(*args, **keywords)
            try:
                while True:
                    try:
                        item = await _Steps(self._step, use, anext(iterator))
                    except StopAsyncIteration:
                        return
                    yield item
            finally:
                await iterator.aclose()

        bounded: dict[str, Callable[..., Any]] = {"sync": called, "stream": items, "async": awaited, "astream": stream}
        return export._replace(function=bounded[kind])

    def _step(self, use: _Use, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Call a function on this thread and count the time.

        Raises:
            CpuLimitError: The call has used all its time.
        """
        try:
            self._enter(use)
            try:
                return function(*args, **keywords)
            finally:
                try:
                    self._leave(use)
                except _ExceededError:  # it came in the middle of that
                    self._leave(use)
        except _ExceededError:
            raise CpuLimitError(
                f"the call used more than {self._limit:g} s of processor time, its limit (limits.cpu_seconds)"
            ) from None

    def _enter(self, use: _Use) -> None:
        if use.spent > self._limit:
            raise _ExceededError
        use.thread = threading.get_ident()
        use.clock = time.pthread_getcpuclockid(use.thread)
        use.began = time.thread_time()
        with self._lock:
            self._running.add(use)
            self._set_alarm()
            self._lock.notify()

    def _leave(self, use: _Use) -> None:
        with self._lock:
            if use in self._running:
                self._running.remove(use)
                use.spent += time.thread_time() - use.began
            if use.raised:  # take it back if it has not arrived yet
                use.raised = False
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(use.thread), None)

    def _watch(self) -> None:
        while True:
            with self._lock:
                if not self._running:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                while not self._running:
                    self._lock.wait()
                self._set_alarm()
                for use in self._running:
                    self._check(use)
            time.sleep(self._pause)

    def _set_alarm(self) -> None:
        """Have the kernel end this process if the watching thread does not run: C code may hold the interpreter's lock.

        The processor time of all threads counts for it, so what they can use between two looks is added.
        """
        signal.setitimer(signal.ITIMER_PROF, self._limit + _GRACE + 2 * _LONGEST_PAUSE * _CORES)

    def _check(self, use: _Use) -> None:
        over = use.spent + time.clock_gettime(use.clock) - use.began - self._limit
        if over > _GRACE:
            sys.stderr.write("isolate: a call did not end at its limit of processor time\n")
            sys.stderr.flush()
            os._exit(EXIT)
        if over > 0 and not use.raised:
            use.raised = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(use.thread), ctypes.py_object(_ExceededError))


class _Steps:
    """An awaitable whose steps are counted, from one suspension to the next."""

    def __init__(self, step: Callable[..., Any], use: _Use, inner: Any) -> None:
        self._step = step
        self._use = use
        self._inner = inner

    def __await__(self) -> Generator[Any, Any, Any]:
        action, value = self._inner.send, None
        try:
            while True:
                try:
                    asked = self._step(self._use, action, value)
                except StopIteration as end:
                    return end.value
                try:
                    action, value = self._inner.send, (yield asked)
                except BaseException as failure:
                    action, value = self._inner.throw, failure
        finally:
            self._inner.close()
