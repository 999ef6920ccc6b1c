"""A model in 16-bit floating point, checked for values that do not fit."""

from __future__ import annotations

import copy

from torch import nn

from ternary.errors import Fp16OverflowError
from ternary.nn._loaded import require_loaded
from ternary.nn._quantizers import require_finite

FP16_MAX = 65504.0


def to_fp16(model: nn.Module) -> nn.Module:
    """Return a copy of a model in 16-bit floating point.

    Raises:
        Fp16OverflowError: A value is finite but larger than 65504.
        NonFiniteWeightError: A value is NaN or infinite.
        WeightsNotLoadedError: A weight has no values yet.

    Example:
        >>> import torch, ternary
        >>> ternary.to_fp16(torch.nn.Linear(2, 2)).weight.dtype
        torch.float16

    Args:
        model: The model to copy; it stays as it is.
    """
    require_loaded(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.numel():
            require_finite(tensor, name)
            largest = float(tensor.detach().abs().max())
            if largest > FP16_MAX:
                raise Fp16OverflowError(f"{name} holds {largest:.4g}; fp16 ends at {FP16_MAX:.0f}")
    return copy.deepcopy(model).half()
