"""What a solver must offer to be used here, and how one is named. Knows the domain values and the clock, no solver."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ttt._budget import Clock
from ttt.errors import InvalidBackendError
from ttt.values import Progress, Task

NAMED = {
    "grid": "ttt.backends.grid:GridBackend",
    "lm": "ttt.backends.lm:LmBackend",
    "vit": "ttt.backends.vit:VitBackend",
}


@runtime_checkable
class Backend(Protocol):
    """A solver: anything with a name and a ``solve`` that yields ever better answers.

    It is pickled to a fresh process for each task, so its class lives in an importable module, not in ``__main__``; a
    frozen dataclass whose fields are its settings is ideal. The same settings, task, ``clock.seed`` and work units must
    give the same answers.
    """

    @property
    def name(self) -> str:
        """Short name for records and reports."""
        ...

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Yield answers, each Progress replacing the one before.

        Args:
            task: without its test outputs.
            clock: ask ``clock.stop()`` at every step and return soon after it says so; count work with ``clock.spend``.
            workdir: a folder of this task's own for checkpoints, kept between a killed run and its resumption; None
                when nothing is to be kept.
        """
        ...


def named_backend(backend: Backend | str, **settings: Any) -> Backend:
    """The backend for a name (``grid``, ``lm``, ``vit``), for ``package.module:Class``, or the object itself.

    Args:
        backend: which.
        settings: keyword arguments for the class, where a name was given.

    Raises:
        InvalidBackendError: unknown name, or no backend.
    """
    if not isinstance(backend, str):
        if settings:
            raise InvalidBackendError("settings go with a backend's name; configure the object itself")
        if not isinstance(backend, Backend):
            raise InvalidBackendError(f"got {type(backend).__name__}, wanted an object with 'name' and 'solve'")
        return backend
    module_name, _, attribute = NAMED.get(backend, backend).partition(":")
    if not attribute:
        raise InvalidBackendError(f"got {backend!r}, wanted one of {', '.join(NAMED)}, or package.module:Class")
    try:
        made = getattr(importlib.import_module(module_name), attribute)(**settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InvalidBackendError(f"backend {backend!r} cannot be made: {error}") from error
    return named_backend(made)


def sharing(backend: Backend) -> AbstractContextManager[Backend]:
    """What a backend gives to processes that are started within a block.

    A backend with a method ``sharing`` of its own can, for example, load a model once for all of them: a run enters it
    once, and on a Ray cluster each supervising process enters what that gave once more, for its node. Any other backend
    is given as it is.
    """
    own = getattr(backend, "sharing", None)
    return nullcontext(backend) if own is None else own()


def check_portable(backend: Backend) -> None:
    """Refuse a backend that could not travel to a fresh worker process.

    Raises:
        InvalidBackendError: its class is in ``__main__`` or inside a function, or it holds what cannot be pickled.
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
            f"{cls.__qualname__} cannot be pickled, so it cannot travel to the fresh process of a task: {error}"
        ) from error
