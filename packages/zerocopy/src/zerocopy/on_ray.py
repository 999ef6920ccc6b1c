"""Run published models on Ray: tasks and actors over shared weights, Ray Data and Ray Serve."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zerocopy._invoke import call_model
from zerocopy._ref import ModelRef
from zerocopy._writes import written
from zerocopy.errors import MissingExtraError

try:
    import ray
except ImportError as error:
    raise MissingExtraError('this needs Ray: pip install "pentad-zerocopy[ray]", or use mode="local"') from error

__all__ = ["BatchPredictor", "ModelActor", "deployment"]


def task_runner(options: Mapping[str, Any] | None = None) -> Callable[[ModelRef], Callable[..., Any]]:
    """Return, per model, a function that runs call_model as a Ray task and waits for the result."""
    return lambda _ref: _RunTask(dict(options or {}))


class _RunTask:
    """Runs call_model as a Ray task. It is pickled as part of a pipeline."""

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

    def __call__(self, _ref: ModelRef, method: str, args: Any, kwargs: Any) -> Any:
        actor = self._actors[next(self._turn) % len(self._actors)]
        return ray.get(actor.call.remote(method, args, kwargs))

    def __reduce__(self) -> tuple[Any, ...]:
        return _RunActors, (self._actors,)


class ModelActor:
    """A Ray actor's class: one process with the model loaded. Use it as `ray.remote(ModelActor).remote(ref)`.

    Args:
        ref: The model.
        refuse_writes: Run every call in strict mode.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> ModelActor(ref).call(args=(torch.ones(1, 4),)).shape
        torch.Size([1, 2])
        >>> zerocopy.forget(ref)
        >>> zerocopy.unpublish(ref)
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
    """A callable class for Ray Data's `map_batches`: adds a column of predictions to each batch.

    Args:
        ref: The model.
        column: The column that the model reads.
        output: The column that it writes.
        method: The method to call with a tensor of the column.

    Example:
        >>> import numpy, torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> batch = BatchPredictor(ref)({"data": numpy.ones((3, 4), dtype="float32")})
        >>> batch["prediction"].shape
        (3, 2)
        >>> zerocopy.forget(ref)
        >>> zerocopy.unpublish(ref)
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
    """Return a Ray Serve application that answers with a published model. All its replicas share one copy of weights.

    Args:
        ref: The model.
        method: The method that requests call.
        **options: Options of `serve.deployment`, such as `num_replicas` or `name`.

    Returns:
        An application for `serve.run`. Its handle's `remote(*args)` returns the model's answer.

    Raises:
        MissingExtraError: Ray Serve is not installed.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> application = deployment(ref, num_replicas=2)  # serve.run(application)
        >>> zerocopy.unpublish(ref)
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
        """Serve the version given by `user_config={"ref": ...}`."""
        if "ref" in config:
            self._ref = config["ref"]
            self._model = self._ref.load()


# Made once, because Ray exports a function or class to the cluster again for every wrapper.
_CALL = ray.remote(call_model)
_ACTOR = ray.remote(ModelActor)
