"""Calls over one socket, the same on both ends: numbers, answers, callbacks, streams; decides nothing about processes.

Nothing that arrives is looked up by attribute: a call names an entry of `exports`, or the number of a callable that
this side has sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from . import failures, handles
from .buffers import Buffers, Segment
from .calls import CURRENT, Context, Export, ForeignReply, StreamReply, ThreadReply, deadline_after, settle
from .channel import FRAME_LIMIT, Channel
from .codec import Codec
from .errors import CallTimeout, DepthExceeded, LinkClosed, UnknownMethod, UnsupportedType, WireError, WouldDeadlock
from .serving import Serving
from .threads import Threads
from .wire import BUFFER, HANDLE, HANDLE_BACK, XFER

PROTOCOL = 1
LOAD, READY, FAILED, CALL, RESULT, ERROR, CANCEL, ITEM, CREDIT, END, RELEASE, SEGMENT, FREE, DROP, STOP = range(1, 16)
_ANSWERS = {"RESULT": RESULT, "ERROR": ERROR, "ITEM": ITEM, "END": END}
_NONE = b"\xc0"
_HANDLE_LIMIT = 100_000


class RemoteCallable:
    """A callable of the other side; calling it blocks, `aio` awaits; it is released with its last reference here."""

    __slots__ = ("__weakref__", "_link", "_number")

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it and block until it answers."""
        return self._link.call(self._number, args, kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> Any:
        """Call it from a coroutine."""
        return await self._link.acall(self._number, args, kwargs)

    def __del__(self) -> None:
        self._link.release_soon(self._number)

    def __repr__(self) -> str:
        return f"<callable {self._number} of {self._link.name}>"


class Link:
    """One end of a connection.

    Args:
        sock: A connected Unix stream socket; the link owns it.
        loop: The running event loop on whose thread the link is made.
        threads: Where sync methods run.
        exports: What the other side may call, by name.
        on_control: Called on the loop with the frames that are not calls: kind and decoded payload.
        on_closed: Called once on the loop when the other side is gone: None, or the error that ended the link.
        name: What the other side is called in messages.
        import_torch: Whether a tensor that comes may make this process import torch.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        threads: Threads,
        exports: Mapping[str, Export],
        *,
        on_control: Callable[[int, Any], None],
        on_closed: Callable[[BaseException | None], None],
        name: str,
        max_depth: int = 64,
        frame_limit: int = FRAME_LIMIT,
        import_torch: bool = True,
    ) -> None:
        self.name = name
        self.loop = loop
        self.exports = exports
        self._on_control = on_control
        self._on_closed = on_closed
        self._max_depth = max_depth
        self._numbers = itertools.count(1)
        self._pending: dict[int, Any] = {}
        self._handles: dict[int, Callable[..., Any]] = {}
        self._released: list[int] = []
        self._housekeeping = False
        self._closing: BaseException | None = None
        self.buffers = Buffers(self._announce, self._housekeep_soon, import_torch)
        self.codec = Codec(self._special, self._hook, self._unsent)
        self.channel = Channel(sock, loop, self._on_frame, self._channel_closed, frame_limit)
        self.serving = Serving(loop, threads, self._answer)

    @property
    def pending(self) -> int:
        """Calls from this side that wait for their answer."""
        return len(self._pending)

    # Calls to the other side

    def call(
        self, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None
    ) -> Any:
        """Call and block until the answer comes."""
        if self.channel.on_loop_thread:
            raise WouldDeadlock(
                f"a blocking call to {self.name} on the event loop's own thread could never be answered; "
                "await it through `.aio`, or make it from another thread"
            )
        deadline = deadline_after(timeout)
        reply = ThreadReply()
        number = self._begin(target, args, kwargs, deadline, reply)
        try:
            if not reply.wait(deadline):
                raise CallTimeout(f"{self.name}: {target} did not answer before its deadline")
        except BaseException:
            self._abandon(number)
            raise
        return reply.take()

    async def acall(
        self, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None
    ) -> Any:
        """Call from a coroutine, on any event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        deadline = deadline_after(timeout)
        number = self._begin(
            target, args, kwargs, deadline, future if loop is self.loop else ForeignReply(loop, future)
        )
        timer = None
        if deadline is not None:
            late = CallTimeout(f"{self.name}: {target} did not answer before its deadline")
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), lambda: settle(future, None, late))
        try:
            return await future
        except (asyncio.CancelledError, CallTimeout):
            self._abandon(number)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def stream(
        self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None
    ) -> Iterator[Any]:
        """Iterate over a stream from a thread; leaving the loop early closes the generator on the other side."""
        if self.channel.on_loop_thread:
            raise WouldDeadlock(
                f"a blocking stream of {self.name} on the event loop's own thread; use `async for` through `.aio`"
            )
        deadline = deadline_after(timeout)
        number = next(self._numbers)
        reply = StreamReply(lambda count: self._control(CREDIT, number, count), None)
        self._begin(target, args, kwargs, deadline, reply, number)
        try:
            while True:
                some, value = reply.poll()
                if some:
                    yield value
                elif value:
                    return
                else:
                    reply.wait(deadline)
        finally:
            self._abandon(number)

    async def astream(
        self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """Iterate over a stream from a coroutine."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        wake = changed.set if loop is self.loop else lambda: loop.call_soon_threadsafe(changed.set)
        deadline = deadline_after(timeout)
        number = next(self._numbers)
        reply = StreamReply(lambda count: self._control(CREDIT, number, count), wake)  # type: ignore[arg-type]
        self._begin(target, args, kwargs, deadline, reply, number)
        try:
            while True:
                changed.clear()
                some, value = reply.poll()
                if some:
                    yield value
                elif value:
                    return
                else:
                    try:
                        await asyncio.wait_for(
                            changed.wait(), None if deadline is None else deadline - time.monotonic()
                        )
                    except TimeoutError:
                        raise CallTimeout("the stream's deadline passed before its next item") from None
        finally:
            self._abandon(number)

    def _begin(
        self,
        target: str | int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float | None,
        reply: Any,
        number: int | None = None,
    ) -> int:
        if self._closing is not None:
            raise self._closing
        payload = self.codec.encode_call(target, args, kwargs, deadline, CURRENT.get().depth + 1)
        if number is None:
            number = next(self._numbers)
        self._pending[number] = reply
        try:
            self.channel.send(CALL, number, payload)
        except LinkClosed:
            # `close` may still be telling why; it fails every pending reply, this one included.
            if self._pending.pop(number, None) is not None:
                raise self._closing or LinkClosed(f"{self.name} is gone") from None
        except BaseException:
            self._pending.pop(number, None)
            raise
        if self._closing is not None and self._pending.pop(number, None) is not None:
            raise self._closing
        return number

    def _abandon(self, number: int) -> None:
        if self._pending.pop(number, None) is not None:
            self._control(CANCEL, number, None)

    def _control(self, kind: int, number: int, value: Any) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            self.channel.send(kind, number, _NONE if value is None else self.codec.encode(value))

    def control(self, kind: int, value: Any) -> None:
        """Send a frame that is not a call."""
        self.channel.send(kind, 0, self.codec.encode(value))

    # What the other side sends

    def _on_frame(self, kind: int, number: int, payload: bytes, descriptors: deque[int]) -> None:
        if kind == RESULT:
            # Decoded first: a reply that is taken off the list and not resolved would wait for ever.
            try:
                value, failure = None if payload == _NONE else self.codec.decode(payload), None
            except UnsupportedType as caught:
                value, failure = None, caught
            reply = self._pending.pop(number, None)
            if reply is not None:
                self._resolve(reply, value, failure)
        elif kind == CALL:
            self._on_call(number, payload)
        elif kind == ERROR:
            # Decoded first: a reply that is taken off the list and not resolved would wait for ever.
            revived = failures.revive(self.codec.decode(payload))
            reply = self._pending.pop(number, None)
            if reply is not None:
                self._resolve(reply, None, revived)
        elif kind in (ITEM, END):
            self._on_stream(kind, number, payload)
        else:
            self._on_other(kind, number, payload, descriptors)

    @staticmethod
    def _resolve(reply: Any, value: Any, failure: BaseException | None) -> None:
        if isinstance(reply, asyncio.Future) and reply.done():
            return
        if failure is None:
            reply.set_result(value)
        else:
            reply.set_exception(failure)

    def _discard(self, payload: bytes) -> None:
        # The caller has given up; what the answer carries (arrays, callables) must still be given back.
        with contextlib.suppress(UnsupportedType):
            self.codec.decode(payload)

    def _on_stream(self, kind: int, number: int, payload: bytes) -> None:
        reply = self._pending.get(number)
        if reply is None:
            self._discard(payload)
            return
        if not isinstance(reply, StreamReply):
            raise WireError(f"call {number} is not a stream and was answered as one")
        if kind == ITEM:
            try:
                reply.item(self.codec.decode(payload))
            except UnsupportedType as failure:
                self._abandon(number)
                reply.set_exception(failure)
        else:
            self._pending.pop(number)
            reply.set_result(None)

    def _on_call(self, number: int, payload: bytes) -> None:
        try:
            parts = self.codec.decode(payload)
        except UnsupportedType as failure:
            self.serving.answer("ERROR", number, failure)
            return
        if type(parts) is not list or len(parts) != 5:
            raise WireError("a call is not a list of five parts")
        target, args, kwargs, deadline, depth = parts
        if type(args) is not list or type(kwargs) is not dict or type(depth) is not int or depth < 1:
            raise WireError("a call's arguments or depth are malformed")
        if deadline is not None and type(deadline) is not float:
            raise WireError("a call's deadline is not a number")
        export: Export | Callable[..., Any] | None
        if type(target) is str:
            export = self.exports.get(target)
        else:
            export = self._handles.get(target) if type(target) is int else None
        if export is None:
            known = ", ".join(sorted(self.exports)) or "nothing"
            self.serving.answer(
                "ERROR", number, UnknownMethod(f"{target!r:.80} was not declared; declared: {known:.400}")
            )
        elif depth > self._max_depth:
            limit = f"calls are nested {depth} deep; the limit is {self._max_depth}"
            self.serving.answer("ERROR", number, DepthExceeded(limit))
        else:
            self.serving.begin(number, export, args, kwargs, Context(deadline, depth))

    def _on_other(self, kind: int, number: int, payload: bytes, descriptors: deque[int]) -> None:
        if kind == CANCEL:
            self.serving.cancel(number)
        elif kind == CREDIT:
            self.serving.credit(number, self.codec.decode(payload))
        elif kind == RELEASE:
            for handle in self._number_list(payload):
                self._handles.pop(handle, None)
        elif kind == FREE:
            for segment in self._number_list(payload):
                self._tell_dropped(self.buffers.returned(segment))
        elif kind == DROP:
            for segment in self._number_list(payload):
                self.buffers.dropped(segment)
        elif kind == SEGMENT:
            if not descriptors:
                raise WireError("a segment was announced without its descriptor")
            self.buffers.arrived(number, descriptors.popleft())
        elif LOAD <= kind <= STOP:
            self._on_control(kind, self.codec.decode(payload))
        else:
            raise WireError(f"frames of kind {kind} are not part of the protocol")

    def _number_list(self, payload: bytes) -> list[int]:
        numbers = self.codec.decode(payload)
        if type(numbers) is not list or not all(type(number) is int for number in numbers):
            raise WireError("a list of numbers holds something else")
        return numbers

    # Answers and special values

    def _answer(self, kind: str, number: int, value: Any) -> None:
        if kind == "ERROR":
            payload = self.codec.encode(failures.describe(value))
        else:
            payload = _NONE if value is None else self.codec.encode(value)
        if self.buffers._freed:
            self._housekeep()
        self.channel.send(_ANSWERS[kind], number, payload)

    def _special(self, value: Any) -> tuple[int, bytes] | None:
        if isinstance(value, RemoteCallable) and value._link is self:
            return HANDLE_BACK, self.codec.encode(value._number)
        described = self.buffers.describe(value)
        if described is not None:
            return BUFFER, self.codec.encode(described)
        handle = handles.to_bytes(value)
        if handle is not None:
            return XFER, handle
        if callable(value) and not isinstance(value, type):
            if len(self._handles) >= _HANDLE_LIMIT:
                raise UnsupportedType(f"{_HANDLE_LIMIT} callables are held by {self.name} already")
            number = next(self._numbers)
            self._handles[number] = value
            return HANDLE, self.codec.encode(number)
        return None

    def _unsent(self, code: int, payload: bytes) -> None:
        """Take back what a message would have given to the other side."""
        if code == HANDLE:
            self._handles.pop(self.codec.decode(payload), None)
        elif code == BUFFER:
            self._tell_dropped(self.buffers.unsent(self.codec.decode(payload)))

    def _hook(self, code: int, payload: bytes) -> Any:
        if code == XFER:
            return handles.from_bytes(payload)
        value = self.codec.decode(payload)
        if code == BUFFER:
            return self.buffers.restore(value)
        if type(value) is not int:
            raise WireError("a callable's number is not a number")
        if code == HANDLE:
            return RemoteCallable(self, value)
        if code == HANDLE_BACK:
            function = self._handles.get(value)
            if function is None:
                raise WireError(f"callable {value} came back and is not known here")
            return function
        raise WireError(f"extension type {code} is not part of the protocol")

    # Housekeeping: finalizers note what ended, the loop tells the other side

    def _announce(self, segment: Segment) -> None:
        self.channel.send(SEGMENT, segment.number, b"", segment.fd)

    def _tell_dropped(self, segments: list[int]) -> None:
        if segments:
            self._control(DROP, 0, segments)

    def release_soon(self, number: int) -> None:
        """Give back a callable of the other side; called by finalizers."""
        self._released.append(number)
        self._housekeep_soon()

    def _housekeep_soon(self) -> None:
        if not self._housekeeping and self._closing is None:
            self._housekeeping = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the other side
                self.loop.call_soon_threadsafe(self._housekeep)

    def _housekeep(self) -> None:
        self._housekeeping = False
        released, self._released = self._released, []
        freed, dropped = self.buffers.take_freed()
        for kind, numbers in ((RELEASE, released), (FREE, freed), (DROP, dropped)):
            if numbers:
                self._control(kind, 0, numbers)

    # The end

    def _channel_closed(self, failure: BaseException | None) -> None:
        self._on_closed(failure)

    def close(self, reason: Exception | None = None, flush: bool = False) -> None:
        """Fail every pending call with `reason`, cancel what runs here, close the socket; idempotent."""
        if self._closing is not None:
            return
        self._closing = reason or LinkClosed(f"{self.name} is gone")
        self.channel.close(flush)
        while self._pending:
            _, reply = self._pending.popitem()
            self._resolve(reply, None, _copy(self._closing))
        self.serving.close()
        self._handles.clear()
        self.buffers.close()


def _copy(failure: Exception) -> Exception:
    # Each waiter raises its own object: a shared one would gather the tracebacks of all.
    import copy

    return copy.copy(failure)
