"""Writes to published weights: which ones happened in this process, and a mode that refuses them.

A write never reaches another process, because every process maps weights copy-on-write. It costs the process memory of
its own, and its model is no longer the published one.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from zerocopy._arrays import span
from zerocopy._device.memory import copy_at
from zerocopy._origin import origin_of
from zerocopy._pages import PAGE, Pages, private_pages
from zerocopy._segment.mapping import Mapping, mapping_at, mappings_of
from zerocopy._torch_private import TorchDispatchMode, is_traceable_wrapper_subclass, schema_of
from zerocopy._walk import children, walk
from zerocopy.errors import WriteRefusedError

# Operators that, when training, write to running_mean and running_var although their schema does not say so.
_BATCH_NORMS = {f"aten::{name}" for name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")}


@dataclass(frozen=True, slots=True)
class Written:
    """A weight that is no longer the published one in this process.

    Args:
        name: Dotted name of the tensor.
        nbytes: Number of its bytes that differ from the published ones.
        replaced: Whether the tensor no longer lies in the segment at all, as after `.half()` or `.to()`.

    Example:
        >>> import zerocopy
        >>> zerocopy.Written("0.bias", 4).replaced
        False
    """

    name: str
    nbytes: int
    replaced: bool = False


def written(model: Any) -> tuple[Written, ...]:
    """Return the published weights that this process has written to since it loaded the model, by any means.

    The kernel tells which pages were written. Those are compared byte by byte with the segment, so that a write through
    `.data`, numpy or a raw pointer is found, and a write of the same value does not count.

    Args:
        model: What `ModelRef.load` returned.

    Returns:
        The written tensors in the order of the model. It is empty if the model is still the published one.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> model = ref.load(cached=False)
        >>> model.bias.data[0] += 1
        >>> [entry.name for entry in zerocopy.written(model)]
        ['bias']
        >>> zerocopy.unpublish(ref)
    """
    found = []
    parts = list(walk(model))
    there = [(path, obj) for path, obj in parts if isinstance(obj, torch.Tensor | np.ndarray)]
    pages = {home: private_pages("self", home.address, len(home)) for home in _homes(parts)}
    looked: dict[Mapping, list[tuple[int, int]]] = {home: [] for home in pages}
    seen: set[int] = set()
    for path, obj in there:
        home = None if id(obj) in seen else _home(obj)
        seen.add(id(obj))
        if home is None:
            continue
        first, last = (place - home.address for place in _span(obj))
        looked[home].append((first, last))
        changed = _changed(home, pages[home], first, last)
        if changed:
            found.append(Written(path, changed))
    for home, own in pages.items():  # what no attribute leads to, as inside an object of a compiled class
        for block in home.used:
            first, last = block.offset, block.offset + block.nbytes
            if not block.names and not any(first < end and start < last for start, end in looked[home]):
                changed = _changed(home, own, first, last)
                if changed:
                    found.append(Written(f"bytes at {first}", changed))
    published = {name for mapping in pages for name in (mapping.delta or mapping).manifest_names()}
    for prefix, part in parts:
        manifest = origin_of(part)
        if manifest is not None:
            published |= {f"{prefix}.{name}" if prefix else name for block in manifest.blocks for name in block.names}
    for path, obj in dict(there).items():
        if path in published and obj.nbytes and not _has_parts(obj) and _home(obj) is None and not _on_device(obj):
            found.append(Written(path, obj.nbytes, replaced=True))
    return tuple(found)


def _homes(parts: Iterable[tuple[str, object]]) -> list[Mapping]:
    """Return the mappings that the tensors and arrays of a model lie in, and all of those that its loading made."""
    found: dict[Mapping, None] = {}
    for _, obj in parts:
        home = _home(obj)
        if home is not None:
            found[home] = None
        manifest = origin_of(obj)
        if manifest is not None:
            found.update(dict.fromkeys(mappings_of(manifest)))
    return list(found)


def _changed(home: Mapping, own: Pages | None, first: int, last: int) -> int:
    """Return how many bytes of a part of a mapping differ from the published ones; `own` are its private pages."""
    if own is not None and not own[first // PAGE : -(-last // PAGE)].any():
        return 0
    return _differing(home, first, last - first)


def is_private(tensor: torch.Tensor) -> bool:
    """Return whether this process has written to the published bytes of a tensor."""
    home = _home(tensor)
    if home is None:
        return False
    first, last = (place - home.address for place in _span(tensor))
    start = first // PAGE * PAGE
    own = private_pages("self", home.address + start, last - start)
    return (own is None or bool(own.any())) and bool(_differing(home, first, last - first))


def _on_device(obj: torch.Tensor | np.ndarray[Any, Any]) -> bool:
    """Return whether a tensor lies in a copy on a device that processes share."""
    if not isinstance(obj, torch.Tensor) or _has_parts(obj) or obj.device.type == "meta":
        return False
    return copy_at(obj.data_ptr()) is not None


def _has_parts(obj: object) -> bool:
    """Return whether a tensor consists of other tensors, which are looked at themselves."""
    return isinstance(obj, torch.Tensor) and is_traceable_wrapper_subclass(obj)


def _home(obj: object) -> Mapping | None:
    """Return the mapping that a tensor or array lies in."""
    if not isinstance(obj, torch.Tensor | np.ndarray) or _has_parts(obj):
        return None
    try:
        address = _span(obj)[0]
    except RuntimeError:  # a tensor without memory of its own
        return None
    return mapping_at(address) if address else None


def _span(obj: torch.Tensor | np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return the addresses of the first used byte of a tensor or array and of the byte after its last."""
    if isinstance(obj, np.ndarray):
        return span(obj)
    first = obj.data_ptr()
    if not obj.numel():
        return first, first
    reach = sum((n - 1) * step for n, step in zip(obj.shape, obj.stride(), strict=True)) + 1
    return first, first + reach * obj.element_size()


