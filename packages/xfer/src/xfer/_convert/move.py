"""Moves an array to another library or device with the fewest copies, and explains the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xfer._convert.interchange import check_has_values, device_of, host_array, library_of, plain_tensor, to_torch
from xfer.errors import DeviceUnavailableError


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a move: what happens, and whether the data is copied.

    Example:
        >>> step = xfer.explain(np.ones(3)[::-1], "torch").steps[0]
        >>> step.copies
        True

    Attributes:
        what: The step in words.
        copies: Whether the data is copied.
        run: The function that does it.
    """

    what: str
    copies: bool
    run: Callable[[Any], Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """The steps of a move; `str(route)` describes them in words.

    Example:
        >>> route = xfer.explain([1, 2], "numpy")
        >>> print(route)
        other on cpu -> numpy: 1 copy
          copy: NumPy copies the other data into one block

    Attributes:
        source: Library and device of the array.
        target: Where it goes.
        steps: The steps, in order.
    """

    source: str
    target: str
    steps: tuple[Step, ...]

    @property
    def copies(self) -> int:
        """How many times the data is copied."""
        return sum(step.copies for step in self.steps)

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.target}: {self.copies} cop{'y' if self.copies == 1 else 'ies'}"]
        return "\n".join(lines + [f"  {'copy' if step.copies else 'view'}: {step.what}" for step in self.steps])


def move(array: Any, to: str) -> Any:
    """Return the array in another library or on another device, copied only where it must be.

    Args:
        array: An array of NumPy, torch or CuPy, or anything with DLPack or the array interface.
        to: "numpy", "torch" or "cupy" (that library; same device where the library can), "cpu" (host memory, same
            library if it can), "cuda", "cuda:1" ... (that device, same library if it can), or "handle" (a handle of the
            default pool for another process, as `xfer.put` returns).

    Raises:
        ValueError: `to` is none of these.
        DeviceUnavailableError: The device, or a library for it, is not there.
        UnsupportedDtypeError: The target has no such dtype.

    Example:
        >>> xfer.move(np.arange(3), "torch")
        tensor([0, 1, 2])
    """
    for step in explain(array, to).steps:
        array = step.run(array)
    return array


def explain(array: Any, to: str) -> Route:
    """Return the steps and the copies of `move(array, to)`, without moving anything.

    Example:
        >>> xfer.explain(np.arange(3), "torch").copies
        0
    """
    library, device = library_of(array), device_of(array)
    if library == "torch":
        check_has_values(array)
    kind, _, index = str(to).partition(":")
    if to == "handle":
        return Route(f"{library} on {device}", to, tuple(_to_handle(array, library, device)))
    if to in ("numpy", "cpu"):
        steps = _to_host(array, library, device, keep_library=to == "cpu")
    elif to == "torch":
        steps = _to_torch(array, library, device)
    elif kind in ("cupy", "cuda") and (index.isdecimal() or not index):
        steps = _to_cuda(array, library, device, kind, int(index or _index(device)))
    else:
        raise ValueError(f"got to={to!r}, want 'numpy', 'torch', 'cupy', 'cpu', 'cuda', 'cuda:N' or 'handle'")
    return Route(f"{library} on {device}", to, tuple(steps))


def _index(device: str) -> str:
    return device.partition(":")[2] or "0"


def _to_host(array: Any, library: str, device: str, keep_library: bool) -> list[Step]:
    if device == "cpu":
        if library == "numpy" or (keep_library and library == "torch"):
            return []
        return [_look(array, library)]
    if library == "torch":
        step = Step(f"device {device} to host by torch", True, lambda x: x.cpu())
        return [step] if keep_library else [step, Step("NumPy views torch's memory", False, host_array)]
    if library == "cupy":
        return [Step(f"device {device} to host by CuPy", True, lambda x: x.get())]
    return [_borrow(device), Step(f"device {device} to host by CuPy", True, lambda x: x.get())]


def _look(array: Any, library: str) -> Step:
    if library == "torch":
        name = str(array.dtype)
        is_packed = not array.is_contiguous() and ("bfloat16" in name or "float8" in name)
        copies = is_packed or array.is_conj() or array.is_neg()
    else:
        copies = isinstance(array, list | tuple)
    what = f"NumPy copies the {library} data into one block" if copies else f"NumPy views {library}'s memory"
    return Step(what, copies, host_array)


def _to_torch(array: Any, library: str, device: str) -> list[Step]:
    if library == "torch":
        return []
    if device != "cpu":
        return [Step(f"torch views {library}'s memory on {device} (DLPack)", False, _torch_from_dlpack)]
    steps = _to_host(array, library, device, keep_library=False)
    plain = host_array(array)
    reasons = {
        "read-only, which torch cannot express": not plain.flags.writeable,
        "in foreign byte order": not plain.dtype.isnative,
        "of negative stride": any(stride < 0 for stride in plain.strides),
    }
    why = [reason for reason, holds in reasons.items() if holds]
    what = f"the array is {' and '.join(why)}" if why else "torch views NumPy's memory"
    return [*steps, Step(what, bool(why), lambda x: to_torch(x)[0])]


