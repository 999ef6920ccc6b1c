"""publish_file: from a checkpoint on disk to a segment, without the weights ever lying on the heap."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zerocopy.errors import CheckpointMismatchError, MissingExtraError
from zerocopy.publish import publish
from zerocopy.ref import ModelRef

PathLike = str | os.PathLike[str]

# Random fills of tensors of at least so many bytes are left out while the model is built: untouched pages take no
# memory, and
# the checkpoint overwrites them anyway. What it does not overwrite is an error.
_LARGE = 1 << 16
_FILLS = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_")


def publish_file(
    path: PathLike | Sequence[PathLike],
    build: Callable[[], nn.Module],
    *,
    name: str | None = None,
    version: int | None = None,
    base: ModelRef | None = None,
    directory: PathLike | None = None,
    keep: bool = False,
    progress: bool = False,
) -> ModelRef:
    """Publish a model whose weights lie in a checkpoint, mapping the file instead of reading it.

    Args:
        path: a safetensors file, a file written by ``torch.save`` of a state_dict, or several of them (shards).
        build: returns the model; its initial weights do not matter, and large random ones are not even made.
        name: see ``publish``, as for the rest.
        version: see ``publish``.
        base: see ``publish``.
        directory: see ``publish``.
        keep: see ``publish``.
        progress: see ``publish``.

    Returns:
        The reference to hand to other processes.

    Raises:
        CheckpointMismatchError: tensors are missing, left over, or of another shape; all are listed.
        MissingExtraError: the file is a safetensors file and safetensors is not installed.
    """
    paths = [Path(p) for p in ([path] if isinstance(path, str | os.PathLike) else path)]
    with _SkipLargeFills() as skipped:
        model = build()
    _assign(model, dict(_tensors(paths)), skipped)
    return publish(model, name=name, version=version, base=base, directory=directory, keep=keep, progress=progress)


class _SkipLargeFills(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves large tensors unfilled where they would be filled at random, and remembers which."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept, so that an address is not used twice


def _skip_or_run(
    mode: _SkipLargeFills, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    name = func._schema.name.removeprefix("aten::")
    if name in _FILLS and args[0].device.type == "cpu" and args[0].nbytes >= _LARGE:
        storage = args[0].untyped_storage()
        mode.storages[storage.data_ptr()] = storage
        return args[0]
    return func(*args, **(kwargs or {}))


# Set afterwards for the reason given in isolation.py: it keeps torch._dynamo out.
_SkipLargeFills.__torch_dispatch__ = _skip_or_run  # type: ignore[method-assign, assignment]


def _tensors(paths: Iterable[Path]) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield names and tensors that are mapped from files."""
    for path in paths:
        if path.suffix == ".safetensors":
            try:
                from safetensors import safe_open
            except ImportError as error:
                raise MissingExtraError('this needs safetensors: pip install "pentad-zerocopy[safetensors]"') from error
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a dict
                    yield name, file.get_tensor(name)
        else:
            state = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
            yield from state.items()


def _assign(model: nn.Module, found: dict[str, torch.Tensor], skipped: _SkipLargeFills) -> None:
    """Point the model's parameters and buffers at checkpoint tensors; tied names share whichever one is there."""
    persistent = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, tensor in persistent.items():
        if isinstance(tensor, torch.Tensor):
            groups.setdefault(id(tensor), []).append(name)
    problems = []
    used: set[str] = set()
    for names in groups.values():
        target = persistent[names[0]]
        source = next((found[name] for name in names if name in found), None)
        used.update(names)
        if source is None:
            problems.append(f"{names[0]} is missing")
        elif source.shape != target.shape:
            problems.append(
                f"{names[0]} has shape {tuple(source.shape)} in the file, {tuple(target.shape)} in the model"
            )
        else:
            skipped.storages.pop(target.untyped_storage().data_ptr(), None)
            target.data = source.to(target.dtype)
    problems.extend(f"{name} is in the file only" for name in sorted(found.keys() - used))
    if not problems:
        left = {tensor.untyped_storage().data_ptr(): name for name, tensor in model.named_buffers()}
        problems.extend(f"{left[key]} is filled at random by build()" for key in skipped.storages if key in left)
    if problems:
        raise CheckpointMismatchError("checkpoint and model do not fit: " + "; ".join(problems))
