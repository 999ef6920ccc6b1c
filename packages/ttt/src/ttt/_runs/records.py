"""Finished tasks on disk, found again by content: the records of a run, or a cache shared by runs."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from ttt._backend import Backend
from ttt._budget import Budget
from ttt._events import TaskResult
from ttt._files import open_folder, read_own, write_atomically
from ttt._runs.wire import predictions_in, predictions_out
from ttt.errors import TTTError
from ttt.values import Task

FORMAT = 2
MAX_RECORD = 16 << 20
SOURCES = {".py", ".c", ".h"}


def describe_backend(backend: Backend) -> dict[str, Any]:
    """Return a backend's class, settings, code and data as JSON values, equal for backends of equal answers.

    The code counts by the content of its source files, so that an older solver's answers are not taken for a newer
    one's. A backend may have a method `identity` that returns a JSON value for what its settings only name, such as
    digests of the files with its weights.
    """
    cls = type(backend)
    about: dict[str, Any] = {"name": backend.name, "class": f"{cls.__module__}:{cls.__qualname__}"}
    if is_dataclass(backend):
        settings: Any = json.loads(json.dumps(asdict(backend), default=str, sort_keys=True))
    else:
        settings = hashlib.sha256(pickle.dumps(backend)).hexdigest()
    own = getattr(backend, "identity", None)
    data = None if own is None else own()
    return {**about, "settings": settings, "code": code_digest(cls.__module__), "data": data}


def code_digest(module_name: str) -> str:
    """Return the SHA-256 of the sources that a solver is made of.

    For a solver of ttt these are all of ttt's but the command line's; for another, its module, and its package's
    other modules where it is in one.
    """
    if module_name.split(".")[0] == "ttt":
        root = Path(__file__).parent.parent
        found = [p for p in root.rglob("*") if p.suffix in SOURCES and "_cli" not in p.parts]
        return _files_digest(root, found)
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    if file is None:
        return ""
    path = Path(file)
    return _files_digest(path.parent, path.parent.glob("*.py") if "." in module_name else [path])


def _files_digest(root: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).digest()
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def data_digest(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by name: the identity of the weights that a setting names."""
    found = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def record_key(task: Task, described: Any, budget: Budget, seed: int) -> str:
    """Return the SHA-256 of what decides a task's answers: content, backend, budget and seed.

    Args:
        task: The task.
        described: What `describe_backend` returned.
        budget: The task's limits.
        seed: The run's seed.
    """
    about = {
        "format": FORMAT,
        "content": task.content,
        "backend": described,
        "budget": [budget.seconds, budget.memory, budget.steps],
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class Records:
    """A folder of finished tasks by record key; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        open_folder(folder)

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
            body, digest = read_own(self._path(key), MAX_RECORD).split(b"\n")[:2]
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return None
            fields = json.loads(body)["result"]
            fields["predictions"] = predictions_in(fields["predictions"])
            return replace(TaskResult(**fields), task_id=task_id, reused=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, TTTError):
            return None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:40]}.json"
