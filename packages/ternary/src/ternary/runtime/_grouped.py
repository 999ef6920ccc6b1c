"""Linear layers with a scale for each output and group of inputs: the operator, its gradients, and the packed layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from ternary._core import path_number
from ternary.errors import KernelUnavailableError, LayerShapeError
from ternary.nn._quantizers import spread
from ternary.runtime import _gradients as gradients
from ternary.runtime import _native as native
from ternary.runtime import _ops as ops
from ternary.runtime._face import PackedLayer
from ternary.runtime._fallback import linear_sums, quantize
from ternary.runtime._layout import SIDE, from_tiles, tile_shape, to_tiles, untiled

__all__ = ["PackedGroupedLinear"]


def _groups(columns: int, group: int) -> int:
    return -(-columns // group)


def _padded(columns: int, group: int) -> int:
    """Columns of the tiles: each group is filled up to whole tiles."""
    return _groups(columns, group) * -(-group // SIDE) * SIDE


def _spaced(values: Tensor, group: int) -> Tensor:
    """Fill each group of an (N, K) matrix up with zeros to whole tiles."""
    n, k = values.shape
    whole = functional.pad(values, (0, _groups(k, group) * group - k)).reshape(n, -1, group)
    return functional.pad(whole, (0, -group % SIDE)).reshape(n, -1)


def _unspaced(spaced: Tensor, columns: int, group: int) -> Tensor:
    """Return the (N, K) matrix that `_spaced` filled up."""
    n = spaced.shape[0]
    return spaced.reshape(n, _groups(columns, group), -1)[:, :, :group].reshape(n, -1)[:, :columns]


def _scale_tiles(scale: Tensor) -> Tensor:
    """Order scales (N, G) as the kernels read them: (ceil(N / 16), G, 16), filled up with zeros."""
    n, groups = scale.shape
    return functional.pad(scale, (0, 0, 0, -n % SIDE)).reshape(-1, SIDE, groups).transpose(1, 2).contiguous()


def _scale_rows(tiles: Tensor, n: int) -> Tensor:
    """Return the scales (N, G) that `_scale_tiles` ordered."""
    return tiles.transpose(1, 2).reshape(tiles.shape[0] * SIDE, tiles.shape[1])[:n]


ops.LIBRARY.define(  # type: ignore[no-untyped-call]
    "grouped_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int outputs, int group, str path='auto', "
    "int threads=0) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides),
)


def _check(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, outputs: int, group: int) -> None:
    """Raise LayerShapeError unless the parts are those of a layer with groups, and an input that fits it."""
    if not x.is_floating_point() or x.dim() == 0:
        raise LayerShapeError(f"got an input of dtype {x.dtype}, shape {tuple(x.shape)}; wanted floats (..., K)")
    if group < 1 or outputs < 0:
        raise LayerShapeError(f"got groups of {group} inputs and {outputs} outputs")
    wanted = tile_shape(outputs, _padded(x.shape[-1], group))
    scales = (wanted[0], _groups(x.shape[-1], group), SIDE)
    fits = weight.dtype == torch.uint8 and weight.shape == wanted and weight.is_contiguous()
    fits = fits and scale.dtype == torch.float32 and scale.shape == scales and scale.is_contiguous()
    parts = [weight, scale]
    if bias is not None:
        fits = fits and bias.dtype == torch.float32 and bias.shape == (outputs,) and bias.is_contiguous()
        parts.append(bias)
    if not fits or any(part.device != x.device for part in parts):
        got = ", ".join(f"{part.dtype} {tuple(part.shape)} on {part.device}" for part in parts)
        raise LayerShapeError(
            f"got an input of shape {tuple(x.shape)} on {x.device} and parts {got}; groups of {group} inputs and "
            f"{outputs} outputs take contiguous uint8 weights {wanted}, float32 scales {scales} and bias ({outputs},)"
        )
    ops.check_once(weight)


def _in_torch(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, outputs: int, group: int) -> Tensor:
    """The kernels' integers and floats in plain torch, group by group in their order."""
    columns = rows.shape[1]
    q, x_scale = quantize(rows)
    values = _unspaced(from_tiles(weight, outputs, _padded(columns, group)), columns, group)
    scales = _scale_rows(scale, outputs)
    y = torch.zeros(rows.shape[0], outputs, device=rows.device) if bias is None else bias
    for number in range(scales.shape[1]):
        part = slice(number * group, (number + 1) * group)
        product = linear_sums(q[:, part], values[:, part]).float() * x_scale.unsqueeze(1) * scales[:, number]
        y = product if number == 0 and bias is None else product + y
    return y if y.dim() == 2 else y.expand(rows.shape[0], outputs).clone()


