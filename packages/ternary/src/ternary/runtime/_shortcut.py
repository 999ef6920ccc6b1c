"""Call the linear kernel without torch's dispatcher, where the dispatcher would do nothing but call it.

A matrix of a few megabytes sweeps the second-level cache, so at batch 1 the code between one product and the next is
fetched from further away: the way through the dispatcher takes some 25 of 225 us there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ternary._torch_private import DISPATCH_KNOWN, forward_mode, plain_dispatch, profiler_enabled, version_of
from ternary.runtime import _gpu as gpu
from ternary.runtime import _native as native
from ternary.runtime import _ops as ops

__all__ = ["Shortcut"]


@dataclass(frozen=True, slots=True)
class _Checked:
    """Buffers that were found to be those of a packed layer, and what a call needs to know of them."""

    addresses: tuple[int, int, int]
    version: int
    weight: weakref.ref[Tensor]
    scale: weakref.ref[Tensor]
    bias: Callable[[], Tensor | None]
    kernel: str
    path: int
    k: int
    n: int
    device: int
    on_triton: bool


class Shortcut:
    """Computes the products of one layer, and remembers which buffers it has checked."""

    def __init__(self) -> None:
        # Replaced as a whole: several threads may use one layer.
        self._checked: _Checked | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()  # the copy of a layer has other buffers

    def linear(self, x: Tensor, buffers: dict[str, Tensor | None], kernel: str, threads: int) -> Tensor | None:
        """The (..., N) product of (..., K); None where the dispatcher is needed, to compute it or to refuse it."""
        if (
            not DISPATCH_KNOWN
            or type(x) is not Tensor
            or x.requires_grad
            or forward_mode()
            or not plain_dispatch(x)
            or profiler_enabled()
            or not x.is_contiguous()
        ):
            return None
        weight, scale, bias = buffers["packed"], buffers["scale"], buffers["bias"]
        if weight is None or scale is None:
            return None
        addresses = (weight.data_ptr(), scale.data_ptr(), 0 if bias is None else bias.data_ptr())
        checked = self._checked
        if (
            checked is None
            or checked.addresses != addresses
            or checked.weight() is not weight
            or checked.scale() is not scale
            or checked.bias() is not bias
            or checked.kernel != kernel
            or checked.version != version_of(weight)
        ):
            ops.check_linear(x, weight, scale, bias)
            path = -1 if kernel in ops.TRITON or x.is_cuda else native.path_number(kernel)
            on_triton = x.is_cuda and ops.on_triton(kernel, weight.dtype, x.device)
            held = _nothing if bias is None else weakref.ref(bias)
            checked = _Checked(
                *(addresses, version_of(weight), weakref.ref(weight), weakref.ref(scale), held, kernel, path),
                *(x.shape[-1], scale.shape[0], x.get_device(), on_triton),
            )
            self._checked = checked
        shape, k = x.shape, checked.k
        if not k or not shape or shape[-1] != k or x.get_device() != checked.device:
            return None
        if checked.on_triton:
            if x.dtype not in gpu.DTYPES:
                return None
            return gpu.multiply(x, weight, scale, bias, addresses, split=kernel == "triton-split")
        if checked.path < 0 or x.dtype is not torch.float32:
            return None
        y = x.new_empty((*shape[:-1], checked.n))
        threads = threads or torch.get_num_threads()
        native.multiply(
            *(checked.path, threads, x.numel() // k, k, checked.n, x.data_ptr(), *addresses, y.data_ptr(), 0)
        )
        return y


def _nothing() -> None:
    return None
