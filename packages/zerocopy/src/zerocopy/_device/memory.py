"""The bytes of one segment on one GPU, mapped here read-only: the first process copies and checks them."""

from __future__ import annotations

import _thread
import errno
import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from zerocopy._device.driver import OUT_OF_MEMORY, Driver, DriverError, driver
from zerocopy._device.keeper import Lease, find, start, turn
from zerocopy._segment.format import Placed, round_up
from zerocopy._segment.mapping import Mapping
from zerocopy._torch_private import cuda_was_forked
from zerocopy.errors import CorruptSegmentError, DeviceUnavailableError, NoSpaceError

_STEP = 256 << 20  # bytes that are pinned and copied at a time

_alive: weakref.WeakSet[DeviceCopy] = weakref.WeakSet()


class DeviceCopy:
    """A mapping of device memory. The tensors over it keep it, and with it the lease, alive.

    Args:
        device: The driver's number of the device.
        address: Where it is mapped.
        nbytes: How long it is.
        start: The offset in the segment of its first byte.
        lease: This process's lease on the memory.
        read_only: Whether the device refuses writes to it.
    """

    def __init__(self, device: int, address: int, nbytes: int, start: int, lease: Lease, *, read_only: bool) -> None:
        self.address, self.nbytes, self.start, self.read_only = address, nbytes, start, read_only
        ended = weakref.finalize(self, _end, os.getpid(), device, address, nbytes, lease)
        ended.atexit = False  # the kernel does it when the process ends
        _alive.add(self)

    def covers(self, address: int) -> bool:
        """Return whether an address lies in it."""
        return self.address <= address < self.address + self.nbytes


def copy_at(address: int) -> DeviceCopy | None:
    """Return the device copy of this process that an address lies in."""
    return next((copy for copy in list(_alive) if copy.covers(address)), None)


def _end(process: int, device: int, address: int, nbytes: int, lease: Lease) -> None:
    if os.getpid() == process:  # a forked child has closed its lease and cannot use CUDA
        with suppress(RuntimeError):  # the process is ending
            _thread.start_new_thread(_unmap, (driver(), device, address, nbytes, lease))


def _unmap(cuda: Driver, device: int, address: int, nbytes: int, lease: Lease) -> None:
    """End a mapping once the device has done all work that may use it. If that is not known, it stays."""
    try:
        with cuda.context(device):
            cuda.synchronize()
            cuda.unmap(address, nbytes)
    except DriverError:
        _kept.append(lease)
    else:
        lease.close()


_kept: list[Lease] = []


def refuse_forked() -> None:
    """Refuse a process that was forked from one that uses CUDA.

    Raises:
        DeviceUnavailableError: This is such a process.
    """
    if cuda_was_forked():
        raise DeviceUnavailableError("CUDA cannot be used in a process that was forked from one that uses it: spawn it")


def require_cuda(place: torch.device) -> None:
    """Refuse a device that cannot be shared.

    Raises:
        ValueError: It is no CUDA device.
        DeviceUnavailableError: There is no such device.
    """
    if place.type != "cuda":
        raise ValueError(f"share=True is for CUDA devices, got {str(place)!r}; on the CPU, weights are always shared")
    if not torch.cuda.is_available():
        raise DeviceUnavailableError("torch sees no CUDA device: load the model onto the CPU")


def device_copy(mapping: Mapping, blocks: Sequence[Placed], place: torch.device) -> DeviceCopy | None:
    """Return the copy of some blocks of a segment on a GPU, which the first process makes; None without any bytes.

    A copy is identified by the digests and places of its blocks, so a model that is published twice is copied once.

    Args:
        mapping: The segment.
        blocks: The blocks.
        place: The GPU.

    Raises:
        DeviceUnavailableError: The device cannot share memory.
        NoSpaceError: It has too little memory.
        CorruptSegmentError: The copy differs from what was published.
    """
    blocks = sorted((block for block in blocks if block.nbytes), key=lambda block: block.offset)
    if not blocks:
        return None
    torch.cuda.init()  # type: ignore[no-untyped-call]
    with _typed(place):
        cuda = driver()
        device = cuda.device(place.index)
        if not cuda.can_share(device):
            raise DeviceUnavailableError(f"{place} cannot share memory between processes: load without share=True")
        first = blocks[0].offset // mmap.PAGESIZE * mmap.PAGESIZE
        last = max(block.offset + block.nbytes for block in blocks)
        rows = repr([(block.offset - first, block.nbytes, block.digest) for block in blocks])
        content = hashlib.sha256(rows.encode()).hexdigest()
        facts = {"content": content, "device": cuda.uuid(device), "nbytes": last - first}
        nbytes = round_up(last - first, cuda.granularity(device))
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        with turn(name) as path, cuda.context(device):
            found = find(path)
            if found is None:
                handle, lease = _make(cuda, device, mapping, blocks, first, nbytes, facts, path)
            else:
                handle, lease = _found(cuda, path, facts, *found)
            return _mapped(cuda, device, handle, nbytes, first, lease)


