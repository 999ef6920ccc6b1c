"""The slots of a pool: taking one, growing, and taking released slots back once no reader leases them.

The budget bounds the bytes that arrays need. Memory that is reserved and free does not count; it is given back before
more is reserved than the budget. Nothing here is locked: the pool calls every method while it holds its own lock.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from xfer._shared import names
from xfer._shared.files import NO_DESCRIPTOR, NO_MEMORY, typed
from xfer._shared.lease import OFD, Leases
from xfer._shared.reader import READER
from xfer._shared.segment import WORDS, Segment
from xfer._sizes import FIRST_SLAB, SLAB, SMALL, format_size, slot_size
from xfer.errors import BudgetExceededError

_RECLAIM_STEP = 64


class Place(NamedTuple):
    """A slot that was taken, and how many bytes of it count."""

    segment: Segment
    slot: int
    nbytes: int

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


class Retired(NamedTuple):
    """A released slot that may still be in use."""

    place: Place
    keep: Any  # stays alive as long as a reader leases the slot
    views: weakref.ref[Any] | None  # the producer's own writable view of the slot

    @property
    def viewed(self) -> bool:
        """Whether the producer itself can still write to the slot."""
        return self.views is not None and self.views() is not None


class Slots:
    """The free and the released slots under a budget.

    A signal handler may raise an error between any two steps. So a slot leaves one list before it enters the next: one
    that is in both would be filled twice, while one that is in none is only lost to reuse.

    Args:
        budget: The most bytes that taken slots may need.
        owner: The name under which segments are made as files, or None for nameless memory.
    """

    def __init__(self, budget: int, owner: str | None) -> None:
        self.budget, self.reserved, self.used = budget, 0, 0
        self.segments: dict[int, Segment] = {}
        self._owner = owner
        self._free: dict[int, list[tuple[Segment, int]]] = {}
        self._retired: dict[int, list[Retired]] = {}
        self._reclaim_at: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        """How many released slots are still in use, as far as is known."""
        return sum(map(len, self._retired.values()))

    @property
    def free(self) -> int:
        """How many slots are free in the segments there are."""
        return sum(map(len, self._free.values()))

    def take_ready(self, nbytes: int) -> Place | None:
        """Return a free slot without reserving more memory, or None."""
        size = slot_size(nbytes)
        free = self._free.get(size)
        if len(self._retired.get(size, ())) >= self._reclaim_at.get(size, _RECLAIM_STEP):
            self._reclaim(size)  # used memory before new memory: it is in the cache and has its pages
        if not free or self.used + nbytes > self.budget:
            return None
        place = Place(*free.pop(), nbytes)
        self.used += nbytes
        return place

    def take(self, nbytes: int) -> Place | None:
        """Return a slot, in new memory if need be, or None where the budget is spent.

        Raises:
            BudgetExceededError: The system has no memory left.
            TooManyOpenFilesError: No descriptor is left.
        """
        if self.used + nbytes > self.budget:
            self.reclaim()
            if self.used + nbytes > self.budget:
                return None
        size = slot_size(nbytes)
        free = self._free.setdefault(size, [])
        if not free and self._retired.get(size):
            self._reclaim(size)
        if not free:
            self._grow(size, nbytes)
        place = Place(*free.pop(), nbytes)
        self.used += nbytes
        return place

    def put_back(self, place: Place) -> None:
        """Return a slot that was taken and never published."""
        self.used -= place.nbytes
        self._free[place.segment.stride].append((place.segment, place.slot))

    def retire(self, place: Place, keep: Any = None, views: weakref.ref[Any] | None = None) -> None:
        """Release a slot: its handle is stale now, and it is free once it is no longer in use.

        Args:
            place: The slot.
            keep: Stays alive until no reader leases the slot.
            views: The producer's own view of the slot, which must be gone as well.
        """
        # First make the handle stale, then (later) look for leases: a reader does it in the opposite order.
        place.clear()
        size = place.segment.stride
        self._retired.setdefault(size, []).append(Retired(place, keep, views))
        if keep is not None:
            self._reclaim(size)  # what it keeps may be large: give it back now if no reader has it

    def reclaim(self) -> None:
        """Free every released slot that is no longer in use."""
        for size, retired in list(self._retired.items()):
            if retired:
                self._reclaim(size)

    def leased(self, place: Place) -> bool:
        """Return whether a reader leases a slot."""
        return self._leased(place.segment, place.slot, 1)

    def trim(self) -> int:
        """Give segments without a used slot back to the system; return their bytes."""
        freed, reserved = 0, self.reserved
        self.reclaim()
        for free in self._free.values():
            idle: dict[int, int] = {}
            for segment, _ in free:
                idle[segment.id] = idle.get(segment.id, 0) + 1
            gone = {key for key, count in idle.items() if count == self.segments[key].slots}
            if gone:
                free[:] = [entry for entry in free if entry[0].id not in gone]
            for key in gone:
                segment = self.segments.pop(key)
                freed += segment.stride * segment.slots
                self.reserved = reserved - freed
                segment.close()
        return freed

    def kept(self) -> list[Retired]:
        """Return the released slots that readers lease and that keep something else alive."""
        return [entry for entries in self._retired.values() for entry in entries if entry.keep is not None]

    def forget(self) -> None:
        """Forget every segment and slot; the caller has closed the segments."""
        self.segments.clear()
        self._free.clear()
        self._retired.clear()
        self.used = self.reserved = 0

    def _grow(self, size: int, nbytes: int) -> None:
        """Add a segment of this slot size.

        Raises:
            BudgetExceededError: The system has no memory left.
            TooManyOpenFilesError: No descriptor is left.
        """
        slots = 1
        if size <= SMALL:
            have = sum(one.stride * one.slots for one in self.segments.values() if one.stride == size)
            slots = max(1, min(SLAB, self.budget // 8, max(FIRST_SLAB, have)) // size)
        if self.reserved + slots * size > self.budget:
            self.trim()
        segment = self._new_segment(size, slots)
        self.segments[segment.id] = segment
        self.reserved += size * slots
        self._free[size].extend((segment, slot) for slot in range(slots - 1, -1, -1))
        segment.populate(nbytes if size > SMALL else 0)

    def _new_segment(self, size: int, slots: int) -> Segment:
        for attempt in range(2):
            try:
                return Segment(size, slots, self._owner)
            except OSError as error:
                if attempt == 0 and error.errno in NO_MEMORY + NO_DESCRIPTOR and self.trim():
                    continue
                if error.errno not in NO_MEMORY:
                    raise typed(error, "a segment") from error
                raise BudgetExceededError(
                    f"asked the system for {format_size(size * slots)}, which has no shared memory left "
                    f"({error.strerror})",
                    asked=size * slots,
                    available=names.room(),
                ) from error
        raise AssertionError

    def _reclaim(self, size: int) -> None:
        """Free released slots of a size: one system call per segment, or one per slot where some are leased."""
        by_segment: dict[int, list[Retired]] = {}
        retired, self._retired[size] = self._retired[size], []
        for entry in retired:
            by_segment.setdefault(entry.place.segment.id, []).append(entry)
        waiting = self._retired[size]
        free = self._free.setdefault(size, [])
        for entries in by_segment.values():
            segment = entries[0].place.segment
            any_leased = self._leased(segment, 0, segment.slots)
            for entry in entries:
                place = entry.place
                if entry.viewed or (any_leased and (segment.slots == 1 or self.leased(place))):
                    waiting.append(entry)
                else:
                    free.append((segment, place.slot))
                    self.used -= place.nbytes
        self._reclaim_at[size] = len(waiting) + _RECLAIM_STEP

    def _leased(self, segment: Segment, first: int, count: int) -> bool:
        if not OFD and any(READER.leases(segment.id, slot) for slot in range(first, first + count)):
            return True
        return Leases.held(segment.fd, first, count)
