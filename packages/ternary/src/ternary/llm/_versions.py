"""The model that a server answers with, and its change to a newer version while requests run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast

from ternary.errors import ModelFileError
from ternary.llm._batching import Counters, Scheduler
from ternary.llm._convert import load
from ternary.llm._hubcache import model_name
from ternary.llm._model import Model
from ternary.llm._modelfile import ModelFile
from ternary.llm._shared import Reference

__all__ = ["Newest", "Source", "Version", "Versions"]

PAUSE = 1.0
"""Seconds until a version that could not be opened is tried again; twice as long after each further time."""
LONGEST_PAUSE = 60.0
_log = logging.getLogger(__name__)


class Newest(Protocol):
    """Looks up the newest version of a model, as `zerocopy.follow(name)` does."""

    def get(self) -> tuple[Any, Any]:
        """Return the version and its model.

        The version is a value that compares equal while it is the same, such as a number or what `publish` returns. The
        model is anything that `load` takes, or what a reference loads.
        """
        ...


Source = str | Path | Reference | Newest


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """An open version.

    Attributes:
        key: What tells it from others; None for a model that stays.
        name: What it is called in answers.
        model: The open model.
        scheduler: Runs the requests that it answers.
    """

    key: Any
    name: str
    model: Model
    scheduler: Scheduler

    @property
    def label(self) -> str | None:
        """The version as answers and monitors name it; None for a model that stays."""
        return None if self.key is None else _label(self.key)


class Versions:
    """Opens the newest version when a request comes, and closes an older one when its last request has ended.

    Args:
        source: The model, or what looks up its newest version.
        name: What the model is called in answers; None for the name of each version's file.
        parallel: Requests that run at once.
        queue: Requests that may wait.
        options: How a model is opened, see `load`.

    Attributes:
        current: The version that answers new requests.
        refused: How often a newer version could not be opened.
        closed: Whether `close` was called.
    """

    def __init__(self, source: Source, name: str | None, parallel: int, queue: int, options: dict[str, Any]):
        self._newest = cast(Newest, source) if callable(getattr(source, "get", None)) else None
        self._name, self._parallel, self._queue, self._options = name, parallel, queue, options
        self._opening = threading.Lock()
        self._changing = threading.Lock()
        self._past, self._error, self.refused = Counters(), "", 0
        self._failed: Any = None
        self._pause, self._again = PAUSE, 0.0
        if self._newest is None:
            key, model = getattr(source, "version", None), source
        else:
            key, model = self._newest.get()
        self.current = self._open(key, model)
        self._open_ones = [self.current]
        self.closed: bool = False

    def newest(self) -> Version:
        """Return the newest version, opened now if it is new; this may take as long as `load`.

        While a newer version cannot be opened, `status` says why, and this returns the one before.
        """
        if self._newest is None:
            return self.current
        with self._opening:
            key = None
            try:
                key, model = self._newest.get()
                if key == self.current.key:
                    self._error = ""
                elif key != self._failed or time.monotonic() >= self._again:
                    self._change_to(self._open(key, model))
            except Exception as error:  # a source may raise anything
                self._note(key, error)
            return self.current

    def status(self) -> dict[str, Any]:
        """Return what `/health` says: the model, its version, the requests, and why a newer version is not used."""
        loads = [version.scheduler.load for version in self._running()]
        found: dict[str, Any] = {"status": "ok", "model": self.current.name}
        if self.current.label is not None:
            found["version"] = self.current.label
        found |= {"running": sum(running for running, _ in loads), "waiting": sum(waiting for _, waiting in loads)}
        return found | ({"refused": self._error} if self._error else {})

    def counters(self) -> Counters:
        """Return what all versions have done together since the start."""
        with self._changing:
            return _sum([self._past, *(version.scheduler.counters for version in self._open_ones)])

    def close(self) -> None:
        """End all requests and close every version."""
        with self._opening:  # what is being opened now is closed too
            self._newest, self.closed = None, True
        for version in self._running():
            version.scheduler.close()
            self._close(version)

    def _running(self) -> list[Version]:
        with self._changing:
            return list(self._open_ones)

    def _open(self, key: Any, source: Any) -> Version:
        model, name = _open_model(source, self._options)
        try:
            scheduler = Scheduler(model, parallel=self._parallel, queue=self._queue)
        except BaseException:
            model.close()
            raise
        return Version(key, self._name or name, model, scheduler)

    def _change_to(self, newer: Version) -> None:
        older = self.current
        with self._changing:
            self.current = newer
            self._open_ones.append(newer)
        self._error, self._failed = "", None
        older.scheduler.retire(lambda: self._close(older))

    def _close(self, version: Version) -> None:
        version.model.close()
        with self._changing:
            if version in self._open_ones:
                self._open_ones.remove(version)
                self._past = _sum([self._past, version.scheduler.counters])

    def _note(self, key: Any, error: Exception) -> None:
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if key == self._failed else PAUSE
        self._failed, self._again = key, time.monotonic() + self._pause
        self.refused += 1
        said = f"{type(error).__name__}: {error}"
        said = said if key is None else f"version {_label(key)}: {said}"
        if said != self._error:
            _log.error("keeping version %s: %s", self.current.label, said)
        self._error = said


def _open_model(source: Any, options: dict[str, Any]) -> tuple[Model, str]:
    """Return the open model, and the name of its file."""
    if isinstance(source, str | Path):
        return load(source, **options), model_name(Path(source))
    file = source.load() if hasattr(source, "load") else source
    if not isinstance(file, ModelFile):
        raise ModelFileError(f"got a {type(file).__name__}, no language model; publish one with `ternary.llm.publish`")
    return Model(file, **options), file.path.stem


def _label(key: Any) -> str:
    return str(getattr(key, "version", key))


def _sum(parts: Iterable[Counters]) -> Counters:
    listed = list(parts)
    return Counters(**{field.name: sum(getattr(part, field.name) for part in listed) for field in fields(Counters)})