def _on_cpu(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    outputs: int,
    group: int,
    path: str = "auto",
    threads: int = 0,
) -> Tensor:
    number = path_number(path)
    if number < 0 or not x.numel():
        return _elsewhere(x, weight, scale, bias, outputs, group)
    _check(x, weight, scale, bias, outputs, group)
    rows = functional.pad(x.reshape(-1, x.shape[-1]).float(), (0, -x.shape[-1] % group)).contiguous()
    y = native.grouped_linear(rows, weight, scale, bias, outputs, group, number, threads or torch.get_num_threads())
    return y.to(x.dtype).reshape(*x.shape[:-1], outputs)


def _elsewhere(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    outputs: int,
    group: int,
    path: str = "auto",
    threads: int = 0,
) -> Tensor:
    del threads  # of the native core
    if path in ops.TRITON:
        raise KernelUnavailableError(f'got kernel="{path}", which has no scales per group; use "auto" or "torch"')
    _check(x, weight, scale, bias, outputs, group)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).float()
    y = ops.without_autocast(_in_torch, rows, weight, scale, bias, outputs, group)
    return y.to(x.dtype).reshape(*x.shape[:-1], outputs)


def _shape(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    outputs: int,
    group: int,
    path: str = "auto",
    threads: int = 0,
) -> Tensor:
    del weight, scale, bias, group, path, threads  # the shape does not depend on them
    return x.new_empty((*x.shape[:-1], outputs))


