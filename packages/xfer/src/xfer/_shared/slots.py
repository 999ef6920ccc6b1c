"""The slots of a pool: taking one, growing, and taking released slots back once no reader leases them.

Nothing here is locked: the pool calls every method while it holds its own lock.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from xfer._shared import names
from xfer._shared.lease import OFD, Leases
from xfer._shared.reader import READER
from xfer._shared.segment import WORDS, Segment
from xfer._sizes import SLAB, SMALL, format_size
from xfer.errors import BudgetExceededError

_RECLAIM_STEP = 64


class Place(NamedTuple):
    """A slot of a segment."""

    segment: Segment
    slot: int

    @property
    def offset(self) -> int:
        """Where the slot starts in the segment's memory."""
        return self.segment.start + self.slot * self.segment.stride

    def mark(self, stamp: int, check: int) -> None:
        """Make the slot readable by the handle of this stamp and checksum."""
        index = WORDS + 2 * self.slot
        self.segment.words[index + 1] = check
        self.segment.words[index] = stamp

    def clear(self) -> None:
        """Make the slot's handle stale."""
        self.segment.words[WORDS + 2 * self.slot] = 0


class Slots:
    """The free and the released slots under a budget.

    Args:
        budget: The most bytes to reserve.
        owner: The name under which segments are made as files, or None for nameless memory.
    """

    def __init__(self, budget: int, owner: str | None) -> None:
        self.budget, self.reserved = budget, 0
        self.segments: dict[int, Segment] = {}
        self._owner = owner
        self._free: dict[int, list[Place]] = {}
        self._retired: dict[int, list[tuple[Place, object]]] = {}
        self._reclaim_at: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        """How many released slots are still leased, as far as is known."""
        return sum(map(len, self._retired.values()))

    @property
    def free(self) -> int:
        """How many slots are free in the segments there are."""
        return sum(map(len, self._free.values()))

    def take_ready(self, size: int) -> Place | None:
        """Return a free slot of this size without reserving more memory, or None."""
        free = self._free.get(size)
        if len(self._retired.get(size, ())) >= self._reclaim_at.get(size, _RECLAIM_STEP):
            self._reclaim(size)  # used memory before new memory: it is in the cache and has its pages
        return free.pop() if free else None

    def take(self, size: int) -> Place | None:
        """Return a slot of this size, from new memory if need be, or None where the budget is spent.

        Raises:
            BudgetExceededError: The system has no memory left.
        """
        free = self._free.setdefault(size, [])
        if not free and self._retired.get(size):
            self._reclaim(size)
        if not free and not self._grow(size) and self.trim():
            self._grow(size)
        return free.pop() if free else None

    def put_back(self, place: Place) -> None:
        """Return a slot that was taken and never published."""
        self._free[place.segment.stride].append(place)

    def retire(self, place: Place, keep: object) -> None:
        """Release a slot: its handle is stale now, and it is free once no reader leases it; `keep` lives until then."""
        # First make the handle stale, then (later) look for leases: a reader does it in the opposite order.
        place.clear()
        self._retired.setdefault(place.segment.stride, []).append((place, keep))

    def reclaim(self) -> None:
        """Free every released slot that no reader leases."""
        for size in list(self._retired):
            self._reclaim(size)

    def leased(self, place: Place) -> bool:
        """Return whether a reader leases a slot."""
        return self._leased(place.segment, place.slot, 1)

    def trim(self) -> int:
        """Give segments without a used slot back to the system; return their bytes."""
        freed = 0
        for size, free in self._free.items():
            if self._retired.get(size):
                self._reclaim(size)
            idle: dict[int, int] = {}
            for segment, _ in free:
                idle[segment.id] = idle.get(segment.id, 0) + 1
            gone = {key for key, count in idle.items() if count == self.segments[key].slots}
            if gone:
                free[:] = [place for place in free if place.segment.id not in gone]
            for key in gone:
                segment = self.segments.pop(key)
                freed += segment.stride * segment.slots
                segment.close()
        self.reserved -= freed
        return freed

    def _grow(self, size: int) -> bool:
        room = self.budget - self.reserved
        slots = 1
        if size <= SMALL:
            slots = max(1, min(SLAB, self.budget // 8, room) // size)
        if slots * size > room:
            return False
        try:
            segment = Segment(size, slots, self._owner)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise BudgetExceededError(
                f"asked the system for {format_size(size * slots)}, which has no shared memory left ({error.strerror})",
                asked=size * slots,
                available=names.room(),
            ) from error
        self.segments[segment.id] = segment
        self.reserved += size * slots
        self._free[size].extend(Place(segment, slot) for slot in range(slots - 1, -1, -1))
        segment.populate(size * slots if size > SMALL else 0)
        return True

    def _reclaim(self, size: int) -> None:
        """Free released slots of a size: one system call per segment, or one per slot where some are leased."""
        by_segment: dict[int, list[tuple[Place, object]]] = {}
        for entry in self._retired[size]:
            by_segment.setdefault(entry[0].segment.id, []).append(entry)
        waiting, free = [], self._free.setdefault(size, [])
        for entries in by_segment.values():
            segment = entries[0][0].segment
            if len(entries) > 1 and not self._leased(segment, 0, segment.slots):
                free.extend(place for place, _ in entries)
                continue
            for entry in entries:
                if self.leased(entry[0]):
                    waiting.append(entry)
                else:
                    free.append(entry[0])
        self._retired[size] = waiting
        self._reclaim_at[size] = len(waiting) + _RECLAIM_STEP

    def _leased(self, segment: Segment, first: int, count: int) -> bool:
        if not OFD and any(READER.leases(segment.id, slot) for slot in range(first, first + count)):
            return True
        return Leases.held(segment.fd, first, count)
