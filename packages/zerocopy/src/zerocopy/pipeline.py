"""rewrite_pipeline: replace the models inside any object by stand-ins that run from shared weights, here or in Ray."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from torch import nn

from zerocopy.errors import MethodNotAllowedError
from zerocopy.invoke import call_model
from zerocopy.publish import publish
from zerocopy.ref import ModelRef
from zerocopy.walk import children

T = TypeVar("T")
Mode = Literal["task", "actor", "local"]


class ModelProxy:
    """Stands where a model stood in a pipeline; its allowed methods run the published model.

    Args:
        ref: the model.
        methods: names of the methods that may be called.
        run: takes (ref, method, args, kwargs) and returns the result.
    """

    def __init__(self, ref: ModelRef, methods: Sequence[str], run: Callable[..., Any] = call_model) -> None:
        self._ref = ref
        self._methods = frozenset(methods)
        self._run = run

    @property
    def ref(self) -> ModelRef:
        """The published model."""
        return self._ref

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self._allowed("__call__")(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return a caller of an allowed method."""
        if name.startswith("__") or name in ("_ref", "_methods", "_run"):
            raise AttributeError(name)
        return self._allowed(name)

    def _allowed(self, method: str) -> Callable[..., Any]:
        if method not in self._methods:
            raise MethodNotAllowedError(
                f"{method!r} of {self._ref.name} was not asked for: the pipeline was rewritten with "
                f"methods={tuple(sorted(self._methods))}; add it there"
            )

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._run(self._ref, method, args, kwargs)

        return call

    def __repr__(self) -> str:
        return f"ModelProxy({self._ref.name} version {self._ref.version}, methods {sorted(self._methods)})"


def rewrite_pipeline(
    pipeline: T,
    *,
    methods: Sequence[str] = ("__call__",),
    mode: Mode = "task",
    workers: int = 1,
    options: Mapping[str, Any] | None = None,
) -> T:
    """Publish every model inside an object and return the object with stand-ins in their places.

    Models are found in attributes, slots, lists, tuples, dicts and objects nested in those; one that is met twice is
    published once and has one stand-in. What leads to a model is copied, everything else is shared with the original,
    which stays as it is.

    Args:
        pipeline: any object; if it is itself a module, the result is its stand-in.
        methods: the methods of the models that the stand-ins offer.
        mode: where calls run: "task" in Ray tasks (a worker rebuilds the model once and keeps it), "actor" in Ray
            actors that have it loaded, "local" in the process that calls, which may be one that the pipeline was sent
            to.
        workers: actors per model, used in turn; only for "actor".
        options: Ray options for the tasks or actors, such as ``num_cpus``.

    Returns:
        The rewritten pipeline; it is small to pickle.

    Raises:
        UnshareableError: a model cannot be published.
        MissingExtraError: Ray is needed and not installed.
    """
    if mode == "local":
        make_run: Callable[[ModelRef], Callable[..., Any]] = lambda ref: call_model  # noqa: E731  # beside its twins
    else:
        from zerocopy import on_ray  # needs the extra

        make_run = on_ray.task_runner(options) if mode == "task" else on_ray.actor_runner(workers, options)
    stand_ins: dict[int, ModelProxy] = {}

    def stand_in(model: nn.Module) -> ModelProxy:
        if id(model) not in stand_ins:
            ref = publish(model)
            stand_ins[id(model)] = ModelProxy(ref, methods, make_run(ref))
        return stand_ins[id(model)]

    return _replaced(pipeline, stand_in)  # type: ignore[no-any-return]  # a T, but for the models in it


def _replaced(root: Any, stand_in: Callable[[nn.Module], Any]) -> Any:
    """Return an object with its modules replaced, copying only what leads to one."""
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
            elif isinstance(obj, list):
                twin[:] = [visit(item) for item in obj]
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
