"""Fit the tensors of a checkpoint to a model: match their names, point the model at them, and list every misfit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from zerocopy._torch_private import buffers_of, parameters_of
from zerocopy.errors import CheckpointMismatchError

_WRAPPERS = ("module.", "_orig_mod.", "model.")  # prefixes that training frameworks put before every name


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `fit` did.

    Args:
        as_saved: By the model's name: the file's name of each tensor that the model has as it is in the file.
        filled: The storages of the model's own tensors that were replaced.
    """

    as_saved: dict[str, str]
    filled: set[int]


def renamed(names: set[str], wanted: set[str]) -> dict[str, str]:
    """Return the file's names by the model's names, with a prefix added or removed where that makes them match."""
    best: dict[str, str] = {name: name for name in names}
    for change in _changes(names):
        candidate = {change(name): name for name in names}
        if len(candidate) == len(names) and len(wanted & candidate.keys()) > len(wanted & best.keys()):
            best = candidate
    return best


def _changes(names: set[str]) -> Iterator[Callable[[str], str]]:
    """Yield the renamings that are tried."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in names):
            yield partial(_removed, prefix)
        yield partial(_added, prefix)
    heads = {name.split(".", 1)[0] for name in names}
    if len(heads) == 1:
        yield partial(_removed, f"{heads.pop()}.")


def _removed(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _added(prefix: str, name: str) -> str:
    return prefix + name


def fit(model: nn.Module, found: Mapping[str, torch.Tensor]) -> Fitted:
    """Point the model's parameters and buffers at checkpoint tensors. Tied names share the one that the file has.

    Raises:
        CheckpointMismatchError: Tensors are missing, left over, or of another shape. All are listed.
    """
    persistent = {name: value for name, value in model.state_dict(keep_vars=True).items() if _is_tensor(value)}
    saved_as = renamed({name for name, value in found.items() if _is_tensor(value)}, set(persistent))
    groups: dict[int, list[str]] = {}
    for name, tensor in persistent.items():
        groups.setdefault(id(tensor), []).append(name)
    problems, changed, used = [], [], set()
    places: list[tuple[list[str], torch.Tensor, torch.Tensor]] = []
    for names in groups.values():
        target = persistent[names[0]]
        ours = next((name for name in names if name in saved_as), None)
        used.update(names)
        if ours is None:
            problems.append(f"{names[0]} is missing")
            continue
        source = found[saved_as[ours]]
        if source.shape != target.shape:
            shapes = f"{tuple(source.shape)} in the file, {tuple(target.shape)} in the model"
            problems.append(f"{names[0]} has shape {shapes}")
            continue
        places.append(([ours, *(name for name in names if name != ours)], target, source))
    problems.extend(f"{saved_as[name]} is in the file only" for name in sorted(saved_as.keys() - used))
    if problems:
        raise CheckpointMismatchError("checkpoint and model do not fit: " + "; ".join(problems))
    as_saved, filled = {}, set()
    for names, target, source in places:
        if target.device.type != "meta":
            filled.add(target.untyped_storage().data_ptr())
        if source.dtype == target.dtype:
            as_saved[names[0]] = saved_as[names[0]]
        else:
            changed.append((names[0], source, target))
        _point(model, names, target, source.to(target.dtype))
    _say(changed)
    return Fitted(as_saved, filled)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _point(model: nn.Module, names: list[str], target: torch.Tensor, source: torch.Tensor) -> None:
    """Give a parameter or buffer, under all its names, the memory of another tensor."""
    if target.device.type != "meta":
        target.data = source
        return
    made = nn.Parameter(source, requires_grad=target.requires_grad) if isinstance(target, nn.Parameter) else source
    for name in names:
        parent, _, last = name.rpartition(".")
        module = model.get_submodule(parent)
        if isinstance(made, nn.Parameter):
            parameters_of(module)[last] = made
        else:
            buffers_of(module)[last] = made


def _say(changed: list[tuple[str, torch.Tensor, torch.Tensor]]) -> None:
    """Warn of tensors whose dtype changes, with the sizes."""
    if not changed:
        return
    name, source, target = changed[0]
    before, after = sum(s.nbytes for _, s, _ in changed), sum(s.numel() * t.element_size() for _, s, t in changed)
    warnings.warn(
        f"{len(changed)} tensors are converted from {source.dtype} in the file to {target.dtype} in the model "
        f"(first {name}): {after} bytes instead of {before}; build the model in {source.dtype} to keep them",
        UserWarning,
        stacklevel=4,
    )
