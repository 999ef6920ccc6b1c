"""A run over many tasks: processes, budgets, records for resuming, one stream of events."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ttt._backend import Backend, check_portable, named_backend, preflight, sharing
from ttt._budget import Budget, parse_seconds
from ttt._events import Event, Finished, Improved, Started, TaskResult
from ttt._files import OUTPUT, write_atomically
from ttt._runs.contest import USEFUL, Contest, Entry, clock_of, merged_result, try_key
from ttt._runs.devices import slots_of, uses_gpu, visible_gpus
from ttt._runs.drive import Once, Plan, drive
from ttt._runs.keeper import Keeper
from ttt._runs.pool import Brought, LocalPool, Lost, Note, Pool
from ttt._runs.records import describe_backend, record_key
from ttt._runs.supervise import Job
from ttt._tasks.loader import Rejected, task_json
from ttt._tasks.sources import TaskSet
from ttt.errors import InvalidBudgetError, TTTError
from ttt.results import (
    AS_CLAIMED,
    Answers,
    Calibration,
    Score,
    choose,
    merged,
    read_calibration,
    recalibrated,
    score,
)
from ttt.results._submission import SubmissionText
from ttt.values import Attempt, Prediction, Task

Where = Literal["local", "ray"]
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
        backends: The backends; only a run with a total time may have several.
        folder: Where records and checkpoints are kept, None where they are not.
        continued: Whether the folder held this run already.
        results: The result of each finished task, by task id.
        notes: What the user should know: a disk that is full, a node that is left out.

    Args:
        backend: A backend, the name of one, or several.
        budget: The limits of each task, or of each try where there is a total time.
        workers: How many tasks run at the same time; None for 1, one per GPU, or the cluster's CPUs.
        seed: Seed of everything random.
        fresh: Start anew in another folder instead of going on.
        cache: Folder for results that later runs use again.
        pool: "local" or "ray".
        calibration: A file of confidence curves.
        total: Time for all tasks together.
        gpu_tasks: Tasks per GPU, for backends that use one.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        backend: Backend | str | Sequence[Backend | str] = "grid",
        budget: Budget | str | float | None = None,
        workers: int | None = None,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        fresh: bool = False,
        cache: str | os.PathLike[str] | None = None,
        pool: Where = "local",
        calibration: str | os.PathLike[str] | None = None,
        total: str | float | None = None,
        gpu_tasks: int = 1,
    ) -> None:
        several: Sequence[Any] = backend if isinstance(backend, list | tuple) else [backend]
        self.backends: tuple[Backend, ...] = tuple(named_backend(b) for b in several)
        for each in self.backends:
            check_portable(each)
        self.tasks: tuple[Task, ...] = _tasks_of(tasks)
        self.rejected: tuple[Rejected, ...] = tasks.rejected if isinstance(tasks, TaskSet) else ()
        self.total: float | None = parse_seconds(total) if isinstance(total, str) else total
        self.budget: Budget = Budget.of(budget) if self.total is None or budget is not None else Budget(seconds=None)
        self.workers, self.seed, self.pool, self.gpu_tasks = workers, seed, pool, gpu_tasks
        _check(self)
        self._by_id = {t.id: t for t in self.tasks}
        curves = read_calibration(calibration)
        self._curves = [curves if curves.backend == b.name else AS_CLAIMED for b in self.backends]
        self.results: dict[str, TaskResult] = {}
        self.notes: list[str] = []
        self._best: dict[str, Improved] = {}
        self._stop = threading.Event()
        self._described: Any = [describe_backend(b) for b in self.backends]
        self._keys = {t.id: self._key(t) for t in self.tasks}
        self._keeper = Keeper(
            None if folder is None else Path(folder),
            None if cache is None else Path(cache),
            self._about,
            lambda: json.dumps({t.id: task_json(t) for t in self.tasks}),
            self.notes.append,
            fresh=fresh,
        )
        self._tries = {t.id: self._recorded(t) for t in self.tasks}
        self._kept = {i: merged_result(tries) for i, tries in self._tries.items() if tries}
        self._earlier: dict[str, tuple[Prediction, ...]] = {}
        self._fallbacks: dict[str, TaskResult] = {}
        self._began = time.monotonic()
        self._text = SubmissionText(self.rejected)

    def _about(self) -> dict[str, Any]:
        return {
            "backend": {**self._described[0], "name": "+".join(b.name for b in self.backends)},
            "budget": asdict(self.budget),
            "total": self.total,
            "seed": self.seed,
            "workers": self.workers,
            "pool": self.pool,
            "curves": {stage: [c.claimed, c.true] for stage, c in self.calibration.curves.items()},
            "keys": self._keys,
            "rejected": [{"id": r.id, "tests": r.tests, "reason": r.reason} for r in self.rejected],
        }

    @property
    def backend(self) -> Backend:
        """The first backend."""
        return self.backends[0]

    @property
    def calibration(self) -> Calibration:
        """The confidence curves of the first backend."""
        return self._curves[0]

    @property
    def folder(self) -> Path | None:
        """Where records and checkpoints are kept, None where they are not."""
        return self._keeper.folder

    @property
    def continued(self) -> bool:
        """Whether the folder held this run already."""
        return self._keeper.continued

    @property
    def calibrated(self) -> bool:
        """Whether confidences are calibrated: whether there are curves for every backend."""
        return all(c.curves for c in self._curves)

    def count_from(self, began: float) -> None:
        """Count the total time from a monotonic time before now, such as the start of the process."""
        self._began = min(self._began, began)

    def interrupt(self) -> None:
        """Stop: start no more tasks and end the running ones; the iteration then ends within about two seconds."""
        self._stop.set()

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._stop.is_set()

    def __iter__(self) -> Iterator[Event]:
        """Solve the tasks without a result; leaving the loop early ends the workers.

        With a total time a task may have several tries, and each ends with a `Finished`; `results` merges them.
        """
        for task in self.tasks:
            if task.id not in self.results and (kept := self._kept.get(task.id)) is not None:
                self.results[task.id] = kept
                yield Finished(task.id, kept)
        if self.total is not None or any(t.id not in self.results for t in self.tasks):
            if self.pool == "local":  # on a cluster the nodes may have what this machine has not
                for backend in self.backends:
                    preflight(backend, self.budget, workers=self.workers or 1, gpu_tasks=self.gpu_tasks)
            with contextlib.ExitStack() as stack, self._keeper.held():
                backends = [stack.enter_context(sharing(b)) for b in self.backends]
                yield from self._solve(backends)

    def _solve(self, backends: Sequence[Backend]) -> Iterator[Event]:
        """Solve what is to do; after an interrupt the remaining tasks are skipped."""
        pool, workers = _open_pool(self, backends)
        used = self._keeper.seconds_used() if self.total is not None else 0.0
        try:
            for message in drive(self._plan(backends, workers, used), pool, self._stop):
                if self.total is not None:
                    self._keeper.note_time(used + time.monotonic() - self._began)
                if isinstance(message, Note):
                    self.notes.append(message.text)
                elif isinstance(message, Brought):
                    self._keeper.bring(message.folder, message.files)
                elif not isinstance(message, Lost):  # the loop has given it to another place
                    yield self._absorb(message)
        finally:
            if self.total is not None:
                self._keeper.note_time(used + time.monotonic() - self._began, now=True)
        for task in self.tasks:
            if task.id not in self.results:
                unfinished = self._unfinished(task)
                self.results[task.id] = unfinished
                yield Finished(task.id, unfinished)

    def _plan(self, backends: Sequence[Backend], workers: int, used: float) -> Plan:
        if self.total is None:
            return Once([self._job(t, backends[0]) for t in self.tasks if t.id not in self.results])
        left = clock_of(self.total, used, self._began)
        if left() <= 0:
            self.notes.append(
                f"the total of {self.total:g} s was used up by earlier starts; raise it, or start anew with fresh"
            )
        if left() > 0 and (fits := int(left() * workers / USEFUL)) < len(self.tasks):
            self.notes.append(
                f"the time suffices for a try at about {fits} of {len(self.tasks)} tasks; raise the total"
            )
        return Contest(
            [Entry(t, self._tries[t.id]) for t in self.tasks],
            seconds_left=left,
            total=self.total,
            workers=lambda: workers,
            budget=self.budget,
            job=lambda task, n, budget: self._job(task, backends[n % len(backends)], n, budget),
        )

    def _key(self, task: Task) -> str:
        if self.total is None:
            return record_key(task, self._described[0], self.budget, self.seed)
        return record_key(task, ["within a total time", *self._described], self.budget, self.seed)

    def _job(self, task: Task, backend: Backend, number: int = 0, budget: Budget | None = None) -> Job:
        key = self._keys[task.id] if self.total is None else try_key(self._keys[task.id], number)
        # Every try has a seed of its own; the first has that of a run without a total time.
        seed = task.seed(self.seed + (number << 32))
        return Job(
            task.without_solutions(),
            backend,
            budget or self.budget,
            seed,
            self._keeper.work_folder(key, make=self.pool == "local"),
            self._curves[number % len(self._curves)],
        )

    def _recorded(self, task: Task) -> list[TaskResult]:
        """Return the recorded tries of a task; none where there is no record or a second try may succeed."""
        tries: list[TaskResult] = []
        while True:
            number = len(tries)
            key = self._keys[task.id] if self.total is None else try_key(self._keys[task.id], number)
            found = self._keeper.get(key, task.id)
            fits = found is not None and len(found.predictions) == len(task.test)
            if found is None or not fits or (self.total is None and found.may_succeed_later):
                return tries
            # Records keep the claims, since other curves may apply now.
            curves = self._curves[number % len(self._curves)]
            tries.append(replace(found, predictions=recalibrated(found.predictions, curves)))
            if self.total is None:
                return tries

    def _absorb(self, event: Event) -> Event:
        if isinstance(event, Started):
            return event
        before = self._kept.get(event.task_id) if self.total is not None else None
        if isinstance(event, Improved):
            if before is not None:
                event = replace(event, predictions=merged([before.predictions, event.predictions]))
            self._best[event.task_id] = event
            return event
        result = event.result
        key = work = self._keys[event.task_id]
        if self.total is not None:
            # The contest has noted the try already.
            work = try_key(key, len(self._tries[event.task_id]) - 1)
            self._keeper.put(work, result)
            result = merged_result(self._tries[event.task_id])
            self._kept[event.task_id] = result
        self.results[event.task_id] = result
        self._best.pop(event.task_id, None)
        self._keeper.put(key, result)
        if event.result.reason != "interrupt":
            self._keeper.forget_work(work)
        return Finished(event.task_id, result)

    def current(self) -> list[TaskResult]:
        """Return for every task its result, its best answers so far, or fallbacks."""
        return [self._at_least_earlier(self._now(t)) for t in self.tasks]

    def _now(self, task: Task) -> TaskResult:
        trying = self._best.get(task.id)
        found = self.results.get(task.id) or self._kept.get(task.id)
        if found is not None and trying is not None:
            return replace(found, predictions=trying.predictions)
        return found or self._unfinished(task)

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
        if earlier is None or all(p.first.stage != "fallback" for p in result.predictions):
            return result
        chosen = zip(result.predictions, earlier, strict=True)
        return replace(result, predictions=tuple(e if p.first.stage == "fallback" else p for p, e in chosen))

    def _unfinished(self, task: Task) -> TaskResult:
        best = self._best.get(task.id)
        if best is not None:
            return TaskResult(
                task.id, best.predictions, "stopped", "interrupt", stage=best.stage, fraction=best.fraction
            )
        if task.id not in self._fallbacks:
            self._fallbacks[task.id] = TaskResult(task.id, choose(task, None), "skipped", "interrupt")
        return self._fallbacks[task.id]

    def submission(self) -> str:
        """Return the text of a valid submission with the answers so far."""
        return self._text.of(self.current())

    def write_submission(self, path: str | os.PathLike[str]) -> None:
        """Write a valid submission with the answers so far."""
        write_atomically(Path(path), self.submission().encode(), OUTPUT)

    def score(self) -> Score:
        """Score the answers so far; the test outputs of every task must be known."""
        return score(self.current(), self.tasks)


def _tasks_of(tasks: Any) -> tuple[Task, ...]:
    """Return tasks of any iterable; raise `TypeError` with the remedy for a path, and for what holds no tasks."""
    found = () if isinstance(tasks, str | os.PathLike) or not isinstance(tasks, Iterable) else tuple(tasks)
    if not isinstance(tasks, Iterable) or isinstance(tasks, str) or not all(isinstance(t, Task) for t in found):
        raise TypeError(f"tasks: got {tasks!r:.80}, wanted tasks, as ttt.load returns them")
    return found


def _check(run: Run) -> None:
    """Refuse settings that cannot work, before anything is written."""
    if not run.backends:
        raise TTTError("no backend given; name at least one")
    if len({t.id for t in run.tasks}) != len(run.tasks):
        raise TTTError("two tasks have the same id, and a submission has one entry per id; rename one")
    for name, number in (("workers", run.workers), ("gpu_tasks", run.gpu_tasks)):
        if number is not None and (isinstance(number, bool) or not hasattr(number, "__index__") or number < 1):
            raise ValueError(f"{name}: got {number!r}, wanted a whole number, 1 or more")
    if run.pool not in get_args(Where):
        raise ValueError(f"pool: got {run.pool!r}, wanted one of {', '.join(get_args(Where))}")
    if run.total is None and len(run.backends) > 1:
        raise TTTError(f"{len(run.backends)} backends take turns within a total time; set total, or name one")
    if run.total is not None and not 0 < run.total < float("inf"):
        raise InvalidBudgetError(f"total: got {run.total}, wanted a time above 0 such as 11.5h")
    if run.total is not None and run.budget.steps is not None:
        raise InvalidBudgetError("steps and a total time exclude each other; leave one out")


def _open_pool(run: Run, backends: Sequence[Backend]) -> tuple[Pool, int]:
    """Return the pool and its number of slots (for a cluster, as it is now)."""
    if run.pool == "ray":
        from ttt._runs.on_ray import RayPool

        far = RayPool(backends, run.workers, run.gpu_tasks)
        return far, run.workers or far.cpus()
    gpus = visible_gpus() if any(map(uses_gpu, backends)) else ()
    slots = slots_of(run.workers, gpus, per_gpu=run.gpu_tasks, most=len(run.tasks))
    return LocalPool(slots), len(slots)


def run(  # long because more than half of it is documentation
    tasks: Iterable[Task],
    *,
    backend: Backend | str | Sequence[Backend | str] = "grid",
    budget: Budget | str | float | None = None,
    workers: int | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    cache: str | os.PathLike[str] | None = None,
    pool: Where = "local",
    calibration: str | os.PathLike[str] | None = None,
    total: str | float | None = None,
    gpu_tasks: int = 1,
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
        backend: `grid`, `lm`, `vit`, `package.module:Class` or an object, see `Backend`; with `total` also a list,
            whose backends take turns.
        budget: Per task: a `Budget`, seconds, or text such as `"60s"` or `"500 steps"`. Default 60 s, 10 GB.
        workers: How many tasks are solved at a time, each in a process with one thread. Default 1; one per
            GPU for a backend that uses GPUs; on a cluster, its CPUs.
        seed: Of the run. Each task's own seed is derived from it and the task's content.
        folder: Where records and checkpoints are kept. A run of the same tasks, backend, budget and seed goes on there;
            any other run gets `folder-2`, `folder-3`, ... Nothing is deleted. None keeps nothing.
        fresh: Start anew in a folder of its own, even if `folder` holds this very run.
        cache: A folder of records shared between runs; equal content, backend, budget and seed are solved once.
        pool: `local` processes, or `ray` (extra `ray`; connects to a running cluster or starts a local one).
        calibration: A file of confidence curves that `ttt eval --calibrate` wrote; without one those that come with
            ttt. Curves fitted for another backend are not used.
        total: Time for all tasks together, such as `"11.5h"`: a first pass over every task, then more tries on what is
            open, until the time is over. A run that goes on in its folder uses what is left of the time.
        gpu_tasks: How many tasks share a GPU, for backends that use one.

    Raises:
        InvalidBackendError: The backend cannot be created or pickled.
        InvalidBudgetError: The budget or the total time is invalid.
        ValueError: `workers` is below 1, or `pool` is unknown.
        UnreadableFileError: `calibration` is not a file of curves.
        UnsafeFolderError: Other users can write to the folder or the cache.
    """
    return Run(tasks, backend, budget, workers, seed, folder, fresh, cache, pool, calibration, total, gpu_tasks)
