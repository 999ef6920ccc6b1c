"""Following a name: a model that is always the current version, and every answer wholly of one version."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from zerocopy import directory as places
from zerocopy.errors import SegmentGoneError
from zerocopy.publish import current
from zerocopy.ref import ModelRef


class Live:
    """The current version of a published name, looked up between calls (a microsecond when nothing has changed).

    Args:
        name: as it was published.
        directory: where; the default directory if None.
    """

    def __init__(self, name: str, *, directory: str | os.PathLike[str] | None = None) -> None:
        self._name = places.check_name(name)
        self._folder = places.default_directory() if directory is None else Path(directory).absolute()
        self._lock = threading.Lock()
        self._ref, self._model = self._load()

    def get(self) -> tuple[ModelRef, Any]:
        """Return the current reference and its model; hold on to the pair for as long as one answer takes."""
        pointed = places.current_path(self._folder, self._name)
        if str(pointed) != self._ref.path:
            with self._lock:
                if str(pointed) != self._ref.path:
                    self._ref, self._model = self._load()
        with self._lock:
            return self._ref, self._model

    def _load(self) -> tuple[ModelRef, Any]:
        while True:
            ref = current(self._name, directory=self._folder)
            try:
                return ref, ref.load()
            except SegmentGoneError:
                if current(self._name, directory=self._folder) == ref:
                    raise

    @property
    def ref(self) -> ModelRef:
        """The reference to the version that the next call will use."""
        return self.get()[0]

    @property
    def model(self) -> Any:
        """The model of the current version."""
        return self.get()[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the current version."""
        return self.get()[1](*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the name alone; the receiving process looks it up."""
        return _follow, (self._name, str(self._folder))


def follow(name: str, *, directory: str | os.PathLike[str] | None = None) -> Live:
    """Follow a published name: call the result as the model, and it is the current version each time.

    Args:
        name: as it was published.
        directory: where; the default directory if None.

    Raises:
        UnknownNameError: nothing is published under it.
    """
    return Live(name, directory=directory)


def _follow(name: str, folder: str) -> Live:
    return Live(name, directory=folder)
