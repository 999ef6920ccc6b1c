"""Every private name of torch that this package uses, guarded: where another torch lacks one, a slower way is taken."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = [
    "DISPATCH_KNOWN",
    "current_stream",
    "forward_mode",
    "keep_hooks",
    "plain_dispatch",
    "pre_hooks_of",
    "profiler_enabled",
    "version_of",
    "wrapper_tensor",
]

try:
    from torch._C import _dispatch_keys, _dispatch_tls_local_include_set
    from torch._C._autograd import _profiler_enabled
except ImportError:
    DISPATCH_KNOWN = False
else:
    DISPATCH_KNOWN = True

_raw_stream: Callable[[int], int] | None
try:
    from torch._C import _cuda_getCurrentRawStream as _raw_stream
except ImportError:  # a build without CUDA
    _raw_stream = None


def _situation(x: Tensor) -> tuple[int, int]:
    """Return what the dispatcher decides by: the keys of the tensor and those that the thread adds."""
    return _dispatch_keys(x).raw_repr(), _dispatch_tls_local_include_set().raw_repr()


def _plain_situations(device: str) -> frozenset[tuple[int, int]]:
    with torch.inference_mode(False):
        usual = torch.empty(0, device=device)
        outside = _situation(usual)
        with torch.inference_mode():
            inside = {_situation(usual), _situation(torch.empty(0, device=device))}
    return frozenset({*inside, outside})


# Tracers, modes, transforms; fake, wrapped, sparse, lazily negated tensors: each has a key of its own, so none is here.
_PLAIN = {False: _plain_situations("cpu")} if DISPATCH_KNOWN else {}


def plain_dispatch(x: Tensor) -> bool:
    """Return whether the dispatcher would do nothing for a plain tensor on the CPU or on CUDA but call its kernel."""
    plain = _PLAIN.get(x.is_cuda)
    if plain is None:  # CUDA is looked at when it is used, outside of all modes
        if not DISPATCH_KNOWN or _situation(torch.empty(0, device="cpu")) not in _PLAIN[False]:
            return False
        plain = _PLAIN[True] = _plain_situations("cuda")
    return _situation(x) in plain


def profiler_enabled() -> bool:
    """Return whether torch's profiler records operators."""
    return bool(_profiler_enabled())


_version = attrgetter("_version")
_make_wrapper = attrgetter("_make_wrapper_subclass")(Tensor)


_pre_hooks = attrgetter("_forward_pre_hooks")


def forward_mode() -> bool:
    """Return whether a forward-mode derivative (`torch.func.jvp`, dual numbers) is being computed."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def pre_hooks_of(layer: nn.Module) -> list[Any]:
    """Return what is called before each call of a layer."""
    return list(_pre_hooks(layer).values())


_CALL_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_FULL_BACKWARD = "_is_full_backward_hook"  # which of two kinds the backward hooks are


def keep_hooks(new: nn.Module, old: nn.Module) -> None:
    """Let what is called around the calls of a layer, forwards and backwards, be called around those of another one."""
    for kind in _CALL_HOOKS:
        getattr(new, kind, {}).update(getattr(old, kind, {}))
    full = getattr(old, _FULL_BACKWARD, None)
    if full is not None:
        setattr(new, _FULL_BACKWARD, full)


def current_stream() -> int:
    """Return the current CUDA stream of the current device, as CUDA's own number."""
    if _raw_stream is None:
        return int(torch.cuda.current_stream().cuda_stream)
    return int(_raw_stream(torch.cuda.current_device()))


def version_of(x: Tensor) -> int:
    """Return how often a tensor was changed in place, -1 for one made in inference mode, where torch does not count."""
    return -1 if x.is_inference() else int(_version(x))


def wrapper_tensor(kind: type[Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """Return a tensor of a subclass that has metadata but no values of its own."""
    return _make_wrapper(kind, shape, dtype=dtype, device=device)
