"""Gradients of packed layers: those of the float product, as if neither weights nor activations had been rounded.

The product itself stays that of the integer kernels. A gradient costs nothing until it is asked for: the float weight
is unpacked in the backward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from ternary._torch_private import forward_mode
from ternary.runtime._layout import bytes_of_conv, from_byte_tiles, is_depthwise, untiled

__all__ = ["conv2d", "linear", "wanted"]

Sizes = tuple[int, int]


def wanted(x: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether a product has to know its gradients; a trace and an exported program are for inference."""
    if not isinstance(x, Tensor):  # as torch.fx traces
        return False
    reverse = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if torch.compiler.is_compiling():
        return reverse and not torch.compiler.is_exporting()
    return (reverse or forward_mode()) and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, kernel: str, threads: int) -> Tensor:
    """Return what the operator does; gradients reach `x` and `bias`."""
    if torch.compiler.is_compiling():
        return cast(Tensor, _Linear.apply(x, packed, scale, bias, kernel, threads))  # type: ignore[no-untyped-call]
    return cast(Tensor, _LinearBothWays.apply(x, packed, scale, bias, kernel, threads))  # type: ignore[no-untyped-call]


def conv2d(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, *rest: Sizes | int | str) -> Tensor:
    """Return what the operator does; gradients reach `x` and `bias`."""
    if torch.compiler.is_compiling():
        return cast(Tensor, _Conv2d.apply(x, packed, scale, bias, *rest))  # type: ignore[no-untyped-call]
    return cast(Tensor, _Conv2dBothWays.apply(x, packed, scale, bias, *rest))  # type: ignore[no-untyped-call]


class _Linear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return cast(Tensor, torch.ops.ternary.linear(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, packed, scale, bias = inputs[:4]
        ctx.save_for_backward(packed, scale)
        ctx.columns, ctx.bias_dtype = x.shape[-1], None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        packed, scale = ctx.saved_tensors
        grad, of_bias = outputs[0], None
        if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
            of_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        weight = _matrix(packed, scale, ctx.columns)
        return (grad.float() @ weight).to(grad.dtype), None, None, of_bias, None, None


class _LinearBothWays(_Linear):
    """The same with forward mode, which a compiler cannot record."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Linear.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        packed, scale = ctx.saved_tensors
        x, bias = tangents[0], tangents[3]
        moved = functional.linear(x.float(), _matrix(packed, scale, ctx.columns), bias)
        return moved.to(x.dtype)


class _Conv2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return cast(Tensor, torch.ops.ternary.conv2d(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, packed, scale, bias = inputs[:4]
        ctx.save_for_backward(packed, scale)
        ctx.shape, ctx.geometry, ctx.bias_dtype = x.shape, inputs[4:9], None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        packed, scale = ctx.saved_tensors
        grad, of_bias = outputs[0], None
        groups = ctx.geometry[4]
        if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
            of_bias = grad.sum((0, 2, 3)).to(ctx.bias_dtype)
        weight = _kernel(packed, scale, ctx.shape[1], ctx.geometry[0], groups)
        of_x = conv2d_input(ctx.shape, weight, grad.float(), *ctx.geometry[1:])  # type: ignore[no-untyped-call]
        return of_x.to(grad.dtype), None, None, of_bias, *[None] * 7


class _Conv2dBothWays(_Conv2d):
    """The same with forward mode, which a compiler cannot record."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Conv2d.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        packed, scale = ctx.saved_tensors
        x, bias = tangents[0], tangents[3]
        weight = _kernel(packed, scale, ctx.shape[1], ctx.geometry[0], ctx.geometry[4])
        return functional.conv2d(x.float(), weight, bias, *ctx.geometry[1:]).to(x.dtype)


def _matrix(packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    """Return the float32 weight of a linear layer, by operations that torch can record."""
    if packed.dtype == torch.int8:
        return from_byte_tiles(packed, scale.shape[0], columns).float() * scale[:, None]
    return untiled(packed, scale.shape[0], columns) * scale[:, None]


def _kernel(packed: Tensor, scale: Tensor, channels: int, kernel_size: Sizes, groups: int) -> Tensor:
    """Return the float32 weight of a convolution, by operations that torch can record."""
    out_channels, (height, width) = scale.shape[0], kernel_size
    shape = (out_channels, channels // groups, height, width)
    if packed.dtype == torch.int8:
        values = bytes_of_conv(packed, shape, groups).float()
    elif is_depthwise(channels, out_channels, groups):
        values = _row_values(packed, out_channels).T.reshape(shape)
    else:
        k = shape[1] * height * width
        matrix = untiled(packed, out_channels, k) if groups == 1 else _row_values(packed, k)
        values = matrix.reshape(out_channels, height, width, shape[1]).permute(0, 3, 1, 2)
    return values * scale.reshape(-1, 1, 1, 1)


def _row_values(packed: Tensor, columns: int) -> Tensor:
    """Unpack rows of bytes to float32 values."""
    places = packed.new_tensor([1, 4, 16, 64], dtype=torch.int32)
    return (packed.int().unsqueeze(-1) // places % 4).flatten(-2)[..., :columns].float() - 1
