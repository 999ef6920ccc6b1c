"""A quantized layer some of whose input channels stay float: those that are much larger than the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ternary.runtime._face import TernaryView, keep_attributes

__all__ = ["FloatChannels"]


class FloatChannels(nn.Module):
    """A quantized layer beside a few input channels with float weights, which it does not see.

    The 8 bits of an activation are shared between all channels of a token or an image: one channel that is a thousand
    times larger leaves the others none. `ternary.quantize` makes such a layer where calibration data show that it
    lowers the error.

    Args:
        layer: The layer for the other channels; its weights for these are not used.
        float_layer: The float layer that it replaces: a Linear or a Conv2d without groups, padded with zeros.
        channels: Numbers of the channels that stay float.

    Example:
        >>> import torch
        >>> from ternary.nn import FloatChannels, Int8Linear
        >>> linear = torch.nn.Linear(16, 4)
        >>> x = torch.randn(8, 16)
        >>> x[:, 3] *= 1000
        >>> torch.allclose(FloatChannels(Int8Linear(linear), linear, [3])(x), linear(x), atol=0.1)
        True
    """

    __jit_unused_properties__: tuple[str, ...] = ("weight", "bias")

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations written as text
        channels: Tensor
        layer: Any

    def __init__(self, layer: nn.Module, float_layer: nn.Linear | nn.Conv2d, channels: list[int]):
        super().__init__()
        self.layer = layer
        weight = float_layer.weight.detach()
        self.register_buffer("channels", torch.tensor(channels, dtype=torch.int64, device=weight.device))
        self.columns = nn.Parameter(weight.index_select(1, self.channels))
        self.convolves: bool = isinstance(float_layer, nn.Conv2d)
        # What a linear layer lacks is never read, but has to have a type for TorchScript.
        self.stride: tuple[int, int] = _pair(getattr(float_layer, "stride", 1))
        self.dilation: tuple[int, int] = _pair(getattr(float_layer, "dilation", 1))
        self.padding: tuple[int, int] = _pair(getattr(float_layer, "padding", 0))
        keep_attributes(self, float_layer)
        self.train(float_layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product or the convolution of `input`, shaped as for the float layer."""
        feature = input.dim() - (3 if self.convolves else 1)
        large = input.index_select(feature, self.channels)
        out: Tensor = self.layer(input.index_fill(feature, self.channels, 0.0))
        if self.convolves:
            return out + functional.conv2d(large, self.columns, None, self.stride, self.padding, self.dilation)
        return out + functional.linear(large, self.columns)

    @property
    def weight(self) -> Tensor:
        """The float weight: that of the layer, with the float channels in it."""
        inner: Tensor = self.layer.weight
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return self.dense()
        return TernaryView.of(tuple(inner.shape), inner.dtype, inner.device, self.dense)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        found: Tensor | None = self.layer.bias
        return found

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float weight: values times scales, and the float channels."""
        inner = self.layer
        within = inner.ternary_weight() if hasattr(inner, "ternary_weight") else inner.dense()
        return within.index_copy(1, self.channels, self.columns.to(within.dtype))  # type: ignore[no-any-return]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
