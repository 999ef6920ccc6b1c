"""Everything that zerocopy uses of torch beyond its public interface, checked when this module is imported.

A later torch that renames one of these fails at import with its version and the missing name, and this is the only file
to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from zerocopy.errors import DeviceUnavailableError, ZerocopyError

_CDATA, _UNTYPED, _SCHEMA = attrgetter("_cdata"), attrgetter("_untyped_storage"), attrgetter("_schema")

try:
    from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
    from torch.overrides import _len_torch_function_stack  # type: ignore[attr-defined]
    from torch.overrides import _pop_mode as _pop_function_mode
    from torch.overrides import _push_mode as _push_function_mode
    from torch.utils._python_dispatch import (  # type: ignore[attr-defined]
        TorchDispatchMode,
        _len_torch_dispatch_stack,
        _pop_mode,
        _push_mode,
        is_traceable_wrapper_subclass,
    )

    _neg_view = attrgetter("_neg_view")(torch)
    # Takes (subclass, tensor, requires_grad) and returns a tensor of the subclass over the same memory. Every weight
    # takes a call, so nothing is wrapped around it.
    tensor_subclass: Callable[[type[torch.Tensor], torch.Tensor, bool], torch.Tensor]
    tensor_subclass = attrgetter("_make_subclass")(torch.Tensor)
    _inject_new_class = attrgetter("_inject_new_class")(parametrize)
    _inject_property = attrgetter("_inject_property")(parametrize)
    # Returns whether this process was forked from one that uses CUDA.
    cuda_was_forked: Callable[[], bool] = attrgetter("_is_in_bad_fork")(torch.cuda)
    copy_operator = attrgetter("_to_copy.default")(torch.ops.aten)  # by which `to` copies a tensor
    _SCHEMA(torch.ops.aten.add.Tensor)
    _CDATA(torch.empty(0).untyped_storage())
except (ImportError, AttributeError) as error:
    raise ZerocopyError(f"zerocopy does not work with torch {torch.__version__}: {error}") from error

__all__ = [
    "MODULE_PRIVATE",
    "TorchDispatchMode",
    "UninitializedTensorMixin",
    "buffers_of",
    "children_of",
    "copy_operator",
    "inject_parametrizations",
    "is_neutral",
    "is_traceable_wrapper_subclass",
    "neg_view",
    "neutral",
    "parameters_of",
    "refuse_forked",
    "schema_of",
    "storage_key",
    "streams_of",
    "tensor_subclass",
    "typed_storage",
    "untyped_storage",
]

# The attributes that an nn.Module keeps for itself.
MODULE_PRIVATE = frozenset(nn.Module().__dict__) - {"training"}


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the table of a module's own parameters."""
    table: dict[str, nn.Parameter | None] = module.__dict__["_parameters"]
    return table


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the table of a module's own buffers."""
    table: dict[str, torch.Tensor | None] = module.__dict__["_buffers"]
    return table


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the table of a module's own submodules."""
    table: dict[str, nn.Module | None] = module.__dict__["_modules"]
    return table


def is_neutral() -> bool:
    """Return whether this thread has no ambient state that `neutral` would leave."""
    plain = not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    return plain and not _len_torch_function_stack() and not _len_torch_dispatch_stack()


@contextmanager
def neutral() -> Iterator[None]:
    """Run a block outside the ambient state of its thread: inference mode, default device, dispatch modes.

    Tensors made in the block are ordinary tensors in host memory, wherever it is called.
    """
    if is_neutral():
        yield
        return
    with torch.inference_mode(False), torch.enable_grad():
        # A default device is a function mode. Entering one more for "cpu" would triple the time of every call.
        functions = [
            _pop_function_mode()  # type: ignore[no-untyped-call]
            for _ in range(_len_torch_function_stack())
        ]
        modes = [_pop_mode() for _ in range(_len_torch_dispatch_stack())]
        try:
            yield
        finally:
            for mode in reversed(modes):
                _push_mode(mode)
            for mode in reversed(functions):
                _push_function_mode(mode)  # type: ignore[no-untyped-call]


def refuse_forked() -> None:
    """Refuse the use of CUDA in a process that was forked from one that uses it.

    Raises:
        DeviceUnavailableError: This is such a process.
    """
    if cuda_was_forked():
        raise DeviceUnavailableError("CUDA cannot be used in a process that was forked from one that uses it: spawn it")


_STREAMS, _PRIORITIES = 32, 4  # of a device's pool, from which torch takes them in turns


def streams_of(place: torch.device) -> list[int]:
    """Return the streams of torch's pool for a device, from one of which torch captures a graph."""
    streams = [
        torch.cuda.Stream(place, priority=-level)  # type: ignore[no-untyped-call]
        for level in range(_PRIORITIES)
        for _ in range(_STREAMS)
    ]
    return list({int(stream.cuda_stream) for stream in streams})


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return a number that two Python objects for one storage have in common."""
    return int(_CDATA(storage))  # the public data_ptr is 0 for every empty storage


def untyped_storage(storage: torch.storage.TypedStorage) -> torch.UntypedStorage:
    """Return the untyped storage below a typed one, without its deprecation warning."""
    untyped: torch.UntypedStorage = _UNTYPED(storage)
    return untyped


def typed_storage(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    """Return a typed storage over an untyped one, without its deprecation warning."""
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


def neg_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view with the negative bit set."""
    view: torch.Tensor = _neg_view(tensor)
    return view


def inject_parametrizations(module: nn.Module) -> None:
    """Give a module whose state is complete the class and properties of a parametrized module."""
    _inject_new_class(module)
    for name in module.parametrizations:  # type: ignore[union-attr]  # a ModuleDict once the state is set
        _inject_property(module, name)


def schema_of(operator: Any) -> Any:
    """Return an operator's schema."""
    return _SCHEMA(operator)
