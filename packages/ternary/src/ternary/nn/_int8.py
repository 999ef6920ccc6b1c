"""Layers with 8-bit weights and, for Linear, activations quantized on the fly. For what should not be ternary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ternary.nn._quantizers import require_finite


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to int8, symmetric per output channel; return the values and scales of shape (outputs,)."""
    require_finite(weight)
    rows = weight.detach().float().flatten(1)
    largest = rows.abs().amax(1) if rows.shape[1] else torch.zeros(rows.shape[0])
    scale = largest / 127.0
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = (rows / safe[:, None]).round().clamp(-127, 127).to(torch.int8)
    return values.reshape(weight.shape), scale


class Int8Linear(nn.Module):
    """Linear layer with int8 weights; its input is rounded to 8 bits per token, the sums are exact integers.

    Args:
        linear: The float layer to convert.

    Example:
        >>> import torch
        >>> from ternary.nn import Int8Linear
        >>> Int8Linear(torch.nn.Linear(16, 4))(torch.zeros(2, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = int8_rows(linear.weight)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float().clone())

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations written as text
        values: Tensor
        scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the product in the dtype of `input`, of shape (..., in_features)."""
        x = input.float()
        if x.numel() == 0:
            return functional.linear(x, self.values.float() * self.scale[:, None], self.bias).to(input.dtype)
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127.0
        codes = (x / step).round().clamp(-127, 127)
        # Products of integers below 2^24 are exact in fp32; past 1040 inputs fp64 takes over.
        wide = torch.float32 if self.in_features * 127 * 127 < 2**24 else torch.float64
        sums = functional.linear(codes.to(wide), self.values.to(wide)).float()
        out = sums * step * self.scale
        return (out if self.bias is None else out + self.bias).to(input.dtype)


class Int8Conv2d(nn.Module):
    """Convolution with weights stored in int8 and computed in the dtype of its input.

    Args:
        conv: The float layer to convert.

    Example:
        >>> import torch
        >>> from ternary.nn import Int8Conv2d
        >>> Int8Conv2d(torch.nn.Conv2d(3, 4, 3))(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 4, 6, 6])
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode {conv.padding_mode!r} has no int8 form; use 'zeros'")
        values, scale = int8_rows(conv.weight)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().float().clone())

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations written as text
        values: Tensor
        scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, of shape (N, C, H, W)."""
        weight = (self.values.float() * self.scale[:, None, None, None]).to(input.dtype)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
