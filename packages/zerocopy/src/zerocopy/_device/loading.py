"""Move a loaded model onto a GPU by its own `to`, with views of the shared copy in place of copies of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from zerocopy._device.memory import DeviceCopy, device_copy
from zerocopy._segment.mapping import Mapping
from zerocopy._torch_private import TorchDispatchMode, copy_operator, is_traceable_wrapper_subclass, storage_key
from zerocopy._walk import walk
from zerocopy._writes import is_private


class _Bytes:
    """Device memory by the interface that torch and CuPy exchange arrays with; a tensor over it keeps it alive."""

    def __init__(self, copy: DeviceCopy, address: int, nbytes: int) -> None:
        self.copy = copy
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "stream": None,  # the copy is complete
            "version": 3,
        }


def storage_over(memory: _Bytes, place: torch.device) -> torch.UntypedStorage:
    """Return a storage over device memory."""
    return torch.as_tensor(memory, device=place).untyped_storage()


def copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Copy a tensor that is not shared."""
    return func(*args, **kwargs)


class _Moving(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers each copy of a published weight to the device with a view of the device copy."""

    def __init__(self, place: torch.device, pairs: Sequence[tuple[Mapping, DeviceCopy]], private: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place, self._pairs, self._private = place, pairs, private
        self._storages: dict[int, torch.UntypedStorage] = {}

    def moved(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the device's view of a published weight, or None for any other tensor."""
        source = tensor.untyped_storage()
        key = storage_key(source)
        if key in self._private or not source.nbytes():
            return None
        if key not in self._storages:
            found = next((pair for pair in self._pairs if pair[0].covers(source.data_ptr())), None)
            if found is None:
                return None
            mapping, copy = found
            address = copy.address + source.data_ptr() - mapping.address - copy.start
            self._storages[key] = storage_over(_Bytes(copy, address, source.nbytes()), self._place)
        storage = self._storages[key]
        view = torch.empty((0,), dtype=tensor.dtype, device=storage.device)
        return view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def takes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether a call copies a tensor to the device and changes nothing else."""
        if func is not copy_operator or kwargs.get("device") != self._place:
            return False
        tensor: torch.Tensor = args[0]
        dtype, layout = kwargs.get("dtype"), kwargs.get("memory_format")
        bits = tensor.is_conj() or tensor.is_neg()
        return dtype in (None, tensor.dtype) and layout in (None, torch.preserve_format) and not bits


def _answer(
    mode: _Moving, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    kwargs = kwargs or {}
    if any(is_traceable_wrapper_subclass(value) for value in args):
        return NotImplemented  # the subclass then copies the tensors that it consists of, each by a call of its own
    view = mode.moved(args[0]) if mode.takes(func, args, kwargs) else None
    return copied(func, args, kwargs) if view is None else view


_Moving.__torch_dispatch__ = _answer  # type: ignore[method-assign, assignment]  # set later, as in `_writes.py`


def move(model: Any, place: torch.device, mappings: Sequence[Mapping]) -> Any:
    """Return a model on a device. A weight that the model changed while it was rebuilt gets a copy of its own.

    Args:
        model: The model, over mappings of its segments.
        place: The device.
        mappings: The mappings: its own segment's first, then those of its bases.
    """
    pairs = []
    for index, mapping in enumerate(mappings):
        of_file = index > 0 and mapping.manifest is mappings[0].manifest
        base = index - 1 if of_file else None
        copy = device_copy(mapping, [block for block in mapping.manifest.blocks if block.base == base], place)
        if copy is not None:
            pairs.append((mapping, copy))
    with _Moving(place, pairs, set(_private(model))):
        return model.to(place)


def _private(model: Any) -> Iterator[int]:
    for _, part in walk(model):
        if isinstance(part, torch.Tensor) and not is_traceable_wrapper_subclass(part) and is_private(part):
            yield storage_key(part.untyped_storage())
