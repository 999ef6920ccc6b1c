"""Small arrays of one channel, in slots of the sender's memory that circulate without a system call.

The receiver leases the slab as a whole, once. When an array dies, its slot returns through the ring; the sender fills
returned slots only. When the receiver's process ends, the kernel drops its lease and the pool takes the slab back.
After a fork, the arrays that are held have a second owner, so their slots do not return one by one.

The two cores are here in Python, and the same in C in `xfer._native`, which is used where it could be compiled.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

import numpy as np

from xfer._channel.layout import (
    CANNOT,
    DRAIN_EACH,
    FULL,
    HEAD,
    RECEIVER_CLOSED,
    RETURN_HEAD,
    RETURN_TAIL,
    RETURNS_AT,
    SENT,
    TAIL,
    UNKNOWN,
)
from xfer._channel.ring import COUNT, Ring
from xfer._compiled import module
from xfer._convert.interchange import private_tensor
from xfer._deferred import Deferred

LARGEST = 64 << 10
_SLAB = 4 << 20
RETURNS = RETURNS_AT // 8
_KNOWN = 1024


class Sending(Protocol):
    """The sender's core."""

    @property
    def stride(self) -> int:
        """Bytes of a slot, 0 without a slab."""

    @property
    def epoch(self) -> int:
        """Number of the slab."""

    @property
    def last(self) -> int:
        """Count of messages up to the last one in a slot."""

    def use_slab(self, memory: Any, offset: int, stride: int, slots: int, epoch: int, /) -> None:
        """Fill slots of this memory from now on."""

    def learn(self, dtype: Any, shape: tuple[int, ...], meta: bytes, /) -> None:
        """Remember how arrays of a dtype and shape are described."""

    def use_tensors(self, kind: type, interface: Any, /) -> None:
        """Take tensors of this class as well, where this core can."""

    def learn_tensor(self, tensor: Any, meta: bytes, /) -> None:
        """Remember how tensors like this one are described."""

    def drop_slab(self) -> None:
        """Release the slab's memory."""

    def send(self, array: Any, nanoseconds: int, /) -> int:
        """Copy an array into a free slot and publish it: SENT, FULL (timed out), UNKNOWN (call `learn`) or CANNOT."""

    def detach(self) -> None:
        """Release all memory."""


class Receiving(Protocol):
    """The receiver's core."""

    @property
    def epoch(self) -> int:
        """Number of the slab, 0 without one."""

    def use_slab(self, base: Any, stride: int, slots: int, epoch: int, /) -> None:
        """Use the slots of this leased array from now on."""

    def learn(self, meta: bytes, ndim: int, shape: tuple[int, ...], dtype: Any, kind: int, /) -> None:
        """Remember the shape, the dtype and DLPack's kind of elements behind a description."""

    def recv(self, nanoseconds: int, /) -> Any:
        """Return the next array, or None if none came in time or it is not in a slot of this slab, or is unknown."""

    def use_tensors(self, interface: Any, /) -> None:
        """Make tensors by this interface."""

    def recv_tensor(self, nanoseconds: int, /) -> Any:
        """Return the next array as a tensor with memory of its own, or None as `recv` and for kinds torch lacks."""

    def pin(self) -> bool:
        """Never return the slots in use; return whether there were any."""

    def detach(self) -> None:
        """Release the ring."""


def sending_core(ring: Ring, compiled: bool) -> Sending:
    """Return the sender's core, the compiled one where wanted and there."""
    core: Sending = _make(ring, "SenderCore") if compiled and module else SenderCore(ring)
    return core


def receiving_core(ring: Ring, compiled: bool) -> Receiving:
    """Return the receiver's core, likewise."""
    core: Receiving = _make(ring, "ReceiverCore") if compiled and module else ReceiverCore(ring)
    return core


def _make(ring: Ring, name: str) -> Any:
    return getattr(module, name)(ring.map, ring.capacity, ring.start, ring.returns, ring.peer_bell, np.ndarray)


