"""Ternary matrices in the order in which kernels read them (docs/packing-format.md), and how a convolution moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ternary.errors import PackedDataError, TernaryValueError
from ternary.packing import pack_2bit, unpack_2bit

__all__ = [
    "SIDE",
    "Geometry",
    "from_tiles",
    "is_depthwise",
    "pack_conv_weight",
    "tile_shape",
    "to_tiles",
    "unpack_conv_weight",
]

SIDE = 16
"""Rows and columns of a tile."""


def tile_shape(n: int, k: int) -> tuple[int, int, int, int]:
    """Shape of the tiles of an n x k matrix, in bytes."""
    return (-(-n // SIDE), -(-k // SIDE), SIDE, SIDE // 4)


def to_tiles(values: Tensor) -> Tensor:
    """Pack an (N, K) matrix of -1, 0, +1 into tiles of 16 x 16.

    Returns:
        uint8 of shape (ceil(N / 16), ceil(K / 16), 16, 4), contiguous.

    Raises:
        TernaryValueError: Not a matrix, or a value outside {-1, 0, +1}.
    """
    if values.dim() != 2:
        raise TernaryValueError(f"got values of shape {tuple(values.shape)}, wanted a matrix (N, K)")
    n, k = values.shape
    strips, tiles, _, _ = tile_shape(n, k)
    whole = values.new_zeros(strips * SIDE, tiles * SIDE)
    whole[:n, :k] = values
    packed = pack_2bit(whole)
    return packed.reshape(strips, SIDE, tiles, SIDE // 4).transpose(1, 2).contiguous()


def from_tiles(tiles: Tensor, n: int, k: int) -> Tensor:
    """Unpack what `to_tiles` packed: the int8 (n, k) matrix.

    Raises:
        PackedDataError: Wrong shape for n and k, a code 3, or filling other than zeros.
    """
    if tuple(tiles.shape) != tile_shape(n, k):
        raise PackedDataError(f"got tiles of shape {tuple(tiles.shape)}; a {n} x {k} matrix takes {tile_shape(n, k)}")
    strips, width = tiles.shape[:2]
    rows = unpack_2bit(tiles.transpose(1, 2).reshape(strips * SIDE, width * SIDE // 4), width * SIDE)
    if bool(rows[n:].any()) or bool(rows[:, k:].any()):
        raise PackedDataError(f"got filling other than zeros around a {n} x {k} matrix; the tiles are damaged")
    return rows[:n, :k].contiguous()


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a two-dimensional convolution moves over its input; each pair is (height, width)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(
        cls,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Geometry:
        """Return the geometry of an operator's arguments."""
        kernel, step, edge, spread = ((int(s[0]), int(s[1])) for s in (kernel_size, stride, padding, dilation))
        return cls(kernel, step, edge, spread, groups)

    @property
    def taps(self) -> int:
        """The positions of the kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output."""
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                (height, width), self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        return sizes[0], sizes[1]

    def weight_shape(self, in_channels: int, out_channels: int) -> tuple[int, ...]:
        """Return the shape of the packed weight, in bytes."""
        if is_depthwise(in_channels, out_channels, self.groups):
            return (self.taps, -(-in_channels // 4))
        if self.groups == 1:
            return tile_shape(out_channels, self.taps * in_channels)
        return (out_channels, -(-self.taps * in_channels // self.groups // 4))


def is_depthwise(in_channels: int, out_channels: int, groups: int) -> bool:
    """Whether each channel has a kernel of its own; such weights are packed along the channels."""
    return groups > 1 and groups == in_channels == out_channels


def pack_conv_weight(values: Tensor, groups: int) -> Tensor:
    """Pack (C_out, C_in / groups, KH, KW) values as the convolution kernels read them.

    Returns:
        uint8: tiles of the (C_out, KH * KW * C_in) matrix for one group; rows of C_out for more, since tiles would
        be mostly filling; rows of KH * KW taps along the channels for a depthwise convolution.
    """
    if values.dim() != 4:
        raise TernaryValueError(f"got values of shape {tuple(values.shape)}, wanted (C_out, C_in / groups, KH, KW)")
    out_channels, group_in = values.shape[:2]
    if is_depthwise(group_in * groups, out_channels, groups):
        return pack_2bit(values.reshape(out_channels, -1).T)
    matrix = values.permute(0, 2, 3, 1).reshape(out_channels, -1)
    return to_tiles(matrix) if groups == 1 else pack_2bit(matrix)


def unpack_conv_weight(packed: Tensor, shape: tuple[int, int, int, int], groups: int) -> Tensor:
    """Unpack what `pack_conv_weight` packed: int8 of `shape` (C_out, C_in / groups, KH, KW)."""
    out_channels, group_in, height, width = shape
    if is_depthwise(group_in * groups, out_channels, groups):
        return unpack_2bit(packed, out_channels).T.reshape(shape)
    k = group_in * height * width
    matrix = from_tiles(packed, out_channels, k) if groups == 1 else unpack_2bit(packed, k)
    return matrix.reshape(out_channels, height, width, group_in).permute(0, 3, 1, 2).contiguous()
