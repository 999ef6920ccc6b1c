"""ModelRef: the small value that identifies a published model in any process, and how it is loaded there."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerocopy._directory import default_directory
from zerocopy._flatten import rebuild
from zerocopy._segment.mapping import Mapping, map_file, map_segment
from zerocopy.errors import CorruptSegmentError

_lock = threading.RLock()
_loaded: weakref.WeakValueDictionary[tuple[str, str], Any] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    global _lock  # a lock that another thread held at the fork stays locked in the child
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
    """A reference to a published model: a few hundred bytes that any process can load the model from.

    Args:
        name: The model's name.
        version: Its version.
        digest: Hex SHA-256 of its skeleton and its weights' digests.
        nbytes: Bytes of weights, those in base segments included.
        path: Its segment file on the machine that published it.
        node: The Ray node that published it, or None.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> torch.equal(ref.load().weight, ref.load(cached=False).weight)
        True
        >>> zerocopy.unpublish(ref)
    """

    name: str
    version: int
    digest: str
    nbytes: int
    path: str
    node: str | None = None

    def load(self, *, device: str | torch.device = "cpu", cached: bool = True) -> Any:
        """Return the model with its weights mapped from the segment, without copying them.

        A write to a weight stays in this process, and `zerocopy.written` lists it.

        Args:
            device: Where the weights should be. Any device but "cpu" gets a copy.
            cached: Return the model that this process loaded before, if it still exists. False makes another one, over
                a mapping of its own.

        Returns:
            The model, as it was published.

        Raises:
            SegmentGoneError: Its publisher and every reader have left.
            CorruptSegmentError: Its file was truncated or altered.
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
    def on_this_node(self) -> Iterator[ModelRef]:
        """Yield a reference for processes of this node that do not run Ray, valid during the block.

        The segment of another Ray node is fetched first, once per node.

        Yields:
            The same model, with a path on this node and no node id.
        """
        with local_segment(self) as path:
            yield replace(self, path=str(path), node=None)


@contextmanager
def local_segment(ref: ModelRef) -> Iterator[Path]:
    """Yield a segment file on this machine that stays during the block. Another node's is fetched first, once per node.

    Yields:
        The path.
    """
    here = current_node() if ref.node is not None else None
    if ref.node is None or here is None or here == ref.node:
        yield Path(ref.path)
        return
    from zerocopy._fetch import fetch  # imports Ray, which runs in this process already

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
        base.delta = mapping  # keeps the lease on a segment all of whose blocks lie in bases
    own, others = memoryview(mapping), [memoryview(base) for base in bases]
    buffers = [
        (own if block.base is None else others[block.base])[block.offset : block.offset + block.nbytes]
        for block in manifest.blocks
    ]
    model = rebuild(mapping.skeleton, buffers)
    for each in (mapping, *bases):
        if each.path.parent == default_directory():  # memory; from a disk, only the used pages should be read
            each.read_ahead()
    return model
