"""Device memory in blocks: accounts per device, budget, spilling, a report of what was lost; knows no processes."""

import contextlib
import os
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xfer.allocators import Allocator, default_allocator
from xfer.errors import BudgetExceededError, DeviceUnavailableError, DoubleReleaseError, ForeignHandleError
from xfer.memory_pool import MemoryPool, MemoryPoolStats
from xfer.sites import calling_line
from xfer.sizes import parse_size
from xfer.spill import SpillFile


@dataclass(frozen=True, slots=True)
class BlockReport:
    """A block that lives, or that was lost: dropped without a release and taken back into the pool."""

    device: str
    nbytes: int
    age: float
    site: str
    place: str


class _Owner:
    """Stands for the right to a block's memory; when the block and every array over it are gone, so is this."""

    __slots__ = ("__weakref__",)


class MemoryBlock:
    """A piece of device memory; `release` it, or use it as a context manager."""

    def __init__(self, manager: "GpuMemoryManager", nbytes: int, device: str, spillable: bool, site: str) -> None:
        self.nbytes, self.device, self.spillable, self.site = nbytes, device, spillable, site
        self.since = time.monotonic()
        self._manager = manager
        self._owner: _Owner | None = None
        self._state = _State(nbytes)

    @property
    def place(self) -> Literal["device", "host", "disk", "released"]:
        """Where the bytes are now."""
        return self._state.place

    def array(self, shape: int | Sequence[int] | None = None, dtype: Any = np.uint8) -> Any:
        """Return an array over the block; the memory is kept until that array is gone, even after `release`.

        Args:
            shape: Its shape; by default one dimension that fills the block.
            dtype: Its data type.

        Raises:
            ValueError: The block is too small, or spillable (then use `with block.use(...)`).
            DoubleReleaseError: The block was released.
        """
        if self.spillable:
            raise ValueError(
                "a spillable block may move away: look at it inside `with block.use(shape, dtype) as array`"
            )
        return self._manager._array(self, shape, np.dtype(dtype))

    @contextlib.contextmanager
    def use(self, shape: int | Sequence[int] | None = None, dtype: Any = np.uint8) -> Iterator[Any]:
        """Bring the block back to its device if it was spilled, and keep it there for the `with` block.

        Raises:
            BudgetExceededError: There is no room for it and nothing left to spill.
            DoubleReleaseError: The block was released.
        """
        self._manager._pin(self)
        try:
            yield self._manager._array(self, shape, np.dtype(dtype))
        finally:
            self._manager._unpin(self)

    def release(self) -> None:
        """Give the memory back.

        Raises:
            DoubleReleaseError: It was given back before.
        """
        self._manager.release(self)

    def __enter__(self) -> "MemoryBlock":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.place != "released":
            self.release()

    def __repr__(self) -> str:
        return f"<xfer.MemoryBlock of {self.nbytes} bytes on {self.device}, {self.place}>"


class _State:
    """What outlives a lost block: where its bytes are and how to give them back."""

    __slots__ = ("buffer", "host", "nbytes", "pins", "place", "size", "spilled")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.place: Literal["device", "host", "disk", "released"] = "device"
        self.buffer: Any = None
        self.size = 0
        self.host: np.ndarray[Any, Any] | None = None
        self.spilled: tuple[SpillFile, int] | None = None  # which file, and where in it
        self.pins = 0


