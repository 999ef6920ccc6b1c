# long because calls and answers in both directions share the table of pending numbers
"""Calls over one socket, the same on both ends: numbers, answers, callbacks and streams.

Nothing that arrives is looked up by attribute: a call names an entry of `exports`, or the number of a callable that
this side has sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import socket
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from . import declared, failures, forks, stacks
from .calls import CURRENT, Export, ForeignReply, ThreadReply, checked_call, deadline_after, settle
from .channel import Channel
from .codec import Made
from .convert import Convert
from .copies import ON_LOOP, STATE, Copier, CopyNeededError
from .devices import TRY
from .errors import (
    CallTimeoutError,
    DepthExceededError,
    LinkClosedError,
    OverloadedError,
    UnknownMethodError,
    UnsupportedTypeError,
    WireError,
    WouldDeadlockError,
)
from .protocol import (
    CALL,
    CANCEL,
    CONFINED,
    CREDIT,
    DROP,
    END,
    ERROR,
    FAILED,
    FREE,
    ITEM,
    LOAD,
    PING,
    PONG,
    READY,
    RELEASE,
    RESULT,
    SEGMENT,
    STACK,
    STOP,
)
from .quotas import TRUSTED, LinkLimits
from .segments import Segment
from .serving import Serving
from .streams import StreamReply, Unread
from .threads import Threads
from .turns import Turns
from .values import Values

_WITH_VALUES = (RESULT, CALL, ERROR, ITEM, LOAD, CONFINED, READY, FAILED, STOP)
_CONTROL = (LOAD, CONFINED, READY, FAILED, STOP)
_LARGE = 4 << 10
"""Larger messages are decoded elsewhere than on the loop, where the link has such a place."""
Offload = Callable[..., "Future[Any]"]
Decoded = Callable[[], "tuple[Any, int]"]
_ANSWERS = {"RESULT": RESULT, "ERROR": ERROR, "ITEM": ITEM, "END": END}
_NONE = b"\xc0"
_NUMBERS, _NUMBERS_BYTES = 10_000, 128 << 10
"""Most numbers in one frame of housekeeping, and bytes that such a frame may have."""
_BYTES = b"\xa5bytes"
"""In messages with bytes objects that are copied out of shared memory."""
_DEVICE = b"\xa6device"
"""In messages with device arrays, which are opened."""
_NUMPY, _TORCH = b"\xa5numpy", b"\xa5torch"
"""In messages with arrays and tensors, the first of which makes this process import the library."""


def _takes_long(payload: bytes) -> bool:
    """Return whether a small message may take long to decode."""
    return (
        _BYTES in payload
        or _DEVICE in payload
        or (_NUMPY in payload and "numpy" not in sys.modules)
        or (_TORCH in payload and "torch" not in sys.modules)
    )


class Link:  # long because calls and answers in both directions share the table of pending numbers
    """One end of a connection.

    Args:
        sock: A connected Unix stream socket; the link owns it.
        loop: The running event loop on whose thread the link is made.
        threads: Where sync methods run.
        exports: What the other side may call, by name.
        on_control: Called on the loop with the frames that are not calls: kind and decoded payload.
        on_closed: Called once on the loop when the other side is gone: None, or the error that ended the link.
        name: What the other side is called in messages.
        max_depth: Calls nested deeper are refused.
        import_torch: Whether a tensor that comes may make this process import torch.
        limits: What the other side may make this one hold or do; the defaults trust it.
        offload: Runs a function elsewhere than on the loop; used to decode large messages.
        on_abandoned: Called from any thread when a call was given up before its answer.
        turns: Shared by the links of the loop.
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
        import_torch: bool = True,
        limits: LinkLimits = TRUSTED,
        offload: Offload | None = None,
        on_abandoned: Callable[[], None] | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.name = name
        self.loop = loop
        self.exports = exports
        self._on_control = on_control
        self._max_depth = max_depth
        self._numbers = itertools.count(1)
        self._pending: dict[int, Any] = {}
        self._stacks: dict[int, Any] = {}
        self._released: list[int] = []
        self._housekeeping = False
        self._closing: BaseException | None = None
        self._generation = forks.generation()
        self.values = Values(
            self,
            self._numbers,
            announce=self._announce,
            housekeep_soon=self._housekeep_soon,
            tell_dropped=self._tell_dropped,
            import_torch=import_torch,
            limits=limits,
        )
        self.unread = Unread(limits.unread_bytes)
        self._offload = offload
        self._on_abandoned = on_abandoned
        self.frames_received = 0
        self.channel = Channel(sock, loop, self._on_frame, on_closed, limits.frame_bytes, limits.queued_bytes, turns)
        self.copier = Copier()
        self._decoder = Copier()  # another thread: one that copies may wait for an answer that must be decoded
        self.serving = Serving(loop, threads, self._answer, limits, self.copier)

    @property
    def pending(self) -> int:
        """Calls from this side that wait for their answer."""
        return len(self._pending)

    def stats(self) -> dict[str, int]:
        """Return the calls in flight both ways, and the shared memory held for them."""
        return {"pending": self.pending, "serving": self.serving.count, **self.values.stats()}

    @property
    def on_loop_thread(self) -> bool:
        """Whether the caller runs on the thread that reads this link."""
        return self.channel.on_loop_thread

    def next_number(self) -> int:
        """Return a fresh call number."""
        return next(self._numbers)

    def call(
        self,
        target: str | int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None = None,
        returns: Convert | None = None,
    ) -> Any:
        """Call and block until the answer comes; `returns` rebuilds it."""
        if self.channel.on_loop_thread:
            raise WouldDeadlockError(
                f"a blocking call to {self.name} on the event loop's own thread could never be answered; "
                "await it through `.aio`, or make it from another thread"
            )
        deadline = deadline_after(timeout)
        reply = ThreadReply()
        number = next(self._numbers)
        try:
            self.begin(target, args, kwargs, deadline, reply, number)
            if not reply.wait(deadline):
                stack = ThreadReply()
                self._ask_stack(number, stack)
                raise stacks.late(self.name, target, stack.value if stack.wait(time.monotonic() + stacks.WAIT) else "")
        except BaseException:
            try:
                self.abandon(number)
            except BaseException:  # a signal handler's
                self.abandon(number)
                raise
            raise
        return declared.result(reply.take(), returns)

    async def acall(
        self,
        target: str | int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None = None,
        returns: Convert | None = None,
    ) -> Any:
        """Call from a coroutine, on any event loop; `returns` rebuilds the answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        deadline = deadline_after(timeout)
        reply = future if loop is self.loop else ForeignReply(loop, future)
        timer = None
        if deadline is not None:
            late = stacks.late(self.name, target, "")
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), lambda: settle(future, None, late))
        number = next(self._numbers)
        try:
            if self.begin_here(target, args, kwargs, deadline, reply, number) is None:
                await self.begin_elsewhere(target, args, kwargs, deadline, reply, number)
            return declared.result(await future, returns)
        except CallTimeoutError:
            if number not in self._pending:  # it did not begin, or it is the callee's own error
                raise
            stack: asyncio.Future[Any] = loop.create_future()
            self._ask_stack(number, stack if loop is self.loop else ForeignReply(loop, stack))
            await asyncio.wait([stack], timeout=stacks.WAIT)
            raise stacks.late(self.name, target, stack.result() if stack.done() else "") from None
        finally:
            self.abandon(number)  # nothing if it is answered
            if timer is not None:
                timer.cancel()

    def begin(
        self,
        target: str | int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float | None,
        reply: Any,
        number: int | None = None,
    ) -> int:
        """Send a call and return its number; `reply` gets the answer.

        After a signal handler's error the call may be on its way: the caller that gave the number abandons it.
        """
        forks.check(self._generation)
        if self._closing is not None:
            raise self._closing
        made: Made = []
        sent: list[int] = []
        if number is None:
            number = next(self._numbers)
        try:
            payload = self.values.encode_call(target, args, kwargs, deadline, CURRENT.get().depth + 1, made)
            self._pending[number] = reply
            self.channel.send(CALL, number, payload, None, sent)
        except LinkClosedError:
            # `close` fails every pending reply, this one included, and knows the reason.
            if self._pending.pop(number, None) is not None:
                raise self._closing or LinkClosedError(f"{self.name} is gone") from None
        except BaseException:
            if not sent:
                self._pending.pop(number, None)
                self.values.undo_all(made)
            raise
        if self._closing is not None and self._pending.pop(number, None) is not None:
            raise self._closing
        return number

    def begin_here(self, *call: Any) -> int | None:
        """Like `begin`, on an event loop's thread; None, and nothing is sent, if much would be copied there."""
        _, args, kwargs, *_ = call
        if not args and not kwargs:
            return self.begin(*call)
        STATE.left = ON_LOOP
        try:
            return self.begin(*call)
        except CopyNeededError:
            return None
        finally:
            STATE.left = None

    async def begin_elsewhere(self, *call: Any) -> int:
        """Like `begin`, in another thread, after `begin_here` has returned None."""
        begun = self.copier.again(self.begin, *call)
        try:
            number: int = await asyncio.shield(begun)
        except BaseException:
            begun.add_done_callback(self._abandon_begun)
            raise
        return number

    def _abandon_begun(self, begun: asyncio.Future[int]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            self.abandon(begun.result())

    def abandon(self, number: int) -> None:
        """Cancel a call unless it is answered already. If a signal handler raises in it, it is to be called again."""
        self._stacks.pop(number, None)
        if number in self._pending:
            self.tell(CANCEL, number, None)
            if self._on_abandoned is not None:
                self._on_abandoned()
            self._pending.pop(number, None)

    def _ask_stack(self, number: int, reply: Any) -> None:
        """Cancel a call and ask where it was; `reply` gets the text."""
        if number in self._pending:
            self._stacks[number] = reply
            self.tell(CANCEL, number, True)

    def tell(self, kind: int, number: int, value: Any) -> None:
        """Send a frame; no error if the other side is gone."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            self.channel.send(kind, number, _NONE if value is None else self.values.encode(value))

    def control(self, kind: int, value: Any) -> None:
        """Send a frame that is not a call."""
        self.channel.send(kind, 0, self.values.encode(value))

    def _on_frame(self, kind: int, number: int, payload: bytes | memoryview) -> None:
        self.frames_received += 1
        if kind == RESULT and payload == _NONE:
            reply = self._pending.pop(number, None)
            if reply is not None:
                self._resolve(reply, None, None)
        elif kind not in _WITH_VALUES:
            if len(payload) > _NUMBERS_BYTES:
                raise WireError(f"a frame of kind {kind} has {len(payload)} bytes; the limit is {_NUMBERS_BYTES}")
            self._on_other(kind, number, payload)
        elif payload == _NONE:
            self._on_value(kind, number, None, 0, None)
        elif len(payload) > _LARGE and self._offload is not None and not self.channel.draining:
            self._decode_elsewhere(kind, number, payload, self._offload)
        elif len(payload) <= _LARGE and not self.channel.draining and _takes_long(bytes(payload)):
            self._decode_elsewhere(kind, number, payload, self._decoder.submit)
        else:
            self._decode(kind, number, self.values.weigh, payload)

    def _decode_elsewhere(self, kind: int, number: int, payload: bytes | memoryview, offload: Offload) -> None:
        # What follows must wait for it, so nothing is read meanwhile.
        self.channel.pause()
        offload(self.values.weigh, payload).add_done_callback(
            lambda done: self._on_loop(self._on_decoded, kind, number, done.result)
        )

    def _decode(
        self, kind: int, number: int, decode: Callable[..., tuple[Any, int]], *payload: bytes | memoryview
    ) -> None:
        try:
            value, weight = decode(*payload)
        except (UnsupportedTypeError, OverloadedError) as failure:
            self._on_value(kind, number, None, 0, failure.with_traceback(None))
            return
        if kind == CALL:
            self._on_call(number, value)
        else:
            self._on_value(kind, number, value, weight, None)

    def _on_loop(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(function, *args)

    def _on_decoded(self, kind: int, number: int, decoded: Decoded) -> None:
        if self._closing is not None:
            return
        try:
            self._decode(kind, number, decoded)
        except Exception as failure:
            self.channel.fail(failure)
        else:
            self.channel.resume()

    def _on_value(self, kind: int, number: int, value: Any, weight: int, refused: Exception | None) -> None:
        """Handle a frame with a value, or with one that is refused here."""
        if kind == CALL:
            if refused is not None:
                self.serving.answer("ERROR", number, refused)
            else:
                self._on_call(number, value)
        elif kind in _CONTROL:
            if refused is not None:
                raise refused
            self._on_control(kind, value)
        elif kind == ITEM:
            self._on_item(number, value, weight, refused)
        else:
            # Taken off the list only now: a reply that is not resolved would wait for ever.
            if kind == ERROR and refused is None:
                refused = failures.revive(value)
            reply = self._pending.pop(number, None)
            if reply is not None:
                self._resolve(reply, value, refused)

    @staticmethod
    def _resolve(reply: Any, value: Any, failure: BaseException | None) -> None:
        if isinstance(reply, asyncio.Future) and reply.done():
            return
        if failure is None:
            reply.set_result(value)
        else:
            reply.set_exception(failure)

    def _stream(self, number: int) -> StreamReply | None:
        reply = self._pending.get(number)
        if reply is not None and not isinstance(reply, StreamReply):
            raise WireError(f"call {number} is not a stream and was answered as one")
        return reply

    def _on_item(self, number: int, value: Any, weight: int, refused: Exception | None) -> None:
        reply = self._stream(number)
        if reply is None:
            return
        if refused is None:
            try:
                reply.item(value, weight)
            except OverloadedError as failure:
                refused = failure
        if refused is not None:
            self.abandon(number)
            reply.set_exception(refused)

    def _on_call(self, number: int, parts: Any) -> None:
        target, args, kwargs, context = checked_call(parts)
        export = self._export(target)
        if export is None:
            known = ", ".join(sorted(self.exports)) or "nothing"
            self.serving.answer(
                "ERROR", number, UnknownMethodError(f"{target!r:.80} was not declared; declared: {known:.400}")
            )
        elif context.depth > self._max_depth:
            limit = f"calls are nested {context.depth} deep; the limit is {self._max_depth}"
            self.serving.answer("ERROR", number, DepthExceededError(limit))
        else:
            self.serving.begin(number, export, args, kwargs, context)

    def _export(self, target: Any) -> Any:
        if target == TRY:
            return Export(self._try_to_open, "async")
        return self.exports.get(target) if type(target) is str else self.values.callables.get(target)

    async def _try_to_open(self, name: Any, raw: Any) -> Any:
        # In a thread that a caller who gives up does not interrupt: it may be importing libraries.
        return await asyncio.wrap_future(self._decoder.submit(self.values.devices.try_to_open, name, raw))

    def _on_other(self, kind: int, number: int, payload: bytes | memoryview) -> None:
        if kind == PING:
            self.tell(PONG, 0, None)
        elif kind == PONG:
            pass  # counted, as every frame is
        elif kind == END:
            reply = self._stream(number)
            if reply is not None:
                self._pending.pop(number)
                reply.set_result(None)
        elif kind == CANCEL:
            stack = self.serving.stack(number) if self.serving.shows_stacks and payload != _NONE else ""
            self.serving.cancel(number)
            if stack:
                self.tell(STACK, number, stack)
        elif kind == STACK:
            waiter = self._stacks.pop(number, None)
            text = self.values.decode(payload) if len(payload) <= 4 * stacks.LIMIT else ""
            if waiter is not None and type(text) is str:
                self._resolve(waiter, text, None)
        elif kind == CREDIT:
            self.serving.credit(number, self.values.decode(payload))
        elif kind == RELEASE:
            for handle in self.values.numbers(payload):
                self.values.callables.release(handle)
        elif kind == FREE:
            for lease in self.values.numbers(payload):
                self.values.returned(lease)
        elif kind == DROP:
            for segment in self.values.numbers(payload):
                self.values.incoming.dropped(segment)
        elif kind == SEGMENT:
            if not self.channel.descriptors:
                raise WireError("a segment was announced without its descriptor")
            self.values.incoming.arrived(number, self.channel.descriptors.popleft())
        else:
            raise WireError(f"frames of kind {kind} are not part of the protocol")

    def _answer(self, kind: str, number: int, value: Any) -> None:
        made: Made = []
        sent: list[int] = []
        try:
            if kind == "ERROR":
                payload = self.values.encode(failures.describe(value), made)
            else:
                payload = _NONE if value is None else self.values.encode(value, made)
            if self.values.incoming.freed:
                self._housekeep()
            self.channel.send(_ANSWERS[kind], number, payload, None, sent)
        except BaseException:
            if made and not sent:
                self.values.undo_all(made)
            raise

    # Housekeeping: finalizers note what ended, the loop reports it to the other side

    def _announce(self, segment: Segment, sent: list[int]) -> None:
        self.channel.send(SEGMENT, segment.number, b"", segment.fd, sent)

    def _tell_dropped(self, segments: list[int]) -> None:
        if segments:
            self.tell(DROP, 0, segments)

    def release_soon(self, number: int) -> None:
        """Give back a callable of the other side; called by finalizers."""
        self._released.append(number)
        self._housekeep_soon()

    def _housekeep_soon(self) -> None:
        if not self._housekeeping and self._closing is None and self._generation == forks.generation():
            self._housekeeping = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the other side
                self.loop.call_soon_threadsafe(self._housekeep)

    def _housekeep(self) -> None:
        self._housekeeping = False
        released, self._released = self._released, []
        freed, dropped = self.values.take_ended()
        for kind, numbers in ((RELEASE, released), (FREE, freed), (DROP, dropped)):
            for first in range(0, len(numbers), _NUMBERS):
                self.tell(kind, 0, numbers[first : first + _NUMBERS])

    def fail_pending(self, reason: Exception) -> None:
        """Fail every pending call."""
        while self._pending:
            _, reply = self._pending.popitem()
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                self._resolve(reply, None, copy.copy(reason))  # a shared one would collect all tracebacks

    def close(self, reason: Exception | None = None, flush: bool = False) -> None:
        """Fail every pending call with `reason`, cancel what runs here, close the socket; idempotent."""
        if self._closing is not None:
            return
        self._closing = reason or LinkClosedError(f"{self.name} is gone")
        self.channel.close(flush)
        self.fail_pending(self._closing)
        self.serving.close()
        self.copier.close()
        self._decoder.close()
        self.values.close()
