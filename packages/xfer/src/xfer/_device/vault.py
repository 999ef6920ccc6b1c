"""Where the blocks of all devices are: it makes room by spilling, brings blocks back, and notices lost ones."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from xfer._device.allocators import Allocator
from xfer._device.block import BlockReport, Claim, Record, Residence, Right
from xfer._device.pool import MemoryPool
from xfer._device.spill import SpillFile
from xfer.errors import BudgetExceededError, DoubleReleaseError


class Vault:
    """Records of blocks, and the memory behind them.

    Args:
        allocator: Where device memory comes from.
        pools: The pool of each device.
        host_budget: How many bytes of spilled blocks may stay in host memory.
        folder: Where blocks are spilled to disk; the temporary folder if None.
    """

    def __init__(
        self,
        allocator: Allocator,
        pools: dict[str, MemoryPool],
        host_budget: int,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self._allocator, self._pools = allocator, pools
        self._host_budget, self.host_used = host_budget, 0
        self._folder = folder
        self._file: SpillFile | None = None
        self._lock = threading.RLock()
        self._records: dict[int, Record] = {}  # oldest use first
        self._gone: deque[Record] = deque()
        self._lost: list[BlockReport] = []

    def open(self, record: Record) -> Claim:
        """Find memory for a new block and return the claim to it.

        Raises:
            BudgetExceededError: No room, and nothing left to spill.
        """
        with self._lock:
            self.settle()
            record.buffer, record.size = self._room(record)
            self._records[id(record)] = record
            claim = Claim(Right())
            record.claim = weakref.ref(claim)
            weakref.finalize(claim.right, self._gone.append, record).atexit = False
            return claim

    def array(self, record: Record, shape: Any, dtype: np.dtype[Any]) -> Any:
        """Return an array over a block that keeps its memory.

        Raises:
            ValueError: The block is too small.
            DoubleReleaseError: The block was released.
        """
        with self._lock:
            _check(record)
            wanted = _shape(record, shape, dtype)
            return self._allocator.array(record.buffer, wanted, dtype, record.reside())

    def pin(self, record: Record) -> Residence:
        """Bring a block to its device and keep it there.

        Raises:
            BudgetExceededError: There is no room for it and nothing left to spill.
            DoubleReleaseError: The block was released.
        """
        with self._lock:
            _check(record)
            self._records[id(record)] = self._records.pop(id(record))
            if record.place != "device":
                buffer, size = self._room(record)
                try:
                    self._allocator.from_host(buffer, self._spilled(record))
                except BaseException:
                    self._pools[record.device].release(buffer, size)
                    raise
                self._forget_spilled(record)
                record.buffer, record.size, record.place, record.residence = buffer, size, "device", None
            record.pins += 1
            return record.reside()

    def unpin(self, record: Record) -> None:
        """Let a block move again once no array over it is alive."""
        with self._lock:
            if record.pins:
                record.pins -= 1

    def release(self, record: Record) -> None:
        """Take a block back; its memory is reused once no array uses it.

        Raises:
            DoubleReleaseError: It was released before.
            ValueError: It is in use.
        """
        with self._lock:
            _check(record)
            if record.pins:
                raise ValueError("the block is in use: leave its `with block.use()` first")
            self._forget_spilled(record)
            self._records.pop(id(record), None)
            record.place = "released"
            record.give_up()
            self.settle()

    def spill(self, record: Record) -> None:
        """Move a block to the host, or to disk where the host's share is spent.

        Raises:
            ValueError: It is not spillable, is in use, or an array over it is alive.
        """
        with self._lock:
            _check(record)
            if not record.spillable or record.pins or record.in_view:
                raise ValueError("only a spillable block that is not in use and has no live array can be spilled")
            if record.place == "device":
                self._spill(record)

    def settle(self) -> None:
        """Take back the memory of released and of lost blocks that no array uses any more."""
        with self._lock:
            while self._gone:
                record = self._gone.popleft()
                if record.place != "released":
                    self._lost.append(record.report())
                    self._records.pop(id(record), None)
                    self._forget_spilled(record)
                if record.buffer is not None:
                    self._pools[record.device].release(record.buffer, record.size)
                    record.buffer = None

    def lost(self) -> list[BlockReport]:
        """Return the blocks that were lost since the last call."""
        with self._lock:
            self.settle()
            lost, self._lost = self._lost, []
            return lost

    def reports(self) -> list[BlockReport]:
        """Return a report of each block that is not released, oldest first."""
        with self._lock:
            self.settle()
            return [record.report() for record in sorted(self._records.values(), key=lambda record: record.since)]

    def close(self) -> None:
        """Release every block."""
        with self._lock:
            for record in list(self._records.values()):
                record.pins = 0
                self.release(record)
            if self._file is not None:
                self._file.close()
                self._file = None

    def _room(self, asking: Record) -> tuple[Any, int]:
        pool = self._pools[asking.device]
        while True:
            try:
                return pool.allocate(asking.nbytes)
            except BudgetExceededError as error:
                victim = next((other for other in self._records.values() if _may_move(other, asking)), None)
                if victim is None:
                    viewed = sum(record.spillable and record.in_view for record in self._records.values())
                    if not viewed:
                        raise
                    raise BudgetExceededError(
                        f"{error}; {viewed} spillable blocks cannot move because an array over them is alive: `del` it",
                        error.asked,
                        error.available,
                    ) from error
                self._spill(victim)

    def _spill(self, record: Record) -> None:
        data = self._allocator.to_host(record.buffer, record.nbytes)
        if self.host_used + record.nbytes <= self._host_budget:
            record.host, record.place = data, "host"
            self.host_used += record.nbytes
        else:
            record.spilled, record.place = self._write(data), "disk"
        buffer, size, record.buffer, record.residence = record.buffer, record.size, None, None
        self._pools[record.device].release(buffer, size)

    def _write(self, data: np.ndarray[Any, Any]) -> tuple[SpillFile, int]:
        try:
            if self._file is None or self._file.inherited:
                self._file = SpillFile(self._folder)
            return self._file, self._file.write(data)
        except OSError as error:
            folder = self._folder or "the temporary folder"
            raise BudgetExceededError(
                f"a block of {data.nbytes} bytes cannot be spilled to {folder}: {error.strerror}; it stays where it is",
                data.nbytes,
                0,
            ) from error

    def _spilled(self, record: Record) -> np.ndarray[Any, Any]:
        if record.host is not None:
            return record.host
        assert record.spilled is not None
        file, offset = record.spilled
        return file.read(offset, record.nbytes)

    def _forget_spilled(self, record: Record) -> None:
        if record.host is not None:
            self.host_used -= record.host.nbytes
            record.host = None
        if record.spilled is not None:
            file, offset = record.spilled
            file.release(offset, record.nbytes)
            record.spilled = None


def _may_move(record: Record, asking: Record) -> bool:
    free = record.spillable and record.place == "device" and not record.pins and not record.in_view
    return free and record is not asking and record.device == asking.device


def _check(record: Record) -> None:
    if record.place == "released":
        raise DoubleReleaseError(f"the block of {record.nbytes} bytes on {record.device} was released before")


def _shape(record: Record, shape: int | Sequence[int] | None, dtype: np.dtype[Any]) -> tuple[int, ...]:
    if shape is None:
        shape = (record.nbytes // dtype.itemsize,)
    wanted = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(length < 0 for length in wanted):
        raise ValueError(f"got the shape {wanted}, want lengths of 0 and more")
    need = int(np.prod(wanted, dtype=np.int64)) * dtype.itemsize
    if need > record.nbytes:
        raise ValueError(f"an array of {wanted} {dtype} has {need} bytes, the block has {record.nbytes}")
    return wanted
