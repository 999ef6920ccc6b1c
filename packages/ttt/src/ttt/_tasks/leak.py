"""Whether tasks that are evaluated occur in a set that was trained on, by content and under any name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ttt.errors import LeakError
from ttt.values import Pair, Task


@dataclass(frozen=True, slots=True)
class Leak:
    """An evaluated task of which a training set knows pairs.

    `pairs` of its `of` pairs (training and test) occur in the set, in the tasks named by `found_in`; `test`
    says whether a test pair is among them.
    """

    task_id: str
    pairs: int
    of: int
    test: bool
    found_in: tuple[str, ...]


def find_leaks(evaluated: Iterable[Task], trained_on: Iterable[Task]) -> list[Leak]:
    """Return every evaluated task that shares a pair with the training set, whatever the ids and the order of pairs.

    Pairs are compared by the SHA-256 of input and output; a test input without known output counts by its input alone.
    """
    whole: dict[str, set[str]] = defaultdict(set)
    inputs: dict[str, set[str]] = defaultdict(set)
    for task in trained_on:
        for pair in (*task.train, *task.test):
            whole[pair.digest].add(task.id)
            inputs[Pair(pair.input).digest].add(task.id)
    leaks = []
    for task in evaluated:
        found: set[str] = set()
        hits = [0, 0]
        for is_test, pairs in enumerate((task.train, task.test)):
            for pair in pairs:
                known = (whole if pair.output is not None else inputs).get(pair.digest, set())
                hits[is_test] += bool(known)
                found |= known
        if found:
            total = len(task.train) + len(task.test)
            leaks.append(Leak(task.id, sum(hits), total, hits[1] > 0, tuple(sorted(found))))
    return leaks


def check_no_leak(evaluated: Iterable[Task], trained_on: Iterable[Task]) -> None:
    """Refuse to evaluate on what was trained on.

    Raises:
        LeakError: Names the first tasks that occur in both.
    """
    leaks = find_leaks(evaluated, trained_on)
    if leaks:
        some = ", ".join(leak.task_id for leak in leaks[:5]) + (", …" if len(leaks) > 5 else "")
        raise LeakError(f"{len(leaks)} evaluated tasks occur in the training set: {some}; leave them out of one side")
