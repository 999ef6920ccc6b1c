"""Device memory in blocks: accounts per device, budget, spilling, and a report of lost blocks."""

from __future__ import annotations

import os
from typing import NoReturn

from xfer._callsite import calling_line
from xfer._device.allocators import Allocator, default_allocator
from xfer._device.block import BlockReport, MemoryBlock, Record
from xfer._device.pool import MemoryPool, MemoryPoolStats
from xfer._device.vault import Vault
from xfer._sizes import parse_size
from xfer.errors import DeviceUnavailableError, ForeignHandleError, PoolClosedError


class GpuMemoryManager:
    """Manages the memory of all devices.

    Args:
        allocator: Where memory comes from: CuPy by default, `HostAllocator()` without a GPU.
        budget: The most to reserve on each device, in bytes or as text.
        host_budget: How much of spilled blocks may stay in host memory before they go to disk.
        spill_folder: Where blocks are spilled to disk, in a file without a name that ends with this process; the
            temporary folder by default.

    Raises:
        DeviceUnavailableError: There is no CUDA and no allocator was given.

    Example:
        >>> manager = xfer.GpuMemoryManager(xfer.HostAllocator(), budget="8MiB")
        >>> block = manager.allocate("6MiB", spillable=True)
        >>> other = manager.allocate("4MiB")  # does not fit beside it
        >>> block.place
        'host'
    """

    def __init__(
        self,
        allocator: Allocator | None = None,
        *,
        budget: int | str | None = None,
        host_budget: int | str = "1GiB",
        spill_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        allocator = allocator or default_allocator()
        limit = None if budget is None else parse_size(budget)
        self._pools = {device: MemoryPool(allocator, device, limit) for device in allocator.devices()}
        self._closed = False
        self._vault = Vault(allocator, self._pools, parse_size(host_budget), spill_folder)

    def devices(self) -> tuple[str, ...]:
        """Return the names of the devices."""
        return tuple(self._pools)

    def allocate(self, nbytes: int | str, device: str = "cuda:0", *, spillable: bool = False) -> MemoryBlock:
        """Return a block.

        Args:
            nbytes: Its size, in bytes or as text.
            device: On which device.
            spillable: Whether it may be moved to the host, and from there to disk, when room is needed.

        Raises:
            BudgetExceededError: No room, and nothing left to spill.
            DeviceUnavailableError: There is no such device.
            PoolClosedError: The manager is closed.
        """
        if self._closed:
            raise PoolClosedError("the manager is closed: make a new one")
        size = parse_size(nbytes)
        self.pool(device)
        record = Record(size, device, spillable, calling_line())
        return MemoryBlock(self._vault, record, self._vault.open(record))

    def pool(self, device: str) -> MemoryPool:
        """Return a device's pool.

        Args:
            device: Its name.

        Raises:
            DeviceUnavailableError: There is no such device.
        """
        if device not in self._pools:
            raise DeviceUnavailableError(f"got device {device!r}, this manager has {', '.join(self._pools) or 'none'}")
        return self._pools[device]

    def release(self, block: MemoryBlock) -> None:
        """Take a block back; its memory is reused once no array over it is alive.

        Args:
            block: A block of this manager.

        Raises:
            ForeignHandleError: It is another manager's block.
            DoubleReleaseError: It was released before.
        """
        self._check_ours(block)
        block.release()

    def spill(self, block: MemoryBlock) -> None:
        """Move a spillable block to the host now, or to disk where the host's share is spent.

        Args:
            block: A block of this manager.

        Raises:
            ValueError: It is not spillable, is in use, or an array over it is alive.
        """
        self._check_ours(block)
        block.spill()

    def collect(self) -> list[BlockReport]:
        """Take back blocks that were dropped without a release, and report those lost since the last call."""
        return self._vault.lost()

    def leaks(self, older_than: float = 0.0) -> list[BlockReport]:
        """List blocks that are not released, oldest first, with the line that allocated each.

        Args:
            older_than: Seconds; younger blocks are left out.
        """
        return [report for report in self._vault.reports() if report.age >= older_than]

    def stats(self) -> dict[str, MemoryPoolStats]:
        """Return each device's account."""
        self._vault.settle()
        return {device: pool.stats() for device, pool in self._pools.items()}

    @property
    def spilled_bytes(self) -> int:
        """Bytes of spilled blocks in host memory now."""
        return self._vault.host_used

    def trim(self) -> int:
        """Give unused memory back to the devices; return the bytes."""
        self._vault.settle()
        return sum(pool.trim() for pool in self._pools.values())

    def close(self) -> None:
        """Release every block and give all memory back. A closed manager allocates no more."""
        self._closed = True
        self._vault.close()
        self.trim()

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle a GpuMemoryManager: make one in the other process")

    def __enter__(self) -> GpuMemoryManager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_ours(self, block: MemoryBlock) -> None:
        if not block.belongs_to(self._vault):
            raise ForeignHandleError("the block belongs to another manager")
