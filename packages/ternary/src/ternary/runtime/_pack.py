"""Turn a model with ternary layers into the same model with packed ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ternary._torch_private import keep_hooks
from ternary.errors import NothingToPackError
from ternary.nn._fastpath import call_inner_layers
from ternary.nn._layers import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear, TernaryWeight
from ternary.nn._loaded import require_loaded
from ternary.nn._quantizers import spread
from ternary.runtime._composed import PackedConv1d, PackedPadded, PackedPair
from ternary.runtime._face import PackedLayer, keep_attributes
from ternary.runtime._grouped import PackedGroupedLinear
from ternary.runtime._layout import padding_edges
from ternary.runtime._modules import PackedConv2d, PackedEmbedding, PackedLinear

__all__ = ["PACKED", "Parts", "pack", "packed_layers", "parts"]

PACKED = (PackedLinear, PackedGroupedLinear, PackedConv2d, PackedEmbedding, PackedConv1d, PackedPadded, PackedPair)
"""Every class that `pack` puts in the place of a ternary layer."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a packed layer holds: int8 values in the shape of the float weight, scales, and a bias.

    Attributes:
        values: Int8 tensor of -1, 0, +1.
        positive: Magnitude of +1 in each row, of shape (rows,); of shape (rows, groups) in each group of inputs.
        negative: Magnitude of -1, per row; the same tensor unless the layer has two scales.
        bias: Float tensor of shape (rows,), or None.
        group: How many inputs share a scale, 0 where all of a row do.

    Example:
        >>> import torch
        >>> from ternary.runtime import PackedLinear, parts
        >>> parts(PackedLinear.from_ternary(torch.tensor([[1, -1]]), 0.5)).positive.tolist()
        [0.5]
    """

    values: Tensor
    positive: Tensor
    negative: Tensor
    bias: Tensor | None
    group: int = 0

    def spread(self) -> Tensor:
        """Return the positive scales in a shape that broadcasts against the values."""
        if self.group:
            return spread(self.positive, self.values.shape[1], self.group)
        return self.positive.reshape([-1] + [1] * (self.values.dim() - 1))


def pack(model: nn.Module, *, kernel: str = "auto", threads: int = 0) -> nn.Module:
    """Return a copy of a model for inference, each of its ternary layers packed to 2 bits a weight.

    The packed layers hold exactly the ternary values and scales of `layer.ternary_values()`. They round the input of
    linear layers and convolutions to 8 bits (one scale a token, or an image), also where the layer trained with float
    activations; that is the only difference in what the model computes. Layers that are not ternary stay as they are.

    Args:
        model: A compiled, quantized or handwritten module with layers of `ternary.nn`; it is not changed. Packed
            layers in it stay packed.
        kernel: "auto" for the fastest kernel where the model runs, or a name from `available_kernels()`.
        threads: Threads of the native kernels, 0 for `torch.get_num_threads()`.

    Returns:
        The packed copy, in evaluation mode.

    Raises:
        NonFiniteWeightError: A ternary layer's weight is NaN or infinite.
        NothingToPackError: There is no ternary layer in the model.
        WeightsNotLoadedError: A weight has no values yet.

    Example:
        >>> import torch, ternary
        >>> model = ternary.nn.TernaryLinear(64, 8)
        >>> packed = ternary.pack(model)
        >>> packed(torch.zeros(2, 64)).shape
        torch.Size([2, 8])
    """
    require_loaded(model)
    if not any(isinstance(m, (TernaryWeight, *PACKED)) for m in model.modules()):
        raise NothingToPackError(
            f"{type(model).__name__} has no ternary layer; make them with the word `ternary` in its source or with "
            "ternary.quantize, whose report says which layers stay as they are and why: the first and the last one do"
        )
    made = copy.deepcopy(model).eval()
    call_inner_layers(made)
    done: dict[nn.Module, nn.Module] = {}  # a layer that has two names stays one layer
    for name, layer in [*made.named_modules(remove_duplicate=False)]:
        if not isinstance(layer, TernaryWeight) or (layer.empty and not isinstance(layer, TernaryLinear)):
            continue
        if layer not in done:
            done[layer] = pack_layer(layer, kernel, threads)
        if not name:
            return done[layer]
        parent, _, last = name.rpartition(".")
        setattr(made.get_submodule(parent), last, done[layer])
    return made


@torch.no_grad()
def pack_layer(layer: TernaryWeight, kernel: str = "auto", threads: int = 0) -> nn.Module:
    """Return the packed form of one ternary layer."""
    values, positive, negative = layer.ternary_values()
    bias = cast("Tensor | None", getattr(layer, "bias", None))
    if torch.equal(positive, negative):
        made = _build(layer, values, positive, bias, kernel, threads)
    else:
        plus = _build(layer, values.clamp(min=0), positive, bias, kernel, threads)
        minus = _build(layer, values.clamp(max=0), negative, None, kernel, threads)
        made = PackedPair(plus, minus)
    made.dtype = layer.weight.dtype
    keep_hooks(made, layer)
    return keep_attributes(made, layer).eval()


def _build(
    layer: TernaryWeight, values: Tensor, scale: Tensor, bias: Tensor | None, kernel: str, threads: int
) -> PackedLayer:
    if scale.dim() == 2:
        return PackedGroupedLinear.from_ternary(
            values, scale, layer.scale_group(), bias, kernel=kernel, threads=threads
        )
    if isinstance(layer, TernaryLinear):
        return PackedLinear.from_ternary(values, scale, bias, kernel=kernel, threads=threads)
    if isinstance(layer, TernaryEmbedding):
        return PackedEmbedding.from_ternary(values, scale, dtype=layer.weight.dtype)
    assert isinstance(layer, TernaryConv1d | TernaryConv2d)
    flat = isinstance(layer, TernaryConv1d)
    edges = padding_edges(layer)
    uneven = any(a != b for a, b in zip(edges[::2], edges[1::2], strict=True))
    apart = any(edges) and (uneven or layer.padding_mode != "zeros")
    padding = (0,) * (len(edges) // 2) if apart else tuple(edges[::2])[::-1]

    def two(sizes: tuple[int, ...], of_height: int) -> tuple[int, int]:
        return (of_height, sizes[0]) if flat else (sizes[0], sizes[1])

    conv = PackedConv2d.from_ternary(
        values.unsqueeze(2) if flat else values,
        scale,
        bias,
        stride=two(layer.stride, 1),
        padding=two(padding, 0),
        dilation=two(layer.dilation, 1),
        groups=layer.groups,
        kernel=kernel,
        threads=threads,
    )
    made = PackedConv1d(conv) if flat else conv
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return PackedPadded(made, edges, mode) if apart else made


def packed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the packed layers of a model by name, the outermost where one is made of others.

    One that is used in two places is there under both names.

    Example:
        >>> import ternary
        >>> list(ternary.runtime.packed_layers(ternary.pack(ternary.zoo.load("mlp")(width=8))))
        ['hidden.0.0', 'hidden.1.0']
    """
    found: dict[str, nn.Module] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        inside = any(not outer or name.startswith(outer + ".") for outer in found)
        if isinstance(layer, PACKED) and not inside:
            found[name] = layer
    return found


def parts(layer: nn.Module) -> Parts:
    """Take a packed layer apart.

    Args:
        layer: One of the modules in `PACKED`.

    Returns:
        Its values, scales and bias.

    Example:
        >>> import torch
        >>> from ternary.runtime import PackedLinear, parts
        >>> parts(PackedLinear.from_ternary(torch.tensor([[1, -1]]), 0.5)).values.tolist()
        [[1, -1]]
    """
    if isinstance(layer, PackedPair):
        plus, minus = parts(layer.plus), parts(layer.minus)
        return Parts(plus.values + minus.values, plus.positive, minus.positive, plus.bias)
    if isinstance(layer, PackedPadded):
        return parts(layer.layer)
    if isinstance(layer, PackedGroupedLinear):
        scales = layer.scales()
        return Parts(layer.values(), scales, scales, layer.bias, layer.group)
    values = cast("PackedLinear | PackedConv2d | PackedEmbedding | PackedConv1d", layer).values()
    inner = cast("PackedLinear", layer.conv if isinstance(layer, PackedConv1d) else layer)
    return Parts(values, inner.scale, inner.scale, getattr(inner, "bias", None))
