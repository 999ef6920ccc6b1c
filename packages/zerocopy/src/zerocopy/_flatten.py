"""Split a model into a small skeleton and blocks of bytes, and put it together again over memory that holds them.

The skeleton is a pickle in which every tensor is a number: a row of a table of (block, dtype, offset, size, stride, …).
A block is the part of one storage that tensors use, so tied tensors and overlapping views share a block, and nothing is
stored twice.
"""

from __future__ import annotations

import io
import pickle
import types
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from zerocopy._arrays import ArrayRow, is_shareable, span, storage_of
from zerocopy._remote_code import Modules, is_remote, refuse_loading, refuse_publishing, sources_of
from zerocopy._torch_private import (
    UninitializedTensorMixin,
    inject_parametrizations,
    is_neutral,
    is_traceable_wrapper_subclass,
    neg_view,
    neutral,
    refuse_forked,
    storage_key,
    tensor_subclass,
    typed_storage,
    untyped_storage,
)
from zerocopy._walk import tensor_names, walk
from zerocopy.errors import CorruptSegmentError, UnshareableError

ALIGNMENT = 64  # bytes; matrix products over weights at addresses shifted by 4 or 8 differ in the last bit
_MASK = ~(ALIGNMENT - 1)

Buffer = memoryview | bytearray  # bytes that a tensor may lie in

# (block, dtype, offset in elements, size, stride, requires_grad, conj bit, neg bit, class or None for torch.Tensor,
# whether it has the whole block to itself)
_Row = tuple[int, torch.dtype, int, tuple[int, ...], tuple[int, ...], bool, bool, bool, type[torch.Tensor] | None, bool]

# Nearly all objects of a model are of these types, whose instances are no tensor, storage or array.
_ORDINARY = frozenset(
    [str, bytes, int, float, complex, bool, type(None), dict, OrderedDict, list, tuple, set, frozenset, type,
     types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size]
)  # fmt: skip

_EXPORT_TRACER = "torch.fx.experimental.proxy_tensor"


@dataclass(frozen=True, slots=True)
class Block:
    """The used bytes of one storage.

    Args:
        storage: The storage, on any device.
        start: First used byte, a multiple of 64.
        nbytes: Number of bytes from there.
        names: Dotted names of the tensors that lie in it.
    """

    storage: torch.UntypedStorage
    start: int
    nbytes: int
    names: tuple[str, ...]

    def bytes_view(self) -> memoryview:
        """Return the block's bytes: a view of host memory, or a host copy of another device's."""
        storage = self.storage
        with neutral():
            if storage.device.type == "cuda":
                refuse_forked()
            if storage.device.type != "cpu":
                storage = storage.cpu()  # type: ignore[no-untyped-call]
            flat = torch.empty((0,), dtype=torch.uint8).set_(storage, self.start, (self.nbytes,), (1,))
            return memoryview(flat.numpy())  # type: ignore[arg-type]  # an array is a buffer


@dataclass(frozen=True, slots=True)
class Flat:
    """A model as bytes: the skeleton and the blocks that its tensors lie in.

    Args:
        skeleton: A pickle of everything but the tensors' bytes.
        blocks: The used parts of the tensors' storages.

    Example:
        >>> import torch, zerocopy
        >>> type(zerocopy.flatten(torch.nn.Linear(2, 2))).__name__
        'Flat'
    """

    skeleton: bytes
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class _Bare:
    """Stands for a tensor without its Python attributes while those are being pickled."""

    row: int


