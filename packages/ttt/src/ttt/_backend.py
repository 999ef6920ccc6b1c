"""The protocol of a backend, and how a backend is named and checked."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import psutil

from ttt._budget import Budget, Clock
from ttt.errors import InvalidBackendError, InvalidBudgetError
from ttt.values import Progress, Task

NAMED = {
    "grid": "ttt.backends.grid:GridBackend",
    "lm": "ttt.backends.lm:LmBackend",
    "vit": "ttt.backends.vit:VitBackend",
}


@runtime_checkable
class Backend(Protocol):
    """A solver: any object with a name and a `solve` that yields better and better answers.

    Example:
        >>> isinstance(ttt.named_backend("grid"), ttt.Backend)
        True

    It is pickled and sent to a fresh process for each task, so its class must live in an importable module, not in
    `__main__`; a frozen dataclass whose fields are its settings is ideal. The same settings, task, `clock.seed` and
    work units must lead to the same answers.

    A backend that takes long to load may have a method `stays_loaded` that returns True, and a method `loaded`, a
    context that yields a backend for one task after another in one process.
    """

    @property
    def name(self) -> str:
        """Short name for records and reports."""
        ...

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Yield answers, each Progress replacing the one before.

        Args:
            task: The task, without its test outputs.
            clock: Call `clock.stop()` at every step and return soon once it is true; count work with `clock.spend`.
            workdir: A folder for this task's checkpoints, kept between a killed run and its resumption; None if the
                run keeps nothing.
        """
        ...


def named_backend(backend: Backend | str, **settings: Any) -> Backend:
    """Return the backend for a name (`grid`, `lm`, `vit`), for `package.module:Class`, or the object itself.

    Args:
        backend: Its name, or the object.
        settings: Keyword arguments for the class; only with a name.

    Example:
        >>> ttt.named_backend("grid", stages=("search",)).name
        'grid'

    Raises:
        InvalidBackendError: The name is unknown, or the object is not a backend.
    """
    if not isinstance(backend, str):
        if settings:
            raise InvalidBackendError("settings need a backend's name; configure the object itself")
        if not isinstance(backend, Backend):
            raise InvalidBackendError(f"got {type(backend).__name__}, wanted an object with 'name' and 'solve'")
        return backend
    module_name, _, attribute = NAMED.get(backend, backend).partition(":")
    if not attribute:
        raise InvalidBackendError(f"got {backend!r}, wanted one of {', '.join(NAMED)}, or package.module:Class")
    try:
        made = getattr(importlib.import_module(module_name), attribute)(**settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InvalidBackendError(f"backend {backend!r} cannot be created: {error}") from error
    return named_backend(made)


def sharing(backend: Backend) -> AbstractContextManager[Backend]:
    """Return a context that yields the backend for the processes started within it.

    A backend may have a method `sharing` that returns such a context, for example to load a model once for all
    processes. A run enters it once; on a Ray cluster each supervising process enters it again, for its node. Any other
    backend is yielded unchanged.
    """
    own = getattr(backend, "sharing", None)
    return nullcontext(backend) if own is None else own()


def stays_loaded(backend: Backend) -> bool:
    """Return whether one process solves several tasks with a backend: it has a method `stays_loaded` that says so."""
    own = getattr(backend, "stays_loaded", None)
    return bool(own()) if own is not None else False


def loaded(backend: Backend) -> AbstractContextManager[Backend]:
    """Return a context that yields the backend as it solves tasks in one process, one after another.

    A backend that stays loaded has a method `loaded` that returns such a context, for example with a model in memory.
    Each task must leave it as it was. Any other backend is yielded unchanged.
    """
    own = getattr(backend, "loaded", None)
    return nullcontext(backend) if own is None else own()


def preflight(backend: Backend, budget: Budget | None = None, *, workers: int = 1, gpu_tasks: int = 1) -> None:
    """Check what a backend needs (files, devices, extras, memory), before any task is started.

    A backend may have a method `preflight`, which raises an error that says what is missing; a method
    `memory_needed`, which returns the bytes that each worker process holds at least; and a method `check_gpu_tasks`,
    which is given the number of processes that share a GPU and raises an error where they do not fit.

    Raises:
        TTTError: Something is missing, or the memory of the budget, the machine or a GPU is too small.
    """
    own = getattr(backend, "preflight", None)
    if own is not None:
        own()
    on_gpu = getattr(backend, "check_gpu_tasks", None)
    if on_gpu is not None:
        on_gpu(gpu_tasks)
    asked = getattr(backend, "memory_needed", None)
    needed = 0 if asked is None else asked()
    if budget is not None and budget.memory is not None and needed > 0.9 * budget.memory:
        raise InvalidBudgetError(
            f"{backend.name} needs about {needed / 1e9:.1f} GB of memory in each task's process, the limit is "
            f"{budget.memory / 1e9:.1f} GB; raise it, or share the weights between the processes"
        )
    total = psutil.virtual_memory().total
    if needed * workers > total:
        raise InvalidBudgetError(
            f"{backend.name} needs about {needed / 1e9:.1f} GB of memory in each of {workers} processes, this machine "
            f"has {total / 1e9:.1f} GB; use fewer workers, or share the weights between the processes"
        )


def check_portable(backend: Backend) -> None:
    """Refuse a backend that cannot be sent to a fresh worker process.

    Raises:
        InvalidBackendError: Its class is in `__main__` or inside a function, or it cannot be pickled.
    """
    cls = type(backend)
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise InvalidBackendError(
            f"{cls.__qualname__} is defined in {cls.__module__}: each task is solved in a fresh process, "
            "which must import it; move the class to the top level of a module"
        )
    try:
        pickle.dumps(backend)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidBackendError(
            f"{cls.__qualname__} cannot be pickled, so it cannot be sent to the fresh process of a task: {error}"
        ) from error