def _found(
    cuda: Driver, path: Path, facts: dict[str, Any], kept: dict[str, Any], fd: int, lease: Lease
) -> tuple[int, Lease]:
    """Return a handle for memory that a keeper has."""
    try:
        if kept != facts:
            raise CorruptSegmentError(f"the process that listens at {path} keeps {kept}, want {facts}: end it")
        return cuda.imported(fd), lease
    except BaseException:
        lease.close()
        raise
    finally:
        os.close(fd)


@contextmanager
def _typed(place: torch.device) -> Iterator[None]:
    try:
        yield
    except DriverError as error:
        if error.status == OUT_OF_MEMORY:
            raise NoSpaceError(errno.ENOMEM, f"no room on {place} ({error}): free some of its memory") from error
        raise DeviceUnavailableError(f"{place} cannot share the weights: {error}; load without share=True") from error


def _make(
    cuda: Driver,
    device: int,
    mapping: Mapping,
    blocks: Sequence[Placed],
    first: int,
    nbytes: int,
    facts: dict[str, Any],
    path: Path,
) -> tuple[int, Lease]:
    """Allocate, fill and check the memory, and hand it to a keeper."""
    try:
        handle = cuda.create(device, nbytes)
    except DriverError as error:
        if error.status != OUT_OF_MEMORY:
            raise
        torch.cuda.empty_cache()  # torch keeps what its tensors gave back
        handle = cuda.create(device, nbytes)
    try:
        address = cuda.map(handle, nbytes)
        try:
            cuda.allow(device, address, nbytes, write=True)
            _fill(cuda, device, address, mapping, first, first + facts["nbytes"])
            _check(cuda, address - first, mapping, blocks)
        finally:
            cuda.synchronize()
            cuda.unmap(address, nbytes)
        fd = cuda.export(handle)
        try:
            return handle, start(path, facts, fd)
        finally:
            os.close(fd)
    except BaseException:
        cuda.release(handle)
        raise


def _mapped(cuda: Driver, device: int, handle: int, nbytes: int, first: int, lease: Lease) -> DeviceCopy:
    """Map memory read-only, where the device can do that, and release its handle."""
    try:
        try:
            address = cuda.map(handle, nbytes)
        finally:
            cuda.release(handle)  # the mapping keeps the memory
        try:
            read_only = _protected(cuda, device, address, nbytes)
        except BaseException:
            cuda.unmap(address, nbytes)
            raise
    except BaseException:
        lease.close()
        raise
    return DeviceCopy(device, address, nbytes, first, lease, read_only=read_only)


def _protected(cuda: Driver, device: int, address: int, nbytes: int) -> bool:
    try:
        cuda.allow(device, address, nbytes, write=False)
    except DriverError:
        cuda.allow(device, address, nbytes, write=True)
        return False
    return True


def _fill(cuda: Driver, device: int, address: int, mapping: Mapping, first: int, last: int) -> None:
    """Copy a range of the segment's file, through a view that this process cannot have written to."""
    with mmap.mmap(mapping.fd, 0, access=mmap.ACCESS_READ) as file:
        host = np.frombuffer(file, dtype=np.uint8).__array_interface__["data"][0]
        for offset in range(first, last, _STEP):
            part = min(_STEP, last - offset)
            with cuda.registered(device, host + offset, part):
                cuda.to_device(address + offset - first, host + offset, part)
                cuda.synchronize()  # before the pages are released


def _check(cuda: Driver, zero: int, mapping: Mapping, blocks: Sequence[Placed]) -> None:
    """Read the copy back and compare it with the digests of what was published."""
    buffer = np.empty(min(_STEP, max(block.nbytes for block in blocks)), dtype=np.uint8)
    for block in blocks:
        digest = xxhash.xxh3_128()
        for done in range(0, block.nbytes, len(buffer)):
            part = buffer[: min(len(buffer), block.nbytes - done)]
            cuda.to_host(part.__array_interface__["data"][0], zero + block.offset + done, len(part))
            digest.update(part.data)
        if digest.hexdigest() != block.digest:
            raise CorruptSegmentError(
                f"{mapping.path}: the copy of {', '.join(block.names) or 'an unnamed block'} on the device does not "
                f"match its digest; the file or the copy was altered"
            )
