"""Read a checkpoint in any of its forms as named tensors that are mapped from its files."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerocopy.errors import CheckpointMismatchError, MissingExtraError

# What a folder may hold, in the order of preference.
_IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "ema", "weights")
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint.

    Args:
        files: The files that hold them.
        tensors: By the name that they have in the files.
        folder: The folder of a pretrained model that the files belong to, or None.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, torch.Tensor]
    folder: Path | None


def files_of(path: PathLike | Sequence[PathLike]) -> list[Path]:
    """Return the files of a checkpoint, which is a file, an index, a folder or a list of files.

    Raises:
        CheckpointMismatchError: A folder holds no checkpoint, or an index names files that do not exist.
    """
    if not isinstance(path, str | os.PathLike):
        return [Path(each).absolute() for each in path]
    one = Path(path).absolute()
    if one.is_dir():
        inside = next((one / name for name in _IN_FOLDER if (one / name).exists()), None)
        if inside is None:
            shards = sorted(one.glob("*.safetensors"))
            if shards:
                return shards
            raise CheckpointMismatchError(f"{one} holds none of {', '.join(_IN_FOLDER)} and no *.safetensors file")
        one = inside
    if one.name.endswith(".index.json"):
        try:
            shards = [one.parent / name for name in sorted(set(json.loads(one.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointMismatchError(f"{one} is not an index of shards: it has no weight_map") from error
        missing = [str(shard) for shard in shards if not shard.exists()]
        if missing:
            raise CheckpointMismatchError(f"{one} names shards that do not exist: {', '.join(missing)}")
        return shards
    return [one]


def read(path: PathLike | Sequence[PathLike]) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointMismatchError: A file is damaged, or holds something else than named tensors.
        MissingExtraError: A file is a safetensors file, and the library safetensors is not installed.
    """
    files = files_of(path)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(_safetensors(file) if file.suffix == ".safetensors" else _torch_file(file))
    parents = {file.parent for file in files}
    folder = parents.pop() if len(parents) == 1 else None
    has_config = folder is not None and (folder / "config.json").exists()
    return Checkpoint(tuple(files), tensors, folder if has_config else None)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError('this needs safetensors: pip install "pentad-zerocopy[safetensors]"') from error
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise CheckpointMismatchError(f"{path} is not a readable safetensors file: {error}") from error


def _torch_file(path: Path) -> dict[str, torch.Tensor]:
    """Map a file that torch.save wrote. A file of the old format without a zip archive is read instead."""
    content = _load(path)
    for _ in range(3):
        if _is_state(content):
            return dict(content)
        inner = next((content[key] for key in _NESTED if key in content), None) if isinstance(content, dict) else None
        if not isinstance(inner, Mapping):
            break
        content = inner
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else ""
    kind = f"a dict with {keys}" if keys else f"a {type(content).__name__}"
    raise CheckpointMismatchError(
        f"{path} holds {kind} and no state_dict: save the state_dict, or load the file and call zerocopy.publish"
    )


def _load(path: Path) -> Any:
    try:
        return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise CheckpointMismatchError(f"{path} is not a file that torch.save wrote: {error}") from error
        raise CheckpointMismatchError(
            f"{path} holds pickled objects, such as a whole model, which this does not execute; if you trust the file: "
            "zerocopy.publish(torch.load(path, weights_only=False)), or save the model's state_dict()"
        ) from error
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise CheckpointMismatchError(f"{path} is not a readable torch file: {error}") from error
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointMismatchError(
            f"{path} is not a readable torch file of the old format: {str(error) or 'it ends too early'}"
        ) from error


def _is_state(content: object) -> bool:
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return False
    return any(isinstance(value, torch.Tensor) for value in content.values())
