"""Every private name of torch that this package uses, guarded: where another torch lacks one, a slower way is taken."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DISPATCH_KNOWN", "plain_dispatch", "profiler_enabled"]

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
