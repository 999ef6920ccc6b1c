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
        float_layer: The float layer that it replaces: a Linear, a Conv1d or a Conv2d, also with groups.
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
        stride: list[int]
        dilation: list[int]
        edges: list[int]

    def __init__(self, layer: nn.Module, float_layer: nn.Linear | nn.Conv1d | nn.Conv2d, channels: list[int]):
        super().__init__()
        self.layer = layer
        weight = float_layer.weight.detach()
        self.register_buffer("channels", torch.tensor(channels, dtype=torch.int64, device=weight.device))
        convolution = float_layer if isinstance(float_layer, nn.Conv1d | nn.Conv2d) else None
        self.directions: int = 0 if convolution is None else len(convolution.kernel_size)
        self.groups: int = 1 if convolution is None else convolution.groups
        self.columns: nn.Parameter = nn.Parameter(
            _columns(weight, channels, self.groups), float_layer.weight.requires_grad
        )
        # What a linear layer lacks is never read, but has to have a type for TorchScript.
        self.stride = [1] if convolution is None else list(convolution.stride)
        self.dilation = [1] if convolution is None else list(convolution.dilation)
        self.edges = [0] if convolution is None else _edges(convolution)
        mode = "zeros" if convolution is None else convolution.padding_mode
        self.edge_mode: str = "constant" if mode == "zeros" else mode
        keep_attributes(self, float_layer)
        self.train(float_layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product or the convolution of `input`, shaped as for the float layer."""
        feature = input.dim() - 1 - self.directions
        large = input.index_select(feature, self.channels)
        out: Tensor = self.layer(input.index_fill(feature, self.channels, 0.0))
        if self.directions == 0:
            return out + functional.linear(large, self.columns)
        large = functional.pad(large, self.edges, mode=self.edge_mode)
        if self.directions == 1:
            return out + functional.conv1d(large, self.columns, None, self.stride, 0, self.dilation)
        return out + functional.conv2d(large, self.columns, None, self.stride, 0, self.dilation)

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
        return self.put_back(within)

    @torch.jit.unused
    def put_back(self, weight: Tensor) -> Tensor:
        """Return a copy of a weight in which the float channels have their own."""
        made = weight.clone()
        for place, (rows, column) in enumerate(_places(made, self.channels.tolist(), self.groups)):
            made[rows, column] = self.columns[rows, place].to(made.dtype)
        return made


def _places(weight: Tensor, channels: list[int], groups: int) -> list[tuple[slice, int]]:
    """Return where the weights for each input channel are: the rows of its group, and the column within it."""
    wide, high = weight.shape[1], weight.shape[0] // groups
    return [(slice(c // wide * high, (c // wide + 1) * high), c % wide) for c in channels]


def _columns(weight: Tensor, channels: list[int], groups: int) -> Tensor:
    """Return the weights for some input channels as those of a layer without groups."""
    made = weight.new_zeros(weight.shape[0], len(channels), *weight.shape[2:])
    for place, (rows, column) in enumerate(_places(weight, channels, groups)):
        made[rows, place] = weight[rows, column]
    return made


def without_channels(weight: Tensor, channels: list[int], groups: int) -> Tensor:
    """Return a weight that is zero for some input channels.

    Args:
        weight: The weight of a linear layer or a convolution.
        channels: Numbers of input channels.
        groups: Of the convolution, 1 for a linear layer.
    """
    made = weight.detach().clone()
    for rows, column in _places(made, channels, groups):
        made[rows, column] = 0.0
    return made


def _edges(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Return how far a convolution pads each edge, the last direction first."""
    found: list[int] = []
    for place in reversed(range(len(layer.kernel_size))):
        if isinstance(layer.padding, str):
            whole = layer.dilation[place] * (layer.kernel_size[place] - 1) if layer.padding == "same" else 0
            found += [whole // 2, whole - whole // 2]
        else:
            found += [layer.padding[place]] * 2
    return found
