"""Move a loaded model onto a GPU by its own `to`, with views of the shared copy in place of copies of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from zerocopy._device.driver import driver
from zerocopy._device.memory import DeviceCopy, SharedBytes, device_copy, storage_over, typed_errors
from zerocopy._device.upload import Upload, upload
from zerocopy._pages import private_pages
from zerocopy._segment.mapping import Mapping
from zerocopy._torch_private import TorchDispatchMode, copy_operator, is_traceable_wrapper_subclass, storage_key
from zerocopy._walk import walk
from zerocopy._writes import is_private
from zerocopy.errors import DeviceUnavailableError

_LEAST = 4 << 20  # bytes of a model whose weights are uploaded; a smaller one arrives as quickly by itself


def empty_on(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    """Return a tensor on a device with the layout that a copy of another would have."""
    return torch.empty_like(tensor, device=place)


def current_stream(place: torch.device) -> int:
    """Return the stream of a device that this thread uses."""
    return int(torch.cuda.current_stream(place).cuda_stream)


def copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Copy a tensor that is not shared."""
    return func(*args, **kwargs)


class _Moving(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers each copy of a published weight to the device.

    Args:
        place: The device.
        moved: Returns the weight on the device, or None for a tensor that is to be copied as usual.
    """

    def __init__(self, place: torch.device, moved: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.moved = place, moved

    def takes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether a call copies a tensor to the device and changes nothing else."""
        if func is not copy_operator or kwargs.get("device") != self.place:
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
    there = mode.moved(args[0]) if mode.takes(func, args, kwargs) else None
    return copied(func, args, kwargs) if there is None else there


_Moving.__torch_dispatch__ = _answer  # type: ignore[method-assign, assignment]  # set later, as in `_writes.py`


class _Shared:
    """Views of the device copies of a model's segments."""

    def __init__(self, place: torch.device, pairs: Sequence[tuple[Mapping, DeviceCopy]], private: set[int]) -> None:
        self._place, self._pairs, self._private = place, pairs, private
        self._storages: dict[int, torch.UntypedStorage] = {}  # by address: of storages, torch uses the keys again

    def moved(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the device's view of a published weight, or None for any other tensor."""
        source = tensor.untyped_storage()
        address = source.data_ptr()
        found = next((pair for pair in self._pairs if pair[0].covers(address)), None)
        if found is None or not source.nbytes() or storage_key(source) in self._private:
            return None
        if address not in self._storages:
            mapping, copy = found
            there = copy.address + address - mapping.address - copy.start
            self._storages[address] = storage_over(SharedBytes(copy, there, source.nbytes()), self._place)
        storage = self._storages[address]
        view = torch.empty((0,), dtype=tensor.dtype, device=storage.device)
        return view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def move_shared(model: Any, place: torch.device, mappings: Sequence[Mapping]) -> Any:
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
    with _Moving(place, _Shared(place, pairs, _private(model, mappings)).moved):
        return model.to(place)


class _Copies:
    """Copies of weights, which a device makes by itself."""

    def __init__(self, place: torch.device, uploads: Sequence[tuple[Mapping, Upload]], private: set[int]) -> None:
        self._place, self._uploads, self._private = place, uploads, private

    def moved(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a copy of a published weight, or None for a tensor whose bytes are elsewhere or not in a row."""
        address, nbytes = tensor.data_ptr(), tensor.nbytes
        found = next((pair for pair in self._uploads if pair[0].covers(address)), None)
        if found is None or not nbytes or storage_key(tensor.untyped_storage()) in self._private:
            return None
        there = empty_on(tensor, self._place)
        if there.stride() != tensor.stride():
            return None
        mapping, file = found
        file.copy(address - mapping.address, nbytes, there.data_ptr(), current_stream(self._place))
        return there


def move_copied(model: Any, place: torch.device, mappings: Sequence[Mapping]) -> Any:
    """Return a model on a device, with weights of its own. The device has them when this returns.

    Args:
        model: The model, over mappings of its segments.
        place: The device.
        mappings: The mappings.
    """
    large = sum(block.nbytes for block in mappings[0].manifest.blocks) >= _LEAST
    try:
        cuda = driver()
    except DeviceUnavailableError:  # torch for another maker's GPUs calls them CUDA too
        return model.to(place)
    with typed_errors(place), ExitStack() as stack:
        device = cuda.device(place.index)
        uploads = [(each, stack.enter_context(upload(cuda, device, each.fd))) for each in mappings if large]
        with _Moving(place, _Copies(place, uploads, _private(model, mappings)).moved):
            return model.to(place)


def _private(model: Any, mappings: Sequence[Mapping]) -> set[int]:
    """Return the storages of weights that the model changed while it was rebuilt."""
    pages = [private_pages("self", mapping.address, len(mapping)) for mapping in mappings]
    if all(own is not None and not own.any() for own in pages):  # as usual
        return set()
    return {
        storage_key(part.untyped_storage())
        for _, part in walk(model)
        if isinstance(part, torch.Tensor) and not is_traceable_wrapper_subclass(part) and is_private(part)
    }
