"""The bytes of one segment on one GPU, mapped here read-only: the first process copies and checks them."""

from __future__ import annotations

import _thread
import errno
import hashlib
import mmap
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from zerocopy._device.driver import OUT_OF_MEMORY, Driver, DriverError, driver
from zerocopy._device.keeper import Lease, Turn, find, starting, turn
from zerocopy._device.upload import address_of, pinned_buffer, upload
from zerocopy._segment.format import Placed, round_up
from zerocopy._segment.mapping import Mapping
from zerocopy._torch_private import refuse_forked, streams_of
from zerocopy.errors import CorruptSegmentError, DeviceUnavailableError, NoSpaceError

_CHUNK = 4 << 20  # bytes that a thread reads back at a time
_THREADS = 3
_POLL = 0.05  # seconds between two looks at whether a graph is still being captured

_alive: weakref.WeakSet[DeviceCopy] = weakref.WeakSet()


class DeviceCopy:
    """A mapping of device memory. The tensors over it keep it, and with it the lease, alive.

    Args:
        device: The driver's number of the device.
        place: The device.
        address: Where it is mapped.
        nbytes: How long it is.
        start: The offset in the segment of its first byte.
        lease: This process's lease on the memory.
        read_only: Whether the device refuses writes to it.
    """

    def __init__(
        self,
        device: int,
        place: torch.device,
        address: int,
        nbytes: int,
        start: int,
        lease: Lease,
        *,
        read_only: bool,
    ) -> None:
        self.address, self.nbytes, self.start, self.read_only = address, nbytes, start, read_only
        ended = weakref.finalize(self, _end, os.getpid(), device, place, address, nbytes, lease)
        ended.atexit = False  # the kernel does it when the process ends
        _alive.add(self)

    def covers(self, address: int) -> bool:
        """Return whether an address lies in it."""
        return self.address <= address < self.address + self.nbytes


def copy_at(address: int) -> DeviceCopy | None:
    """Return the device copy of this process that an address lies in."""
    return next((copy for copy in list(_alive) if copy.covers(address)), None)


def _end(process: int, device: int, place: torch.device, address: int, nbytes: int, lease: Lease) -> None:
    if os.getpid() == process:  # a forked child has closed its lease and cannot use CUDA
        with suppress(RuntimeError):  # the process is ending
            _thread.start_new_thread(_unmap, (driver(), device, place, address, nbytes, lease))


def _unmap(cuda: Driver, device: int, place: torch.device, address: int, nbytes: int, lease: Lease) -> None:
    """End a mapping once the device has done all work that may use it. If that is not known, it stays.

    To wait for a device breaks a graph that is being captured, so no graph may be.
    """
    try:
        with cuda.context(device):
            streams = streams_of(place)
            while any(map(cuda.is_capturing, streams)):
                time.sleep(_POLL)
            cuda.synchronize()
            cuda.unmap(address, nbytes)
    except DriverError:
        _kept.append(lease)
    else:
        lease.close()


_kept: list[Lease] = []


def require_cuda(place: torch.device) -> None:
    """Start CUDA in this process, if it does not use it yet.

    Raises:
        DeviceUnavailableError: There is no such device, or this process was forked from one that uses CUDA.
    """
    refuse_forked()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(f"torch sees no CUDA device, want {str(place)!r}: load the model onto the CPU")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DeviceUnavailableError(f"CUDA does not start: {error}") from error


@contextmanager
def typed_errors(place: torch.device) -> Iterator[None]:
    """Raise a typed error for an error of the driver.

    Raises:
        NoSpaceError: The device has too little memory.
        DeviceUnavailableError: The driver refused something else.
    """
    try:
        yield
    except DriverError as error:
        if error.status == OUT_OF_MEMORY:
            raise NoSpaceError(errno.ENOMEM, f"no room on {place} ({error}): free some of its memory") from error
        raise DeviceUnavailableError(
            f"{place} cannot take the weights: {error}; load without share=True, or onto the CPU"
        ) from error


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A part of a segment that is to lie on a device.

    Args:
        place: The device.
        device: The driver's number of it.
        mapping: The segment.
        blocks: The blocks, in the order of their offsets.
        first: The offset in the segment of the first byte.
        nbytes: The number of bytes.
        size: The number of bytes that the device reserves.
        facts: What identifies the content.
    """

    place: torch.device
    device: int
    mapping: Mapping
    blocks: Sequence[Placed]
    first: int
    nbytes: int
    size: int
    facts: dict[str, Any]


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
        CorruptSegmentError: The copy differs from the segment.
    """
    blocks = sorted((block for block in blocks if block.nbytes), key=lambda block: block.offset)
    if not blocks:
        return None
    with typed_errors(place):
        cuda = driver()
        device = cuda.device(place.index)
        if not cuda.can_share(device):
            raise DeviceUnavailableError(f"{place} cannot share memory between processes: load without share=True")
        first = blocks[0].offset // mmap.PAGESIZE * mmap.PAGESIZE
        nbytes = max(block.offset + block.nbytes for block in blocks) - first
        facts = {"content": content_of(blocks), "device": cuda.uuid(device), "nbytes": nbytes}
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        size = round_up(nbytes, cuda.granularity(device))
        wanted = _Wanted(place, device, mapping, blocks, first, nbytes, size, facts)
        with turn(name) as mine, cuda.context(device):
            found = find(mine.path)
            handle, lease = _make(cuda, wanted, mine) if found is None else _found(cuda, wanted, mine.path, *found)
            return _mapped(cuda, wanted, handle, lease)