def _differing(home: Mapping, first: int, nbytes: int) -> int:
    now = np.frombuffer(home, dtype=np.uint8, count=nbytes, offset=first)
    differing = 0
    step = 16 << 20
    for start in range(0, nbytes, step):
        part = now[start : start + step]
        published = np.frombuffer(os.pread(home.fd, len(part), first + start), dtype=np.uint8)
        if not np.array_equal(part, published):
            differing += int(np.count_nonzero(part != published))
    return differing


class strict:  # a context manager that reads as a word: with strict(model)
    """Refuse every operation inside a `with` block that would write to a published weight, before it happens.

    Covers every torch operator (in-place, `out=`, foreach and fused ones, batch norm's statistics). Arrays that numpy
    makes from weights inside the block are read-only. Applies to the calling thread.

    Args:
        model: What `ModelRef.load` returned.

    Raises:
        WriteRefusedError: Raised instead of the write, with the weight's name. A write through numpy first raises
            numpy's ValueError, which has no names. The block turns it into this error, with the names of the weights
            that numpy has arrays of.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> model = ref.load(cached=False)
        >>> try:
        ...     with zerocopy.strict(model):
        ...         model.bias.data.zero_()
        ... except zerocopy.errors.WriteRefusedError as error:
        ...     print(str(error).split(";")[0])
        aten.zero_.default would write to the published weight bias
        >>> zerocopy.unpublish(ref)
    """

    def __init__(self, model: Any) -> None:
        spans: dict[int, tuple[int, str]] = {}
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        parts = list(walk(model))
        for path, obj in parts:
            if isinstance(obj, np.ndarray) and obj.flags.writeable and _home(obj) is not None:
                self._arrays[path] = obj
            if isinstance(obj, torch.Tensor) and obj.numel() and (_home(obj) is not None or _on_device(obj)):
                storage = obj.untyped_storage()
                spans.setdefault(storage.data_ptr(), (storage.data_ptr() + storage.nbytes(), path))
        guard = _Guard(spans, _homes(parts))
        self._modes: tuple[Any, ...] = (_Dispatch(guard), _Function(guard))
        self._stack: ExitStack | None = None

    def __enter__(self) -> strict:
        with ExitStack() as stack:
            for mode in self._modes:
                stack.enter_context(mode)
            for array in self._arrays.values():
                array.setflags(write=False)
                stack.callback(array.setflags, write=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._stack is not None
        done = self._stack.__exit__(kind, error, trace)
        arrays = self._modes[1].arrays | set(self._arrays)
        if isinstance(error, ValueError) and "read-only" in str(error) and arrays:
            raise WriteRefusedError(
                f"numpy would have written to the published weight {' or '.join(sorted(arrays))} ({error}); "
                f"work on a copy of the array"
            ) from error
        return done


class _Guard:
    """The address ranges of the weights that must not be written, with their names.

    Args:
        spans: By the start of each storage: its end and its name.
        homes: The mappings, whose other storages must not be written either.
    """

    def __init__(self, spans: dict[int, tuple[int, str]], homes: list[Mapping]) -> None:
        self.starts = sorted(spans)
        self.ends = [spans[start] for start in self.starts]
        self.others = [(home.address, home.address + len(home), home.file) for home in homes]

    def name(self, value: object) -> str | None:
        if not isinstance(value, torch.Tensor):
            return None
        if is_traceable_wrapper_subclass(value):  # an operator that writes to it writes to its parts
            return next((found for _, part in children(value) if (found := self.name(part))), None)
        try:
            address = value.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):
            return None
        index = bisect_right(self.starts, address) - 1
        if index >= 0 and address < self.ends[index][0]:
            return self.ends[index][1]
        for start, end, file in self.others:
            if start <= address < end:
                return f"at byte {address - start} of {file}"
        return None

    def check(self, value: object, operator: str) -> None:
        for item in value if isinstance(value, list | tuple) else (value,):
            name = self.name(item)
            if name is not None:
                raise WriteRefusedError(
                    f"{operator} would write to the published weight {name}; "
                    f"work on a clone, or load the model outside strict mode for a private copy-on-write one"
                )


