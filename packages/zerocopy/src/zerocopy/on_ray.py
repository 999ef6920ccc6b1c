"""What runs on Ray: tasks and actors over shared weights, a model's one journey to another node, Ray Data and Serve.

Weights do not live in Ray's object store, which every worker maps read-write: they pass through it, in pieces, on their
way to another node, where the first worker that asks makes a segment for all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zerocopy import directory as places
from zerocopy.errors import MissingExtraError, SegmentGoneError
from zerocopy.invoke import call_model
from zerocopy.isolation import written
from zerocopy.lease import TEMPORARY, caretaker, gate, share
from zerocopy.ref import ModelRef
from zerocopy.segment import adopt, open_segment

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingExtraError('this needs Ray: pip install "pentad-zerocopy[ray]", or use mode="local"') from error

PIECE = 16 << 20  # bytes of a model in the object store at a time, so that a store smaller than the model is enough


def task_runner(options: Mapping[str, Any] | None = None) -> Callable[[ModelRef], Callable[..., Any]]:
    """Return, per model, a function that runs call_model as a Ray task and waits for the result."""
    return lambda ref: _RunTask(dict(options or {}))


class _RunTask:
    """Runs call_model as a Ray task; travels inside pipelines."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def __call__(self, ref: ModelRef, method: str, args: Any, kwargs: Any) -> Any:
        return ray.get(_CALL.options(**self._options).remote(ref, method, args, kwargs))


def actor_runner(workers: int, options: Mapping[str, Any] | None = None) -> Callable[[ModelRef], Callable[..., Any]]:
    """Return, per model, a function that runs a method in one of a few actors, in turn."""

    def make(ref: ModelRef) -> _RunActors:
        actor = _ACTOR.options(**(options or {}))
        return _RunActors([actor.remote(ref) for _ in range(workers)])

    return make


class _RunActors:
    """Runs methods in actors that have the model loaded."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors
        self._turn = itertools.count()

    def __call__(self, ref: ModelRef, method: str, args: Any, kwargs: Any) -> Any:
        actor = self._actors[next(self._turn) % len(self._actors)]
        return ray.get(actor.call.remote(method, args, kwargs))

    def __reduce__(self) -> tuple[Any, ...]:
        return _RunActors, (self._actors,)


class ModelActor:
    """A Ray actor's class: one process with the model loaded. Use as ``ray.remote(ModelActor).remote(ref)``.

    Args:
        ref: the model.
        refuse_writes: run every call in strict mode.
    """

    def __init__(self, ref: ModelRef, *, refuse_writes: bool = False) -> None:
        self._refuse = refuse_writes
        self.reload(ref)

    def reload(self, ref: ModelRef) -> int:
        """Switch to another model between calls, and return its version."""
        self._model = ref.load()
        self._ref = ref
        return ref.version

    def call(self, method: str = "__call__", args: Any = (), kwargs: Any = None) -> Any:
        """Call a method of the model."""
        return call_model(self._ref, method, args, kwargs, refuse_writes=self._refuse)

    def written(self) -> Any:
        """Return the weights that this process has written to."""
        return written(self._model)


class BatchPredictor:
    """A callable class for Ray Data's ``map_batches``: adds a column of predictions to each batch.

    Args:
        ref: the model.
        column: the column that the model reads.
        output: the column that it writes.
        method: the method to call with a tensor of the column.
    """

    def __init__(
        self, ref: ModelRef, column: str = "data", output: str = "prediction", method: str = "__call__"
    ) -> None:
        self._ref, self._column, self._output, self._method = ref, column, output, method

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict one batch of numpy columns."""
        import torch

        inputs = torch.from_numpy(np.array(batch[self._column]))  # a copy: Ray's batches may be read-only memory
        return {**batch, self._output: call_model(self._ref, self._method, (inputs,)).numpy()}


def deployment(ref: ModelRef, method: str = "__call__", **options: Any) -> Any:
    """Return a Ray Serve application that answers with a published model, one copy of weights for all its replicas.

    Args:
        ref: the model.
        method: the method that requests call.
        options: options of ``serve.deployment``, such as ``num_replicas`` or ``name``.

    Returns:
        What ``serve.run`` takes; its handle's ``remote(*args)`` gives the model's answer.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError('this needs Ray Serve: pip install "pentad-zerocopy[ray-serve]"') from error

    return serve.deployment(_Replica, **options).bind(ref, method)


class _Replica:
    """One Serve replica."""

    def __init__(self, ref: ModelRef, method: str) -> None:
        self._ref, self._method = ref, method
        self._model = ref.load()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one request."""
        return call_model(self._ref, self._method, args, kwargs)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take ``user_config={"ref": ...}`` as a new version to serve."""
        if "ref" in config:
            self._ref = config["ref"]
            self._model = self._ref.load()


def _read_piece(path: str, offset: int, nbytes: int) -> Any:
    with open(path, "rb") as file:
        return np.fromfile(file, dtype=np.uint8, count=nbytes, offset=offset)


# Made once: Ray exports a function or class to the cluster anew for every wrapper.
_CALL = ray.remote(call_model)
_READ = ray.remote(num_cpus=0, max_retries=0)(_read_piece)
_ACTOR = ray.remote(ModelActor)


@contextmanager
def fetch(ref: ModelRef, here: str) -> Iterator[Path]:
    """Give a segment of this node for a model that another node published; the first process to ask brings it.

    Args:
        ref: the model.
        here: this node's id.

    Raises:
        SegmentGoneError: its node or its publisher has left.
        CorruptSegmentError: what arrived is not what was published.
    """
    folder = places.prepare(None)
    path = folder / f"{ref.name}@{ref.version}-{ref.digest[:12]}-{here[:8]}{places.SUFFIX}"
    with gate(path.with_name(f"{path.name}.gate{TEMPORARY}")):
        try:
            lease, brought = open_segment(path).fd, False
        except SegmentGoneError:
            lease, brought = _bring(ref, path), True
    try:
        yield path
    finally:
        os.close(lease)
        if brought:
            caretaker.publisher_done(path)  # from here on it stays as long as somebody on this node reads it


def _bring(ref: ModelRef, path: Path) -> int:
    reader = _READ.options(scheduling_strategy=NodeAffinitySchedulingStrategy(ref.node, soft=False))
    temporary = path.with_name(path.name + TEMPORARY)
    caretaker.take(path)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        share(fd, temporary)
        offset, more = 0, True
        ahead = reader.remote(ref.path, 0, PIECE)
        while more:
            piece = ray.get(ahead)
            more = len(piece) == PIECE
            if more:
                ahead = reader.remote(ref.path, offset + PIECE, PIECE)
            os.pwrite(fd, memoryview(piece), offset)
            offset += len(piece)
            del piece  # or the store keeps it until the next one has arrived
        adopt(fd, temporary)
        temporary.rename(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        os.close(fd)
        caretaker.publisher_done(path)
        if isinstance(error, ray.exceptions.RayError):
            raise SegmentGoneError(f"{ref.name} version {ref.version} cannot be had from its node: {error}") from error
        raise
    return fd
