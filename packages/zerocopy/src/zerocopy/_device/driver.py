"""The functions of the CUDA driver that share device memory between processes, by ctypes; torch has no call for them.

The memory is allocated by `cuMemCreate`, and another process reaches it by a file descriptor. It is freed "when all
outstanding mappings to the memory are unmapped and when all outstanding references to the handle (including it's
shareable counterparts) are also released" (CUDA Driver API, `cuMemRelease`). So no process owns it, and each may end at
any time. Memory of `cudaMalloc`, which `cudaIpcGetMemHandle` exports, must not be freed before the last importer has
closed it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from zerocopy.errors import DeviceUnavailableError

OUT_OF_MEMORY = 2
_VIRTUAL_MEMORY, _DESCRIPTORS = 102, 103  # attributes of a device
_PINNED, _DEVICE, _DESCRIPTOR = 1, 1, 1  # types of an allocation, a location and a handle
_READ, _READ_WRITE = 1, 3
_PIN_READ_ONLY, _NON_BLOCKING, _NO_TIMING = 8, 1, 2  # flags of pinned memory, a stream and an event
_RELAXED = 2  # calls of this thread do not end the capture of a graph by another


class DriverError(Exception):
    """A function of the driver returned an error.

    Args:
        status: The error's number.
        text: The function and the error's name.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text

    def __str__(self) -> str:
        """Return the function and the error."""
        return self.text


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Properties(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("windows", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class Driver:
    """The CUDA driver. Each method raises `DriverError` if the driver refuses.

    Raises:
        DeviceUnavailableError: There is no driver, or it is too old.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceUnavailableError(f"this machine has no CUDA driver ({error})") from error
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self.call("cuInit", ctypes.c_uint(0))

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            DriverError: It returned an error.
        """
        status = getattr(self._library, function)(*arguments)
        if status:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(name))
            raise DriverError(status, f"{function}: {(name.value or b'error').decode()} ({status})")

    def device(self, index: int) -> int:
        """Return the driver's number of a visible device."""
        number = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(index))
        return number.value

    def uuid(self, device: int) -> str:
        """Return what identifies a device, whichever devices are visible to the process."""
        raw = (ctypes.c_ubyte * 16)()
        self.call("cuDeviceGetUuid_v2", raw, ctypes.c_int(device))
        return bytes(raw).hex()

    def _attribute(self, device: int, attribute: int) -> bool:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(device))
        return bool(value.value)

    def can_share(self, device: int) -> bool:
        """Return whether other processes can map memory of a device."""
        return self._attribute(device, _VIRTUAL_MEMORY) and self._attribute(device, _DESCRIPTORS)

    @contextmanager
    def context(self, device: int) -> Iterator[None]:
        """Make the context that torch uses on a device current in this thread during the block.

        A graph that another thread captures meanwhile is not disturbed.
        """
        if device not in self._contexts:  # kept until the process ends, as torch keeps it
            made = ctypes.c_void_p()
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(made), ctypes.c_int(device))
            self._contexts[device] = made
        self.call("cuCtxPushCurrent_v2", self._contexts[device])
        mode = ctypes.c_int(_RELAXED)
        try:
            self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
            try:
                yield
            finally:
                self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def granularity(self, device: int) -> int:
        """Return the step of sizes of allocations."""
        step = ctypes.c_size_t()
        properties = self._properties(device)
        self.call("cuMemGetAllocationGranularity", ctypes.byref(step), ctypes.byref(properties), ctypes.c_int(0))
        return step.value

    def create(self, device: int, nbytes: int) -> int:
        """Allocate memory that other processes can map and return its handle."""
        handle, properties = ctypes.c_ulonglong(), self._properties(device)
        self.call(
            "cuMemCreate",
            ctypes.byref(handle),
            ctypes.c_size_t(nbytes),
            ctypes.byref(properties),
            ctypes.c_ulonglong(0),
        )
        return handle.value

    def export(self, handle: int) -> int:
        """Return a file descriptor for memory. The caller closes it."""
        fd = ctypes.c_int(-1)
        self.call(
            "cuMemExportToShareableHandle",
            ctypes.byref(fd),
            ctypes.c_ulonglong(handle),
            ctypes.c_int(_DESCRIPTOR),
            ctypes.c_ulonglong(0),
        )
        return fd.value

    def imported(self, fd: int) -> int:
        """Return a handle for the memory behind a descriptor, which the caller still has to close."""
        handle = ctypes.c_ulonglong()
        self.call(
            "cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(fd), ctypes.c_int(_DESCRIPTOR)
        )
        return handle.value

    def release(self, handle: int) -> None:
        """Release a handle. The memory stays while it is mapped or another handle or descriptor exists."""
        self.call("cuMemRelease", ctypes.c_ulonglong(handle))

    def map(self, handle: int, nbytes: int) -> int:
        """Map memory without access and return its address."""
        address, none = ctypes.c_ulonglong(), ctypes.c_ulonglong(0)
        size = ctypes.c_size_t(nbytes)
        self.call("cuMemAddressReserve", ctypes.byref(address), size, ctypes.c_size_t(0), none, none)
        try:
            self.call("cuMemMap", address, size, ctypes.c_size_t(0), ctypes.c_ulonglong(handle), none)
        except DriverError:
            self.call("cuMemAddressFree", address, size)
            raise
        return address.value

    def allow(self, device: int, address: int, nbytes: int, *, write: bool) -> None:
        """Let a device read mapped memory, and write it or not."""
        access = _Access(_Location(_DEVICE, device), _READ_WRITE if write else _READ)
        self.call(
            "cuMemSetAccess",
            ctypes.c_ulonglong(address),
            ctypes.c_size_t(nbytes),
            ctypes.byref(access),
            ctypes.c_size_t(1),
        )

    def unmap(self, address: int, nbytes: int) -> None:
        """End a mapping. No work that uses it may be left."""
        self.call("cuMemUnmap", ctypes.c_ulonglong(address), ctypes.c_size_t(nbytes))
        self.call("cuMemAddressFree", ctypes.c_ulonglong(address), ctypes.c_size_t(nbytes))

    def pin(self, address: int, nbytes: int, *, read_only: bool) -> None:
        """Pin host memory, so that a device reads it by itself."""
        flags = ctypes.c_uint(_PIN_READ_ONLY if read_only else 0)
        self.call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), flags)

    def unpin(self, address: int) -> None:
        """Unpin memory. No copy to or from it may be left."""
        self.call("cuMemHostUnregister", ctypes.c_void_p(address))

    def new_stream(self) -> int:
        """Return a stream that waits for no other."""
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        return stream.value or 0

    def end_stream(self, stream: int) -> None:
        """End a stream once its work is done."""
        self.call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def new_event(self) -> int:
        """Return an event, which counts as reached until it is recorded."""
        event = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(_NO_TIMING))
        return event.value or 0

    def end_event(self, event: int) -> None:
        """End an event."""
        self.call("cuEventDestroy_v2", ctypes.c_void_p(event))

    def record(self, event: int, stream: int) -> None:
        """Put an event behind the work of a stream."""
        self.call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def wait(self, event: int) -> None:
        """Wait until a device has reached an event."""
        self.call("cuEventSynchronize", ctypes.c_void_p(event))

    def finish(self, stream: int) -> None:
        """Wait for the work of a stream."""
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def is_capturing(self, stream: int) -> bool:
        """Return whether a graph is captured from a stream."""
        status = ctypes.c_int()
        self.call("cuStreamIsCapturing", ctypes.c_void_p(stream), ctypes.byref(status))
        return bool(status.value)

    def to_host(self, host: int, address: int, nbytes: int, stream: int) -> None:
        """Put a copy to the host behind the work of a stream."""
        self.call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(host),
            ctypes.c_ulonglong(address),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(stream),
        )

    def to_device(self, address: int, host: int, nbytes: int, stream: int) -> None:
        """Put a copy from the host behind the work of a stream. Pinned memory must not change before it is done."""
        self.call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_ulonglong(address),
            ctypes.c_void_p(host),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(stream),
        )

    def synchronize(self) -> None:
        """Wait for all work of the current context. This breaks any graph that is being captured."""
        self.call("cuCtxSynchronize")

    def _properties(self, device: int) -> _Properties:
        return _Properties(_PINNED, _DESCRIPTOR, _Location(_DEVICE, device))


@cache
def driver() -> Driver:
    """Return the driver of this process.

    Raises:
        DeviceUnavailableError: There is none, or no device.
    """
    try:
        return Driver()
    except DriverError as error:
        raise DeviceUnavailableError(f"the CUDA driver does not start: {error}") from error
