"""CUDA tensors without a GPU: real torch tensors over the emulated devices' memory, which say that they are on CUDA.

Torch's own work is done at once, which CUDA permits, after what is queued on torch's current stream.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import torch
from cupy._machine import machine

_current: dict[int, Any] = {}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor).detach()


class CudaTensor(torch.Tensor):
    """A tensor whose memory is on an emulated device."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let torch's work begin when its current streams have come so far."""
        if getattr(func, "__name__", "") not in ("__get__", "__set__"):
            for index in range(len(machine.uuids)):
                with cupy.cuda.Device(index):
                    current_stream(index).synchronize()
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, cls) and not hasattr(result, "owner"):
            result.owner = [
                argument.owner for argument in args if isinstance(argument, cls) and hasattr(argument, "owner")
            ]
        return result

    @property
    def array(self) -> Any:
        """The CuPy array over the same memory; over a copy on the device where the memory is a result of torch's."""
        plain = _plain(self)
        region = machine.find(plain.data_ptr())
        if region is None or not plain.numel():
            with cupy.cuda.Device(self.index):
                copy = cupy.asarray(plain.resolve_conj().numpy())
                cupy.cuda.Device().synchronize()
                return copy
        owner = (self, getattr(self, "owner", None))
        memory = cupy.cuda.UnownedMemory(plain.data_ptr(), plain.untyped_storage().nbytes(), owner, region.device)
        view = plain.numpy()
        pointer = cupy.cuda.MemoryPointer(memory, 0)
        return cupy.ndarray(view.shape, view.dtype, pointer, strides=view.strides)

    @property
    def index(self) -> int:
        """The device's number."""
        region = machine.find(_plain(self).data_ptr())
        return region.device if region is not None else 0

    @property
    def device(self) -> torch.device:
        """The device that it says it is on."""
        return torch.device("cuda", self.index)

    @property
    def is_cuda(self) -> bool:
        """True."""
        return True

    @property
    def is_cpu(self) -> bool:
        """False."""
        return False

    def cpu(self) -> torch.Tensor:
        """Copy to the host, behind the work of torch's current stream."""
        with cupy.cuda.Device(self.index):
            current_stream(self.index).synchronize()
        return _plain(self).clone()

    def numpy(self, **options: Any) -> Any:
        """Refuse, as torch does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.index

    def __dlpack__(self, *, stream: Any = -1, **options: Any) -> Any:
        if self.requires_grad or self.is_conj():
            raise BufferError("Can't export tensors that require gradient or have the conjugate bit set")
        if self.index != machine.device:
            raise BufferError("Can't export tensors on a different CUDA device index.")
        if stream not in (-1, None):
            event = current_stream(self.index).record()
            machine.wait_event(stream, event.ptr)
        return self.array


def current_stream(device: Any = None) -> Any:
    """Return torch's current stream of a device."""
    index = machine.device if device is None else torch.device(device).index if isinstance(device, str) else int(device)
    return _current.get(index, cupy.cuda.Stream.null)


def set_stream(stream: Any) -> None:
    """Choose torch's current stream of the stream's device."""
    _current[stream.device_id] = stream


def from_cupy(array: Any) -> CudaTensor:
    """Return a tensor over a CuPy array."""
    made: CudaTensor = torch.from_numpy(array._np).as_subclass(CudaTensor)
    made.owner = array
    return made


def from_dlpack(array: Any) -> Any:
    """Return a tensor over a device array, behind its work on torch's current stream."""
    if not isinstance(array, cupy.ndarray):
        return torch._C._from_dlpack(array.__dlpack__())
    stream = current_stream(array.device.id)
    return from_cupy(array.__dlpack__(stream=stream.ptr or 1))


def tensor(values: Any, dtype: Any = None, device: int = 0) -> CudaTensor:
    """Return a new tensor on a device; its values are there."""
    host = torch.as_tensor(values, dtype=dtype)
    with cupy.cuda.Device(device):
        memory = cupy.empty(max(host.nbytes, 1), np.uint8)
        plain = torch.from_numpy(memory._np)[: host.nbytes].view(host.dtype).reshape(host.shape)
        plain.copy_(host)
    made: CudaTensor = plain.as_subclass(CudaTensor)
    made.owner = memory
    return made


def install(monkeypatch: Any) -> None:
    """Let torch find the emulated devices, and give it back afterwards."""
    _current.clear()
    monkeypatch.setattr("torch.utils.dlpack.from_dlpack", from_dlpack)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(machine.uuids))
    monkeypatch.setattr("torch.cuda.current_stream", current_stream)
