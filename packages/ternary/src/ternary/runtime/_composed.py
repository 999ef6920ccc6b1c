"""Layers composed of packed ones: one-dimensional convolutions, other paddings, two scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ternary.runtime._face import PackedLayer, keep_attributes
from ternary.runtime._modules import PackedConv2d

__all__ = ["PackedConv1d", "PackedPadded", "PackedPair"]


class PackedConv1d(PackedLayer):
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
        self.dtype: torch.dtype = conv.dtype
        self.in_channels: int = conv.in_channels
        self.out_channels: int = conv.out_channels
        self.groups: int = conv.groups
        self.kernel_size: tuple[int] = conv.kernel_size[1:]
        self.stride: tuple[int] = conv.stride[1:]
        self.padding: tuple[int] = conv.padding[1:]
        self.dilation: tuple[int] = conv.dilation[1:]
        self.padding_mode: str = "zeros"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C_in, L): (B, C_out, OL) of the same dtype."""
        return self.conv(x.unsqueeze(2)).squeeze(2)  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the convolution."""
        return self.conv.bias

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 (C_out, C_in / groups, K) weights."""
        return self.conv.values().squeeze(2)

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return (C_out, C_in / groups, K)."""
        shape = self.conv.weight_shape()
        return (*shape[:2], shape[3])

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float (C_out, C_in / groups, K) weight."""
        return self.conv.dense().squeeze(2).to(self.dtype)


class PackedPadded(PackedLayer):
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

    if TYPE_CHECKING:  # torch.jit.script refuses the annotation of a list where it is assigned
        edges: list[int]

    def __init__(self, layer: PackedConv2d | PackedConv1d, edges: list[int], mode: str) -> None:
        super().__init__()
        self.layer: PackedConv2d | PackedConv1d = layer
        self.edges = edges
        self.mode: str = mode
        self.dtype: torch.dtype = layer.dtype
        self.padding_mode: str = "zeros" if mode == "constant" else mode
        self.in_channels: int = layer.in_channels
        self.out_channels: int = layer.out_channels
        self.groups: int = layer.groups
        self.kernel_size: tuple[int, ...] = layer.kernel_size
        self.stride: tuple[int, ...] = layer.stride
        self.dilation: tuple[int, ...] = layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve."""
        return self.layer(nn.functional.pad(x, self.edges, self.mode))  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the convolution."""
        return self.layer.bias

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 weights of the convolution."""
        return self.layer.values()

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape of the float weight."""
        return self.layer.weight_shape()

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float weight."""
        return self.layer.dense().to(self.dtype)


class PackedPair(PackedLayer):
    """A layer with one scale for +1 and another for -1 (TTQ): the sum of two packed layers.

    Args:
        plus: The packed layer with the values 0 and +1, and the bias.
        minus: The packed layer with the values 0 and -1.

    Example:
        >>> import ternary
        >>> type(ternary.pack(ternary.nn.TernaryLinear(16, 4, quantizer="ttq"))).__name__
        'PackedLinear'
    """

    def __init__(self, plus: PackedLayer, minus: PackedLayer) -> None:
        super().__init__()
        self.plus: PackedLayer = plus
        self.minus: PackedLayer = minus
        self.dtype: torch.dtype = plus.dtype
        keep_attributes(self, plus)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the outputs of both layers."""
        return self.plus(x) + self.minus(x)  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The bias, which the first layer adds."""
        return self.plus.bias

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 weights, of both signs."""
        return self.plus.values() + self.minus.values()

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape of the float weight."""
        return self.plus.weight_shape()

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float weight."""
        return (self.plus.dense() + self.minus.dense()).to(self.dtype)
