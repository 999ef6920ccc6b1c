"""Where device memory comes from: CuPy on CUDA, or host memory that stands in for a device."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np

from xfer._convert.move import load_cupy
from xfer.errors import BudgetExceededError, DeviceUnavailableError


class Allocator(Protocol):
    """What `GpuMemoryManager` needs of a device; buffers are opaque to it.

    Example:
        >>> isinstance(xfer.HostAllocator().devices(), tuple)
        True
    """

    def devices(self) -> tuple[str, ...]:
        """Name the devices, such as "cuda:0"."""
        ...

    def allocate(self, nbytes: int, device: str) -> Any:
        """Return a buffer, or raise MemoryError."""
        ...

    def free(self, buffer: Any) -> None:
        """Free a buffer."""
        ...

    def wait(self, device: str) -> None:
        """Wait until a device has done all its work, so that memory which was in use may be used for something else."""
        ...

    def to_host(self, buffer: Any, nbytes: int, stays: bool) -> np.ndarray[Any, Any]:
        """Wait for the device's work and copy the first bytes to the host, to page-locked memory if they stay there."""
        ...

    def from_host(self, buffer: Any, data: np.ndarray[Any, Any]) -> None:
        """Copy bytes into a buffer."""
        ...

    def array(self, buffer: Any, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> Any:
        """Return an array over a buffer that keeps `owner` alive."""
        ...


class HostAllocator:
    """Devices made of host memory: the same accounts and the same errors on a machine without a GPU.

    Args:
        count: How many devices, named "cuda:0" and so on.
        capacity: Bytes per device; None for no limit.

    Example:
        >>> xfer.HostAllocator(count=2).devices()
        ('cuda:0', 'cuda:1')
    """

    def __init__(self, count: int = 1, capacity: int | None = None) -> None:
        self._free: dict[str, int | None] = {f"cuda:{index}": capacity for index in range(count)}
        self._where: dict[int, tuple[str, int]] = {}

    def devices(self) -> tuple[str, ...]:
        """Name the devices."""
        return tuple(self._free)

    def allocate(self, nbytes: int, device: str) -> np.ndarray[Any, Any]:
        """Return host memory that counts for a device.

        Raises:
            BudgetExceededError: The device's capacity is used up.
        """
        left = self._free[device]
        if left is not None:
            if nbytes > left:
                raise BudgetExceededError(f"{device} has {left} bytes left, asked for {nbytes}", nbytes, left)
            self._free[device] = left - nbytes
        buffer = np.empty(nbytes, np.uint8)
        self._where[id(buffer)] = device, nbytes
        return buffer

    def free(self, buffer: np.ndarray[Any, Any]) -> None:
        """Return memory to its device."""
        device, nbytes = self._where.pop(id(buffer))
        left = self._free[device]
        if left is not None:
            self._free[device] = left + nbytes

    def wait(self, device: str) -> None:
        """Do nothing: the host's work is done when a call returns."""

    def to_host(self, buffer: np.ndarray[Any, Any], nbytes: int, stays: bool) -> np.ndarray[Any, Any]:
        """Copy the first bytes."""
        del stays  # there is one kind of host memory
        return buffer[:nbytes].copy()

    def from_host(self, buffer: np.ndarray[Any, Any], data: np.ndarray[Any, Any]) -> None:
        """Copy bytes in."""
        buffer[: data.nbytes] = data

    def array(
        self, buffer: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: np.dtype[Any], owner: object
    ) -> np.ndarray[Any, Any]:
        """Return an array over the memory."""
        flat = np.asarray(_Held(buffer, owner))
        return flat[: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize].view(dtype).reshape(shape)


class _Held:
    """Lends a buffer to NumPy and keeps its owner alive for as long as NumPy views it."""

    def __init__(self, buffer: np.ndarray[Any, Any], owner: object) -> None:
        self._buffer, self._owner = buffer, owner
        self.__array_interface__ = buffer.__array_interface__


class CupyAllocator:
    """CUDA memory from CuPy's current allocator, which is RMM's after `cupy.cuda.set_allocator`.

    Raises:
        DeviceUnavailableError: CuPy is not installed or finds no device.

    Example:
        >>> manager = xfer.GpuMemoryManager(xfer.CupyAllocator(), budget="1GiB")  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._cupy = load_cupy()

    def devices(self) -> tuple[str, ...]:
        """Name the CUDA devices."""
        return tuple(f"cuda:{index}" for index in range(self._cupy.cuda.runtime.getDeviceCount()))

    def allocate(self, nbytes: int, device: str) -> Any:
        """Return device memory."""
        try:
            with self._cupy.cuda.Device(int(device.partition(":")[2])):
                return self._cupy.cuda.alloc(nbytes)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise BudgetExceededError(f"{device} is out of memory: {error}", nbytes, 0) from error

    def free(self, buffer: Any) -> None:
        """Nothing to do: CuPy frees the memory with the last reference."""

    def wait(self, device: str) -> None:
        """Wait until a device has done the work of all its streams."""
        self._cupy.cuda.Device(int(device.partition(":")[2])).synchronize()

    def to_host(self, buffer: Any, nbytes: int, stays: bool) -> np.ndarray[Any, Any]:
        """Wait for the device and copy to the host; memory that stays is page-locked, and freed with its array."""
        cuda = self._cupy.cuda
        host = _pinned(cuda, nbytes) if stays else np.empty(nbytes, np.uint8)
        with cuda.Device(buffer.device_id) as device:
            device.synchronize()
            buffer.copy_to_host(host.ctypes.data, nbytes)
        return host

    def from_host(self, buffer: Any, data: np.ndarray[Any, Any]) -> None:
        """Copy from host memory and wait until the bytes are there, for work on any stream."""
        with self._cupy.cuda.Device(buffer.device_id) as device:
            buffer.copy_from_host(data.ctypes.data, data.nbytes)
            device.synchronize()

    def array(self, buffer: Any, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> Any:
        """Return a CuPy array over the memory."""
        memory = self._cupy.cuda.UnownedMemory(buffer.ptr, buffer.mem.size, (buffer, owner), buffer.device_id)
        return self._cupy.ndarray(shape, dtype, self._cupy.cuda.MemoryPointer(memory, 0))


def _pinned(cuda: Any, nbytes: int) -> np.ndarray[Any, Any]:
    """Return page-locked memory that is freed with its array; CuPy's pool would keep it."""
    memory = cuda.PinnedMemory(nbytes)
    buffer: Any = (ctypes.c_uint8 * nbytes).from_address(int(memory))
    buffer.memory = memory
    array: np.ndarray[Any, Any] = np.frombuffer(buffer, np.uint8)
    return array


def default_allocator() -> Allocator:
    """Return CuPy's memory.

    Raises:
        DeviceUnavailableError: There is no CUDA here; pass `HostAllocator()` to work without.
    """
    try:
        return CupyAllocator()
    except DeviceUnavailableError as error:
        raise DeviceUnavailableError(f"{error}; pass allocator=xfer.HostAllocator() to work in host memory") from error
