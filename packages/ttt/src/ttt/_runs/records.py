"""Finished tasks on disk, found again by content: the records of a run, or a cache shared by runs."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from ttt._backend import Backend
from ttt._budget import Budget
from ttt._events import TaskResult
from ttt._files import write_atomically
from ttt._runs.wire import predictions_in, predictions_out
from ttt.errors import TTTError
from ttt.values import Task

FORMAT = 1


def describe_backend(backend: Backend) -> dict[str, Any]:
    """Return a backend's class and settings as JSON values, equal for backends of equal answers."""
    cls = type(backend)
    about: dict[str, Any] = {"name": backend.name, "class": f"{cls.__module__}:{cls.__qualname__}"}
    if is_dataclass(backend):
        settings: Any = json.loads(json.dumps(asdict(backend), default=str, sort_keys=True))
    else:
        settings = hashlib.sha256(pickle.dumps(backend)).hexdigest()
    return {**about, "settings": settings}


def record_key(task: Task, backend: Backend, budget: Budget, seed: int) -> str:
    """Return the SHA-256 of what decides a task's answers: content, backend, budget and seed."""
    about = {
        "format": FORMAT,
        "content": task.content,
        "backend": describe_backend(backend),
        "budget": [budget.seconds, budget.memory, budget.steps],
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class Records:
    """A folder of finished tasks by record key; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, result: TaskResult) -> None:
        """Keep the result of a task, unless an interrupt cut it short."""
        if result.status == "skipped" or result.reason == "interrupt":
            return
        if result.status == "failed" and (before := self.get(key, result.task_id)) and before.status != "failed":
            return  # never replace a result by less
        fields = {name: getattr(result, name) for name in TaskResult.__slots__}
        fields |= {"predictions": predictions_out(result.predictions), "reused": False}
        body = json.dumps({"format": FORMAT, "key": key, "result": fields}, sort_keys=True).encode()
        digest = hashlib.sha256(body).hexdigest().encode()
        write_atomically(self._path(key), body + b"\n" + digest + b"\n")

    def get(self, key: str, task_id: str) -> TaskResult | None:
        """Return the result kept under a key, with this id; None where there is none or its bytes have changed."""
        try:
            body, digest = self._path(key).read_bytes().split(b"\n")[:2]
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return None
            fields = json.loads(body)["result"]
            fields["predictions"] = predictions_in(fields["predictions"])
            return replace(TaskResult(**fields), task_id=task_id, reused=True)
        except (OSError, ValueError, KeyError, TypeError, TTTError):
            return None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:40]}.json"
