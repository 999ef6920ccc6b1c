"""rewrite_pipeline: replace the models inside an object by stand-ins that run from shared weights, here or in Ray."""

from __future__ import annotations

import copy
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from zerocopy._held import release
from zerocopy._invoke import call_model, forget_path
from zerocopy._publish import publish
from zerocopy._ref import ModelRef
from zerocopy._walk import children
from zerocopy.errors import MethodNotAllowedError

T = TypeVar("T")
Mode = Literal["task", "actor", "local"]


class ModelProxy:
    """A stand-in for a model in a pipeline. Its allowed methods run the published model.

    Args:
        ref: The model.
        methods: Names of the methods that may be called.
        run: Takes (ref, method, args, kwargs) and returns the result.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-proxy")
        >>> zerocopy.ModelProxy(ref, ["__call__"])(torch.ones(1, 4)).shape
        torch.Size([1, 2])
        >>> zerocopy.forget(ref)
        >>> zerocopy.unpublish(ref)
    """

    def __init__(self, ref: ModelRef, methods: Sequence[str], run: Callable[..., Any] = call_model) -> None:
        self._ref = ref
        self._methods = frozenset(_names(methods))
        self._run = run
        self._owned: weakref.finalize[..., ModelProxy] | None = None

    @property
    def ref(self) -> ModelRef:
        """The published model."""
        return self._ref

    def own(self) -> ModelProxy:
        """Give the model up when this stand-in is gone, unless it was pickled for another process before."""
        self._owned = weakref.finalize(self, _give_up, self._ref.path)
        self._owned.atexit = False  # the end of the process gives up everything
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled. From now on the model stays until this process ends or unpublishes it."""
        if self._owned is not None:
            self._owned.detach()
        return {"_ref": self._ref, "_methods": self._methods, "_run": self._run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled."""
        self.__dict__.update(state, _owned=None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self._allowed("__call__")(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return a caller of an allowed method."""
        if name.startswith("__") or name in ("_ref", "_methods", "_run", "_owned"):
            raise AttributeError(name)
        return self._allowed(name)

    def _allowed(self, method: str) -> Callable[..., Any]:
        if method not in self._methods:
            raise MethodNotAllowedError(
                f"{method!r} of {self._ref.name} is not allowed: the pipeline was rewritten with "
                f"methods={tuple(sorted(self._methods))}; add it there"
            )

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._run(self._ref, method, args, kwargs)

        return call

    def __repr__(self) -> str:
        return f"ModelProxy({self._ref.name} version {self._ref.version}, methods {sorted(self._methods)})"


def rewrite_pipeline(  # long because its documentation counts too
    pipeline: T,
    *,
    methods: Sequence[str] = ("__call__",),
    mode: Mode = "task",
    workers: int = 1,
    options: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> T:
    """Publish every model inside an object and return the object with stand-ins in their places.

    Models are found in attributes, slots, lists, tuples, dicts and objects nested in those. A model that occurs twice
    is published once and has one stand-in. Objects on the way to a model are copied; everything else is shared with the
    original, which is not changed.

    Args:
        pipeline: Any object. If it is itself a module, the result is its stand-in.
        methods: The methods of the models that the stand-ins offer.
        mode: Where calls run: "task" in Ray tasks (a worker rebuilds the model once and keeps it), "actor" in Ray
            actors that have it loaded, "local" in the process that calls, which may be one that received the pipeline.
        workers: Actors per model, used in turn; only for "actor".
        options: Ray options for the tasks or actors, such as `num_cpus`.
        trust_remote_code: Take along code of the checkpoints and run it where the stand-ins run; see `publish`.

    Returns:
        The rewritten pipeline. Its pickle is small. When it is dropped and was never pickled, its models are given up.

    Raises:
        UnshareableError: A model cannot be published.
        RemoteCodeError: A model's classes come from code of its checkpoint, and `trust_remote_code` is not given.
        MissingExtraError: Ray is needed and not installed.
        ValueError: The mode is unknown.
        TypeError: `methods` is one text, or holds what is no name.

    Example:
        >>> import torch, zerocopy
        >>> small = zerocopy.rewrite_pipeline({"net": torch.nn.Linear(4, 2)}, mode="local")
        >>> small["net"](torch.ones(1, 4)).shape
        torch.Size([1, 2])
        >>> del small  # gives up the model
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} is none of {', '.join(get_args(Mode))}")
    methods = _names(methods)
    make_run = _runner(mode, workers, options, trust_remote_code)
    stand_ins: dict[int, ModelProxy] = {}

    def stand_in(model: nn.Module) -> ModelProxy:
        if id(model) not in stand_ins:
            ref = publish(model, trust_remote_code=trust_remote_code)
            stand_ins[id(model)] = ModelProxy(ref, methods, make_run(ref)).own()
        return stand_ins[id(model)]

    return _replaced(pipeline, stand_in)  # type: ignore[no-any-return]  # a T, but for the models in it


def _names(methods: Sequence[str]) -> tuple[str, ...]:
    """Return names of methods, read once. One text is refused: its letters would be the names."""
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    if isinstance(methods, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"methods is {methods!r:.80}, wanted a list of names, such as ['forward']")
    return names


def _give_up(path: str) -> None:
    forget_path(path)
    release(path)


def _runner(
    mode: Mode, workers: int, options: Mapping[str, Any] | None, trust: bool
) -> Callable[[ModelRef], Callable[..., Any]]:
    """Return a function that makes, per model, what runs its calls."""
    if mode == "local":
        run = partial(call_model, trust_remote_code=True) if trust else call_model
        return lambda _ref: run
    from zerocopy import on_ray  # needs the extra

    if mode == "task":
        return on_ray.task_runner(options, trust_remote_code=trust)
    return on_ray.actor_runner(workers, options, trust_remote_code=trust)


def _replaced(root: Any, stand_in: Callable[[nn.Module], Any]) -> Any:
    """Return an object with its modules replaced. Only the objects on the way to a module are copied."""
    leads = _leading_to_modules(root)
    done: dict[int, Any] = {}

    def visit(obj: Any) -> Any:
        if isinstance(obj, nn.Module):
            return stand_in(obj)
        if id(obj) not in leads:
            return obj
        if id(obj) in done:
            return done[id(obj)]
        if isinstance(obj, tuple):
            items = [visit(item) for item in obj]
            done[id(obj)] = type(obj)(*items) if hasattr(obj, "_fields") else type(obj)(items)
        elif isinstance(obj, set | frozenset):
            done[id(obj)] = type(obj)(visit(item) for item in obj)
        else:
            twin = done[id(obj)] = copy.copy(obj)
            if isinstance(obj, dict):
                twin.update((key, visit(value)) for key, value in obj.items())
            elif isinstance(obj, list | deque):
                for index, item in enumerate(obj):
                    twin[index] = visit(item)
            else:
                for name, value in children(obj):
                    replaced = visit(value)
                    if replaced is not value:
                        object.__setattr__(twin, name, replaced)  # frozen dataclasses too
        return done[id(obj)]

    return visit(root)


def _leading_to_modules(root: Any) -> set[int]:
    """Return the ids of the objects from which a module can be reached."""
    parents: dict[int, list[int]] = {}
    modules: list[int] = []
    seen: dict[int, Any] = {}
    stack = [root]
    while stack:
        obj = stack.pop()
        if id(obj) in seen:
            continue
        seen[id(obj)] = obj
        if isinstance(obj, nn.Module):
            modules.append(id(obj))
            continue
        for _, value in children(obj):
            parents.setdefault(id(value), []).append(id(obj))
            stack.append(value)
    leads: set[int] = set()
    while modules:
        for parent in parents.get(modules.pop(), ()):
            if parent not in leads:
                leads.add(parent)
                modules.append(parent)
    return leads