def _map(info: Any, in_dims: tuple[Any, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """The rule of torch.func.vmap, as of layers without groups."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:4]):
        return ops.one_by_one(torch.ops.ternary.grouped_linear, info.batch_size, in_dims, (x, *rest))
    return torch.ops.ternary.grouped_linear(x.movedim(in_dims[0], 0), *rest), 0


ops.LIBRARY.impl("grouped_linear", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
ops.LIBRARY.impl("grouped_linear", _elsewhere, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("ternary::grouped_linear", _shape, lib=ops.LIBRARY)
torch.library.register_vmap("ternary::grouped_linear", _map, lib=ops.LIBRARY)


def _matrix(packed: Tensor, scale: Tensor, outputs: int, columns: int, group: int) -> Tensor:
    """Return the float32 weight, by operations that torch can record."""
    values = _unspaced(untiled(packed, outputs, _padded(columns, group)), columns, group)
    return values * spread(_scale_rows(scale, outputs), columns, group)


class _Product(torch.autograd.Function):
    """Gradients as of layers without groups: those of the float product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return cast(Tensor, torch.ops.ternary.grouped_linear(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, packed, scale, bias = inputs[:4]
        ctx.save_for_backward(packed, scale)
        ctx.sizes, ctx.bias_dtype = (inputs[4], x.shape[-1], inputs[5]), None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad, of_bias = outputs[0], None
        if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
            of_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        of_x = grad.float() @ _matrix(*ctx.saved_tensors, *ctx.sizes)
        return of_x.to(grad.dtype), None, None, of_bias, None, None, None, None


class _ProductBothWays(_Product):
    """The same with forward mode, which a compiler cannot record."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Product.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, bias = tangents[0], tangents[3]
        return functional.linear(x.float(), _matrix(*ctx.saved_tensors, *ctx.sizes), bias).to(x.dtype)


class PackedGroupedLinear(PackedLayer):
    """A linear layer with 2-bit weights and a scale for each output and `group` inputs; int8 activations a row.

    Runs on the kernels of `PackedLinear`, or in plain torch on a GPU. The state dict holds `packed` (uint8 tiles),
    `scale` (float32, ordered as the tiles are) and `bias`. A group that is a multiple of 16 leaves no tile half empty.

    Args:
        in_features: Columns K of the weight.
        out_features: Rows N of the weight.
        group: Columns that share a scale; the last group has those that are left over.
        bias: Whether a bias is added.
        kernel: "auto" for the fastest on the input's device, or one of `available_kernels()`.
        threads: Native threads to use, 0 for torch.get_num_threads().

    Example:
        >>> import torch
        >>> from ternary.runtime import PackedGroupedLinear
        >>> layer = PackedGroupedLinear.from_ternary(torch.tensor([[1, 0, -1]]), torch.tensor([[0.5, 2.0]]), 2)
        >>> layer(torch.tensor([[127.0, 5.0, 7.0]])).tolist()
        [[49.5]]
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are text
        packed: Tensor
        scale: Tensor
        bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: int,
        bias: bool = True,
        *,
        kernel: str = "auto",
        threads: int = 0,
    ) -> None:
        super().__init__()
        if type(group) is not int or group < 1:
            raise LayerShapeError(f"got groups of {group!r} inputs, wanted a whole number, 1 or more")
        self.in_features: int = in_features
        self.out_features: int = out_features
        self.group: int = group
        self.dtype: torch.dtype = torch.float32
        self.kernel: str = ops.check_kernel(kernel)
        self.threads: int = threads
        shape = tile_shape(out_features, _padded(in_features, group))
        self.register_buffer("packed", torch.full(shape, 0x55, dtype=torch.uint8))  # zeros
        self.register_buffer("scale", torch.ones(shape[0], _groups(in_features, group), SIDE))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_ternary(
        cls,
        values: Tensor,
        scale: Tensor,
        group: int,
        bias: Tensor | None = None,
        *,
        kernel: str = "auto",
        threads: int = 0,
    ) -> Self:
        """Build the layer from ternary weights.

        Args:
            values: Tensor of -1, 0, +1 of shape (N, K), int8 as a rule.
            scale: Magnitude of +1 in each group, of shape (N, ceil(K / group)).
            group: Columns that share a scale.
            bias: Float tensor of shape (N,), or None.
            kernel: As for the constructor.
            threads: As for the constructor.

        Raises:
            TernaryValueError: A value outside the set.
            LayerShapeError: Scale or bias do not fit the values.
        """
        if values.dim() != 2:
            raise LayerShapeError(f"got values of shape {tuple(values.shape)}, wanted a matrix (N, K)")
        n, k = values.shape
        layer = cls(k, n, group, bias is not None, kernel=kernel, threads=threads)
        if scale.shape != (n, _groups(k, group)) or not bool(torch.isfinite(scale).all()):
            raise LayerShapeError(
                f"got scales of shape {tuple(scale.shape)}, wanted finite ones of shape {(n, _groups(k, group))}"
            )
        if bias is not None and (bias.shape != (n,) or not bool(torch.isfinite(bias).all())):
            raise LayerShapeError(f"got a bias of shape {tuple(bias.shape)}, wanted a finite one of shape ({n},)")
        layer.packed = to_tiles(_spaced(values, group))
        layer.scale = _scale_tiles(scale.detach().to(values.device, torch.float32))
        layer.bias = None if bias is None else bias.detach().to(values.device, torch.float32).clone()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Product of (..., K) in any floating dtype with the weights: (..., N) of the same dtype."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            ops.check_size(x, -1, self.in_features)
            differentiated = gradients.wanted(x)  # a condition of its own: TorchScript leaves the branch out
            if differentiated:
                return self._differentiated(x)
        return torch.ops.ternary.grouped_linear(  # type: ignore[no-any-return]
            x, self.packed, self.scale, self.bias, self.out_features, self.group, self.kernel, self.threads
        )

    @torch.jit.unused
    def _differentiated(self, x: Tensor) -> Tensor:
        product = _Product if torch.compiler.is_compiling() else _ProductBothWays
        parts = (self.packed, self.scale, self.bias, self.out_features, self.group, self.kernel, self.threads)
        return cast(Tensor, product.apply(x, *parts))  # type: ignore[no-untyped-call]

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 (N, K) weights."""
        spaced = from_tiles(self.packed, self.out_features, _padded(self.in_features, self.group))
        return _unspaced(spaced, self.in_features, self.group).contiguous()

    @torch.jit.unused
    def scales(self) -> Tensor:
        """Return the float32 scales, of shape (N, groups)."""
        return _scale_rows(self.scale, self.out_features).contiguous()

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return (N, K)."""
        return (self.out_features, self.in_features)

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float (N, K) weight."""
        return _matrix(self.packed, self.scale, self.out_features, self.in_features, self.group).to(self.dtype)

    def extra_repr(self) -> str:
        """Sizes and kernel, for print."""
        sizes = f"{self.in_features}, {self.out_features}, group={self.group}"
        return f"{sizes}, bias={self.bias is not None}, kernel={self.kernel}"
