"""ModelRef: the small value that identifies a published model in any process, and how it is loaded there."""

from __future__ import annotations

import json
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerocopy._device.loading import move_copied, move_shared
from zerocopy._device.memory import require_cuda
from zerocopy._directory import memory_prefix, names, segments
from zerocopy._flatten import rebuild
from zerocopy._lease import close, nothing_left
from zerocopy._origin import remember
from zerocopy._remote_code import is_foreign
from zerocopy._segment.checking import open_segment
from zerocopy._segment.mapping import Mapping as Mapped
from zerocopy._segment.mapping import map_file, map_segment
from zerocopy._torch_private import neutral
from zerocopy.errors import (
    CorruptSegmentError,
    OtherFormatError,
    SegmentGoneError,
    UnknownNameError,
    UntrustedPathError,
)

_CPU = torch.device("cpu")
_lock = threading.RLock()
_foreign: weakref.WeakSet[Any] = weakref.WeakSet()  # models with code of a checkpoint: another caller may not allow it
_loaded: weakref.WeakValueDictionary[tuple[str, str, bool], Any] = weakref.WeakValueDictionary()


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

    def as_dict(self) -> dict[str, Any]:
        """Return the reference as a plain dict, for JSON: a Serve `user_config`, a file, a message."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelRef:
        """Return the reference that `as_dict` made a dict of.

        Args:
            fields: The dict.

        Raises:
            ValueError: It is not such a dict.
        """
        kinds = {"name": str, "version": int, "digest": str, "nbytes": int, "path": str, "node": str | None}
        if set(fields) - {"node"} != set(kinds) - {"node"}:
            raise ValueError(f"a reference has the fields {', '.join(kinds)}, this has {', '.join(map(str, fields))}")
        wrong = [name for name, value in fields.items() if not isinstance(value, kinds[name])]
        if wrong:
            raise ValueError(f"fields of a reference with values of the wrong type: {', '.join(wrong)}")
        return cls(**fields)

    def to_json(self) -> str:
        """Return the reference as JSON."""
        return json.dumps(self.as_dict())

    @classmethod
    def from_json(cls, text: str) -> ModelRef:
        """Return the reference that `to_json` made JSON of.

        Args:
            text: The JSON.

        Raises:
            ValueError: It is not the JSON of a reference.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("the JSON of a reference is an object")
        return cls.from_dict(fields)

    def load(
        self,
        *,
        device: str | torch.device = "cpu",
        share: bool = False,
        cached: bool = True,
        trust_remote_code: bool = False,
    ) -> Any:
        """Return the model with its weights mapped from the segment, without copying them.

        A write to a weight stays in this process, and `zerocopy.written` lists it.

        Args:
            device: Where the weights should be. Any device but "cpu" gets a copy.
            share: On a CUDA device, use one copy for all processes of this user that load with `share=True`: the first
                one makes and checks it, and it goes with the last. For inference: where the driver protects the copy, a
                write to a shared weight is an error of CUDA, and elsewhere it reaches the other processes.
            cached: Return the model that this process loaded before, if it still exists. False makes another one, over
                a mapping of its own.
            trust_remote_code: Run the code that the model takes along from its checkpoint, if it does.

        Returns:
            The model, as it was published.

        Raises:
            SegmentGoneError: Its publisher and every reader have left.
            CorruptSegmentError: Its file was truncated or altered.
            UntrustedPathError: Its file belongs to another user, or others can write it.
            RemoteCodeError: It takes code along, and this is not allowed. Nothing of it was run.
            DeviceUnavailableError: The device cannot be used in this process, or cannot share.
            NoSpaceError: The device has too little memory for the shared copy.
            TypeError: The model has no method `to`, by which a model moves to a device.
        """
        place = _place(device)
        share = share and place.type != "cpu"  # where it always is
        key = self.digest, str(place), share
        with _lock:
            model = _loaded.get(key) if cached else None
            if model is None or (model in _foreign and not trust_remote_code):
                model = self._load(place, share, trust_remote_code)
                if trust_remote_code and isinstance(model, nn.Module) and is_foreign(model):
                    _foreign.add(model)
                if cached and isinstance(model, nn.Module):
                    _loaded[key] = model
        return model

    def _load(self, place: torch.device, share: bool, trust_remote_code: bool) -> Any:
        on_cpu = place.type == "cpu"
        if share and place.type != "cuda":
            raise ValueError(
                f"share=True is for CUDA devices, got {str(place)!r}; on the CPU, weights are always shared"
            )
        ahead = place.type != "cuda"
        with nothing_left():
            model, mappings = _build(self, on_cpu=on_cpu, ahead=ahead, trust_remote_code=trust_remote_code)
        if on_cpu:
            return model
        if not hasattr(model, "to"):
            raise TypeError(f"a {type(model).__name__} has no method `to`: load it onto the CPU and move its parts")
        with neutral():
            if place.type != "cuda":
                return model.to(place)
            if not share:
                return move_copied(model, place, mappings)
            model = move_shared(model, place, mappings)
            remember(model, mappings[0].file, mappings[0].manifest, ())
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


