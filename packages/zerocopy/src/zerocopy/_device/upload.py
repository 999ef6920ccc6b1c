"""Copy bytes of a file to a device straight from the system's memory of it, which is pinned in pieces meanwhile.

A device reads pinned memory by itself, at the speed of the bus. A copy from any other memory goes through a buffer of
the driver. To pin a piece takes twice as long as to copy it, so the device copies one piece while the next is pinned.
"""

from __future__ import annotations

import _thread
import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from zerocopy._device.driver import Driver, DriverError

_PIECE = 128 << 20  # bytes
_MOST = 4  # pieces that are pinned at the same time


class Upload:
    """Copies from one file to one device.

    Args:
        cuda: The driver.
        device: The driver's number of the device.
        file: The file, mapped read-only: so that no copy-on-write page of this process is pinned.
    """

    def __init__(self, cuda: Driver, device: int, file: mmap.mmap) -> None:
        self._cuda, self._device, self._file = cuda, device, file
        self._host: int = np.frombuffer(file, dtype=np.uint8).__array_interface__["data"][0]
        self._pinned: dict[int, int] = {}  # by a piece's number: an event after its copies, or 0 if it is not pinned
        self._streams: set[int] = set()

    def copy(self, offset: int, nbytes: int, address: int, stream: int) -> None:
        """Put a copy behind the work of a stream.

        Args:
            offset: Where the bytes lie in the file.
            nbytes: Their number.
            address: Where they should lie on the device.
            stream: The stream.

        Raises:
            DriverError: The driver refused.
        """
        end = offset + nbytes
        with self._cuda.context(self._device):
            if stream not in self._streams:
                self._finish()
                self._streams.add(stream)
            while offset < end:
                number = offset // _PIECE
                part = min(end, (number + 1) * _PIECE) - offset
                event = self._pin(number)
                self._cuda.to_device(address, self._host + offset, part, stream)
                if event:
                    self._cuda.record(event, stream)
                offset, address = offset + part, address + part

    def finish(self) -> None:
        """Wait for the copies."""
        with self._cuda.context(self._device):
            self._finish()

    def end(self) -> None:
        """Unpin and unmap everything."""
        with suppress(DriverError), self._cuda.context(self._device):
            while self._pinned:
                self._unpin(next(iter(self._pinned)))
        self._file.close()

    def _finish(self) -> None:
        for stream in self._streams:
            self._cuda.finish(stream)
        self._streams.clear()

    def _pin(self, number: int) -> int:
        if number not in self._pinned:
            if len(self._pinned) == _MOST:
                self._unpin(next(iter(self._pinned)))
            start = number * _PIECE
            event = self._cuda.new_event()
            try:
                self._cuda.pin(self._host + start, min(_PIECE, len(self._file) - start), read_only=True)
            except DriverError:  # a limit of pinned memory, or a file system whose pages cannot be pinned
                self._cuda.end_event(event)
                event = 0
            self._pinned[number] = event
        return self._pinned[number]

    def _unpin(self, number: int) -> None:
        event = self._pinned.pop(number)
        if event:
            with suppress(DriverError):  # the device does nothing any more
                self._cuda.wait(event)
            self._cuda.unpin(self._host + number * _PIECE)
            self._cuda.end_event(event)


@contextmanager
def upload(cuda: Driver, device: int, fd: int) -> Iterator[Upload]:
    """Yield copies from a file to a device. They are complete after the block, and the memory is unpinned later."""
    made = Upload(cuda, device, mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    try:
        yield made
    finally:
        try:
            made.finish()
        finally:
            try:
                _thread.start_new_thread(made.end, ())  # takes as long as the copies, and nothing waits for it
            except RuntimeError:  # the process is ending, or may not start more threads
                made.end()


@contextmanager
def pinned_buffer(cuda: Driver, nbytes: int) -> Iterator[memoryview]:
    """Yield host memory, which is pinned if the driver can do that. No copy to or from it may be left at the end."""
    with mmap.mmap(-1, nbytes) as memory:
        address = address_of(memoryview(memory))
        pinned = True
        try:
            cuda.pin(address, nbytes, read_only=False)
        except DriverError:
            pinned = False
        try:
            with memoryview(memory) as view:
                yield view
        finally:
            if pinned:
                cuda.unpin(address)


def address_of(memory: memoryview) -> int:
    """Return the address of writable memory."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
