"""Make torch's encoder layers call the layers inside them."""

from __future__ import annotations

from torch import nn


def call_inner_layers(model: nn.Module) -> None:
    """Switch off, in place, the fused kernels of `nn.TransformerEncoder` and its layers.

    In evaluation without gradients these read `linear1.weight` and `linear2.weight` themselves: a layer that was put
    in the place of `linear1` would never be called.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # neither of the activations that the kernels have
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
