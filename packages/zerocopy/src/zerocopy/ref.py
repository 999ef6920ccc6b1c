"""ModelRef, the small value that stands for a published model in any process, and how it becomes a model there."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerocopy.directory import default_directory
from zerocopy.errors import CorruptSegmentError
from zerocopy.flatten import rebuild
from zerocopy.segment import Mapping, map_file, map_segment

_lock = threading.RLock()
_loaded: weakref.WeakValueDictionary[tuple[str, str], Any] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    global _lock  # a lock that another thread held at the fork stays locked for ever in the child
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def current_node() -> str | None:
    """Return the id of the Ray node that this process belongs to, or None where Ray does not run in it."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return str(ray.get_runtime_context().get_node_id())


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A published model: a few hundred bytes that any process can turn into the model.

    Args:
        name: the model's name.
        version: its version.
        digest: hex SHA-256 of its skeleton and its weights' digests.
        nbytes: bytes of weights, those in base segments included.
        path: its segment file on the machine that published it.
        node: the Ray node that published it, or None.
    """

    name: str
    version: int
    digest: str
    nbytes: int
    path: str
    node: str | None = None

    def load(self, *, device: str | torch.device = "cpu", cached: bool = True) -> Any:
        """Return the model, its weights mapped from the segment: milliseconds, and no copy.

        A write to a weight stays in this process; ``zerocopy.written`` tells of it.

        Args:
            device: where the weights should be; anything but "cpu" copies them there.
            cached: return the model that this process already loaded, as long as somebody holds it. False makes another
                one, over a mapping of its own.

        Returns:
            The model, as it was published.

        Raises:
            SegmentGoneError: its publisher and every reader have left.
            CorruptSegmentError: its file was truncated or altered.
        """
        key = self.digest, str(device)
        with _lock:
            model = _loaded.get(key) if cached else None
            if model is None:
                model = _build(self)
                if str(device) != "cpu":
                    model = model.to(device)
                if cached and isinstance(model, nn.Module):
                    _loaded[key] = model
        return model


@contextmanager
def local_segment(ref: ModelRef) -> Iterator[Path]:
    """Give a segment file on this machine, sure to stay for the block; a far node's is fetched first, once per node."""
    here = current_node() if ref.node is not None else None
    if ref.node is None or here is None or here == ref.node:
        yield Path(ref.path)
        return
    from zerocopy.journey import fetch  # only where Ray runs already

    with fetch(f"{ref.name}@{ref.version}-{ref.digest[:12]}", ref.path, ref.node, here) as path:
        yield path


def _map(ref: ModelRef) -> Mapping:
    with local_segment(ref) as path:
        return map_segment(path)


def _build(ref: ModelRef) -> Any:
    mapping = _map(ref)
    manifest = mapping.manifest
    if manifest.digest != ref.digest:
        raise CorruptSegmentError(f"{mapping.path} holds model {manifest.digest[:12]} instead of {ref.digest[:12]}")
    bases = [
        map_file(manifest, index) if "file" in fields else _map(ModelRef(**fields))
        for index, fields in enumerate(manifest.bases)
    ]
    for base in bases:
        base.delta = mapping  # a model whose every block lies in bases still counts as a reader of its own segment
    own, others = memoryview(mapping), [memoryview(base) for base in bases]
    buffers = [
        (own if block.base is None else others[block.base])[block.offset : block.offset + block.nbytes]
        for block in manifest.blocks
    ]
    model = rebuild(mapping.skeleton, buffers)
    for each in (mapping, *bases):
        if each.path.parent == default_directory():  # memory; from a disk, only what is used should be read
            each.read_ahead()
    return model
