"""What a packed layer alone cannot do, made of packed layers: one dimension, other paddings, two scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary.runtime._modules import PackedConv2d

__all__ = ["PackedConv1d", "PackedPadded", "PackedPair"]


class PackedConv1d(nn.Module):
    """A convolution over (B, C, L), computed as one of height 1.

    Args:
        conv: the packed convolution, its kernel of height 1.
    """

    def __init__(self, conv: PackedConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C_in, L): (B, C_out, OL) of the same dtype."""
        return self.conv(x.unsqueeze(2)).squeeze(2)  # type: ignore[no-any-return]

    @torch.jit.unused
    def values(self) -> Tensor:
        """The int8 (C_out, C_in / groups, K) weights."""
        return self.conv.values().squeeze(2)


class PackedPadded(nn.Module):
    """A packed convolution whose padding is not the same number of zeros on both sides.

    Args:
        layer: the packed convolution, without padding of its own.
        edges: how much to add, last dimension first, as `torch.nn.functional.pad` takes it.
        mode: 'constant' for zeros, 'reflect', 'replicate' or 'circular'.
    """

    def __init__(self, layer: PackedConv2d | PackedConv1d, edges: list[int], mode: str) -> None:
        super().__init__()
        self.layer, self.edges, self.mode = layer, edges, mode

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve."""
        return self.layer(nn.functional.pad(x, self.edges, self.mode))  # type: ignore[no-any-return]

    @torch.jit.unused
    def values(self) -> Tensor:
        """The int8 weights of the convolution."""
        return self.layer.values()


class PackedPair(nn.Module):
    """A layer whose +1 and -1 stand for different magnitudes (TTQ): the sum of a layer for each.

    Args:
        plus: the packed layer with the values 0 and +1, and the bias.
        minus: the packed layer with the values 0 and -1.
    """

    def __init__(self, plus: nn.Module, minus: nn.Module) -> None:
        super().__init__()
        self.plus, self.minus = plus, minus

    def forward(self, x: Tensor) -> Tensor:
        """Add what both layers give."""
        return self.plus(x) + self.minus(x)  # type: ignore[no-any-return]

    @torch.jit.unused
    def values(self) -> Tensor:
        """The int8 weights, of both signs."""
        return self.plus.values() + self.minus.values()  # type: ignore[operator,no-any-return]
