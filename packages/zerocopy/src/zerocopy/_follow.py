"""Follow a name: a model that is always the current version, with every answer wholly from one version."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from zerocopy import _directory as places
from zerocopy._lease import nothing_left
from zerocopy._ref import ModelRef, ref_of, unknown
from zerocopy.errors import CorruptSegmentError, SegmentGoneError, UntrustedPathError, ZerocopyError

_log = logging.getLogger(__name__)
_followers: weakref.WeakSet[Live] = weakref.WeakSet()


class Live:
    """The current version of a published name, looked up before each call.

    Args:
        name: The name it was published under.
        directory: Where it was published; the default directory if None.
        trust_remote_code: See `ModelRef.load`.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-live")
        >>> live = zerocopy.Live("doc-live")
        >>> live.ref == ref
        True
        >>> zerocopy.unpublish(ref)
    """

    def __init__(
        self, name: str, *, directory: str | os.PathLike[str] | None = None, trust_remote_code: bool = False
    ) -> None:
        self._name = places.check_name(name)
        self._trust = trust_remote_code
        self._folder = places.folder_of(directory)
        self.renew_lock()
        self._seen = places.current_target(self._folder, self._name)
        with nothing_left():
            found = self._newest()
        if found is None:
            raise unknown(self._folder, self._name)
        self._ref, self._model = found
        _followers.add(self)

    def get(self) -> tuple[ModelRef, Any]:
        """Return the newest version's reference and model. Use the same pair for all of one answer.

        While the name has no newer version that can be loaded, the pair stays the same, even if its publisher has left.
        """
        target = places.current_target(self._folder, self._name)
        if target != self._seen:
            with self._lock:
                if target != self._seen:
                    try:
                        with nothing_left():
                            found = self._newest(self._ref)
                    except ZerocopyError as error:  # no descriptor is left, or others may write the folder
                        _log.error("%s: keeping version %s: %s", self._name, self._ref.version, error)
                        return self._ref, self._model
                    if found is not None:
                        self._ref, self._model = found
                    self._seen = target
        with self._lock:
            return self._ref, self._model

    def _newest(self, mine: ModelRef | None = None) -> tuple[ModelRef, Any] | None:
        """Load the newest version that exists; None if that is the one that this follower has, or an older one."""
        for path in places.candidates(self._folder, self._name):
            if mine is not None and (str(path) == mine.path or _is_older(path, mine)):
                return None
            try:
                ref = ref_of(path)
                return ref, ref.load(trust_remote_code=self._trust)
            except SegmentGoneError:
                continue  # its publisher and readers have left
            except UntrustedPathError as error:
                _log.error("%s: %s", self._name, error)
            except CorruptSegmentError as error:
                if mine is None:
                    raise
                _log.error("%s: keeping version %s: %s", self._name, mine.version, error)
        return None

    def renew_lock(self) -> None:
        """Make a new lock: one that another thread held at a fork stays locked in the child."""
        self._lock = threading.Lock()

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
        return _follow, (self._name, str(self._folder), self._trust)


def follow(name: str, *, directory: str | os.PathLike[str] | None = None, trust_remote_code: bool = False) -> Live:
    """Return a callable that runs the current version of a published name at each call.

    Args:
        name: The name it was published under.
        directory: Where it was published; the default directory if None.
        trust_remote_code: See `ModelRef.load`.

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
    return Live(name, directory=directory, trust_remote_code=trust_remote_code)


def _follow(name: str, folder: str, trust_remote_code: bool = False) -> Live:
    return Live(name, directory=folder, trust_remote_code=trust_remote_code)


def _is_older(path: Path, mine: ModelRef) -> bool:
    """Return whether a file holds an older version of a lineage that still has this version."""
    parsed = places.parse(path.name)
    return parsed is not None and parsed[1] < mine.version and Path(mine.path).exists()


def _after_fork_in_child() -> None:
    for follower in list(_followers):
        follower.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
