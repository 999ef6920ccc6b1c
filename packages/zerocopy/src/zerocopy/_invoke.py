"""call_model: run a method of a published model in the calling process, which builds the model once and keeps it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zerocopy._ref import ModelRef
from zerocopy._writes import strict

# The models that this process called last. These are strong references, because a worker would otherwise build its
# model again for every task. Their number is limited, because a worker that is used for many models would otherwise
# keep all of them mapped. Only one version of a name is kept.
_KEPT = 8
_recent: OrderedDict[str, tuple[ModelRef, Any, bool]] = OrderedDict()
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def kept_model(ref: ModelRef, trust_remote_code: bool = False) -> Any:
    """Return the loaded model of a reference and keep it for the next call in this process."""
    with _lock:
        known = _recent.get(ref.digest)
        if known is not None and (trust_remote_code or not known[2]):
            _recent.move_to_end(ref.digest)
            return known[1]
    model = ref.load(trust_remote_code=trust_remote_code)
    with _lock:
        for digest, (other, *_) in list(_recent.items()):
            if other.name == ref.name and other.version < ref.version:
                del _recent[digest]
        _recent[ref.digest] = (ref, model, trust_remote_code)
        while len(_recent) > _KEPT:
            _recent.popitem(last=False)
    return model


def forget(ref: ModelRef | None = None) -> None:
    """Release models that `call_model` keeps in this process.

    Args:
        ref: The model to release; all of them if None.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> _ = zerocopy.call_model(ref, args=(torch.ones(1, 4),))
        >>> zerocopy.forget(ref)
        >>> zerocopy.unpublish(ref)
    """
    with _lock:
        if ref is None:
            _recent.clear()
        else:
            _recent.pop(ref.digest, None)


def forget_path(path: str) -> None:
    """Release the model of one segment."""
    with _lock:
        for digest in [digest for digest, (ref, *_) in _recent.items() if ref.path == path]:
            del _recent[digest]


def call_model(
    ref: ModelRef,
    method: str = "__call__",
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    refuse_writes: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """Call a method of a published model. The first call in a process loads the model.

    Runs without gradients, because the result is usually sent elsewhere. `ref.load()` returns the model itself.

    Args:
        ref: The model.
        method: The method's name.
        args: Positional arguments, as a list or tuple: the rows of a tensor would be taken for arguments.
        kwargs: Keyword arguments.
        refuse_writes: Run in strict mode, in which a write to a weight raises WriteRefusedError.
        trust_remote_code: See `ModelRef.load`.

    Returns:
        The method's result.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> zerocopy.call_model(ref, "forward", (torch.ones(1, 4),)).shape
        torch.Size([1, 2])
        >>> zerocopy.forget(ref)
        >>> zerocopy.unpublish(ref)
    """
    if isinstance(args, str | bytes | Mapping) or hasattr(args, "__array__") or not isinstance(args, Iterable):
        raise TypeError(f"args is a {type(args).__name__}, wanted a list of arguments, such as (inputs,)")
    model = kept_model(ref, trust_remote_code)
    function = model if method == "__call__" else getattr(model, method)
    with torch.no_grad():
        if refuse_writes:
            with strict(model):
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
