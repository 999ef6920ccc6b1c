"""A run over many tasks: a process per task, budgets, records for resuming, one stream of events."""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ttt._backend import Backend, check_portable, named_backend, preflight, sharing
from ttt._budget import Budget
from ttt._events import Event, Finished, Improved, TaskResult
from ttt._files import write_atomically
from ttt._runs.folders import claim_folder
from ttt._runs.records import Records, describe_backend, record_key
from ttt._runs.supervise import Job, supervise
from ttt._tasks.loader import Rejected, task_json
from ttt._tasks.sources import TaskSet
from ttt.errors import TTTError
from ttt.results import (
    AS_CLAIMED,
    Answers,
    Calibration,
    Score,
    choose,
    read_calibration,
    recalibrated,
    score,
    submission_text,
    write_submission,
)
from ttt.values import Attempt, Prediction, Task

Pool = Literal["local", "ray"]
EARLIER = "from the submission that was there"


class Run:
    """A run over tasks; iterate over it to solve them, and read the results at any time.

    Example:
        >>> run = ttt.Run([ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one),))])
        >>> run.current()[0].status  # not started yet
        'skipped'

    Attributes:
        tasks: The tasks.
        rejected: The tasks that the loader refused.
        calibration: The confidence curves in use.
        folder: Where records and checkpoints are kept, None where they are not.
        continued: Whether the folder held this run already.
        results: The result of each finished task, by task id.

    Args:
        backend: A backend, or the name of one.
        budget: The limits of each task.
        workers: How many tasks run at the same time.
        seed: Seed of everything random.
        fresh: Start anew in another folder instead of going on.
        cache: Folder for results that later runs use again.
        pool: "local" or "ray".
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        backend: Backend | str = "grid",
        budget: Budget | str | float | None = None,
        workers: int = 1,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        fresh: bool = False,
        cache: str | os.PathLike[str] | None = None,
        pool: Pool = "local",
        calibration: str | os.PathLike[str] | None = None,
    ) -> None:
        self.backend: Backend = named_backend(backend)
        check_portable(self.backend)
        self.tasks: tuple[Task, ...] = tuple(tasks)
        self.rejected: tuple[Rejected, ...] = tasks.rejected if isinstance(tasks, TaskSet) else ()
        if len({t.id for t in self.tasks}) != len(self.tasks):
            raise TTTError("two tasks have the same id, and a submission has one entry per id; rename one")
        if workers < 1:
            raise ValueError(f"workers: got {workers}, wanted 1 or more")
        if pool not in get_args(Pool):
            raise ValueError(f"pool: got {pool!r}, wanted one of {', '.join(get_args(Pool))}")
        self._by_id = {t.id: t for t in self.tasks}
        self.budget: Budget = Budget.of(budget)
        self.workers = workers
        self.seed = seed
        self.pool = pool
        curves = read_calibration(calibration)
        self.calibration: Calibration = curves if curves.backend == self.backend.name else AS_CLAIMED
        self.results: dict[str, TaskResult] = {}
        self._best: dict[str, Improved] = {}
        self._stop = threading.Event()
        self.folder: Path | None = None
        self.continued: bool = False
        self._stores: list[Records] = []
        if folder is not None:
            self.folder, self.continued = self._open_folder(Path(folder), fresh)
            self._stores.append(Records(self.folder / "records"))
        if cache is not None:
            self._stores.append(Records(Path(cache)))
        self._kept = {t.id: result for t in self.tasks if (result := self._recorded(t)) is not None}
        self._earlier: dict[str, tuple[Prediction, ...]] = {}

    def _open_folder(self, wanted: Path, fresh: bool) -> tuple[Path, bool]:
        about = self._about()
        folder, continued = claim_folder(wanted, about, fresh=fresh)
        write_atomically(folder / "run.json", json.dumps(about, indent=1).encode())
        write_atomically(folder / "tasks.json", json.dumps({t.id: task_json(t) for t in self.tasks}).encode())
        return folder, continued

    def _about(self) -> dict[str, Any]:
        return {
            "backend": describe_backend(self.backend),
            "budget": asdict(self.budget),
            "seed": self.seed,
            "workers": self.workers,
            "pool": self.pool,
            "curves": {stage: [c.claimed, c.true] for stage, c in self.calibration.curves.items()},
            "keys": {t.id: self._key(t) for t in self.tasks},
            "rejected": [{"id": r.id, "tests": r.tests, "reason": r.reason} for r in self.rejected],
        }

    @property
    def calibrated(self) -> bool:
        """Whether confidences are calibrated: whether there are curves for this backend."""
        return bool(self.calibration.curves)

    def interrupt(self) -> None:
        """Stop: start no more tasks and end the running ones; the iteration then ends within about two seconds."""
        self._stop.set()

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._stop.is_set()

    def __iter__(self) -> Iterator[Event]:
        """Solve the tasks without a result; leaving the loop early ends the workers."""
        for task in self.tasks:
            if task.id not in self.results and (kept := self._kept.get(task.id)) is not None:
                self.results[task.id] = kept
                yield Finished(task.id, kept)
        todo = [t for t in self.tasks if t.id not in self.results]
        if todo:
            if self.pool == "local":  # on a cluster the nodes may have what this machine has not
                preflight(self.backend)
            with sharing(self.backend) as backend:
                yield from self._solve([self._job(t, backend) for t in todo])

    def _solve(self, jobs: list[Job]) -> Iterator[Event]:
        """Solve jobs; after an interrupt the remaining ones are skipped."""
        events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        running = self._start(jobs, events)
        try:
            while running:
                event = events.get()
                if event is None:
                    running -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    self._absorb(event)
                    yield event
        finally:
            if running:
                self._stop.set()
            while running:
                last = events.get()
                if last is None:
                    running -= 1
                elif not isinstance(last, BaseException):
                    self._absorb(last)
        for job in jobs:
            if job.task.id not in self.results:
                unfinished = self._unfinished(job.task)
                self.results[job.task.id] = unfinished
                yield Finished(job.task.id, unfinished)

    def _start(self, jobs: list[Job], events: queue.SimpleQueue[Event | BaseException | None]) -> int:
        """Start the worker threads or the Ray driver; each queues events, then None. Return their number."""
        if self.pool == "ray":
            from ttt._runs.on_ray import connect, drive

            arguments = (jobs, events, self._stop, self.workers, connect())
            threading.Thread(target=drive, args=arguments, daemon=True).start()
            return 1
        waiting = iter(jobs)
        lock = threading.Lock()

        def work() -> None:
            try:
                while not self._stop.is_set():
                    with lock:
                        job = next(waiting, None)
                    if job is None:
                        break
                    for event in supervise(job, self._stop):
                        events.put(event)
            except BaseException as error:
                events.put(error)
            events.put(None)

        count = min(self.workers, len(jobs))
        for _ in range(count):
            threading.Thread(target=work, daemon=True).start()
        return count

    def _key(self, task: Task) -> str:
        return record_key(task, self.backend, self.budget, self.seed)

    def _job(self, task: Task, backend: Backend) -> Job:
        workdir = None
        if self.folder is not None:
            workdir = self.folder / "work" / self._key(task)[:40]
            workdir.mkdir(parents=True, exist_ok=True)
        return Job(task.without_solutions(), backend, self.budget, task.seed(self.seed), workdir, self.calibration)

    def _recorded(self, task: Task) -> TaskResult | None:
        """Return the recorded result of a task, None where there is none or a second try may succeed."""
        key = self._key(task)
        for store in self._stores:
            result = store.get(key, task.id)
            if result is not None and len(result.predictions) == len(task.test) and not result.may_succeed_later:
                # Records keep the claims, since other curves may apply now.
                return replace(result, predictions=recalibrated(result.predictions, self.calibration))
        return None

    def _absorb(self, event: Event) -> None:
        if isinstance(event, Improved):
            self._best[event.task_id] = event
        if not isinstance(event, Finished):
            return
        self.results[event.task_id] = event.result
        task = self._by_id[event.task_id]
        key = self._key(task)
        for store in self._stores:
            store.put(key, event.result)
        if self.folder is not None and event.result.reason != "interrupt":
            shutil.rmtree(self.folder / "work" / key[:40], ignore_errors=True)

    def current(self) -> list[TaskResult]:
        """Return for every task its result, its best answers so far, or fallbacks."""
        return [
            self._at_least_earlier(self.results.get(t.id) or self._kept.get(t.id) or self._unfinished(t))
            for t in self.tasks
        ]

    def start_from(self, answers: Answers) -> None:
        """Use the answers of an earlier submission for test inputs where this run has found nothing yet.

        Args:
            answers: The result of `read_submission`. Entries that do not fit a task are ignored.
        """
        for task in self.tasks:
            given = answers.get(task.id, ())
            if len(given) == len(task.test):
                pairs = ((Attempt(a, 0.0, "earlier", EARLIER), Attempt(b, 0.0, "earlier", EARLIER)) for a, b in given)
                self._earlier[task.id] = tuple(Prediction(first, second) for first, second in pairs)

    def _at_least_earlier(self, result: TaskResult) -> TaskResult:
        earlier = self._earlier.get(result.task_id)
        if earlier is None:
            return result
        chosen = zip(result.predictions, earlier, strict=True)
        return replace(result, predictions=tuple(e if p.first.stage == "fallback" else p for p, e in chosen))

    def _unfinished(self, task: Task) -> TaskResult:
        best = self._best.get(task.id)
        if best is None:
            return TaskResult(task.id, choose(task, None), "skipped", "interrupt")
        return TaskResult(task.id, best.predictions, "stopped", "interrupt", stage=best.stage, fraction=best.fraction)

    def submission(self) -> str:
        """Return the text of a valid submission with the answers so far."""
        return submission_text(self.current(), self.rejected)

    def write_submission(self, path: str | os.PathLike[str]) -> None:
        """Write a valid submission with the answers so far."""
        write_submission(path, self.current(), self.rejected)

    def score(self) -> Score:
        """Score the answers so far; the test outputs of every task must be known."""
        return score(self.current(), self.tasks)


def run(
    tasks: Iterable[Task],
    *,
    backend: Backend | str = "grid",
    budget: Budget | str | float | None = None,
    workers: int = 1,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    cache: str | os.PathLike[str] | None = None,
    pool: Pool = "local",
    calibration: str | os.PathLike[str] | None = None,
) -> Run:
    """Prepare a run; iterate over it to solve the tasks.

    Example:
        >>> mirrored = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> run = ttt.run([mirrored], budget="20 steps")
        >>> for event in run:
        ...     pass
        >>> run.score().solved
        ('t',)

    Args:
        tasks: The result of `load`, or any tasks with distinct ids. The backend never sees their test outputs.
        backend: `grid`, `lm`, `vit`, `package.module:Class` or an object, see `Backend`.
        budget: Per task: a `Budget`, seconds, or text such as `"60s"` or `"500 steps"`. Default 60 s, 10 GB.
        workers: How many tasks are solved at a time, each in a process of its own with one thread.
        seed: Of the run. Each task's own seed is derived from it and the task's content.
        folder: Where records and checkpoints are kept. A run of the same tasks, backend, budget and seed goes on there;
            any other run gets `folder-2`, `folder-3`, ... Nothing is deleted. None keeps nothing.
        fresh: Start anew in a folder of its own, even if `folder` holds this very run.
        cache: A folder of records shared between runs; equal content, backend, budget and seed are solved once.
        pool: `local` processes, or `ray` (extra `ray`; connects to a running cluster or starts a local one).
        calibration: A file of confidence curves that `ttt eval --calibrate` wrote; without one those that come with
            ttt. Curves fitted for another backend are not used.

    Raises:
        InvalidBackendError: The backend cannot be created or pickled.
        InvalidBudgetError: The budget is invalid.
        ValueError: `workers` is below 1, or `pool` is unknown.
        UnreadableFileError: `calibration` is not a file of curves.
    """
    return Run(tasks, backend, budget, workers, seed, folder, fresh, cache, pool, calibration)
