"""Run published models on Ray: tasks and actors over shared weights, Ray Data and Ray Serve."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zerocopy._invoke import call_model, kept_model
from zerocopy._publish import current
from zerocopy._ref import ModelRef
from zerocopy._values import arguments_of, as_array, as_json, as_tensor, floating_dtype, tensors_in
from zerocopy._writes import written
from zerocopy.errors import MissingExtraError

try:
    import ray
except ImportError as _error:
    raise MissingExtraError('this needs Ray: pip install "pentad-zerocopy[ray]", or use mode="local"') from _error

__all__ = ["BatchPredictor", "ModelActor", "deployment"]


def task_runner(
    options: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False
) -> Callable[[ModelRef], Callable[..., Any]]:
    """Return, per model, a function that runs call_model as a Ray task and waits for the result."""
    return lambda _ref: _RunTask(dict(options or {}), trust_remote_code)


class _RunTask:
    """Runs call_model as a Ray task. It is pickled as part of a pipeline."""

    def __init__(self, options: dict[str, Any], trust_remote_code: bool) -> None:
        self._options = options
        self._trust = trust_remote_code

    def __call__(self, ref: ModelRef, method: str, args: Any, kwargs: Any) -> Any:
        task = _CALL.options(**self._options)
        return ray.get(task.remote(ref, method, args, kwargs, trust_remote_code=self._trust))


def actor_runner(
    workers: int, options: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False
) -> Callable[[ModelRef], Callable[..., Any]]:
    """Return, per model, a function that runs a method in one of a few actors, in turn."""

    def make(ref: ModelRef) -> _RunActors:
        actor = _ACTOR.options(**(options or {}))
        return _RunActors([actor.remote(ref, trust_remote_code=trust_remote_code) for _ in range(workers)])

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
        trust_remote_code: See `ModelRef.load`.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> ModelActor(ref).call(args=(torch.ones(1, 4),)).shape
        torch.Size([1, 2])
        >>> zerocopy.forget(ref)
        >>> zerocopy.unpublish(ref)
    """

    def __init__(self, ref: ModelRef, *, refuse_writes: bool = False, trust_remote_code: bool = False) -> None:
        self._refuse = refuse_writes
        self._trust = trust_remote_code
        self.reload(ref)

    def reload(self, ref: ModelRef) -> int:
        """Switch to another model between calls, and return its version."""
        self._model = ref.load(trust_remote_code=self._trust)
        self._ref = ref
        return ref.version

    def call(self, method: str = "__call__", args: Any = (), kwargs: Any = None) -> Any:
        """Call a method of the model."""
        return call_model(self._ref, method, args, kwargs, refuse_writes=self._refuse, trust_remote_code=self._trust)

    def written(self) -> Any:
        """Return the weights that this process has written to."""
        return written(self._model)


class BatchPredictor:
    """A callable class for Ray Data's `map_batches`: adds columns of predictions to each batch.

    A model that returns a mapping or a dataclass, as Hugging Face's do, adds its first tensor as `output`, and each
    further one as `output` with its name added. Floating point columns are converted to the model's dtype, and bfloat16
    answers to float32, which numpy knows.

    Args:
        ref: The model.
        column: The column that the model reads, or several, which it gets as arguments of those names.
        output: The column that it writes.
        method: The method to call with tensors of the columns.
        trust_remote_code: See `ModelRef.load`.

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
        self,
        ref: ModelRef,
        column: str | Sequence[str] = "data",
        output: str = "prediction",
        method: str = "__call__",
        trust_remote_code: bool = False,
    ) -> None:
        self._ref, self._column, self._output, self._method = ref, column, output, method
        self._trust = trust_remote_code

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict one batch of numpy columns."""
        dtype = floating_dtype(kept_model(self._ref, self._trust))
        args: tuple[Any, ...]
        kwargs: dict[str, Any]
        if isinstance(self._column, str):
            args, kwargs = (as_tensor(batch[self._column], dtype),), {}
        else:
            args, kwargs = (), {name: as_tensor(batch[name], dtype) for name in self._column}
        answer = call_model(self._ref, self._method, args, kwargs)
        named = dict(tensors_in(answer))
        if not named:
            raise TypeError(f"the model returned a {type(answer).__name__} without a tensor in it")
        columns = {}
        for index, (name, tensor) in enumerate(named.items()):
            columns[self._output if index == 0 else f"{self._output}_{name}"] = as_array(tensor)
        return {**batch, **columns}


def deployment(ref: ModelRef, method: str = "__call__", *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Return a Ray Serve application that answers with a published model. All its replicas share one copy of weights.

    Its handle takes the model's arguments. By HTTP it takes a POST with JSON. A list is the only argument, an object
    with `args` or `kwargs` has both, and any other object has the keyword arguments. Lists of numbers become tensors.
    The answer is JSON in which tensors are lists. A request that the model cannot take is answered with status 400.

    Args:
        ref: The model.
        method: The method that requests call.
        trust_remote_code: See `ModelRef.load`.
        **options: Options of `serve.deployment`, such as `num_replicas` or `user_config`. A new
            `user_config={"ref": ref.as_dict()}`, or `{"name": "..."}` for the current version of a name, switches the
            replicas between two requests.

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

    return serve.deployment(Replica, **options).bind(ref, method, trust_remote_code)


class Replica:
    """One Serve replica."""

    def __init__(self, ref: ModelRef, method: str, trust_remote_code: bool = False) -> None:
        self._method = method
        self._trust = trust_remote_code
        self._serve(ref)

    def _serve(self, ref: ModelRef) -> None:
        self._loaded = ref, ref.load(trust_remote_code=self._trust)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one request, by the handle or by HTTP."""
        if len(args) == 1 and not kwargs and type(args[0]).__module__.startswith("starlette."):
            return await self._answer_http(args[0])
        return await asyncio.to_thread(self.answer, args, kwargs)

    def answer(self, args: Any, kwargs: Any) -> Any:
        """Return the model's answer."""
        return call_model(self._loaded[0], self._method, args, kwargs)

    async def _answer_http(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        try:
            args, kwargs = arguments_of(await request.json(), floating_dtype(self._loaded[1]))
        except (ValueError, TypeError) as error:
            return JSONResponse({"error": f"the request is not JSON of tensors: {error}"}, status_code=400)
        try:
            answer = await asyncio.to_thread(self.answer, args, kwargs)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:  # what torch raises for unfit shapes
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=400)
        return JSONResponse(as_json(answer))

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve the version given by `{"ref": ref.as_dict()}`, its JSON text, or `{"name": "..."}`."""
        if "name" in config:
            self._serve(current(config["name"], directory=config.get("directory")))
        elif "ref" in config:
            given = config["ref"]
            if isinstance(given, str):
                given = ModelRef.from_json(given)
            self._serve(given if isinstance(given, ModelRef) else ModelRef.from_dict(given))


# Made once, because Ray exports a function or class to the cluster again for every wrapper.
_CALL = ray.remote(call_model)
_ACTOR = ray.remote(ModelActor)
