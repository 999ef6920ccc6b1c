"""Layers with float weights that act ternary; their state dicts equal those of torch's own layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from ternary._options import QuantizerKeywords, QuantizerOptions
from ternary._torch_private import version_of
from ternary.errors import FixedWeightError, UnsupportedGroupError
from ternary.nn._quantizers import (
    fake_int8,
    require_finite,
    rows_of,
    scale_like,
    spread,
    straight_through,
    ternarize,
    ttq_values,
)


class TernaryWeight(nn.Module):
    """What the ternary layers share: a float `weight`, how to quantize it, and for TTQ two learned scales.

    Example:
        >>> from ternary.nn import TernaryLinear, TernaryWeight
        >>> isinstance(TernaryLinear(4, 4), TernaryWeight)
        True
    """

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations written as text
        weight: Any
        ternary_part: float
        group: int
    else:
        group = 64  # of layers that an earlier release pickled
        ternary_part = 1.0  # below 1, training mixes so much of the ternary weight with the rest of the float one

    def _init_ternary(self, options: QuantizerOptions) -> None:
        self.empty: bool = self.weight.numel() == 0  # known here, so that tracing meets no branch on a tensor
        self.quantizer: str = options.quantizer
        self.per: str = options.per
        self.group = options.group
        if options.per == "group" and not isinstance(self, nn.Linear):
            raise UnsupportedGroupError(
                f"a {type(self).__name__} has no scales per group of inputs, which only TernaryLinear has; "
                "take per='channel' or per='tensor' for it"
            )
        self.threshold: float = float(options.threshold)
        self.sparsity: float = float(options.sparsity)
        self.activations: str = options.activations
        if self.quantizer == "ttq":
            self.scale_positive: nn.Parameter = nn.Parameter(torch.empty(0))
            self.scale_negative: nn.Parameter = nn.Parameter(torch.empty(0))
            self.reset_scales()
        else:
            self.register_parameter("scale_positive", None)
            self.register_parameter("scale_negative", None)

    @torch.jit.unused
    def reset_scales(self) -> None:
        """Start TTQ's two scales at the mean magnitude of the kept weights."""
        if self.scale_positive is None or self.scale_negative is None or self.empty:
            return
        with torch.no_grad():
            _, scale = ternarize(self.weight, self.quantizer, self.per != "tensor")
            self.scale_positive.data = scale.detach().clone()
            self.scale_negative.data = scale.detach().clone()

    def ternary_weight(self) -> Tensor:
        """Return the weight as the forward pass uses it: values times scales, gradients straight through.

        In evaluation without gradients the result is kept until the weight changes.
        """
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            kept = self._weight_by_mode()
            if kept is not None:
                return kept
        return self._rounded_weight()

    @torch.jit.unused
    def _weight_by_mode(self) -> Tensor | None:
        """Return the weight where evaluation keeps it or training is refused, else None."""
        if _traced():
            return None
        if not self.training and not torch.is_grad_enabled() and type(self.weight) is nn.Parameter:
            return self._kept_weight()
        if self.quantizer == "exact" and self.weight.requires_grad and torch.is_grad_enabled():
            return self._fixed_weight()
        if self.training and self.ternary_part < 1.0 and not self.empty:
            return torch.lerp(self.weight, self._rounded_weight(), self.ternary_part)
        return None

    @torch.jit.unused
    def _kept_weight(self) -> Tensor:
        """Return the rounded weight, computed again only after a change of what it is made of."""
        parts = (self.weight, self.scale_positive, self.scale_negative)
        key = (
            *(None if t is None else (id(t), t.data_ptr(), version_of(t), t.dtype, _sample(t)) for t in parts),
            *(self.quantizer, self.per, self.group, self.threshold, self.sparsity),
        )
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            kept = self.__dict__["_kept"] = (key, self._rounded_weight().detach())
        return kept[1]

    @torch.jit.unused
    def _fixed_weight(self) -> Tensor:
        """Return a rounded weight whose gradient is refused: a step would leave the ternary values."""
        rounded = self._rounded_weight()
        if rounded.requires_grad:
            rounded.register_hook(_refuse_gradient)  # type: ignore[no-untyped-call]
        return rounded

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; forget the rounded weight of the last evaluation."""
        self.__dict__.pop("_kept", None)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_kept"}

    def _rounded_weight(self) -> Tensor:
        """Return the weight rounded anew, in its own dtype; scales are computed in float32."""
        weight: Tensor = self.weight
        if self.empty:
            return weight
        positive, negative = self.scale_positive, self.scale_negative
        per_channel = self.per != "tensor"
        if positive is not None and negative is not None:
            values = ttq_values(weight, per_channel)
            plus, minus = (values > 0).to(weight.dtype), (values < 0).to(weight.dtype)
            quantized: Tensor = positive * plus - negative * minus
            # Gradients: the two scales get theirs through `quantized`, the float weight straight through.
            step = (positive * plus + negative * minus + (1.0 - plus - minus)).detach()
            return quantized + step * (weight - weight.detach())
        kind = "absmean" if self.quantizer == "stochastic" and not self.training else self.quantizer
        detached = weight.detach().float()
        group = self.scale_group()
        values, scale = ternarize(detached, kind, per_channel, self.threshold, self.sparsity, group)
        if group > 0:
            scale = spread(scale, weight.shape[1], group)
        # With groups too the limit is the output's: trained networks were measured with that.
        limit = scale_like(rows_of(detached, per_channel or group > 0).abs().mean(1) * 3.0, weight).to(weight.dtype)
        return straight_through(weight, (values * scale).to(weight.dtype), limit)

    @torch.jit.unused
    @torch.no_grad()
    def ternary_values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the int8 values and the positive and negative scale of each row, as stored when packing.

        Scales have the shape (rows,) or (1,); with groups of inputs, (rows, groups).

        Raises:
            NonFiniteWeightError: The weight holds NaN or infinite values.
        """
        require_finite(self.weight)
        per_channel = self.per != "tensor"
        if self.empty:
            scale = self.weight.new_zeros(1 if self.per == "tensor" else self.weight.shape[0], dtype=torch.float32)
            return self.weight.to(torch.int8), scale, scale
        if self.scale_positive is not None and self.scale_negative is not None:
            values = ttq_values(self.weight, per_channel)
            positive, negative = self.scale_positive.flatten(), self.scale_negative.flatten()
            return values.to(torch.int8), positive.float(), negative.float()
        kind = "absmean" if self.quantizer == "stochastic" else self.quantizer
        group = self.scale_group()
        values, scale = ternarize(self.weight.float(), kind, per_channel, self.threshold, self.sparsity, group)
        scale = scale if group > 0 else scale.flatten()
        return values.to(torch.int8), scale, scale

    def scale_group(self) -> int:
        """Return how many inputs share a scale, 0 where all of an output do."""
        return self.group if self.per == "group" and self.group < self.weight.shape[1] else 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Also take the state of a float layer: TTQ's scales, which it lacks, then start anew."""
        strict_keys = [prefix + "scale_positive", prefix + "scale_negative"]
        fresh = self.scale_positive is not None and not any(k in state_dict for k in strict_keys)
        if fresh:
            state_dict = dict(state_dict)
            state_dict[strict_keys[0]], state_dict[strict_keys[1]] = self.scale_positive, self.scale_negative
        elif self.scale_positive is None:
            for key in strict_keys:
                state_dict.pop(key, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if fresh:
            self.reset_scales()

    def extra_repr(self) -> str:
        """Show the layer's own arguments, then how it quantizes."""
        per = f"{self.per}, group={self.group}" if self.per == "group" else self.per
        return f"{super().extra_repr()}, quantizer={self.quantizer}, per={per}, activations={self.activations}"


def _traced() -> bool:
    """Return whether torch records what runs, so that every operation has to run."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def _sample(x: Tensor) -> tuple[float, ...]:
    """Return a few elements: a change through `weight.data` does not count as one in torch's version of a tensor."""
    if x.device.type != "cpu" or not x.is_contiguous():
        return ()  # reading elements there would wait for the device, or copy
    flat = x.detach().view(-1)
    return tuple(flat[:: max(1, flat.numel() // 8)].tolist())


def _refuse_gradient(_: Tensor) -> None:
    raise FixedWeightError(
        "this layer's weight is exactly ternary (quantizer 'exact', after calibration or loading), and a step would "
        "leave its values. Call ternary.to_trainable(model) to train on from here, or weight.requires_grad_(False) to "
        "keep it"
    )


class TernaryLinear(TernaryWeight, nn.Linear):
    """`torch.nn.Linear` whose weight acts as -1, 0, +1 times a scale.

    Args:
        in_features: Size of the last input dimension.
        out_features: Size of the last output dimension.
        bias: Whether to add a float bias.
        device: As for torch.
        dtype: As for torch.
        options: How to quantize: `quantizer`, `per`, `group`, `threshold`, `sparsity`, `activations`, as in `Recipe`.

    Example:
        >>> from ternary.nn import TernaryLinear
        >>> layer = TernaryLinear(64, 8, quantizer="absmean")
        >>> values, scale, _ = layer.ternary_values()
        >>> values.shape, scale.shape
        (torch.Size([8, 64]), torch.Size([8]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[QuantizerKeywords],
    ):
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._init_ternary(QuantizerOptions(**options))

    def forward(self, input: Tensor) -> Tensor:
        """Return `input @ weight.T + bias` with the ternary weight."""
        x = fake_int8(input) if self.activations == "int8" and not self.empty else input
        return functional.linear(x, self.ternary_weight(), self.bias)


class _TernaryConv(TernaryWeight):
    """The constructor of both convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[QuantizerKeywords],
    ):
        super().__init__(  # the next class in line is torch's convolution
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._init_ternary(QuantizerOptions(**options))


class TernaryConv1d(_TernaryConv, nn.Conv1d):
    """`torch.nn.Conv1d` (grouped and depthwise too) with a weight of -1, 0, +1 times a scale; see TernaryLinear.

    Example:
        >>> import torch
        >>> from ternary.nn import TernaryConv1d
        >>> TernaryConv1d(4, 8, 3)(torch.zeros(2, 4, 10)).shape
        torch.Size([2, 8, 8])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, of shape (N, C, L)."""
        x = fake_int8(input, True) if self.activations == "int8" and not self.empty else input
        out: Tensor = self._conv_forward(x, self.ternary_weight(), self.bias)
        return out


class TernaryConv2d(_TernaryConv, nn.Conv2d):
    """`torch.nn.Conv2d` (grouped and depthwise too) with a weight of -1, 0, +1 times a scale; see TernaryLinear.

    Example:
        >>> import torch
        >>> from ternary.nn import TernaryConv2d
        >>> TernaryConv2d(4, 8, 3, padding=1)(torch.zeros(2, 4, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, of shape (N, C, H, W)."""
        x = fake_int8(input, True) if self.activations == "int8" and not self.empty else input
        out: Tensor = self._conv_forward(x, self.ternary_weight(), self.bias)
        return out


class TernaryEmbedding(TernaryWeight, nn.Embedding):
    """`torch.nn.Embedding` whose rows act as -1, 0, +1 times a scale per row; see TernaryLinear.

    Example:
        >>> import torch
        >>> from ternary.nn import TernaryEmbedding
        >>> TernaryEmbedding(100, 16)(torch.tensor([3, 7])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[QuantizerKeywords],
    ):
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self._init_ternary(QuantizerOptions(**options))

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows for integer indices of any shape."""
        return functional.embedding(input, self.ternary_weight(), self.padding_idx)


def ternary_layers(model: nn.Module) -> dict[str, TernaryWeight]:
    """Return the ternary layers of a model by name; one that is used in two places is there under both names.

    Example:
        >>> import torch
        >>> from ternary.nn import TernaryLinear, ternary_layers
        >>> list(ternary_layers(torch.nn.Sequential(TernaryLinear(4, 4), torch.nn.ReLU())))
        ['0']
    """
    return {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, TernaryWeight)}