class _Collector:
    """Numbers the tensors and storages of one model in the order in which the pickler meets them."""

    def __init__(self, model: object, names: dict[int, tuple[str, ...]]) -> None:
        self.model = model
        self.names = names
        self.storages: list[torch.UntypedStorage] = []
        self.spans: list[list[int]] = []  # per storage: first and last-plus-one used byte
        self.users: list[list[str]] = []
        self.uses: list[int] = []  # per storage: how many tensors and storage objects of the model are over it
        self.rows: list[list[Any]] = []
        self.arrays: list[ArrayRow] = []
        self.remote: set[str] = set()  # modules of code that came with a checkpoint
        self._block_of: dict[int, int] = {}
        self._row_of: dict[int, int] = {}
        self._array_of: dict[int, int] = {}
        self._memory_of: dict[int, torch.UntypedStorage] = {}  # by address: storages made over numpy's memory
        self._alive: list[object] = []

    def block(self, storage: torch.UntypedStorage, first: int, last: int, names: tuple[str, ...] = ()) -> int:
        key = storage_key(storage)
        if key not in self._block_of:
            self._block_of[key] = len(self.storages)
            self.storages.append(storage)
            self.spans.append([first, last])
            self.users.append([])
            self.uses.append(0)
        index = self._block_of[key]
        self.uses[index] += 1
        span = self.spans[index]
        if last > first:
            span[:] = [min(span[0], first), max(span[1], last)] if span[1] > span[0] else [first, last]
        self.users[index].extend(names)
        return index

    def row(self, tensor: torch.Tensor) -> int:
        if id(tensor) in self._row_of:
            return self._row_of[id(tensor)]
        item = tensor.element_size()
        offset, shape, stride, count = tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.numel()
        reach = sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if count else 0
        first = int(offset) * item
        last = first + int(reach) * item
        block = self.block(tensor.untyped_storage(), first, last, self.names.get(id(tensor), ()))
        self.rows.append(
            [
                block,
                tensor.dtype,
                offset,
                shape,
                stride,
                tensor.requires_grad and tensor.is_leaf,
                tensor.is_conj(),
                tensor.is_neg(),
                None if type(tensor) is torch.Tensor else type(tensor),
            ]
        )
        self._row_of[id(tensor)] = len(self.rows) - 1
        self._alive.append(tensor)
        return len(self.rows) - 1

    def array(self, array: np.ndarray[Any, Any]) -> int:
        """Return the number of an array."""
        if id(array) not in self._array_of:
            made, address, owner = storage_of(array)
            storage = self._memory_of.setdefault(address, made)
            if storage.nbytes() < made.nbytes():  # of two arrays over foreign memory, the first was the smaller one
                storage, address = made, address
            first, last = (place - address for place in span(array))
            block = self.block(storage, first, last, self.names.get(id(array), ()))
            start = int(array.__array_interface__["data"][0]) - address
            row = ArrayRow(block, start, array.dtype, array.shape, array.strides, array.flags.writeable)
            self.arrays.append(row)
            self._array_of[id(array)] = len(self.arrays) - 1
            self._alive.extend((array, owner))
        return self._array_of[id(array)]

    def refuse(self, obj: object, what: str, remedy: str) -> UnshareableError:
        paths = (path for path, each in walk(self.model) if each is obj)  # of what is no tensor
        where = self.names.get(id(obj), ("",))[0] or next(paths, "a tensor") or "the model itself"
        return UnshareableError(f"{where}: {what}, which has no plain bytes to share. {remedy}")

    def check(self, tensor: torch.Tensor) -> None:
        if isinstance(tensor, UninitializedTensorMixin):
            raise self.refuse(tensor, "a lazy tensor without a shape yet", "Run the model once before publishing it.")
        if tensor.device.type == "meta":
            remedy = "Load its weights first (publish_file does that straight from a checkpoint)."
            raise self.refuse(tensor, "a tensor on the meta device", remedy)
        if tensor.is_nested and tensor.layout is torch.strided:
            raise self.refuse(tensor, "a nested tensor of strided layout", "Make it with layout=torch.jagged.")
        if tensor.layout not in (torch.strided, torch.jagged):
            raise self.refuse(tensor, f"a tensor of layout {tensor.layout}", "Make it dense with .to_dense() first.")

    def blocks(self) -> tuple[Block, ...]:
        result = []
        for storage, (first, last), names in zip(self.storages, self.spans, self.users, strict=True):
            start = first & _MASK if last > first else 0
            result.append(Block(storage, start, max(0, last - start), tuple(dict.fromkeys(names))))
        return tuple(result)

    def array_table(self, blocks: Sequence[Block]) -> list[ArrayRow]:
        """Return the arrays' rows with offsets from the start of their blocks."""
        return [row._replace(offset=row.offset - blocks[row.block].start) for row in self.arrays]

    def table(self, blocks: Sequence[Block]) -> list[_Row]:
        rows: list[_Row] = []
        for block, dtype, offset, *rest in self.rows:
            start, nbytes = blocks[block].start, blocks[block].nbytes
            offset -= start // dtype.itemsize if nbytes else offset
            alone = self.uses[block] == 1 and offset == 0 and nbytes > 0 and nbytes % dtype.itemsize == 0
            rows.append((block, dtype, offset, *rest, alone))
        return rows


