"""Layers with packed ternary weights, for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn import functional

from ternary.errors import LayerShapeError
from ternary.packing import pack_2bit, unpack_2bit
from ternary.runtime import _gradients as gradients
from ternary.runtime import _ops as ops
from ternary.runtime._face import PackedLayer
from ternary.runtime._layout import (
    Geometry,
    from_tiles,
    pack_conv_weight,
    tile_shape,
    to_tiles,
    unpack_conv_weight,
    untiled,
)
from ternary.runtime._shortcut import Shortcut

__all__ = ["PackedConv2d", "PackedEmbedding", "PackedLinear"]


class PackedLinear(PackedLayer):
    """A linear layer x W^T * scale + bias with 2-bit weights and int8 activations, quantized row by row at each call.

    The state dict holds `packed` (uint8 tiles, 1/16 of float32), `scale` and `bias` (float32). Gradients
    reach the input as if nothing was rounded; the weight is fixed.

    Args:
        in_features: Columns K of the weight.
        out_features: Rows N of the weight.
        bias: Whether a bias is added.
        kernel: "auto" for the fastest on the input's device, or one of `available_kernels()`, or "triton",
            or "triton-split", which also shares the columns of a single row among the programs of a GPU.
        threads: Native threads to use, 0 for torch.get_num_threads().

    Example:
        >>> import torch
        >>> from ternary.runtime import PackedLinear
        >>> layer = PackedLinear.from_ternary(torch.tensor([[1, 0, -1]]), 0.5)
        >>> layer(torch.tensor([[127.0, 5.0, 7.0]])).tolist()
        [[60.0]]
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are text
        packed: Tensor
        scale: Tensor
        bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, kernel: str = "auto", threads: int = 0
    ) -> None:
        super().__init__()
        self.in_features: int = in_features
        self.out_features: int = out_features
        self.dtype: torch.dtype = torch.float32
        self.kernel: str = ops.check_kernel(kernel)
        self.threads: int = threads
        self._shortcut = Shortcut()
        # Code 1 in all four fields: a new layer has zero weights.
        self.register_buffer("packed", torch.full(tile_shape(out_features, in_features), 0x55, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32) if bias else None)

    @classmethod
    def from_ternary(
        cls,
        values: Tensor,
        scale: Tensor | float,
        bias: Tensor | None = None,
        *,
        kernel: str = "auto",
        threads: int = 0,
    ) -> Self:
        """Build the layer from ternary weights.

        Args:
            values: Tensor of -1, 0, +1 of shape (N, K), int8 as a rule.
            scale: Magnitude of +1: one number, or one per output, of shape (N,) or (N, 1).
            bias: Float tensor of shape (N,), or None.
            kernel: As for the constructor.
            threads: As for the constructor.

        Raises:
            TernaryValueError: A value outside the set.
            LayerShapeError: Scale or bias do not fit the values.
        """
        tiles = to_tiles(values)
        n, k = values.shape
        layer = cls(k, n, bias is not None, kernel=kernel, threads=threads)
        layer.packed, layer.scale, layer.bias = tiles, _per_channel("scale", scale, n, values), _bias(bias, n, values)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Product of (..., K) in any floating dtype with the weights: (..., N) of the same dtype."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            ops.check_size(x, -1, self.in_features)
            y = None
            if not torch.compiler.is_compiling():
                y = self._shortcut.linear(x, self._buffers, self.kernel, self.threads)
            if y is not None:
                return y
            differentiated = gradients.wanted(x)  # a condition of its own: TorchScript leaves the branch out
            if differentiated:
                return gradients.linear(x, self.packed, self.scale, self.bias, self.kernel, self.threads)
        return torch.ops.ternary.linear(x, self.packed, self.scale, self.bias, self.kernel, self.threads)  # type: ignore[no-any-return]

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 (N, K) weights."""
        return from_tiles(self.packed, self.out_features, self.in_features)

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return (N, K)."""
        return (self.out_features, self.in_features)

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float (N, K) weight."""
        values = untiled(self.packed, self.out_features, self.in_features)
        return (values * self.scale.unsqueeze(1)).to(self.dtype)

    def extra_repr(self) -> str:
        """Sizes and kernel, for print."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, kernel={self.kernel}"


