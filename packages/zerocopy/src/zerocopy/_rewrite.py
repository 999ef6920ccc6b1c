"""extract_tensors and replace_tensors: take the tensors out of a module and put them in again, without copying."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

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
        CheckpointMismatchError: The module has no tensor of a given name, or one of another shape. Nothing is changed.
        TypeError: A value is no tensor.

    Example:
        >>> import torch, zerocopy
        >>> model = torch.nn.Linear(4, 2)
        >>> skeleton, tensors = zerocopy.extract_tensors(model)
        >>> zerocopy.replace_tensors(skeleton, tensors).weight is model.weight
        True
    """
    places = [_place(skeleton, path, tensor) for path, tensor in tensors.items()]  # before anything is changed
    wrapped: dict[int, nn.Parameter] = {}
    for (entries, name, is_parameter), tensor in zip(places, tensors.values(), strict=True):
        if is_parameter and not isinstance(tensor, nn.Parameter):
            tensor = wrapped.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
        entries[name] = tensor
    return skeleton


def _place(skeleton: nn.Module, path: str, tensor: object) -> tuple[dict[str, Any], str, bool]:
    """Return the dictionary and the key of a tensor's place in a module, and whether it is a parameter's."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{path} is {tensor!r:.80}; wanted a tensor")
    parent, _, name = path.rpartition(".")
    try:
        module = skeleton.get_submodule(parent)
    except AttributeError as error:
        raise CheckpointMismatchError(f"{path}: the module has no part {parent!r}") from error
    for entries in (parameters_of(module), buffers_of(module), module.__dict__):
        present = entries.get(name, entries) if name not in MODULE_PRIVATE else entries
        if present is not None and not isinstance(present, torch.Tensor):
            continue  # not here, or an attribute that is no tensor
        if present is not None and not is_lazy(present) and present.shape != tensor.shape:
            raise CheckpointMismatchError(
                f"{path}: got shape {tuple(tensor.shape)}, the module has {tuple(present.shape)} there"
            )
        return entries, name, entries is parameters_of(module)
    raise CheckpointMismatchError(f"{path}: {type(module).__name__} has no tensor of this name")


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    own = {name: value for name, value in module.__dict__.items() if name not in MODULE_PRIVATE}
    entries = {**parameters_of(module), **buffers_of(module), **own}
    return {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
