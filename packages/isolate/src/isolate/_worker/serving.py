"""Runs incoming calls, each in its own task or thread, and cancels them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from . import declared, forks, stacks
from .calls import CURRENT, Context, Export, kind_of
from .copies import ON_LOOP, STATE, Copier, CopyNeededError
from .errors import CallCancelledError, OverloadedError, WireError
from .protocol import WINDOW
from .quotas import LinkLimits
from .threads import Share, Threads

# Answers: kind of frame (by name), call number, value or exception.
Answer = Callable[[str, int, Any], None]
_ABANDONED_LIMIT = 100
"""Calls that may still run after they were cancelled, before the process counts as stuck."""


def _is_cancelled() -> bool:
    """Return whether somebody has cancelled the running task, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _may_be_interrupted() -> bool:
    """Return whether Ctrl-C raises `KeyboardInterrupt` in the running code, so that it must go on to the caller."""
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


class _ThreadCall:
    """A synchronous call. Cancelling raises `CallCancelledError` in its thread at the next bytecode."""

    def __init__(
        self, serving: Serving, number: int, export: Export, args: list[Any], kwargs: dict[str, Any], context: Context
    ) -> None:
        self._serving = serving
        self._number = number
        self._export = export
        self._args = args
        self._kwargs = kwargs
        self._context = context
        self._lock = threading.Lock()
        self.thread: int | None = None
        self._raised = False
        self.cancelled = False
        self.credit: threading.Semaphore | None = None
        self.nested = context.depth > 1

    def cancel(self) -> None:
        self.cancelled = True
        if self.credit is not None:
            self.credit.release()
        with self._lock:
            if self.thread is not None and not self._raised:
                import ctypes

                self._raised = True
                if not self.nested:
                    self._serving.abandon(1)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self.thread), ctypes.py_object(CallCancelledError)
                )

    def __call__(self) -> None:
        serving, number = self._serving, self._number
        if self.cancelled:
            serving.finished(number)
            return
        try:
            try:
                with self._lock:
                    self.thread = threading.get_ident()
                token = CURRENT.set(self._context)
                try:
                    self._run()
                finally:
                    CURRENT.reset(token)
            finally:
                self._settle()
        except BaseException as failure:
            if not (self.cancelled and isinstance(failure, CallCancelledError)):
                serving.answer("ERROR", number, failure)
        finally:
            serving.finished(number)

    def _settle(self) -> None:
        with self._lock:
            self.thread = None
            raised = self._raised
        if raised and not self.nested:
            self._serving.abandon(-1)
        if raised:
            # The exception is pending for this thread: let it arrive here and not in the next call.
            try:
                for _ in range(100):
                    time.sleep(0)
            except CallCancelledError:
                pass

    def _run(self) -> None:
        serving, number = self._serving, self._number
        args, kwargs, self._args, self._kwargs = self._args, self._kwargs, [], {}
        if self._export.convert is not None:
            args, kwargs = self._export.convert(args, kwargs)
        declared.arguments(args, kwargs)
        if self._export.kind == "stream":
            self._run_stream(args, kwargs)
            return
        value = self._export.function(*args, **kwargs)
        del args, kwargs
        if type(value) is CoroutineType:
            value = serving.run_on_loop(value)
        serving.answer("RESULT", number, value)

    def _run_stream(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        serving, number = self._serving, self._number
        self.credit = threading.Semaphore(WINDOW)
        generator = self._export.function(*args, **kwargs)
        del args, kwargs
        try:
            for item in generator:
                if not self.cancelled:
                    self.credit.acquire()
                if self.cancelled:
                    return
                serving.answer("ITEM", number, item)
            serving.answer("END", number, None)
        finally:
            if hasattr(generator, "close"):
                generator.close()


class _Queued:
    """A call that waits until those before it have ended."""

    def __init__(self, serving: Serving, number: int) -> None:
        self._serving = serving
        self._number = number

    def cancel(self) -> None:
        self._serving.finished(self._number)


class Serving:
    """The incoming calls of one link.

    Args:
        loop: Where async methods run.
        threads: Where sync methods run.
        answer: Sends an answer; raises what the encoding raises.
        limits: How many calls run at once, and on how many threads.
        copier: Copies the large arrays of answers that the loop would have to send.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threads: Threads,
        answer: Answer,
        limits: LinkLimits,
        copier: Copier,
    ) -> None:
        self._copier = copier
        self._generation = forks.generation()
        self._loop = loop
        self._threads = threads
        self._limit = limits.open_calls
        self._share = Share(limits.threads, limits.nested_threads)
        self._answer = answer
        self._running: dict[int, _ThreadCall | _Queued | asyncio.Task[None]] = {}
        self._credits: dict[int, asyncio.Semaphore] = {}
        self.closed = False
        self.serial = False
        self.shows_stacks = False
        self._active: int | None = None
        self._queue: deque[tuple[int, Export, list[Any], dict[str, Any], Context]] = deque()
        self.on_stuck: Callable[[int], None] | None = None

    @property
    def count(self) -> int:
        """Calls that are running or queued."""
        return len(self._running)

    def begin(
        self,
        number: int,
        export: Export | Callable[..., Any],
        args: list[Any],
        kwargs: dict[str, Any],
        context: Context,
    ) -> None:
        """Start a call; called on the loop."""
        if number in self._running:
            raise WireError(f"call {number} began twice")
        if len(self._running) >= self._limit:
            self.answer("ERROR", number, OverloadedError(f"{len(self._running)} calls are running; that is the limit"))
            return
        if not isinstance(export, Export):
            # Only methods stream: a generator is what this one returns, and is refused like other values.
            export = Export(export, "async" if kind_of(export) == "async" else "sync")
        if self.serial and context.depth == 1:  # a nested call belongs to one that runs
            if self._active is not None:
                self._running[number] = _Queued(self, number)
                self._queue.append((number, export, args, kwargs, context))
                return
            self._active = number
        self._start(number, export, args, kwargs, context)

    def _start(self, number: int, export: Export, args: list[Any], kwargs: dict[str, Any], context: Context) -> None:
        if export.kind in ("async", "astream"):
            self._running[number] = self._loop.create_task(self._run(number, export, args, kwargs, context))
        else:
            call = _ThreadCall(self, number, export, args, kwargs, context)
            self._running[number] = call
            try:
                self._threads.submit(call, self._share, nested=call.nested)
            except OverloadedError as failure:
                self.finished(number)
                # Formatting a traceback takes far longer than refusing the call.
                self.answer("ERROR", number, failure.with_traceback(None))

    def abandon(self, count: int) -> None:
        """Count the calls that were cancelled and still run."""
        self._threads.abandon(self._share, count)
        if self.abandoned > _ABANDONED_LIMIT and self.on_stuck is not None:
            self.on_stuck(self.abandoned)

    @property
    def abandoned(self) -> int:
        """Calls that were cancelled and still run, inside C code for instance."""
        return self._share.abandoned

    def cancel(self, number: int) -> None:
        """Cancel a call if it still runs."""
        call = self._running.get(number)
        if call is not None:
            call.cancel()

    def stack(self, number: int) -> str:
        """Return where a call is; empty if it has ended or waits."""
        call = self._running.get(number)
        if isinstance(call, _ThreadCall):
            return stacks.of_thread(call.thread)
        return stacks.of_task(call) if isinstance(call, asyncio.Task) else ""

    def credit(self, number: int, count: Any) -> None:
        """Allow a stream to send more items."""
        if type(count) is not int or not 0 < count <= WINDOW:
            raise WireError(f"a credit of {count!r:.40} is outside 1 to {WINDOW}")
        call = self._running.get(number)
        gate = call.credit if isinstance(call, _ThreadCall) else self._credits.get(number)
        for _ in range(count if gate is not None else 0):
            gate.release()  # type: ignore[union-attr]

    def close(self) -> None:
        """Cancel everything that runs."""
        self.closed = True
        for call in list(self._running.values()):
            call.cancel()

    def finished(self, number: int) -> None:
        """Forget a call."""
        self._running.pop(number, None)
        self._credits.pop(number, None)
        if number == self._active:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._next)

    def _next(self) -> None:
        """Start the next call of a serial extension that its caller still wants."""
        self._active = None
        while self._queue and self._active is None:
            number, export, args, kwargs, context = self._queue.popleft()
            if type(self._running.get(number)) is _Queued:
                self._active = number
                self._start(number, export, args, kwargs, context)

    def run_on_loop(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        """Run a coroutine that a sync callable returned, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def answer(self, kind: str, number: int, value: Any) -> None:
        """Send an answer. A value that does not travel becomes an error; a closed link is ignored."""
        if self._generation != forks.generation():
            forks.end_child(value if isinstance(value, BaseException) else None)
        try:
            self._answer(kind, number, value)
        except ConnectionError:
            pass
        except Exception as failure:
            if kind == "ERROR":
                return
            if kind == "ITEM":
                raise
            try:
                self._answer("ERROR", number, failure)
            except Exception:
                return

    def _answer_here(self, kind: str, number: int, value: Any) -> bool:
        """Like `answer`, on the loop's thread; False, and nothing is sent, if much would be copied there."""
        if value is None:
            self.answer(kind, number, None)
            return True
        STATE.left = ON_LOOP
        try:
            self.answer(kind, number, value)
        except CopyNeededError:
            return False
        finally:
            STATE.left = None
        return True

    async def _run(
        self, number: int, export: Export, args: list[Any], kwargs: dict[str, Any], context: Context
    ) -> None:
        try:
            CURRENT.set(context)
            if export.convert is not None:
                args, kwargs = export.convert(args, kwargs)
            declared.arguments(args, kwargs)
            if export.kind == "astream":
                await self._run_stream(number, export.function(*args, **kwargs))
                return
            coroutine = export.function(*args, **kwargs)
            del args, kwargs
            value = await coroutine
            if not self._answer_here("RESULT", number, value):
                await self._copier.again(self.answer, "RESULT", number, value)
        except BaseException as failure:
            if isinstance(failure, asyncio.CancelledError) and _is_cancelled():
                return
            self.answer("ERROR", number, failure)  # also where the method awaited something that was cancelled
            if isinstance(failure, KeyboardInterrupt) and _may_be_interrupted():
                raise
        finally:
            self.finished(number)

    async def _run_stream(self, number: int, generator: Any) -> None:
        gate = self._credits[number] = asyncio.Semaphore(WINDOW)
        try:
            async for item in generator:
                await gate.acquire()
                if not self._answer_here("ITEM", number, item):
                    await self._copier.again(self.answer, "ITEM", number, item)
            self.answer("END", number, None)
        finally:
            await generator.aclose()