def _place(device: str | torch.device) -> torch.device:
    """Return the device with its number, under which a process keeps one copy; the host has none."""
    if device == "cpu":
        return _CPU
    place = torch.device(device)
    if place.type == "cpu":
        return _CPU
    if place.type == "cuda":
        require_cuda(place)
        return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())
    return place


@contextmanager
def local_segment(ref: ModelRef) -> Iterator[Path]:
    """Yield a segment file on this machine that stays during the block. Another node's is fetched first, once per node.

    Yields:
        The path.
    """
    if _is_here(ref):
        yield Path(ref.path)
        return
    from zerocopy._fetch import fetch  # imports Ray, which runs in this process already

    with fetch(f"{ref.name}@{ref.version}-{ref.digest[:12]}", ref.path, str(ref.node), str(current_node())) as path:
        yield path


def _is_here(ref: ModelRef) -> bool:
    """Return whether a segment lies on this machine, as far as this process can tell."""
    return ref.node is None or current_node() in (None, ref.node)


def ref_of(path: Path) -> ModelRef:
    """Return the reference to the model in a segment file of this machine.

    Raises:
        SegmentGoneError: The file does not exist any more.
        CorruptSegmentError: It is not a segment, or was truncated or altered.
    """
    head = open_segment(path)
    close(head.fd)
    manifest = head.manifest
    return ModelRef(manifest.name, manifest.version, manifest.digest, manifest.model_nbytes, str(path), current_node())


def unknown(folder: Path, name: str) -> UnknownNameError:
    """Return the error that says which names there are."""
    return UnknownNameError(f"nothing is published as {name!r} in {folder}; there is {names(folder) or 'nothing'}")


def _map(ref: ModelRef) -> Mapped:
    if _is_here(ref):
        return map_segment(ref.path)  # without what the other branch needs, which takes a twentieth of a small load
    with local_segment(ref) as path:
        return map_segment(path)


def _map_base(fields: dict[str, Any], delta: Mapped) -> Mapped:
    """Map a base: where it was published, or beside its delta by file name or content, as after moving a folder."""
    folder = delta.path.parent
    try:
        base = ModelRef.from_dict(fields)
    except ValueError as error:
        raise CorruptSegmentError(f"{delta.path} has a base that is no reference: {error}") from error
    try:
        mapping = _map(base)
        if mapping.manifest.digest == base.digest:
            return mapping
    except (SegmentGoneError, OtherFormatError, UntrustedPathError):
        pass
    beside = folder / Path(base.path).name
    for path in (beside, *(each for each in segments(folder) if each not in (beside, delta.path))):
        try:
            head = open_segment(path)
        except (SegmentGoneError, CorruptSegmentError, UntrustedPathError):
            continue
        close(head.fd)
        if head.manifest.digest == base.digest:
            return map_segment(path)
    raise SegmentGoneError(
        f"{delta.path} needs the model {base.name} version {base.version}, which is neither at {base.path} nor in "
        f"{folder}: publish it again, or put it there"
    )


def _check_bases(delta: Mapped, bases: Sequence[Mapped]) -> None:
    """Refuse blocks that their base does not hold: its own manifest says which it does."""
    held = [
        None if "file" in fields else {(block.offset, block.nbytes, block.digest) for block in base.manifest.blocks}
        for base, fields in zip(bases, delta.manifest.bases, strict=True)
    ]
    for block in delta.manifest.blocks:
        if block.base is None or not block.nbytes:
            continue
        there = held[block.base]
        if block.offset + block.nbytes > len(bases[block.base]) or (
            there is not None and (block.offset, block.nbytes, block.digest) not in there
        ):
            raise CorruptSegmentError(f"{delta.path} needs bytes that {bases[block.base].path} does not hold")


def _build(ref: ModelRef, *, on_cpu: bool, ahead: bool, trust_remote_code: bool) -> tuple[Any, list[Mapped]]:
    """Return the model over mappings of its segments, and the mappings."""
    mapping = _map(ref)
    manifest = mapping.manifest
    if manifest.digest != ref.digest:
        raise CorruptSegmentError(f"{mapping.path} holds model {manifest.digest[:12]} instead of {ref.digest[:12]}")
    bases = [
        map_file(manifest, index, mapping.path.parent) if "file" in fields else _map_base(fields, mapping)
        for index, fields in enumerate(manifest.bases)
    ]
    for base in bases:
        base.delta = mapping  # keeps the lease on a segment all of whose blocks lie in bases
    own, others = memoryview(mapping), [memoryview(base) for base in bases]
    if bases:
        _check_bases(mapping, bases)
    buffers = [
        (own if block.base is None else others[block.base])[block.offset : block.offset + block.nbytes]
        for block in manifest.blocks
    ]
    model = rebuild(mapping.skeleton, buffers, trust_remote_code=trust_remote_code)
    if on_cpu:
        remember(model, mapping.file, manifest, buffers)
    for index, each in enumerate((mapping, *bases)):
        here = index - 1 if index else None
        each.used = [block for block in manifest.blocks if block.base == here] if bases else manifest.blocks
        if ahead and each.file.startswith(memory_prefix()):
            each.read_ahead()  # from a disk, only the used pages should be read
    return model, [mapping, *bases]