def content_of(blocks: Sequence[Placed]) -> str:
    """Return what identifies the bytes of some blocks and their places, from the page of the first on."""
    first = blocks[0].offset // mmap.PAGESIZE * mmap.PAGESIZE
    rows = repr([(block.offset - first, block.nbytes, block.digest) for block in blocks])
    return hashlib.sha256(rows.encode()).hexdigest()


def _found(cuda: Driver, wanted: _Wanted, path: Path, kept: dict[str, Any], fd: int, lease: Lease) -> tuple[int, Lease]:
    """Return a handle for memory that a keeper has."""
    try:
        if not wanted.facts.items() <= kept.items():
            raise CorruptSegmentError(f"the process that listens at {path} keeps {kept}, want {wanted.facts}: end it")
        return cuda.imported(fd), lease
    except BaseException:
        lease.close()
        raise
    finally:
        os.close(fd)


def _make(cuda: Driver, wanted: _Wanted, turn: Turn) -> tuple[int, Lease]:
    """Allocate, fill and check the memory, and hand it to a keeper, which starts meanwhile."""
    with starting(turn) as keeper:
        handle = _allocated(cuda, wanted)
        try:
            address = cuda.map(handle, wanted.size)
            try:
                cuda.allow(wanted.device, address, wanted.size, write=True)
                _fill(cuda, wanted, address)
                _check(cuda, wanted, address)
            finally:
                cuda.unmap(address, wanted.size)
            fd = cuda.export(handle)
            try:
                manifest = wanted.mapping.manifest
                return handle, keeper.take(wanted.facts | {"model": f"{manifest.name} {manifest.version}"}, fd)
            finally:
                os.close(fd)
        except BaseException:
            cuda.release(handle)
            raise


def _allocated(cuda: Driver, wanted: _Wanted) -> int:
    try:
        return cuda.create(wanted.device, wanted.size)
    except DriverError as error:
        if error.status != OUT_OF_MEMORY:
            raise
        torch.cuda.empty_cache()  # torch keeps what its tensors gave back
        return cuda.create(wanted.device, wanted.size)


def _mapped(cuda: Driver, wanted: _Wanted, handle: int, lease: Lease) -> DeviceCopy:
    """Map memory read-only, where the device can do that, and release its handle."""
    device, size = wanted.device, wanted.size
    try:
        try:
            address = cuda.map(handle, size)
        finally:
            cuda.release(handle)  # the mapping keeps the memory
        try:
            read_only = _protected(cuda, device, address, size)
        except BaseException:
            cuda.unmap(address, size)
            raise
    except BaseException:
        lease.close()
        raise
    return DeviceCopy(device, wanted.place, address, size, wanted.first, lease, read_only=read_only)


def _protected(cuda: Driver, device: int, address: int, nbytes: int) -> bool:
    try:
        cuda.allow(device, address, nbytes, write=False)
    except DriverError:
        cuda.allow(device, address, nbytes, write=True)
        return False
    return True


def _fill(cuda: Driver, wanted: _Wanted, address: int) -> None:
    """Copy a range of the segment's file, which this process cannot have written to."""
    with _stream(cuda) as stream, upload(cuda, wanted.device, wanted.mapping.fd) as file:
        file.copy(wanted.first, wanted.nbytes, address, stream)


def _check(cuda: Driver, wanted: _Wanted, address: int) -> None:
    """Read the copy back and compare it with the digests of what was published, in several threads.

    Raises:
        CorruptSegmentError: A block differs.
    """
    blocks = iter(wanted.blocks)
    threads = min(_THREADS, len(os.sched_getaffinity(0)), len(wanted.blocks))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(_check_some, cuda, wanted, address, blocks) for _ in range(threads)]:
            done.result()


def _check_some(cuda: Driver, wanted: _Wanted, address: int, blocks: Iterator[Placed]) -> None:
    nbytes = min(_CHUNK, round_up(wanted.nbytes, mmap.PAGESIZE))
    with cuda.context(wanted.device), pinned_buffer(cuda, nbytes) as buffer, _stream(cuda) as stream:
        host = address_of(buffer)
        for block in blocks:
            digest = xxhash.xxh3_128()
            start = address + block.offset - wanted.first
            for done in range(0, block.nbytes, nbytes):
                part = min(nbytes, block.nbytes - done)
                cuda.to_host(host, start + done, part, stream)
                cuda.finish(stream)
                digest.update(buffer[:part])
            if digest.hexdigest() != block.digest:
                raise CorruptSegmentError(
                    f"{wanted.mapping.path}: the copy of {', '.join(block.names) or 'an unnamed block'} on "
                    f"{wanted.place} does not match its digest; the file or the copy was altered"
                )


@contextmanager
def _stream(cuda: Driver) -> Iterator[int]:
    stream = cuda.new_stream()
    try:
        yield stream
    finally:
        with suppress(DriverError):  # raised by the call whose work failed
            cuda.finish(stream)
        cuda.end_stream(stream)


class SharedBytes:
    """Device memory by the interface that torch and CuPy exchange arrays with; a tensor over it keeps it alive."""

    def __init__(self, copy: DeviceCopy | None, address: int, nbytes: int) -> None:
        self.copy = copy
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "stream": None,  # the copy is complete
            "version": 3,
        }


def storage_over(memory: SharedBytes, place: torch.device) -> torch.UntypedStorage:
    """Return a storage over device memory."""
    return torch.as_tensor(memory, device=place).untyped_storage()
