"""Consecutive thin convolutions as one layer: one call of the core, or plain torch with equal results."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ternary._core import STAGE
from ternary.errors import LayerShapeError
from ternary.runtime import _gradients as gradients
from ternary.runtime import _native as native
from ternary.runtime import _ops as ops
from ternary.runtime._layout import Geometry

__all__ = ["Activation", "FusedChain", "Stage"]

_PRODUCT, _PRODUCT_8, _DEPTHWISE, _DENSE = range(4)  # as csrc/chain.h numbers them
_NONE, _CLAMP, _HARDSWISH = range(3)
_POINT = Geometry((1, 1))


@dataclass(frozen=True, slots=True)
class Activation:
    """What follows a convolution: a clamp to `low` … `high`, hardswish, or nothing."""

    low: float = -float("inf")
    high: float = float("inf")
    hardswish: bool = False

    @property
    def number(self) -> int:
        """The core's number of this kind."""
        if self.hardswish:
            return _HARDSWISH
        return _NONE if self == Activation() else _CLAMP

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it, in the order of operations of the core."""
        if self.hardswish:
            return x * (x + 3.0).clamp(0.0, 6.0) / 6.0
        return x.clamp(self.low, self.high) if self.number == _CLAMP else x


@dataclass(frozen=True, slots=True)
class Stage:
    """One convolution of a chain and what follows it.

    Attributes:
        weight: Tiles of a 1 x 1 convolution (uint8 or int8), or float32 taps: of shape (KH * KW, C) for a depthwise
            kernel, (KH * KW * C_in, C_out) for a dense one.
        scale: Float32 of shape (C_out,); None for float taps.
        bias: Float32 of shape (C_out,).
        channels: Channels of the input.
        geometry: How a float kernel moves.
        activation: What follows.
        dense: Whether every output of a float kernel has taps of all channels.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor
    channels: int
    geometry: Geometry = _POINT
    activation: Activation = Activation()
    dense: bool = False

    @property
    def kind(self) -> int:
        """The core's number of this kind."""
        if self.scale is None:
            return _DENSE if self.dense else _DEPTHWISE
        return _PRODUCT_8 if self.weight.dtype == torch.int8 else _PRODUCT

    def plain(self, x: Tensor) -> Tensor:
        """Compute float32 (B, C_in, H, W) in plain torch."""
        if self.scale is None:
            sums = _float_taps(x, self.weight, self.geometry, self.channels if self.dense else 1)
            return self.activation(sums + self.bias.reshape(1, -1, 1, 1))
        # By its operator, which tracers record.
        moving = ((1, 1), (1, 1), (0, 0), (1, 1), 1, "torch")
        product = gradients.conv2d if gradients.wanted(x) else torch.ops.ternary.conv2d
        return self.activation(product(x, self.weight, self.scale, self.bias, *moving))

    def packed(self) -> bytes:
        """Return the stage as the core reads it."""
        g = self.geometry
        scale = 0 if self.scale is None else self.scale.data_ptr()
        sizes = (self.kind, self.channels, self.bias.shape[0], *g.kernel_size, *g.stride, *g.padding, *g.dilation)
        limits = (self.activation.number, self.activation.low, self.activation.high)
        return STAGE.pack(*sizes, *limits, self.weight.data_ptr(), scale, self.bias.data_ptr())


def _float_taps(x: Tensor, weight: Tensor, geometry: Geometry, channels: int) -> Tensor:
    """Sum the taps one after the other, as the core does: a convolution of torch's may sum in any order."""
    (height, width), (ph, pw) = geometry.out_size(x.shape[2], x.shape[3]), geometry.padding
    around = functional.pad(x, (pw, pw, ph, ph))
    total = x.new_zeros(x.shape[0], weight.shape[1], height, width)
    for row in range(geometry.taps * channels):
        tap, channel = divmod(row, channels)
        (i, j), (rows, columns) = divmod(tap, geometry.kernel_size[1]), geometry.stride
        i, j = i * geometry.dilation[0], j * geometry.dilation[1]
        seen = around[:, :, i : i + (height - 1) * rows + 1 : rows, j : j + (width - 1) * columns + 1 : columns]
        of = seen if channels == 1 else seen[:, channel : channel + 1]
        total = total + of * weight[row].reshape(1, -1, 1, 1)
    return total


def _recorded(x: Tensor) -> bool:
    """Whether torch records operations, which a call of the core is none of."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor  # type: ignore[attr-defined,no-untyped-call]


class _Through(torch.autograd.Function):
    """A chain in the core; its gradients are those of plain torch, which is run for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: FusedChain) -> Tensor:
        ctx.save_for_backward(x)
        ctx.chain = chain
        return chain.computed(x, recorded=False)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(ctx.chain.plain(x), x, outputs[0])[0], None


