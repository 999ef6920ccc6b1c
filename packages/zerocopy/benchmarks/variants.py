"""The ways to give one model to many workers: how each publishes it, how a worker loads it; and no measuring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


def build(blocks: int) -> nn.Module:
    """Return a transformer encoder of 48 MiB a block and 16 MiB of embeddings."""
    layers = [nn.TransformerEncoderLayer(1024, 16, 4096, batch_first=True, dropout=0.0) for _ in range(blocks)]
    return nn.Sequential(nn.Embedding(4000, 1024), *layers).eval()


def empty(blocks: int) -> nn.Module:
    """Return the same without memory behind it, for loaders that bring their own."""
    with torch.device("meta"):
        return build(blocks)


@dataclass(frozen=True)
class Variant:
    """One way.

    Args:
        on_ray: whether its workers are Ray actors (else plain processes).
        publish: takes the model and a folder, returns a picklable handle.
        load: takes the handle and the number of blocks in a worker, returns the model.
        env: environment variables that have to be set when Ray starts.
        on_disk: whether the published bytes are a file on disk.
    """

    on_ray: bool
    publish: Callable[[nn.Module, Path], Any]
    load: Callable[[Any, int], nn.Module]
    env: tuple[tuple[str, str], ...] = ()
    on_disk: bool = False


def _ray_put(model: nn.Module, folder: Path) -> Any:
    import ray

    return [ray.put(model)]


def _ray_get(handle: Any, blocks: int) -> nn.Module:
    import ray

    return ray.get(handle[0])


def _peer_publish(model: nn.Module, folder: Path) -> Any:
    from ray_zerocopy import ModelWrapper

    return ModelWrapper.from_model(model, mode="actor")


def _peer_load(handle: Any, blocks: int) -> nn.Module:
    return handle.load()


def _ours_publish(model: nn.Module, folder: Path) -> Any:
    import zerocopy

    return zerocopy.publish(model, name="bench")


def _recycling_publish(model: nn.Module, folder: Path) -> Any:
    import zerocopy

    return zerocopy.publish(model, name="bench-recycle", recycle=True)


def _ours_load(handle: Any, blocks: int) -> nn.Module:
    return handle.load()


def _safetensors_publish(model: nn.Module, folder: Path) -> Any:
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors")
    return str(folder / "model.safetensors")


def _safetensors_load(handle: Any, blocks: int) -> nn.Module:
    from safetensors.torch import load_file

    model = empty(blocks)
    model.load_state_dict(load_file(handle), assign=True)
    return model


def _torch_publish(model: nn.Module, folder: Path) -> Any:
    torch.save(model.state_dict(), folder / "model.pt")
    return str(folder / "model.pt")


def _torch_load(handle: Any, blocks: int) -> nn.Module:
    model = empty(blocks)
    model.load_state_dict(torch.load(handle, mmap=True, weights_only=True), assign=True)
    return model


def _share(model: nn.Module, folder: Path) -> Any:
    return model.share_memory()


VARIANTS = {
    "zerocopy": Variant(True, _ours_publish, _ours_load),
    "zerocopy, recycling": Variant(True, _recycling_publish, _ours_load),
    "Ray's flag": Variant(True, _ray_put, _ray_get, env=(("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1"),)),
    "ray-zerocopy": Variant(True, _peer_publish, _peer_load),
    "plain Ray": Variant(True, _ray_put, _ray_get),
    "zerocopy, no Ray": Variant(False, _ours_publish, _ours_load),
    "torch.multiprocessing": Variant(False, _share, lambda handle, blocks: handle),
    "safetensors mmap": Variant(False, _safetensors_publish, _safetensors_load, on_disk=True),
    "torch.load mmap": Variant(False, _torch_publish, _torch_load, on_disk=True),
}