class PackedConv2d(PackedLayer):
    """A convolution with 2-bit weights and int8 activations, quantized image by image at each call, zero-padded.

    Strided, padded, dilated, grouped and depthwise. Output is channels-last in memory; channels-last input is read as
    it is, other input is rearranged first. The state dict holds `packed` (uint8), `scale` and `bias` (float32).
    Gradients reach the input as if nothing was rounded; the weight is fixed.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One number or (height, width); likewise stride, padding and dilation.
        stride: Step of the kernel.
        padding: Zeros around the input.
        dilation: Distance of the kernel's taps.
        groups: Groups of channels that do not mix.
        bias: Whether a bias is added.
        kernel: "auto" or one of `available_kernels()`.
        threads: Native threads to use, 0 for torch.get_num_threads().

    Example:
        >>> import torch
        >>> from ternary.runtime import PackedConv2d
        >>> layer = PackedConv2d.from_ternary(torch.ones(4, 1, 3, 3), 1.0, padding=1)
        >>> layer(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are text
        packed: Tensor
        scale: Tensor
        bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        kernel: str = "auto",
        threads: int = 0,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise LayerShapeError(f"got {groups} groups for {in_channels} input and {out_channels} output channels")
        self.in_channels: int = in_channels
        self.out_channels: int = out_channels
        self.groups: int = groups
        self.padding_mode: str = "zeros"
        self.dtype: torch.dtype = torch.float32
        self.kernel_size: tuple[int, int] = _pair(kernel_size)
        self.stride: tuple[int, int] = _pair(stride)
        self.padding: tuple[int, int] = _pair(padding)
        self.dilation: tuple[int, int] = _pair(dilation)
        self.kernel: str = ops.check_kernel(kernel)
        self.threads: int = threads
        geometry = Geometry(self.kernel_size, self.stride, self.padding, self.dilation, groups)
        shape = geometry.weight_shape(in_channels, out_channels)
        self.register_buffer("packed", torch.full(shape, 0x55, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(out_channels, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(out_channels, dtype=torch.float32) if bias else None)

    @classmethod
    def from_ternary(
        cls,
        values: Tensor,
        scale: Tensor | float,
        bias: Tensor | None = None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        kernel: str = "auto",
        threads: int = 0,
    ) -> Self:
        """Build the layer from ternary weights.

        Args:
            values: Tensor of -1, 0, +1 of shape (C_out, C_in / groups, KH, KW), int8 as a rule.
            scale: Magnitude of +1: one number, or one per output channel.
            bias: Float tensor of shape (C_out,), or None.
            stride: As for the constructor, likewise the other arguments.
            padding: Zeros around the input.
            dilation: Distance of the kernel's taps.
            groups: Groups of channels that do not mix.
            kernel: As for the constructor.
            threads: As for the constructor.

        Raises:
            TernaryValueError: A value outside the set, or not four dimensions.
            LayerShapeError: Scale or bias do not fit the values.
        """
        weight = pack_conv_weight(values, groups)
        n, group_in, height, width = values.shape
        layer = cls(
            group_in * groups,
            n,
            (height, width),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias is not None,
            kernel=kernel,
            threads=threads,
        )
        layer.packed, layer.scale, layer.bias = weight, _per_channel("scale", scale, n, values), _bias(bias, n, values)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C_in, H, W) in any floating dtype: (B, C_out, OH, OW) of the same dtype."""
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            ops.check_size(x, -3, self.in_channels)
            differentiated = gradients.wanted(x)  # a condition of its own: TorchScript leaves the branch out
            if differentiated:
                rest = (*sizes, self.groups, self.kernel, self.threads)
                return gradients.conv2d(x, self.packed, self.scale, self.bias, *rest)
        return torch.ops.ternary.conv2d(  # type: ignore[no-any-return]
            x,
            self.packed,
            self.scale,
            self.bias,
            sizes[0],
            sizes[1],
            sizes[2],
            sizes[3],
            self.groups,
            self.kernel,
            self.threads,
        )

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 (C_out, C_in / groups, KH, KW) weights."""
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        return unpack_conv_weight(self.packed, shape, self.groups)

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return (C_out, C_in / groups, KH, KW)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float (C_out, C_in / groups, KH, KW) weight."""
        return (self.values() * self.scale.reshape(-1, 1, 1, 1)).to(self.dtype)

    def extra_repr(self) -> str:
        """Sizes and kernel, for print."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, bias={self.bias is not None}, kernel={self.kernel}"
        )


class PackedEmbedding(PackedLayer):
    """A table of V ternary vectors of D values in 2 bits each, with one scale a row; looked up in plain torch.

    Args:
        num_embeddings: Rows V.
        embedding_dim: Values D of a row.
        dtype: Dtype of the result.

    Example:
        >>> import torch
        >>> from ternary.runtime import PackedEmbedding
        >>> table = PackedEmbedding.from_ternary(torch.tensor([[1, 0], [-1, 1]]), 0.5)
        >>> table(torch.tensor([1])).tolist()
        [[-0.5, 0.5]]
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are text
        packed: Tensor
        scale: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_embeddings: int = num_embeddings
        self.embedding_dim: int = embedding_dim
        self.dtype: torch.dtype = dtype
        packed = torch.full((num_embeddings, -(-embedding_dim // 4)), 0x55, dtype=torch.uint8)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", torch.ones(num_embeddings, dtype=torch.float32))

    @classmethod
    def from_ternary(cls, values: Tensor, scale: Tensor | float, *, dtype: torch.dtype = torch.float32) -> Self:
        """Build the table from -1, 0, +1 of shape (V, D) and one scale, or one per row."""
        packed = pack_2bit(values)
        if values.dim() != 2:
            raise LayerShapeError(f"got values of shape {tuple(values.shape)}, wanted (V, D)")
        layer = cls(*values.shape, dtype=dtype)
        layer.packed, layer.scale = packed, _per_channel("scale", scale, values.shape[0], values)
        return layer

    def forward(self, index: Tensor) -> Tensor:
        """Look up integers of any shape in 0 … V - 1: shape (..., D), in the table's dtype."""
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():  # type: ignore[attr-defined]
            ops.check_once(self.packed)
        # By division, not by shifts: torch's ONNX exporter gets those of bytes wrong.
        places = torch.tensor([1, 4, 16, 64], dtype=torch.int32, device=self.packed.device)
        codes = functional.embedding(index, self.packed).int().unsqueeze(-1) // places % 4
        values = codes.flatten(-2)[..., : self.embedding_dim].float() - 1
        return (values * self.scale[index].unsqueeze(-1)).to(self.dtype)

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 (V, D) table."""
        return unpack_2bit(self.packed, self.embedding_dim)

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return (V, D)."""
        return (self.num_embeddings, self.embedding_dim)

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float (V, D) table."""
        return (self.values() * self.scale.unsqueeze(1)).to(self.dtype)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _per_channel(name: str, value: Tensor | float, n: int, values: Tensor) -> Tensor:
    given = torch.as_tensor(value, dtype=torch.float32, device=values.device).detach()
    if given.numel() != 1 and given.numel() != n:
        raise LayerShapeError(f"got {given.numel()} numbers as {name} for {n} output channels, wanted 1 or {n}")
    if not bool(torch.isfinite(given).all()):
        raise LayerShapeError(f"got a {name} that is NaN or infinite")
    return given.reshape(-1).expand(n).clone()


def _bias(bias: Tensor | None, n: int, values: Tensor) -> Tensor | None:
    if bias is not None and bias.shape != (n,):
        raise LayerShapeError(f"got a bias of shape {tuple(bias.shape)} for {n} output channels, wanted ({n},)")
    return None if bias is None else _per_channel("bias", bias, n, values)
