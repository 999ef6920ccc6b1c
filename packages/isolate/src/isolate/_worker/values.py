"""The values of one link: plain data by the codec, arrays by shared memory, callables by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import handles
from .callables import Caller, RemoteCallable, SentCallables
from .codec import Codec, Made
from .devices import TRY, Devices
from .errors import WireError
from .incoming import Incoming
from .outgoing import Outgoing
from .quotas import LinkLimits
from .segments import Segment
from .wire import BUFFER, DEVICE, HANDLE, HANDLE_BACK, XFER


class Values:
    """Encodes and decodes what travels over one link, and keeps what the two sides lend each other.

    Args:
        link: The link, for callables that arrive.
        numbers: Source of fresh numbers for callables, shared with the link's calls.
        announce: Sends a segment's descriptor to the other side.
        housekeep_soon: Asks the link to send what `take_ended` returns; callable from a finalizer.
        tell_dropped: Sends the numbers of segments that left the pool.
        import_torch: Whether a tensor that comes may make this process import torch.
        limits: What the other side may make this one hold.
    """

    def __init__(
        self,
        link: Caller,
        numbers: Iterator[int],
        *,
        announce: Callable[[Segment, list[int]], None],
        housekeep_soon: Callable[[], None],
        tell_dropped: Callable[[list[int]], None],
        import_torch: bool,
        limits: LinkLimits,
    ) -> None:
        self._link = link
        self._tell_dropped = tell_dropped
        self.callables = SentCallables(numbers, limits.callables)
        self.outgoing = Outgoing(announce, housekeep_soon, limits.peer_segments)
        self.incoming = Incoming(housekeep_soon, import_torch, limits.array_bytes, limits.segments)
        self.devices = Devices(self._ask, self.incoming.give_back, link.name, limits.device_handles)
        self._codec = Codec(self._special, self._hook, self._unsent, limits.decoded_bytes)
        self.encode = self._codec.encode
        self.encode_call = self._codec.encode_call
        self.undo_all = self._codec.undo_all
        self.decode = self._codec.decode
        self.weigh = self._codec.weigh
        self.numbers = self._codec.numbers

    def stats(self) -> dict[str, int]:
        """Return segments and bytes: lent to the other side, idle in the pool, mapped from the other side."""
        return {**self.outgoing.stats(), "mapped": len(self.incoming), **self.devices.stats()}

    def _ask(self, name: str, raw: bytes, seconds: float) -> Any:
        return self._link.call(TRY, (name, raw), {}, seconds)

    def returned(self, lease: int) -> None:
        """Take back what the other side no longer uses."""
        if lease < 0:
            self.devices.returned(lease)
        else:
            self._tell_dropped(self.outgoing.returned(lease))

    def take_ended(self) -> tuple[list[int], list[int]]:
        """Return the segments to give back, and those of this side that ended."""
        return self.incoming.take_freed(), self.outgoing.take_dropped()

    def close(self) -> None:
        """Give up everything that either side holds."""
        self.callables.clear()
        self.incoming.close()
        self.outgoing.close()
        self.devices.close()

    def _special(self, value: Any, made: Made) -> tuple[int, bytes] | None:
        if isinstance(value, RemoteCallable) and value.belongs_to(self._link):
            return HANDLE_BACK, self.encode(value.number)
        on_device = self.devices.describe(value)
        if on_device is not None:
            made.append((DEVICE, on_device[2]))
            return DEVICE, self.encode(on_device)
        described = self.outgoing.describe(value, lambda lease: made.append((BUFFER, lease)))
        if described is not None:
            return BUFFER, self.encode(described)
        handle = handles.to_bytes(value)
        if handle is not None:
            return XFER, handle
        if callable(value) and not isinstance(value, type):
            return HANDLE, self.encode(self.callables.add(value, lambda number: made.append((HANDLE, number))))
        return None

    def _unsent(self, code: int, number: int) -> None:
        """Undo what encoding has registered (callables, segments) for a message that was not sent."""
        if code == HANDLE:
            self.callables.release(number)
        elif code == BUFFER:
            self._tell_dropped(self.outgoing.unsent(number))
        elif code == DEVICE:
            self.devices.returned(number)

    def _hook(self, code: int, payload: bytes) -> Any:
        if code == XFER:
            return handles.from_bytes(payload)
        value = self.decode(payload)
        if code == BUFFER:
            return self.incoming.restore(value)
        if code == DEVICE:
            return self.devices.restore(value)
        if type(value) is not int:
            raise WireError("a callable's number is not a number")
        if code == HANDLE:
            return RemoteCallable(self._link, value)
        if code == HANDLE_BACK:
            return self.callables.returned(value)
        raise WireError(f"extension type {code} is not part of the protocol")
