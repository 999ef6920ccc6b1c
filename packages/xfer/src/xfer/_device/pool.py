"""A pool of one device's memory: freed buffers are kept by size and reused."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from xfer._device.allocators import Allocator
from xfer._sizes import format_size, slot_size
from xfer.errors import BudgetExceededError


@dataclass(frozen=True, slots=True)
class MemoryPoolStats:
    """What a pool holds; sizes in bytes, counts since the start.

    Example:
        >>> manager = xfer.GpuMemoryManager(xfer.HostAllocator())
        >>> block = manager.allocate("1MiB")
        >>> manager.stats()["cuda:0"].in_use
        1048576

    Attributes:
        device: Which device.
        budget: The most it may reserve; None without a limit of its own.
        reserved: Taken from the device.
        in_use: Held by blocks.
        peak: The most that was in use.
        allocations: How many buffers were asked for.
        reused: How many of them were used before.
    """

    device: str
    budget: int | None
    reserved: int
    in_use: int
    peak: int
    allocations: int
    reused: int


class MemoryPool:
    """Buffers of one device.

    Args:
        allocator: Where new memory comes from.
        device: Which device.
        budget: The most to reserve, in bytes; None for the device's own limit.

    Example:
        >>> pool = xfer.MemoryPool(xfer.HostAllocator(), "cuda:0", budget=1 << 20)
        >>> buffer, size = pool.allocate(1000)
        >>> pool.release(buffer, size)
        >>> pool.stats().in_use
        0
    """

    def __init__(self, allocator: Allocator, device: str, budget: int | None = None) -> None:
        self._allocator = allocator
        self.device: str = device
        self.budget: int | None = budget
        self._free: dict[int, list[Any]] = {}
        self._lock = threading.RLock()
        self._reserved = self._in_use = self._peak = self._allocations = self._reused = 0

    def allocate(self, nbytes: int) -> tuple[Any, int]:
        """Return a buffer and its real size.

        Raises:
            BudgetExceededError: The budget or the device is spent.
        """
        size = slot_size(nbytes)
        with self._lock:
            buffers = self._free.get(size)
            if buffers:
                buffer = buffers.pop()
                self._reused += 1
            else:
                buffer = self._new(size)
            self._allocations += 1
            self._in_use += size
            self._peak = max(self._peak, self._in_use)
            return buffer, size

    def release(self, buffer: Any, size: int) -> None:
        """Take a buffer back for reuse."""
        with self._lock:
            self._free.setdefault(size, []).append(buffer)
            self._in_use -= size

    def trim(self) -> int:
        """Give unused buffers back to the device; return the bytes."""
        with self._lock:
            freed = 0
            for size, buffers in self._free.items():
                for buffer in buffers:
                    self._allocator.free(buffer)
                    freed += size
                buffers.clear()
            self._reserved -= freed
            return freed

    def stats(self) -> MemoryPoolStats:
        """Return the account."""
        with self._lock:
            return MemoryPoolStats(
                self.device, self.budget, self._reserved, self._in_use, self._peak, self._allocations, self._reused
            )

    def _new(self, size: int) -> Any:
        if self.budget is not None and self._reserved + size > self.budget:
            self.trim()
            left = self.budget - self._reserved
            if size > left:
                raise BudgetExceededError(
                    f"asked for {format_size(size)} on {self.device}, {format_size(left)} of the "
                    f"{format_size(self.budget)} budget are left: release blocks, make some spillable, or raise it",
                    size,
                    left,
                )
        try:
            buffer = self._allocator.allocate(size, self.device)
        except MemoryError:
            if not self.trim():
                raise
            buffer = self._allocator.allocate(size, self.device)
        self._reserved += size
        return buffer
