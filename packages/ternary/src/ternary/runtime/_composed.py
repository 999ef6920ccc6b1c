"""Layers composed of packed ones: one-dimensional convolutions, other paddings, two scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary.runtime._modules import PackedConv2d

__all__ = ["PackedConv1d", "PackedPadded", "PackedPair"]


class PackedConv1d(nn.Module):
    """A convolution over (B, C, L), computed as one of height 1.

    Args:
        conv: The packed convolution, its kernel of height 1.

    Example:
        >>> import torch, ternary
        >>> packed = ternary.pack(ternary.nn.TernaryConv1d(4, 8, 3))
        >>> type(packed).__name__, packed(torch.zeros(2, 4, 10)).shape
        ('PackedConv1d', torch.Size([2, 8, 8]))
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
        layer: The packed convolution, without padding of its own.
        edges: How much to add, last dimension first, as `torch.nn.functional.pad` takes it.
        mode: 'constant' for zeros, 'reflect', 'replicate' or 'circular'.

    Example:
        >>> import torch, ternary
        >>> packed = ternary.pack(ternary.nn.TernaryConv2d(4, 8, 3, padding=1, padding_mode="reflect"))
        >>> type(packed).__name__, packed(torch.zeros(2, 4, 6, 6)).shape
        ('PackedPadded', torch.Size([2, 8, 6, 6]))
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
    """A layer with one scale for +1 and another for -1 (TTQ): the sum of two packed layers.

    Args:
        plus: The packed layer with the values 0 and +1, and the bias.
        minus: The packed layer with the values 0 and -1.

    Example:
        >>> import ternary
        >>> type(ternary.pack(ternary.nn.TernaryLinear(16, 4, quantizer="ttq"))).__name__
        'PackedLinear'
    """

    def __init__(self, plus: nn.Module, minus: nn.Module) -> None:
        super().__init__()
        self.plus, self.minus = plus, minus

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the outputs of both layers."""
        return self.plus(x) + self.minus(x)  # type: ignore[no-any-return]

    @torch.jit.unused
    def values(self) -> Tensor:
        """The int8 weights, of both signs."""
        return self.plus.values() + self.minus.values()  # type: ignore[operator,no-any-return]
