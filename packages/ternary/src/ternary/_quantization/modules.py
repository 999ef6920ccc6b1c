"""Layers found in a model, copied, and put in the place of others."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ternary._options import QuantizerKeywords
from ternary._torch_private import keep_hooks, pre_hooks_of
from ternary.nn._experts import SeparateExperts, are_fused_experts
from ternary.nn._fastpath import call_inner_layers
from ternary.nn._layers import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear

TERNARY_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: TernaryLinear,
    nn.Conv1d: TernaryConv1d,
    nn.Conv2d: TernaryConv2d,
    nn.Embedding: TernaryEmbedding,
}
"""The ternary class of each float class."""


def transposed_linear() -> tuple[type[nn.Module], ...]:
    """The class of transformers that is a Linear with its weight transposed, if that library is in use."""
    library = sys.modules.get("transformers.pytorch_utils")
    return () if library is None else (library.Conv1D,)


def has_ternary_form(layer: nn.Module) -> bool:
    """Whether a layer computes as torch's own of a class in `TERNARY_FORMS` does, also as a subclass of it."""
    for kind in TERNARY_FORMS:
        if type(layer) is kind:
            return True
        if isinstance(layer, kind) and not type(layer).__module__.startswith("torch."):
            own = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
            same = all(getattr(type(layer), name) is getattr(kind, name) for name in own)
            return same and set(layer.state_dict()) <= {"weight", "bias"}
    return False


def bitnet_layers() -> tuple[type[nn.Module], ...]:
    """The layers of transformers that are ternary by themselves, if that part of the library is in use."""
    library = sys.modules.get("transformers.integrations.bitnet")
    return () if library is None else (library.AutoBitLinear, library.BitLinear)


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return all names of each layer: one that is used in two places has two."""
    found: dict[nn.Module, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        found.setdefault(layer, []).append(name)
    return found


def workable_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose layers are ones that quantization knows, each of them called.

    Transposed linear layers become Linear, fused experts `SeparateExperts`, and layers of transformers' BitNet ternary
    ones. A computed weight (parametrizations, weight and spectral norm, pruning) becomes the weight that it is now.
    """
    computed = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    made = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    call_inner_layers(made)
    for layer, names in names_of(made).items():
        if isinstance(layer, transposed_linear()):
            made = replaced(made, names, _upright(layer))
        elif are_fused_experts(layer):
            made = replaced(made, names, SeparateExperts(layer))
        elif isinstance(layer, bitnet_layers()):
            made = replaced(made, names, _ternary_of_bitnet(layer))
        elif computes_weight(layer):
            _keep_computed_weight(layer)
    return made


def computes_weight(layer: nn.Module) -> bool:
    """Whether a linear layer, a convolution or an embedding computes its weight at each call from other parameters."""
    return isinstance(layer, tuple(TERNARY_FORMS)) and (
        parametrize.is_parametrized(layer) or bool(_norms(layer)) or prune.is_pruned(layer)
    )


def _norms(layer: nn.Module) -> list[WeightNorm | SpectralNorm]:
    return [hook for hook in pre_hooks_of(layer) if isinstance(hook, WeightNorm | SpectralNorm)]


def _keep_computed_weight(layer: nn.Module) -> None:
    """Put the weight that a layer computes now in the place of what it is computed from."""
    for norm in _norms(layer):
        remove = remove_weight_norm if isinstance(norm, WeightNorm) else remove_spectral_norm
        remove(layer, norm.name)
    for name in ("weight", "bias"):
        if hasattr(layer, f"{name}_mask"):
            prune.remove(layer, name)  # type: ignore[no-untyped-call] # torch's own lack
    if parametrize.is_parametrized(layer):
        # Not by `remove_parametrizations`: that changes the class, which a copy has in common with its original.
        lists = layer.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        with torch.no_grad():
            values = {name: getattr(layer, name).clone() for name in lists}
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        for name, value in values.items():
            trained = [parameter.requires_grad for parameter in lists[name].parameters(recurse=False)]
            if trained:
                layer.register_parameter(name, nn.Parameter(value, requires_grad=any(trained)))
            else:
                layer.register_buffer(name, value)


def _upright(layer: nn.Module) -> nn.Linear:
    """Return a transposed linear layer as a Linear."""
    weight, bias = weight_of(layer), layer.bias
    assert isinstance(bias, nn.Parameter)
    inputs, outputs = weight.shape
    plain = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype).train(layer.training)
    plain.weight = nn.Parameter(weight.T.contiguous(), bool(layer.weight.requires_grad))
    plain.bias = bias
    return plain


@torch.no_grad()
def _ternary_of_bitnet(layer: Any) -> nn.Module:
    """Return a layer of transformers' BitNet as a ternary one with the same weight, its normalization before it."""
    weight, bias, online = layer.weight, layer.bias, bool(getattr(layer, "online_quant", False))
    if weight.dtype == torch.uint8:  # packed: four rows in a byte, and the scale divides
        codes = torch.cat([weight >> shift & 3 for shift in (0, 2, 4, 6)])
        weight = (codes.float() - 1) / layer.weight_scale.float()
    elif not online:
        weight = weight * layer.weight_scale
        bias = None if bias is None else bias * layer.weight_scale
    held = weight.abs()[weight != 0]
    exact = not online and (not held.numel() or bool((held == held.flatten()[0]).all()))
    made: nn.Linear
    if online or exact:
        options: QuantizerKeywords = {"quantizer": "absmean" if online else "exact", "per": "tensor"}
        options["activations"] = "int8"
        made = TernaryLinear(layer.in_features, layer.out_features, bias is not None, device="meta", **options)
    else:  # weights that are not rounded yet
        made = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    dtype = getattr(layer, "dtype", None) or weight.dtype
    made.weight = nn.Parameter(weight.detach().to(dtype), layer.weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(dtype), layer.weight.requires_grad)
    made.train(layer.training)
    norm = getattr(layer, "rms_norm", None)
    return made if norm is None else nn.Sequential(norm, made).train(layer.training)


def weight_of(layer: nn.Module) -> Tensor:
    """Return a layer's weight without its history."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def replaced(model: nn.Module, names: list[str], new: nn.Module) -> nn.Module:
    """Put a layer in the place of the one of these names; return the model, which is the layer itself for no name.

    The new layer has the old one's mode, and the hooks around its calls.
    """
    if names:
        old = model.get_submodule(names[0])
        if old is not new:
            keep_hooks(new, old)
            new.train(old.training)
    for name in names:
        if not name:
            return new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model