class GpuMemoryManager:
    """Memory of all devices under one roof.

    Args:
        allocator: Where memory comes from: CuPy by default, `HostAllocator()` without a GPU.
        budget: The most to reserve on each device, in bytes or as text.
        host_budget: How much of spilled blocks may stay in host memory before they go to disk.
        spill_folder: Where spilled blocks go on disk, in a file without a name that goes with this process; the
            temporary folder by default.

    Raises:
        DeviceUnavailableError: There is no CUDA and no allocator was given.
    """

    def __init__(
        self,
        allocator: Allocator | None = None,
        *,
        budget: int | str | None = None,
        host_budget: int | str = "1GiB",
        spill_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._allocator = allocator or default_allocator()
        limit = None if budget is None else parse_size(budget)
        self._pools = {device: MemoryPool(self._allocator, device, limit) for device in self._allocator.devices()}
        self._host_budget, self._host_used = parse_size(host_budget), 0
        self._folder = spill_folder
        self._file: SpillFile | None = None
        self._lock = threading.RLock()
        self._blocks: dict[int, weakref.ref[MemoryBlock]] = {}  # oldest use first
        self._gone: deque[tuple[int, str, int, float, str, _State]] = deque()
        self._lost: list[BlockReport] = []

    def devices(self) -> tuple[str, ...]:
        """Name the devices."""
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
        """
        size = parse_size(nbytes)
        pool = self.pool(device)
        with self._lock:
            self._settle()
            block = MemoryBlock(self, size, device, spillable, calling_line())
            state = block._state
            state.buffer, state.size = self._room(pool, size, block)
            owner = block._owner = _Owner()
            key = id(state)
            self._blocks[key] = weakref.ref(block)
            facts = (key, device, size, block.since, block.site, state)
            weakref.finalize(owner, self._gone.append, facts).atexit = False
            return block

    def pool(self, device: str) -> MemoryPool:
        """Return a device's pool.

        Raises:
            DeviceUnavailableError: There is no such device.
        """
        if device not in self._pools:
            raise DeviceUnavailableError(f"got device {device!r}, this manager has {', '.join(self._pools) or 'none'}")
        return self._pools[device]

    def release(self, block: MemoryBlock) -> None:
        """Take a block back; its memory is reused once no array looks at it.

        Raises:
            ForeignHandleError: It is another manager's block.
            DoubleReleaseError: It was released before.
        """
        with self._lock:
            if block._manager is not self:
                raise ForeignHandleError("the block belongs to another manager")
            self._check(block)
            if block._state.pins:
                raise ValueError("the block is in use: leave its `with block.use()` first")
            self._forget_spilled(block._state)
            self._blocks.pop(id(block._state), None)
            block._state.place = "released"
            block._owner = None  # the memory follows when no array holds the owner any more
            self._settle()

    def spill(self, block: MemoryBlock) -> None:
        """Move a spillable block to the host now, or to disk where the host's share is spent.

        Raises:
            ValueError: It is not spillable or is in use.
        """
        with self._lock:
            self._check(block)
            if not block.spillable or block._state.pins:
                raise ValueError("only a spillable block that is not in use can be spilled")
            if block._state.place == "device":
                self._spill(block)

    def collect(self) -> list[BlockReport]:
        """Take back blocks that were dropped without a release, and report those lost since the last call."""
        with self._lock:
            self._settle()
            lost, self._lost = self._lost, []
            return lost

    def leaks(self, older_than: float = 0.0) -> list[BlockReport]:
        """List blocks that are not released, oldest first, with the line that allocated each."""
        with self._lock:
            self._settle()
            now = time.monotonic()
            blocks = [block for ref in self._blocks.values() if (block := ref())]
            return [
                BlockReport(b.device, b.nbytes, now - b.since, b.site, b.place)
                for b in sorted(blocks, key=lambda block: block.since)
                if now - b.since >= older_than
            ]

    def stats(self) -> dict[str, MemoryPoolStats]:
        """Return each device's account."""
        with self._lock:
            self._settle()
            return {device: pool.stats() for device, pool in self._pools.items()}

    @property
    def spilled_bytes(self) -> int:
        """Bytes of spilled blocks in host memory now."""
        return self._host_used

    def trim(self) -> int:
        """Give unused memory back to the devices; return the bytes."""
        with self._lock:
            self._settle()
            return sum(pool.trim() for pool in self._pools.values())

    def close(self) -> None:
        """Release every block and give all memory back."""
        with self._lock:
            for ref in list(self._blocks.values()):
                block = ref()
                if block is not None:
                    block._state.pins = 0
                    self.release(block)
            self.trim()
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> "GpuMemoryManager":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _array(self, block: MemoryBlock, shape: int | Sequence[int] | None, dtype: np.dtype[Any]) -> Any:
        with self._lock:
            self._check(block)
            if shape is None:
                shape = (block.nbytes // dtype.itemsize,)
            wanted = (shape,) if isinstance(shape, int) else tuple(shape)
            if any(length < 0 for length in wanted):
                raise ValueError(f"got the shape {wanted}, want lengths of 0 and more")
            need = int(np.prod(wanted, dtype=np.int64)) * dtype.itemsize
            if need > block.nbytes:
                raise ValueError(f"an array of {wanted} {dtype} has {need} bytes, the block has {block.nbytes}")
            return self._allocator.array(block._state.buffer, wanted, dtype, block._owner)

    def _pin(self, block: MemoryBlock) -> None:
        with self._lock:
            self._check(block)
            state, key = block._state, id(block._state)
            self._blocks[key] = self._blocks.pop(key)
            if state.place != "device":
                buffer, size = self._room(self._pools[block.device], block.nbytes, block)
                self._allocator.from_host(buffer, self._spilled(state))
                self._forget_spilled(state)
                state.buffer, state.size, state.place = buffer, size, "device"
            state.pins += 1

    def _unpin(self, block: MemoryBlock) -> None:
        with self._lock:
            if block._state.pins:
                block._state.pins -= 1

    def _room(self, pool: MemoryPool, nbytes: int, asking: MemoryBlock) -> tuple[Any, int]:
        while True:
            try:
                return pool.allocate(nbytes)
            except BudgetExceededError:
                victim = next(
                    (
                        block
                        for ref in self._blocks.values()
                        if (block := ref()) is not None
                        and block is not asking
                        and block.device == pool.device
                        and block.spillable
                        and block.place == "device"
                        and not block._state.pins
                    ),
                    None,
                )
                if victim is None:
                    raise
                self._spill(victim)

    def _spill(self, block: MemoryBlock) -> None:
        state = block._state
        data = self._allocator.to_host(state.buffer, block.nbytes)
        if self._host_used + block.nbytes <= self._host_budget:
            state.host, state.place = data, "host"
            self._host_used += block.nbytes
        else:
            state.spilled, state.place = self._write(data), "disk"
        buffer, size, state.buffer = state.buffer, state.size, None
        self._pools[block.device].release(buffer, size)

    def _write(self, data: np.ndarray[Any, Any]) -> tuple[SpillFile, int]:
        try:
            if self._file is None or self._file.inherited:
                self._file = SpillFile(self._folder)
            return self._file, self._file.write(data)
        except OSError as error:
            folder = self._folder or tempfile.gettempdir()
            raise BudgetExceededError(
                f"a block of {data.nbytes} bytes cannot be spilled to {folder}: {error.strerror}; it stays where it is",
                data.nbytes,
                0,
            ) from error

    def _spilled(self, state: _State) -> np.ndarray[Any, Any]:
        if state.host is not None:
            return state.host
        assert state.spilled is not None
        file, offset = state.spilled
        return file.read(offset, state.nbytes)

    def _forget_spilled(self, state: _State) -> None:
        if state.host is not None:
            self._host_used -= state.host.nbytes
            state.host = None
        if state.spilled is not None:
            file, offset = state.spilled
            file.release(offset, state.nbytes)
            state.spilled = None

    def _settle(self) -> None:
        while self._gone:
            key, device, nbytes, since, site, state = self._gone.popleft()
            if state.place != "released":
                self._lost.append(BlockReport(device, nbytes, time.monotonic() - since, site, state.place))
                self._blocks.pop(key, None)
                self._forget_spilled(state)
            if state.buffer is not None:
                self._pools[device].release(state.buffer, state.size)
                state.buffer = None

    def _check(self, block: MemoryBlock) -> None:
        if block._state.place == "released":
            raise DoubleReleaseError(f"the block of {block.nbytes} bytes on {block.device} was released before")
