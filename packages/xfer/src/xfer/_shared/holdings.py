"""What a pool reports of itself, and memory that it lends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xfer._shared.handle import Handle


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds; sizes in bytes.

    `used` is what the budget bounds: the bytes of arrays that are live, lent, or released and still read. `reserved` is
    the memory of all segments, the free slots of which are used again.

    Example:
        >>> pool = xfer.Pool("1MiB")
        >>> handle = pool.put(np.zeros(100))
        >>> stats = pool.stats()
        >>> stats.live, stats.live_bytes
        (1, 800)

    Attributes:
        budget: The limit on `used`.
        segments: How many segments there are.
        live: How many arrays are live.
        live_bytes: Their bytes.
        waiting_for_readers: How many released slots readers still hold.
        free_slots: How many slots are free.
        device_bytes: Bytes of CUDA arrays that are kept: live, or released and still read. They are not in `used`.
    """

    budget: int
    used: int
    reserved: int
    segments: int
    live: int
    live_bytes: int
    waiting_for_readers: int
    free_slots: int
    device_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Leak:
    """An array that was put and not released.

    Example:
        >>> pool = xfer.Pool("1MiB", trace=True)
        >>> handle = pool.put(np.zeros(100))
        >>> [(leak.nbytes, leak.leased) for leak in pool.leaks()]
        [(800, False)]

    Attributes:
        nbytes: Its size in bytes.
        age: Seconds since it was put.
        leased: Whether a reader holds it.
        site: The line that put it, if the pool traces.
    """

    nbytes: int
    age: float
    leased: bool
    site: str


@dataclass(frozen=True, slots=True)
class Lent:
    """Memory of a pool that is lent to another part of the program: not an array, so not in `leaks()`.

    Its bytes start at `offset` of `memory`; a reader opens them by `handle`.

    Example:
        >>> pool = xfer.Pool("1MiB")
        >>> lent = pool.lend(4096)
        >>> lent.nbytes, len(xfer.get(lent.handle))
        (4096, 4096)
        >>> lent.give_back()

    Attributes:
        nbytes: Its size in bytes.
        give_back: Call it to end the loan.
    """

    memory: Any
    offset: int
    nbytes: int
    handle: Handle
    give_back: Callable[[], None]