_Mutable = tuple[tuple[int, str], ...]


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Checks the arguments that an operator's schema declares mutable."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.guard = guard
        self.mutable: dict[Any, _Mutable] = {}


def _check_and_run(
    mode: _Dispatch, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    kwargs = kwargs or {}
    positions = mode.mutable.get(func)
    if positions is None:
        positions = mode.mutable[func] = _mutable(func)
    for index, name in positions:
        mode.guard.check(args[index] if index < len(args) else kwargs.get(name), str(func))
    if schema_of(func).name in _BATCH_NORMS and (args[5] if len(args) > 5 else kwargs["training"]):
        mode.guard.check(args[3:5], str(func))
    return func(*args, **kwargs)


# Set after the class is made: torch wraps a method that the class has from the start, and the wrapper imports
# torch._dynamo at its first call, which costs 3 seconds and 60 MiB in every worker.
_Dispatch.__torch_dispatch__ = _check_and_run  # type: ignore[method-assign, assignment]


def _mutable(func: Any) -> _Mutable:
    return tuple(
        (index, argument.name)
        for index, argument in enumerate(schema_of(func).arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


class _Function(TorchFunctionMode):
    """Makes arrays that numpy creates from weights read-only."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self.guard = guard
        self.arrays: set[str] = set()  # names of the weights that numpy has arrays of

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = self.guard.name(args[0]) if isinstance(result, np.ndarray) and args else None
        if name is not None:
            result.setflags(write=False)
            self.arrays.add(name)
        elif func is torch.Tensor.__dlpack__:
            self.guard.check(args[0], "handing out by DLPack")
        return result
