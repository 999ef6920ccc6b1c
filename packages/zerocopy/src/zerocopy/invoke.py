"""call_model: run a method of a published model in whatever process this is, rebuilding the model once per process."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zerocopy.isolation import strict
from zerocopy.ref import ModelRef

# Models that this process called last. Strong references, or a worker would rebuild its model for every task; few, or a
# worker that is reused for many models would keep all of them mapped. Only one version of a name is kept.
_KEPT = 8
_recent: OrderedDict[str, tuple[ModelRef, Any]] = OrderedDict()
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def kept_model(ref: ModelRef) -> Any:
    """Return the loaded model of a reference, and keep it for the next call in this process."""
    with _lock:
        known = _recent.get(ref.digest)
        if known is not None:
            _recent.move_to_end(ref.digest)
            return known[1]
    model = ref.load()
    with _lock:
        for digest, (other, _) in list(_recent.items()):
            if other.name == ref.name and other.version < ref.version:
                del _recent[digest]
        _recent[ref.digest] = (ref, model)
        while len(_recent) > _KEPT:
            _recent.popitem(last=False)
    return model


def forget(ref: ModelRef | None = None) -> None:
    """Let go of models that ``call_model`` keeps in this process.

    Args:
        ref: which one; all of them if None.
    """
    with _lock:
        if ref is None:
            _recent.clear()
        else:
            _recent.pop(ref.digest, None)


def call_model(
    ref: ModelRef,
    method: str = "__call__",
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    refuse_writes: bool = False,
) -> Any:
    """Call a method of a published model, which is loaded the first time that this process needs it.

    Runs without gradients, because its result is usually sent elsewhere; ``ref.load()`` gives the model itself.

    Args:
        ref: the model.
        method: the method's name.
        args: positional arguments.
        kwargs: keyword arguments.
        refuse_writes: run in strict mode: a write to a weight raises WriteRefusedError.

    Returns:
        What the method returns.
    """
    model = kept_model(ref)
    function = model if method == "__call__" else getattr(model, method)
    with torch.no_grad():
        if refuse_writes:
            with strict(model):
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
