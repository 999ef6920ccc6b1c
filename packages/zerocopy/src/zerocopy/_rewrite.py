"""extract_tensors and replace_tensors: take the tensors out of a module and put them in again, without copying."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from zerocopy._torch_private import MODULE_PRIVATE, buffers_of, parameters_of
from zerocopy.errors import CheckpointMismatchError


def extract_tensors(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Split a module into a skeleton without weights and its tensors.

    Args:
        model: Any module. It is not changed.

    Returns:
        The skeleton, a deep copy in which every parameter, buffer and tensor attribute is None, and the tensors
        themselves (the model's own, not copies) by dotted name. A tensor under two names is the same object under both.

    Example:
        >>> import torch, zerocopy
        >>> skeleton, tensors = zerocopy.extract_tensors(torch.nn.Linear(4, 2))
        >>> skeleton.weight is None, sorted(tensors)
        (True, ['bias', 'weight'])
    """
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in _own_tensors(module).items():
            tensors[f"{prefix}.{name}" if prefix else name] = tensor
    skeleton: nn.Module = copy.deepcopy(model, {id(tensor): None for tensor in tensors.values()})
    return skeleton, tensors


def replace_tensors(skeleton: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Put tensors into a module under their names.

    Args:
        skeleton: A module, with or without weights. It is changed in place.
        tensors: Tensors by dotted name, as `extract_tensors` returns them. A plain tensor in the place of a parameter
            becomes a frozen parameter over the same memory.

    Returns:
        The same module.

    Raises:
        CheckpointMismatchError: The module has no tensor of a given name.

    Example:
        >>> import torch, zerocopy
        >>> model = torch.nn.Linear(4, 2)
        >>> skeleton, tensors = zerocopy.extract_tensors(model)
        >>> zerocopy.replace_tensors(skeleton, tensors).weight is model.weight
        True
    """
    wrapped: dict[int, nn.Parameter] = {}
    for path, tensor in tensors.items():
        parent, _, name = path.rpartition(".")
        try:
            module = skeleton.get_submodule(parent)
        except AttributeError as error:
            raise CheckpointMismatchError(f"{path}: the module has no part {parent!r}") from error
        if name in parameters_of(module):
            if not isinstance(tensor, nn.Parameter):
                tensor = wrapped.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
            parameters_of(module)[name] = tensor
        elif name in buffers_of(module):
            buffers_of(module)[name] = tensor
        elif name in module.__dict__:
            module.__dict__[name] = tensor
        else:
            raise CheckpointMismatchError(f"{path}: {type(module).__name__} has no tensor of this name")
    return skeleton


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    own = {name: value for name, value in module.__dict__.items() if name not in MODULE_PRIVATE}
    entries = {**parameters_of(module), **buffers_of(module), **own}
    return {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