class FusedChain(nn.Module):
    """Consecutive 1 x 1 and depthwise convolutions with what follows each, computed in one call.

    A 1 x 1 convolution rounds its input to int8, one scale an image, and sums in integers, as it does alone. Others
    compute in float. Every kernel and plain torch return the same bits. Gradients reach the input
    as if nothing was rounded.

    Args:
        stages: The convolutions in order; `ternary.runtime.fuse` makes them.
        kernel: "auto", or one of `available_kernels()`.
        threads: Native threads to use, 0 for torch.get_num_threads().
    """

    def __init__(self, stages: tuple[Stage, ...], *, kernel: str = "auto", threads: int = 0) -> None:
        super().__init__()
        self.kernel: str = kernel
        self.threads: int = threads
        self._plan = [(s.channels, s.geometry, s.activation, s.dense) for s in stages]
        self._width = stages[-1].bias.shape[0]
        self._resizing = [s.geometry for s in stages if s.geometry != _POINT]
        self._packed: tuple[tuple[Any, ...], ctypes.Array[ctypes.c_char]] | None = None
        for i, s in enumerate(stages):
            self.register_buffer(f"weight_{i}", s.weight)
            self.register_buffer(f"scale_{i}", s.scale)
            self.register_buffer(f"bias_{i}", s.bias)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The convolutions, with the tensors as they are now."""
        held = self._buffers
        return tuple(
            Stage(held[f"weight_{i}"], held[f"scale_{i}"], held[f"bias_{i}"], *planned)  # type: ignore[arg-type]
            for i, planned in enumerate(self._plan)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C_in, H, W) in any floating dtype: (B, C_out, OH, OW) of the same dtype."""
        recorded = _recorded(x)
        if not recorded and gradients.wanted(x):
            return cast(Tensor, _Through.apply(x, self))  # type: ignore[no-untyped-call]
        return self.computed(x, recorded)

    def computed(self, x: Tensor, recorded: bool) -> Tensor:
        """Compute in the core where it can, else in plain torch."""
        size = None if recorded else self._out_size(x)
        path = -1 if x.device.type != "cpu" or recorded else native.path_number(self.kernel)
        if path < 0 or size is None or not x.numel():
            return self.plain(x if recorded and gradients.wanted(x) else x.detach())
        program = self._program()
        image = x.detach().float().contiguous(memory_format=torch.channels_last)
        out = torch.empty((x.shape[0], *size), dtype=torch.float32, device="cpu")
        native.run_chain(path, self.threads or torch.get_num_threads(), image, program, len(self._plan), out)
        return out.permute(0, 3, 1, 2).to(x.dtype)

    def plain(self, x: Tensor) -> Tensor:
        """Compute in plain torch, which knows its gradients."""
        with torch.autocast(x.device.type, enabled=False):
            y = x.float()
            for stage in self.stages:
                y = stage.plain(y)
        return y.to(x.dtype)

    def _program(self) -> ctypes.Array[ctypes.c_char]:
        """Return the stages as the core reads them, written again only after a tensor was replaced."""
        held = [t for t in self._buffers.values() if t is not None]
        for t in held:
            ops.check_once(t)
        key = tuple((t.data_ptr(), t.dtype) for t in held)
        known = self._packed
        if known is None or known[0] != key:
            program = b"".join(stage.packed() for stage in self.stages)
            # Replaced as a whole: several threads may use one layer.
            known = self._packed = key, ctypes.create_string_buffer(program, len(program))
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # a copy has tensors of its own

    def _out_size(self, x: Tensor) -> tuple[int, int, int]:
        """Return height, width and channels of the output; refuse an input that does not fit."""
        channels = self._plan[0][0]
        if x.dim() != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise LayerShapeError(f"got {x.dtype} of shape {tuple(x.shape)}, wanted floats (batch, {channels}, H, W)")
        height, width = x.shape[2], x.shape[3]
        for geometry in self._resizing:
            height, width = geometry.out_size(height, width)
            if height < 1 or width < 1:
                raise LayerShapeError(f"got an image of {x.shape[2]} x {x.shape[3]}, too small for {geometry}")
        return height, width, self._width

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the layer; every tensor keeps its dtype."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def extra_repr(self) -> str:
        """Channels from stage to stage, and kernel, for print."""
        names = [f"{s.channels}" + ("", "", " depthwise", " dense")[s.kind] for s in self.stages]
        return f"{' -> '.join(names)} -> {self.stages[-1].bias.shape[0]}, kernel={self.kernel}"