class _Flattener(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """Writes row numbers in place of tensors, and constructor calls for what cloudpickle cannot pickle."""

    def __init__(self, file: io.BytesIO, collector: _Collector) -> None:
        super().__init__(file, protocol=5)
        self._collector = collector

    def persistent_id(self, obj: object) -> object:
        """Return the row of a plain tensor or the block of a storage; None leaves an object to the pickler."""
        if type(obj) in _ORDINARY:
            return None
        if isinstance(obj, torch.Tensor):
            self._collector.check(obj)
            return self._collector.row(obj) if _is_plain(obj) and not obj.__dict__ else None
        if isinstance(obj, torch.UntypedStorage):
            return "storage", self._collector.block(obj, 0, obj.nbytes()), None
        if isinstance(obj, torch.storage.TypedStorage):
            raw = untyped_storage(obj)
            return "storage", self._collector.block(raw, 0, raw.nbytes()), obj.dtype
        if is_shareable(obj):
            return "array", self._collector.array(obj), None  # type: ignore[arg-type]  # an array then
        return obj.row if type(obj) is _Bare else None

    def reducer_override(self, obj: object) -> object:
        """Return how to make an object again that does not pickle by itself."""
        if type(obj) is OrderedDict:  # each module has eight, most of them empty
            return NotImplemented if obj or obj.__dict__ else (OrderedDict, ())
        if isinstance(obj, torch.Tensor):
            if is_traceable_wrapper_subclass(obj):
                return _reduce_wrapper(obj)
            if _is_plain(obj):
                return _same, (_Bare(self._collector.row(obj)),), dict(obj.__dict__), None, None, _set_attributes
        elif isinstance(obj, type | types.FunctionType) and is_remote(obj.__module__):
            self._collector.remote.add(obj.__module__)
        elif program := _program(obj):
            raise self._collector.refuse(obj, *program)
        elif isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            state = {name: value for name, value in obj.__dict__.items() if name != "_compiled_call_impl"}
            return _bare_instance, (type(obj).__bases__[0],), state, None, None, _set_parametrized
        return super().reducer_override(obj)


def _program(obj: object) -> tuple[str, str] | None:
    """Return what a program made from a model is, and what to publish in its place; None for anything else."""
    if isinstance(obj, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return "TorchScript", "Publish the nn.Module that it was made from."
    tracer = getattr(obj, "_tracer_cls", None) if isinstance(obj, torch.fx.GraphModule) else None
    # An exported program pickles with a tracer that cannot be made again.
    if type(obj).__module__.startswith("torch.export") or getattr(tracer, "__module__", "") == _EXPORT_TRACER:
        return "a program of torch.export", (
            "Publish the nn.Module that it was made from; or publish its `state_dict`, and have each worker read the "
            "program with torch.export.load and give its module() the weights: load_state_dict(weights, assign=True)."
        )
    return None


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is fully described by a class, a dtype and strides over one storage."""
    own_pickling = type(tensor).__reduce_ex__ not in (torch.Tensor.__reduce_ex__, nn.Parameter.__reduce_ex__)
    return not (own_pickling or tensor.is_quantized or is_traceable_wrapper_subclass(tensor))


def _reduce_wrapper(tensor: torch.Tensor) -> tuple[Any, ...]:
    inner_names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]  # the wrapper protocol
    inner = {name: getattr(tensor, name) for name in inner_names}
    is_parameter = isinstance(tensor, nn.Parameter)
    grad = tensor.requires_grad and tensor.is_leaf
    return _unflatten, (type(tensor), inner, context, tuple(tensor.shape), tensor.stride(), is_parameter, grad)


def _unflatten(
    cls: Any,
    inner: dict[str, torch.Tensor],
    context: Any,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    is_parameter: bool,
    requires_grad: bool,
) -> torch.Tensor:
    tensor: torch.Tensor = cls.__tensor_unflatten__(inner, context, size, stride)
    if is_parameter:
        return nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _set_attributes(tensor: torch.Tensor, attributes: dict[str, Any]) -> None:
    tensor.__dict__.update(attributes)


def _bare_instance(cls: type[nn.Module]) -> nn.Module:
    return cls.__new__(cls)


def _set_parametrized(module: nn.Module, state: dict[str, Any]) -> None:
    # torch refuses to pickle parametrized modules because their class is made at run time. This makes it again.
    module.__dict__.update(state)
    inject_parametrizations(module)


def flatten(model: Any, *, trust_remote_code: bool = False) -> Flat:
    """Split a model, or any picklable object that holds tensors, into a skeleton and blocks of bytes.

    Nothing is copied: the blocks point at the model's own storages.

    Args:
        model: A module, a pipeline or a dict of tensors.
        trust_remote_code: See `publish`.

    Returns:
        The skeleton (bytes, a few hundred per module) and the blocks.

    Raises:
        UnshareableError: Something in it cannot be shared. The message gives its dotted path and a remedy.
        RemoteCodeError: Its classes come from code of a checkpoint, which `trust_remote_code` does not allow.

    Example:
        >>> import torch, zerocopy
        >>> flat = zerocopy.flatten({"weight": torch.ones(3)})
        >>> [block.nbytes for block in flat.blocks]
        [12]
    """
    collector = _Collector(model, tensor_names(model))
    file = io.BytesIO()
    try:
        with neutral():
            _Flattener(file, collector).dump(model)
    except UnshareableError:
        raise
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        raise UnshareableError(f"{_unpicklable(model)}: cannot be pickled ({error})") from error
    if collector.remote and not trust_remote_code:
        raise refuse_publishing(collector.remote)
    blocks = collector.blocks()
    parts: tuple[Any, ...] = (collector.table(blocks), file.getvalue(), collector.array_table(blocks))
    if collector.remote:
        parts += (sources_of(collector.remote),)
    return Flat(pickle.dumps(parts, protocol=5), blocks)


def _unpicklable(model: object) -> str:
    """Return the dotted path of the deepest thing that does not pickle."""
    worst = ""
    for path, obj in walk(model):
        if isinstance(obj, torch.Tensor):
            continue
        try:
            _Flattener(io.BytesIO(), _Collector(model, {})).dump(obj)
        except Exception:  # of any type: the caller reports it
            if path.startswith(worst):
                worst = path
    return worst or "the model itself"


class _Rebuilder(pickle.Unpickler):
    """Reads a skeleton, with a tensor in the place of each number."""

    def __init__(
        self, root: bytes, rows: Sequence[_Row], arrays: Sequence[ArrayRow], buffers: Sequence[Buffer]
    ) -> None:
        super().__init__(io.BytesIO(root))
        self._buffers = buffers
        self._storages: dict[int, torch.UntypedStorage] = {}
        try:
            self._arrays = [row.over(buffers[row.block]) for row in arrays]
            self._tensors = [self._make(row) for row in rows]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CorruptSegmentError(f"the table of tensors does not fit the blocks: {error}") from None

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is int:
            return self._tensors[pid]
        kind, block, dtype = pid
        if kind == "array":
            return self._arrays[block]
        raw = self._storage(block)
        return raw if dtype is None else typed_storage(raw, dtype)

    def _storage(self, block: int) -> torch.UntypedStorage:
        if block not in self._storages:
            buffer = self._buffers[block]
            flat = torch.frombuffer(buffer, dtype=torch.uint8) if len(buffer) else torch.empty(0, dtype=torch.uint8)
            self._storages[block] = flat.untyped_storage()
        return self._storages[block]

    def _make(self, row: _Row) -> torch.Tensor:
        block, dtype, offset, size, stride, requires_grad, conj, neg, cls, alone = row
        if alone:  # true of nearly all tensors, and twice as fast as the other branch
            tensor = torch.frombuffer(self._buffers[block], dtype=dtype)
            if stride != (1,) or size != tensor.shape:
                tensor.as_strided_(size, stride)
        else:
            tensor = torch.empty((0,), dtype=dtype).set_(self._storage(block), offset, size, stride)
        if conj:
            tensor = tensor.conj()
        if neg:
            tensor = neg_view(tensor)
        if cls is not None:
            return tensor_subclass(cls, tensor, requires_grad)
        return tensor.requires_grad_() if requires_grad else tensor


class _RemoteRebuilder(_Rebuilder):
    """Takes classes from the code that a model takes along."""

    modules: Modules

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(self.modules.name_of(module), name)


def _parts(skeleton: bytes) -> tuple[Sequence[_Row], bytes, Sequence[ArrayRow], Mapping[str, str]]:
    """Return the table of tensors, the pickle, the table of arrays, and the sources of code."""
    try:
        rows, root, *more = pickle.loads(skeleton)
    except (ValueError, TypeError) as error:
        raise CorruptSegmentError(f"the skeleton has other parts: {error}") from None
    return rows, root, more[0] if more else (), more[1] if len(more) > 1 else {}  # an older one has no arrays


def rebuild(skeleton: bytes, buffers: Sequence[Buffer], *, trust_remote_code: bool = False) -> Any:
    """Put a model together over memory that already holds its bytes. No byte of a weight is copied.

    Args:
        skeleton: What `flatten` returned, from a source you trust: it is a pickle.
        buffers: The bytes of each block, in the order of `flatten`; writable, as torch has no read-only tensors.
        trust_remote_code: See `ModelRef.load`.

    Returns:
        The model, with the ties, strides, classes, flags and attributes of the original. Each block becomes a storage
        of its own, so that saving one tensor saves no other.

    Raises:
        CorruptSegmentError: The skeleton is no skeleton, or its tensors do not fit into the buffers.
        RemoteCodeError: It takes code of a checkpoint along, which `trust_remote_code` does not allow.

    Example:
        >>> import torch, zerocopy
        >>> flat = zerocopy.flatten({"weight": torch.ones(3)})
        >>> zerocopy.rebuild(flat.skeleton, [bytearray(block.bytes_view()) for block in flat.blocks])
        {'weight': tensor([1., 1., 1.])}
    """
    try:
        if is_neutral():  # as usual
            return _rebuilt(skeleton, buffers, trust_remote_code)
        with neutral():
            return _rebuilt(skeleton, buffers, trust_remote_code)
    except (pickle.UnpicklingError, EOFError) as error:
        raise CorruptSegmentError(f"the skeleton is no pickle of a model: {error}") from None


def _rebuilt(skeleton: bytes, buffers: Sequence[Buffer], trust_remote_code: bool) -> Any:
    rows, root, arrays, sources = _parts(skeleton)
    if not sources:
        return _Rebuilder(root, rows, arrays, buffers).load()
    if not trust_remote_code:
        raise refuse_loading(sources)
    remote = _RemoteRebuilder(root, rows, arrays, buffers)
    remote.modules = Modules(sources)
    return remote.load()
