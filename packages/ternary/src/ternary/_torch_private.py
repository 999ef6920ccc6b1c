"""Every private name of torch that this package uses, guarded: where another torch lacks one, a slower way is taken."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DISPATCH_KNOWN", "plain_dispatch", "pre_hooks_of", "profiler_enabled", "version_of", "wrapper_tensor"]

try:
    from torch._C import _dispatch_keys, _dispatch_tls_local_include_set
    from torch._C._autograd import _profiler_enabled
except ImportError:
    DISPATCH_KNOWN = False
else:
    DISPATCH_KNOWN = True


def _situation(x: Tensor) -> tuple[int, int]:
    """Return what the dispatcher decides by: the keys of the tensor and those that the thread adds."""
    return _dispatch_keys(x).raw_repr(), _dispatch_tls_local_include_set().raw_repr()


def _plain_situations() -> frozenset[tuple[int, int]]:
    usual = torch.empty(0, device="cpu")
    with torch.inference_mode():
        inside = {_situation(usual), _situation(torch.empty(0, device="cpu"))}
    return frozenset({*inside, _situation(usual)})


# Tracers, modes, transforms; fake, wrapped, sparse, lazily negated tensors: each has a key of its own, so none is here.
_PLAIN = _plain_situations() if DISPATCH_KNOWN else frozenset()


def plain_dispatch(x: Tensor) -> bool:
    """Return whether the dispatcher would do nothing for a plain CPU tensor but call its kernel."""
    return _situation(x) in _PLAIN


def profiler_enabled() -> bool:
    """Return whether torch's profiler records operators."""
    return bool(_profiler_enabled())


_version = attrgetter("_version")
_make_wrapper = attrgetter("_make_wrapper_subclass")(Tensor)


_pre_hooks = attrgetter("_forward_pre_hooks")


def pre_hooks_of(layer: nn.Module) -> list[Any]:
    """Return what is called before each call of a layer."""
    return list(_pre_hooks(layer).values())


def version_of(x: Tensor) -> int:
    """Return how often a tensor was changed in place, -1 where torch does not count."""
    try:
        return int(_version(x))
    except RuntimeError:  # made in inference mode
        return -1


def wrapper_tensor(kind: type[Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """Return a tensor of a subclass that has metadata but no values of its own."""
    return _make_wrapper(kind, shape, dtype=dtype, device=device)
