"""What a run keeps on disk: its description, records, work folders and time; a full disk costs no answer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt._events import TaskResult
from ttt._files import FULL, PRIVATE, open_folder, read_own, write_atomically
from ttt._runs.folders import claim_folder
from ttt._runs.records import Records
from ttt._runs.work_folder import unpack
from ttt._tasks.loader import parse_collection, read_json, task_json
from ttt.errors import TTTError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TASKS = "tasks.json"
LOCK = "lock"
TIME = "time.json"
NOTE_TIME_EVERY = 0.5
"""Seconds between two notes of the time that a run has used: what a killed run may forget."""


class Keeper:
    """Keeps a run's results; what cannot be written is said once per place, and the run goes on in memory.

    Attributes:
        folder: The run's folder, None where it has none.
        continued: Whether the folder held this run already.

    Args:
        folder: Where the run wants to keep its records, None for nowhere.
        cache: A folder of records shared between runs, None for none.
        about: Returns the run's description, for `run.json`.
        tasks: Returns the text of `tasks.json`.
        fresh: Whether to start anew in any case.
        say: Called with a sentence for the user.
    """

    def __init__(
        self,
        folder: Path | None,
        cache: Path | None,
        about: Callable[[], Mapping[str, Any]],
        tasks: Callable[[], str],
        say: Callable[[str], None],
        *,
        fresh: bool,
    ) -> None:
        self._say = say
        self._said: set[str] = set()
        self._noted = 0.0
        self.folder: Path | None = None
        self.continued = False
        self._stores: list[Records] = []
        self._beside = False
        if folder is not None:
            with self._going_on(f"the folder {folder}"):
                described = about()
                claimed, continued = claim_folder(folder, described, fresh=fresh)
                self.folder, self.continued = claimed, continued
                self._stores.append(Records(claimed / "records"))
                write_atomically(claimed / "run.json", json.dumps(described, indent=1).encode())
                text = _with_known_outputs(tasks(), claimed / TASKS) if continued else tasks()
                write_atomically(claimed / TASKS, text.encode())
        if cache is not None:
            with self._going_on(f"the cache {cache}"):
                self._stores.append(Records(cache))

    @contextlib.contextmanager
    def _going_on(self, place: str) -> Iterator[None]:
        """Say that a place takes nothing more, once, instead of raising."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._once(f"{place} takes nothing more ({error.strerror}); the run goes on in memory")

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder while tasks are solved; beside a run that holds it already, keep no checkpoints there.

        Two runs of the same tasks may share records, but not the work folders, which each removes after a task.
        """
        with contextlib.ExitStack() as stack:
            if self.folder is not None and fcntl is not None:
                with contextlib.suppress(OSError):  # a place that takes no file, or knows no locks: nothing is shared
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                    descriptor = os.open(self.folder / LOCK, flags, PRIVATE)
                    stack.callback(os.close, descriptor)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        self._beside = True
                        self._once(f"{self.folder}: another run works there now; this one keeps no checkpoints")
            try:
                yield
            finally:
                self._beside = False

    def put(self, key: str, result: TaskResult) -> None:
        """Keep a result in every store that takes it."""
        for store in self._stores:
            try:
                store.put(key, result)
            except OSError as error:
                self._once(f"{store.folder}: results are not kept there any more ({error.strerror}); the run goes on")

    def get(self, key: str, task_id: str) -> TaskResult | None:
        """Return the first result kept under a key, None where there is none."""
        return next((found for s in self._stores if (found := s.get(key, task_id)) is not None), None)

    def work_folder(self, key: str, *, make: bool) -> Path | None:
        """Return the folder for a task's checkpoints; None where nothing can be kept."""
        if self.folder is None or self._beside:
            return None
        folder = self.folder / "work" / key[:40]
        if make:
            try:
                open_folder(folder)
            except OSError as error:
                self._once(f"{folder.parent}: no checkpoints are kept ({error.strerror}); the run goes on")
                return None
        return folder

    def bring(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Write the checkpoints that came back from a node into a task's work folder."""
        try:
            unpack(files, folder)
        except OSError as error:
            self._once(f"{folder.parent}: no checkpoints are kept ({error.strerror}); the run goes on")

    def forget_work(self, key: str) -> None:
        """Remove the checkpoints of a finished task."""
        folder = self.work_folder(key, make=False)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def seconds_used(self) -> float:
        """Return the time that this run used in earlier processes."""
        if self.folder is None:
            return 0.0
        try:
            return max(0.0, float(json.loads(read_own(self.folder / TIME, 1000))["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def note_time(self, seconds: float, *, now: bool = False) -> None:
        """Keep the time that the run has used, at most twice a second."""
        if self.folder is None or (not now and time.monotonic() - self._noted < NOTE_TIME_EVERY):
            return
        self._noted = time.monotonic()
        with contextlib.suppress(OSError):
            write_atomically(self.folder / TIME, json.dumps({"seconds": seconds}).encode(), sync=False)


def _with_known_outputs(text: str, path: Path) -> str:
    """Return tasks as JSON, with the test outputs that only the file of the same tasks knows."""
    tasks = json.loads(text)
    with contextlib.suppress(OSError, TTTError):  # a file that cannot be read knows nothing
        for task in parse_collection(read_json(path), str(path))[0]:
            pairs = tasks.get(task.id, {"test": []})["test"]
            for pair, before in zip(pairs, task_json(task)["test"], strict=False):
                if "output" not in pair and "output" in before and pair["input"] == before["input"]:
                    pair["output"] = before["output"]
    return json.dumps(tasks)
