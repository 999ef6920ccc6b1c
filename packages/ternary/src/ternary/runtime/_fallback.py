"""The kernels in plain torch, for any device and without a compiler: the same integers as the native core.

A float32 product of integer-valued matrices is exact while every partial sum stays below 2^24.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ternary.runtime._layout import Geometry, from_tiles, unpack_conv_weight

__all__ = ["conv2d", "conv2d_sums", "linear", "linear_sums", "quantize"]

SMALLEST = 1e-30
"""Rows whose largest magnitude is below this count as zero: 127 / magnitude would overflow."""

_EXACT_COLUMNS = 1 << 17  # 2^17 * 127 < 2^24


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize the last dimension of float32 `x` to int8 in -127 … 127, one scale a row, rounding half to even.

    Returns:
        int8 of x's shape, and float32 scales of shape (...,): absmax / 127; 0 for a zero row, NaN (and zeros for
        integers) for a row with a NaN or an infinity in it.
    """
    absmax = x.abs().amax(dim=-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    limit = torch.full_like(absmax, 127.0)
    used = torch.isfinite(absmax) & (absmax >= SMALLEST)
    # Tensor by tensor: dividing by a Python number may multiply with its reciprocal, which rounds otherwise.
    inverse = torch.where(used, limit / absmax, 0.0)
    q = torch.where(used.unsqueeze(-1), x * inverse.unsqueeze(-1), 0.0).round().to(torch.int8)
    scale = torch.where(used, absmax / limit, torch.where(torch.isfinite(absmax), 0.0, torch.nan))
    return q, scale


def linear_sums(q: Tensor, values: Tensor) -> Tensor:
    """int32 (M, N) products of int8 (M, K) activations with ternary (N, K) values."""
    total = torch.zeros(q.shape[0], values.shape[0], dtype=torch.int32, device=q.device)
    for start in range(0, q.shape[1], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        total += (q[:, part].float() @ values[:, part].float().T).int()
    return total


def linear(x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """float32 (M, N) product of float32 (M, K) with tiled weights."""
    q, x_scale = quantize(x)
    y = linear_sums(q, from_tiles(tiles, scale.shape[0], x.shape[1])).float() * x_scale.unsqueeze(1) * scale
    return y if bias is None else y + bias


def conv2d_sums(q: Tensor, values: Tensor, geometry: Geometry) -> Tensor:
    """int32 (B, C_out, OH, OW) convolution of int8 (B, C_in, H, W) with ternary (C_out, C_in / groups, KH, KW)."""
    out_channels, batch, groups = values.shape[0], q.shape[0], geometry.groups
    height, width = geometry.out_size(q.shape[2], q.shape[3])
    if not batch * height * width * out_channels:
        return torch.zeros(batch, out_channels, height, width, dtype=torch.int32, device=q.device)
    # Not F.conv2d: a convolution may be computed through Winograd's transform, which is not exact.
    columns = F.unfold(q.float(), geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride)
    columns = columns.reshape(batch, groups, -1, height * width)
    matrix = values.reshape(groups, out_channels // groups, -1).float()
    total = torch.zeros(batch, groups, matrix.shape[1], height * width, dtype=torch.int32, device=q.device)
    for start in range(0, matrix.shape[2], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        total += (matrix[:, :, part] @ columns[:, :, part]).int()
    return total.reshape(batch, out_channels, height, width)


def conv2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """float32 (B, C_out, OH, OW) convolution of float32 (B, C_in, H, W), one activation scale an image."""
    q, x_scale = quantize(x.flatten(1))
    shape = (scale.shape[0], x.shape[1] // geometry.groups, *geometry.kernel_size)
    values = unpack_conv_weight(weight, shape, geometry.groups)
    sums = conv2d_sums(q.reshape(x.shape), values, geometry)
    y = sums.float() * x_scale.reshape(-1, 1, 1, 1) * scale.reshape(1, -1, 1, 1)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)
