"""Layers found in a model, copied, and put in the place of others."""

from __future__ import annotations

import copy
import sys

from torch import Tensor, nn

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


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return all names of each layer: one that is used in two places has two."""
    found: dict[nn.Module, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        found.setdefault(layer, []).append(name)
    return found


def workable_copy(model: nn.Module) -> nn.Module:
    """Return a copy in which every transposed linear layer is a Linear, and every layer is called."""
    made = copy.deepcopy(model)
    call_inner_layers(made)
    for layer, names in names_of(made).items():
        if isinstance(layer, transposed_linear()):
            weight, bias = weight_of(layer), layer.bias
            assert isinstance(bias, nn.Parameter)
            inputs, outputs = weight.shape
            plain = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype).train(layer.training)
            plain.weight = nn.Parameter(weight.T.contiguous())
            plain.bias = bias
            made = replaced(made, names, plain)
    return made


def weight_of(layer: nn.Module) -> Tensor:
    """Return a layer's weight without its history."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def replaced(model: nn.Module, names: list[str], new: nn.Module) -> nn.Module:
    """Put a layer in the place of the one of these names; return the model, which is the layer itself for no name."""
    for name in names:
        if not name:
            return new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model
