"""Exactly ternary layers made trainable again."""

from __future__ import annotations

import copy

from torch import nn

from ternary.nn._layers import ternary_layers


def to_trainable(model: nn.Module, *, quantizer: str = "twn") -> nn.Module:
    """Return a copy of a model in which layers that hold exactly ternary values can be trained.

    Calibration and `ternary.load` leave such layers (quantizer 'exact'); a gradient that reaches them is an error. In
    the copy they hold latent weights of another quantizer, which start where calibration ended.

    Args:
        model: A calibrated or loaded model; it is not changed.
        quantizer: 'twn', which reproduces the values and scales that the layers hold.

    Returns:
        The copy, in training mode.

    Raises:
        ValueError: The quantizer would not start where the layers stand.

    Example:
        >>> import torch, ternary
        >>> layer, _ = ternary.quantize(torch.nn.Linear(64, 64), calibration=[torch.randn(8, 64)])
        >>> further = ternary.to_trainable(layer)
        >>> layer.quantizer, further.quantizer
        ('exact', 'twn')
    """
    if quantizer != "twn":
        raise ValueError(f"got quantizer={quantizer!r}; only 'twn' starts exactly where ternary values stand")
    made = copy.deepcopy(model)
    for layer in ternary_layers(made).values():
        if layer.quantizer == "exact":
            layer.quantizer, layer.threshold = quantizer, 0.7
    return made.train()
