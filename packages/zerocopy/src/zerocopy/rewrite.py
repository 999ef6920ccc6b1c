"""extract_tensors and replace_tensors: take a module's tensors out and put them in, without copying."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from zerocopy.errors import CheckpointMismatchError
from zerocopy.walk import MODULE_PRIVATE


def extract_tensors(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Split a module into a skeleton without weights and its tensors.

    Args:
        model: any module; it is left as it is.

    Returns:
        The skeleton, a deep copy in which every parameter, buffer and tensor attribute is None, and the tensors
        themselves (the model's own, not copies) by dotted name. A tensor under two names is the same object under both.
    """
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in _own_tensors(module).items():
            tensors[f"{prefix}.{name}" if prefix else name] = tensor
    skeleton: nn.Module = copy.deepcopy(model, {id(tensor): None for tensor in tensors.values()})
    return skeleton, tensors


def replace_tensors(skeleton: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Put tensors into a module, in place of what it has under those names.

    Args:
        skeleton: a module, with or without weights; changed in place.
        tensors: by dotted name, as ``extract_tensors`` returned them. A plain tensor in the place of a parameter
            becomes a frozen parameter over the same memory.

    Returns:
        The same module.

    Raises:
        CheckpointMismatchError: a name leads nowhere.
    """
    wrapped: dict[int, nn.Parameter] = {}
    for path, tensor in tensors.items():
        parent, _, name = path.rpartition(".")
        try:
            module = skeleton.get_submodule(parent)
        except AttributeError as error:
            raise CheckpointMismatchError(f"{path}: the module has no part {parent!r}") from error
        if name in module._parameters:
            if not isinstance(tensor, nn.Parameter):
                tensor = wrapped.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
            module._parameters[name] = tensor
        elif name in module._buffers:
            module._buffers[name] = tensor
        elif name in module.__dict__:
            module.__dict__[name] = tensor
        else:
            raise CheckpointMismatchError(f"{path}: {type(module).__name__} has no tensor of this name")
    return skeleton


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    own = {name: value for name, value in module.__dict__.items() if name not in MODULE_PRIVATE}
    entries = {**module._parameters, **module._buffers, **own}
    return {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