def slab_shape(nbytes: int, capacity: int, budget: int) -> tuple[int, int]:
    """Return bytes per slot and how many for arrays of this size; too few to be useful is 0."""
    stride = max(256, 1 << (nbytes - 1).bit_length())
    slots = min(2 * capacity, min(_SLAB, budget // 8) // stride)
    return stride, slots if slots > 1 else 0


class SenderCore:
    """The sender's core in Python."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.stride = self.epoch = self.last = 0
        self._offset = 0
        self._memory: Any = None
        self._free: list[int] = []
        self._away: set[int] = set()
        self._taken: int = ring.words[RETURN_TAIL]
        self._known: dict[tuple[Any, tuple[int, ...]], bytes] = {}

    def use_slab(self, memory: Any, offset: int, stride: int, slots: int, epoch: int, /) -> None:
        """See `Sending`."""
        self._memory, self._offset, self.stride, self.epoch = memory, offset, stride, epoch
        self._free, self._away = list(range(slots - 1, -1, -1)), set()

    def learn(self, dtype: Any, shape: tuple[int, ...], meta: bytes, /) -> None:
        """See `Sending`."""
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[dtype, shape] = meta

    def send(self, array: Any, nanoseconds: int, /) -> int:
        """See `Sending`."""
        ring = self._ring
        words = ring.words
        if self._memory is None or type(array) is not np.ndarray or words[RECEIVER_CLOSED]:
            return CANNOT
        head, tail = words[HEAD], words[TAIL]
        if head - tail >= ring.capacity and not ring.spin(TAIL, tail, nanoseconds / 1e9):
            return FULL
        if not self._free or head % DRAIN_EACH == 0:
            self._drain()
        nbytes = array.nbytes
        if not self._free or not 0 < nbytes <= self.stride or not array.flags.c_contiguous:
            return CANNOT
        shape, dtype = array.shape, array.dtype
        meta = self._known.get((dtype, shape))
        if meta is None:
            return UNKNOWN
        slot = self._free.pop()
        self._away.add(slot)
        np.ndarray(shape, dtype, self._memory, self._offset + slot * self.stride)[...] = array
        self.last = head + 1
        ring.write(meta, slot, nbytes, len(shape), self.epoch)
        return SENT

    def use_tensors(self, kind: type, interface: Any, /) -> None:
        """See `Sending`."""

    def learn_tensor(self, tensor: Any, meta: bytes, /) -> None:
        """See `Sending`."""

    def drop_slab(self) -> None:
        """See `Sending`."""
        self._memory, self.stride = None, 0
        self._free, self._away = [], set()

    def detach(self) -> None:
        """See `Sending`."""
        self.drop_slab()

    def _drain(self) -> None:
        words, taken = self._ring.words, self._taken
        mask, head = self._ring.returns - 1, words[RETURN_HEAD]
        if head - taken > mask + 1:
            return  # a correct receiver never counts that far
        for number in range(taken, head):
            value = words[RETURNS + (number & mask)]
            slot = value & 0xFFFFFFFF
            if value >> 32 == self.epoch and slot in self._away:
                self._away.discard(slot)
                self._free.append(slot)
        self._taken = words[RETURN_TAIL] = head


class _SlotWatch(weakref.ref):  # type: ignore[type-arg]  # the referent is any array
    """A weak reference to a received array that remembers whose slot to give back."""

    __slots__ = ("epoch", "generation", "slot")
    slot: int
    epoch: int
    generation: int


class ReceiverCore:
    """The receiver's core in Python."""

    def __init__(self, ring: Ring) -> None:
        self._ring: Ring | None = ring
        self._base: Any = None
        self._slots = self._stride = self.epoch = self._generation = self._held = 0
        self._known: dict[tuple[bytes, int], tuple[tuple[int, ...], Any]] = {}
        self._watches: dict[int, _SlotWatch] = {}
        self._lock = threading.Lock()
        self._dropped = Deferred(self._lock, self._end)

    def use_slab(self, base: Any, stride: int, slots: int, epoch: int, /) -> None:
        """See `Receiving`."""
        if stride * slots > base.nbytes:
            raise ValueError("the slots do not fit their memory")
        self._base, self._stride, self._slots, self.epoch, self._held = base, stride, slots, epoch, 0

    def learn(self, meta: bytes, ndim: int, shape: tuple[int, ...], dtype: Any, kind: int, /) -> None:
        """See `Receiving`."""
        del kind
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[meta, ndim] = shape, dtype

    def recv(self, nanoseconds: int, /) -> Any:
        """See `Receiving`."""
        ring = self._ring
        if ring is None:
            return None
        tail = ring.words[TAIL]
        if ring.words[HEAD] == tail and not ring.spin(HEAD, tail, nanoseconds / 1e9):
            return None
        message = ring.peek()
        known = self._known.get((message.meta, message.ndim))
        if message.slot >= self._slots or message.epoch != self.epoch or message.nbytes > self._stride or not known:
            return None
        start = message.slot * self._stride
        array: np.ndarray[Any, Any] = np.ndarray(*known, self._base[start : start + message.nbytes])
        watch = _SlotWatch(array, self._dropped.note)
        watch.slot, watch.epoch, watch.generation = message.slot, message.epoch, self._generation
        self._watches[id(watch)] = watch
        self._held += 1
        ring.took(tail)
        return array

    def use_tensors(self, interface: Any, /) -> None:
        """See `Receiving`."""

    def recv_tensor(self, nanoseconds: int, /) -> Any:
        """See `Receiving`."""
        array = self.recv(nanoseconds)
        return None if array is None else private_tensor(array)

    def pin(self) -> bool:
        """See `Receiving`."""
        self._generation += 1
        held, self._held = self._held > 0, 0
        return held

    def detach(self) -> None:
        """See `Receiving`."""
        self._ring, self._base, self._slots = None, None, 0
        self._lock = threading.Lock()  # in a forked child the old one may be held for ever
        self._dropped = Deferred(self._lock, self._end)

    def _end(self, watch: _SlotWatch) -> None:
        del self._watches[id(watch)]
        ring = self._ring
        if ring is None or watch.generation != self._generation or watch.epoch != self.epoch:
            return
        self._held -= 1
        words, mask = ring.words, ring.returns - 1
        head = words[RETURN_HEAD]
        if head - words[RETURN_TAIL] <= mask:  # otherwise the slot stays out of use, which is safe
            words[RETURNS + (head & mask)] = watch.epoch << 32 | watch.slot
            ring.fence()
            words[RETURN_HEAD] = head + 1 & COUNT
