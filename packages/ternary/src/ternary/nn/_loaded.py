"""Whether a model's weights have values yet."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from ternary.errors import WeightsNotLoadedError


def require_loaded(model: nn.Module) -> None:
    """Raise `WeightsNotLoadedError` with the name of a weight without values; `TypeError` if this is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"got {model!r:.80}; wanted a torch.nn.Module, an instance and not a class")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise WeightsNotLoadedError(f"{name} belongs to a lazy layer; call the model once before")
        if tensor.is_meta:
            raise WeightsNotLoadedError(f"{name} is on the meta device, without values; load the weights before")
