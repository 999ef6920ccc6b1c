"""Layers with 8-bit weights and activations on the integer kernels, for layers that should not be ternary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ternary._torch_private import version_of
from ternary.nn._quantizers import require_finite
from ternary.runtime import _gradients as gradients
from ternary.runtime import _ops as ops
from ternary.runtime._face import PackedLayer, keep_attributes
from ternary.runtime._layout import bytes_of_conv, bytes_to_conv, from_byte_tiles, padding_edges, to_byte_tiles

__all__ = ["Int8Conv2d", "Int8Linear"]


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to int8, symmetric per output channel; return the values and scales of shape (outputs,)."""
    require_finite(weight)
    rows = weight.detach().float().flatten(1)
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    scale = largest / 127.0
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = (rows / safe[:, None]).round().clamp(-127, 127).to(torch.int8)
    return values.reshape(weight.shape), scale


class _Int8Layer(PackedLayer):
    """What both layers share: int8 weights in the order of the kernels, a float bias, gradients to input and bias."""

    _exact = ("scale",)

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations written as text
        packed: Tensor
        scale: Tensor
        bias: nn.Parameter | None

    def _hold(self, layer: nn.Module, packed: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.dtype: torch.dtype = weight.dtype
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone(), bias.requires_grad)
        keep_attributes(self, layer)

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float weight."""
        values = self.values()
        return (values * self.scale.reshape([-1] + [1] * (values.dim() - 1))).to(self.dtype)

    @torch.jit.unused
    def tiled(self, values: Tensor) -> Tensor:
        """Return int8 values of the shape of the weight in the order of the kernels."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Also take the key that earlier releases wrote: the values in the order of the weight."""
        old = state_dict.pop(prefix + "values", None)
        if isinstance(old, Tensor):
            state_dict[prefix + "packed"] = self.tiled(old)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Int8Linear(_Int8Layer):
    """Linear layer with int8 weights; it rounds its input to 8 bits per token and sums products in integers.

    Gradients reach the input and the bias as if nothing was rounded; the weight is fixed.

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
        self.in_features: int = linear.in_features
        self.out_features: int = linear.out_features
        values, scale = int8_rows(linear.weight)
        self._hold(linear, to_byte_tiles(values), scale, linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product in the dtype of `input`, of shape (..., in_features)."""
        bias = None if self.bias is None else self.bias.float()
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            ops.check_size(input, -1, self.in_features)
            differentiated = gradients.wanted(input, bias)  # a condition of its own: TorchScript leaves the branch out
            if differentiated:
                return gradients.linear(input, self.packed, self.scale, bias, "auto", 0)
        out: Tensor = torch.ops.ternary.linear(input, self.packed, self.scale, bias, "auto", 0)
        return out

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 (outputs, inputs) weights."""
        return from_byte_tiles(self.packed, self.out_features, self.in_features)

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return (outputs, inputs)."""
        return (self.out_features, self.in_features)

    @torch.jit.unused
    def tiled(self, values: Tensor) -> Tensor:
        """Return int8 values in tiles."""
        return to_byte_tiles(values)


class Int8Conv2d(_Int8Layer):
    """Convolution with int8 weights.

    With one group and a multiple of 16 input channels it rounds its input to 8 bits per image and sums products in
    integers. Other convolutions are faster in float: they compute in the dtype of the input, with the values times
    scales as weight, which is kept between calls.

    Gradients reach the input and the bias as if nothing was rounded; the weight is fixed.

    Args:
        conv: The float layer to convert.

    Example:
        >>> import torch
        >>> from ternary.nn import Int8Conv2d
        >>> Int8Conv2d(torch.nn.Conv2d(3, 4, 3))(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 4, 6, 6])
    """

    if TYPE_CHECKING:  # torch.jit.script refuses the annotation of a list where it is assigned
        edges: list[int]

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode {conv.padding_mode!r} has no int8 form; use 'zeros'")
        self.in_channels: int = conv.in_channels
        self.out_channels: int = conv.out_channels
        self.groups: int = conv.groups
        (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
        self.kernel_size: tuple[int, int] = (kh, kw)
        self.stride: tuple[int, int] = (sh, sw)
        self.dilation: tuple[int, int] = (dh, dw)
        edges = padding_edges(conv)  # last dimension first, both sides
        even = edges[0] == edges[1] and edges[2] == edges[3]
        self.edges = edges if not even else [0]
        self.padding: tuple[int, int] = (edges[2], edges[0]) if even else (0, 0)
        self.in_integers: bool = conv.groups == 1 and conv.in_channels % 16 == 0
        values, scale = int8_rows(conv.weight)
        self._hold(conv, self.tiled(values), scale, conv.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, of shape (N, C, H, W) or (C, H, W)."""
        x = input if input.dim() == 4 else input.unsqueeze(0)
        if len(self.edges) == 4:
            x = functional.pad(x, self.edges)
        out = self._in_integers(x) if self.in_integers else self._in_float(x)
        return out if input.dim() == 4 else out.squeeze(0)

    def _in_integers(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            ops.check_size(x, -3, self.in_channels)
            differentiated = gradients.wanted(x, bias)  # a condition of its own: TorchScript leaves the branch out
            if differentiated:
                return gradients.conv2d(x, self.packed, self.scale, bias, *sizes, self.groups, "auto", 0)
        out: Tensor = torch.ops.ternary.conv2d(
            x, self.packed, self.scale, bias, sizes[0], sizes[1], sizes[2], sizes[3], self.groups, "auto", 0
        )
        return out

    def _in_float(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            weight = (self.packed.float() * self.scale[:, None, None, None]).to(x.dtype)
        else:
            weight = self._kept_weight(x.dtype)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.jit.unused
    def _kept_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the float weight, computed again only after a change."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return (self.packed.float() * self.scale[:, None, None, None]).to(dtype)
        parts = (self.packed, self.scale)
        key = (dtype, *((id(t), t.data_ptr(), version_of(t)) for t in parts))
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            weight = (self.packed.float() * self.scale[:, None, None, None]).to(dtype)
            kept = self.__dict__["_kept"] = (key, weight)
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_kept"}

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 (C_out, C_in / groups, KH, KW) weights."""
        return bytes_of_conv(self.packed, self.weight_shape(), self.groups) if self.in_integers else self.packed

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return (C_out, C_in / groups, KH, KW)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @torch.jit.unused
    def tiled(self, values: Tensor) -> Tensor:
        """Return int8 values as the layer stores them: in tiles for the integer kernels, else as they are."""
        return bytes_to_conv(values, self.groups) if self.in_integers else values