def _to_handle(array: Any, library: str, device: str) -> list[Step]:
    from xfer._shared.default import put

    if device == "cpu":
        return [Step("the array is copied into shared memory", True, put)]
    from xfer._shared.cuda_ipc import can_share

    with load_cupy().cuda.Device(int(_index(device))):
        placed = array if library == "cupy" else load_cupy().from_dlpack(plain_tensor(array)[0])
    if not (placed.flags.c_contiguous or placed.flags.f_contiguous):
        return [Step(f"the array is copied into one block on {device} and shared by CUDA IPC", True, put)]
    if not can_share(placed):
        what = "expandable, managed or asynchronous memory has no CUDA IPC handle, so that it is copied on"
        return [Step(f"{what} {device} into memory that has one", True, put)]
    return [Step(f"the array's memory on {device} is shared by CUDA IPC", False, put)]


def _torch_from_dlpack(array: Any) -> Any:
    from torch.utils.dlpack import from_dlpack

    if library_of(array) != "cupy":
        return from_dlpack(array)
    with load_cupy().cuda.Device(array.data.device_id):  # CuPy orders its work behind that device's current stream
        return from_dlpack(array)


def _borrow(device: str) -> Step:
    return Step(f"CuPy views the memory on {device} (DLPack)", False, lambda x: load_cupy().from_dlpack(x))


def _to_cuda(array: Any, library: str, device: str, kind: str, index: int) -> list[Step]:
    target = f"cuda:{index}"
    if library == "torch" and kind == "cuda":
        torch = sys.modules["torch"]
        if index >= torch.cuda.device_count():
            raise DeviceUnavailableError(f"torch sees {torch.cuda.device_count()} CUDA devices, not {target}")
        return [] if device == target else [Step(f"{device} to {target} by torch", True, lambda x: x.to(target))]
    cupy = load_cupy()
    if index >= cupy.cuda.runtime.getDeviceCount():
        raise DeviceUnavailableError(f"CuPy sees {cupy.cuda.runtime.getDeviceCount()} CUDA devices, not {target}")

    def onto(array: Any) -> Any:
        return _onto_device(cupy, array, index)

    steps = [] if library == "cupy" or device == "cpu" else [_borrow(device)]
    if device == "cpu" and library != "numpy":
        steps.append(_look(array, library))
    return steps if device == target else [*steps, Step(f"{device} to {target} by CuPy", True, onto)]


def _onto_device(cupy: Any, array: Any, index: int) -> Any:
    """Return a copy on a device, ordered with the work of the device that the array is on."""
    there = array.data.device_id if library_of(array) == "cupy" else index
    if there == index:
        with cupy.cuda.Device(index):
            return cupy.asarray(array)
    with cupy.cuda.Device(there):
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = cupy.ascontiguousarray(array)  # CuPy does not copy other layouts between devices
        source = cupy.cuda.get_current_stream()
        written = source.record()
    with cupy.cuda.Device(index):
        stream = cupy.cuda.get_current_stream()
        stream.wait_event(written)
        copy = cupy.asarray(array)
        read = stream.record()
    with cupy.cuda.Device(there):
        source.wait_event(read)  # what is freed on that stream from now on is not used again before the copy is done
    return copy


_NOT_INITIALIZED = 3  # CUDA's answer in a child of a process that had initialised it
_cuda_process = 0


def load_cupy() -> Any:
    """Import CuPy, or raise DeviceUnavailableError where it or a device is missing, or was lost by a fork."""
    global _cuda_process
    try:
        import cupy
    except ImportError as error:
        raise DeviceUnavailableError("CUDA arrays need CuPy: install pentad-xfer[cuda12] or [cuda13]") from error
    lost = _cuda_process not in (0, os.getpid())
    try:
        available = not lost and cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError as error:
        available, lost = False, error.status == _NOT_INITIALIZED
    if lost:
        raise DeviceUnavailableError(
            f"process {os.getpid()} was forked from one that used CUDA, which CUDA does not support: start it with "
            "multiprocessing's spawn or forkserver, or as a program of its own"
        )
    if not available:
        raise DeviceUnavailableError("CuPy is installed but finds no CUDA device; run `xfer doctor`")
    _cuda_process = os.getpid()
    return cupy


def as_numpy(array: Any) -> np.ndarray[Any, Any]:
    """Return the array as NumPy's, from wherever it is."""
    result: np.ndarray[Any, Any] = move(array, "numpy")
    return result
