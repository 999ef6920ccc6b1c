"""A whole contest within one time: a first pass over every task, then tries on what is open, by expected gain."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ttt._budget import Budget
from ttt._events import TaskResult
from ttt._runs.supervise import Job
from ttt.results import merged
from ttt.values import Task

FIRST_PASS = 0.2
"""Share of the time that the first pass may take: each task's share of the whole time, times this."""
SURE = 0.9
"""A task whose confidence reaches this is not tried again."""
LONGER = 1.5
"""A task that ran out of time gets at least this many times as much the next time."""
MARGIN = 0.3
"""Seconds before the end at which the last tries must stop."""
USEFUL = 5.0
"""Seconds that a try takes at least, while there is time: starting its process and loading its libraries take some."""
SHORTEST = 3.0
"""Seconds left at the end for which no try is started any more; less where the whole time is short."""
AGAIN_AFTER_END = 0.3
"""Chance that another seed helps a task whose backend had ended, relative to more time for one that was stopped."""
FAILURES = 3
"""A task that only fails is not tried more often than this."""


@dataclass(slots=True)
class Entry:
    """A task in the contest and its tries so far."""

    task: Task
    tries: list[TaskResult] = field(default_factory=list)
    _known: tuple[int, float] = (0, 0.0)

    @property
    def confidence(self) -> float:
        """The confidence of the merged answers, 0 before the first try."""
        if self._known[0] != len(self.tries):
            self._known = (len(self.tries), merged_result(self.tries).confidence)
        return self._known[1]

    @property
    def open(self) -> bool:
        """Whether another try may help."""
        failed = len(self.tries) >= FAILURES and all(r.status == "failed" and r.reason != "time" for r in self.tries)
        return self.confidence < SURE and not failed

    @property
    def gain(self) -> float:
        """Expected gain of another try: what is missing, less with each try that did not help."""
        helps = 1.0 if not self.tries or self.tries[-1].reason is not None else AGAIN_AFTER_END
        return (1 - self.confidence) * helps / (1 + len(self.tries))

    @property
    def round(self) -> int:
        """The round in which another try belongs; a task whose backend had ended waits for one round more."""
        return len(self.tries) + bool(self.tries and self.tries[-1].reason is None)

    @property
    def longest(self) -> float:
        """Seconds of the longest try that ran out of time."""
        return max((r.seconds for r in self.tries if r.reason == "time"), default=0.0)


def merged_result(tries: Sequence[TaskResult]) -> TaskResult:
    """Return several tries of one task as one result: all answers merged, costs added, the state of the best try."""
    best = max(tries, key=lambda r: (r.status != "failed", r.confidence))
    return replace(
        best,
        predictions=merged([r.predictions for r in tries]),
        seconds=round(sum(r.seconds for r in tries), 3),
        cpu_seconds=sum(r.cpu_seconds for r in tries),
        peak_memory=max(r.peak_memory for r in tries),
        peak_gpu_memory=max(r.peak_gpu_memory for r in tries),
        steps=sum(r.steps for r in tries),
        reused=all(r.reused for r in tries),
    )


def try_key(key: str, number: int) -> str:
    """Return the record key of one try of a task."""
    return hashlib.sha256(f"{key} try {number}".encode()).hexdigest()


class Contest:
    """The plan of a contest.

    Every task gets a first try, short enough that all of them fit into a fifth of the time. What is still open then
    shares the time that is left, most promising first, with another seed (and another backend, if there are more) in
    each try; this is repeated, round by round, until the time is over. No task gets a third try before every other
    open one had its second: a task without any answer would otherwise take the time of one with a doubtful answer.

    Args:
        entries: The tasks with their earlier tries.
        seconds_left: Returns the seconds until the whole time is over.
        total: The whole time in seconds.
        workers: Tasks at a time.
        budget: Other limits of each try.
        job: Makes a job of a task, the number of its try, and the try's budget.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        seconds_left: Callable[[], float],
        total: float,
        workers: Callable[[], int],
        budget: Budget,
        job: Callable[[Task, int, Budget], Job],
    ) -> None:
        self.entries = {e.task.id: e for e in entries}
        self._left, self._total, self._workers = seconds_left, total, workers
        self._budget, self._job = budget, job
        self._running: set[str] = set()
        self._shortest = min(SHORTEST, 0.015 * total)

    def next_job(self) -> Job | None:
        """Return the most promising job that there is time for."""
        left = self._left() - MARGIN
        waiting = [e for e in self.entries.values() if e.task.id not in self._running and e.open]
        if left < self._shortest or not waiting:
            return None
        entry = min(waiting, key=lambda e: (e.round, -e.gain))
        seconds = min(left, max(USEFUL, self._share(entry, left)))
        self._running.add(entry.task.id)
        grace = min(self._budget.grace, max(0.2, 0.01 * self._total))
        return self._job(entry.task, len(entry.tries), replace(self._budget, seconds=seconds, grace=grace))

    def _share(self, entry: Entry, left: float) -> float:
        """Return the seconds that a try of this task should take."""
        workers = self._workers()
        if not entry.tries:
            share = FIRST_PASS * self._total * workers / len(self.entries)
            # A run that was resumed late still gives every task a first try.
            untried = sum(not e.tries for e in self.entries.values())
            return min(share, left * workers / max(1, untried), self._budget.seconds or float("inf"))
        same_round = sum(e.open and e.round <= entry.round for e in self.entries.values())
        return max(left * workers / max(workers, same_round), LONGER * entry.longest)

    def over(self) -> bool:
        """Return whether no try will be started any more."""
        waiting = any(e.open for e in self.entries.values())
        return self._left() - MARGIN < self._shortest or not waiting

    def finished(self, result: TaskResult) -> None:
        """Note a try that has ended; one that an interrupt cut short does not count."""
        self._running.discard(result.task_id)
        if result.status != "skipped":
            self.entries[result.task_id].tries.append(result)


def clock_of(total: float, used: float, began: float) -> Callable[[], float]:
    """Return a function that returns the seconds left of a whole time.

    Args:
        total: The whole time.
        used: Seconds of it that earlier processes used.
        began: Monotonic time at which this process began to use it.
    """
    return lambda: total - used - (time.monotonic() - began)
