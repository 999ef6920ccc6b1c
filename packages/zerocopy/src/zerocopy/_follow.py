"""Follow a name: a model that is always the current version, with every answer wholly from one version."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from zerocopy import _directory as places
from zerocopy._publish import current
from zerocopy._ref import ModelRef
from zerocopy.errors import SegmentGoneError


class Live:
    """The current version of a published name, looked up before each call.

    Args:
        name: The name it was published under.
        directory: Where it was published; the default directory if None.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-live")
        >>> live = zerocopy.Live("doc-live")
        >>> live.ref == ref
        True
        >>> zerocopy.unpublish(ref)
    """

    def __init__(self, name: str, *, directory: str | os.PathLike[str] | None = None) -> None:
        self._name = places.check_name(name)
        self._folder = places.default_directory() if directory is None else Path(directory).absolute()
        self._lock = threading.Lock()
        self._ref, self._model = self._load()

    def get(self) -> tuple[ModelRef, Any]:
        """Return the current reference and its model. Use the same pair for all of one answer."""
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
        """Pickle the name alone. The receiving process looks it up."""
        return _follow, (self._name, str(self._folder))


def follow(name: str, *, directory: str | os.PathLike[str] | None = None) -> Live:
    """Return a callable that runs the current version of a published name at each call.

    Args:
        name: The name it was published under.
        directory: Where it was published; the default directory if None.

    Returns:
        The follower. Call it like the model.

    Raises:
        UnknownNameError: Nothing is published under the name.

    Example:
        >>> import torch, zerocopy
        >>> first = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-follow")
        >>> live = zerocopy.follow("doc-follow")
        >>> second = zerocopy.publish(torch.nn.Linear(4, 3), name="doc-follow")
        >>> live(torch.ones(1, 4)).shape
        torch.Size([1, 3])
        >>> zerocopy.unpublish(second)
    """
    return Live(name, directory=directory)


def _follow(name: str, folder: str) -> Live:
    return Live(name, directory=folder)
