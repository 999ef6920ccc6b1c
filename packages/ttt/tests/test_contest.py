"""A total time for all tasks: everything gets a first try, what is open gets more, and the end is kept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ttt_test_backends import ColourTable, Needs

import ttt
from ttt._budget import Budget, StopReason
from ttt._events import TaskResult
from ttt._runs import contest
from ttt._runs.contest import Contest, Entry, merged_result
from ttt._runs.supervise import Job
from ttt.errors import InvalidBudgetError
from ttt.results import merged
from ttt.values import same


def grid(*cells: int) -> ttt.Grid:
    """A grid of one row."""
    return ttt.as_grid([list(cells)])


def attempt(cell: int, confidence: float, stage: str = "s") -> ttt.Attempt:
    """An attempt of one cell."""
    return ttt.Attempt(grid(cell), confidence, stage)


def result_of(task: ttt.Task, confidence: float, seconds: float, *, late: bool) -> TaskResult:
    """The result of a try that took some seconds and was stopped by time or not."""
    guess = ttt.Prediction(attempt(1, confidence), attempt(2, 0.0))
    status, reason = ("stopped", "time") if late else ("done", None)
    return TaskResult(task.id, (guess,) * len(task.test), status, reason, seconds=seconds)  # type: ignore[arg-type]


def simulate(
    tasks: list[ttt.Task], needs: dict[str, float], total: float, workers: int
) -> tuple[float, dict[str, list[float]]]:
    """Run the real plan against a clock of our own; a task is solved by a try of at least its seconds."""
    now = 0.0
    running: list[tuple[float, str, float]] = []
    tries: dict[str, list[float]] = {t.id: [] for t in tasks}

    def job(task: ttt.Task, _number: int, budget: Budget) -> Job:
        return Job(task, ColourTable(), budget, 0)

    plan = Contest(
        [Entry(t) for t in tasks],
        seconds_left=lambda: total - now,
        total=total,
        workers=lambda: workers,
        budget=Budget(seconds=None),
        job=job,
    )
    by_id = {t.id: t for t in tasks}
    while True:
        while len(running) < workers and (chosen := plan.next_job()) is not None:
            allowed = chosen.budget.seconds
            assert allowed is not None
            tries[chosen.task.id].append(allowed)
            running.append((now + min(allowed, needs[chosen.task.id]), chosen.task.id, allowed))
        if not running:
            return now, tries
        running.sort()
        now, task_id, allowed = running.pop(0)
        solved = needs[task_id] <= allowed
        plan.finished(result_of(by_id[task_id], 0.95 if solved else 0.1, min(allowed, needs[task_id]), late=not solved))


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_solves_no_less_than_even_shares(sample_arc_tasks: list[ttt.Task], seed: int) -> None:
    """On a hundred tasks of log-uniform difficulty: at least as many as with even time, all tried, the end kept."""
    rng = random.Random(seed)
    tasks = [replace(sample_arc_tasks[0], id=f"t{i}") for i in range(100)]
    needs = {t.id: 10 ** rng.uniform(-0.5, 3.5) for t in tasks}
    total, workers = 1800.0, 2
    end, tries = simulate(tasks, needs, total, workers)
    assert all(tries.values()), "every task has a first try"
    evenly = sum(n <= total * workers / len(tasks) for n in needs.values())
    solved = sum(any(allowed >= needs[i] for allowed in tried) for i, tried in tries.items())
    assert solved >= evenly
    assert 0.98 * total <= end <= total, "time that may help is used"


def test_answers_of_several_tries_are_voted_on() -> None:
    """Two tries that agree outweigh one that is a little surer; fallbacks never win; attempts are distinct."""
    tries = [
        (ttt.Prediction(attempt(1, 0.5), attempt(9, 0.0, "fallback")),),
        (ttt.Prediction(attempt(2, 0.4), attempt(1, 0.1)),),
        (ttt.Prediction(attempt(2, 0.4), attempt(3, 0.2)),),
    ]
    (found,) = merged(tries)
    assert same(found.first.grid, grid(2))
    assert found.first.confidence == 0.4
    assert same(found.second.grid, grid(1))
    (blank,) = merged([(ttt.Prediction(attempt(5, 0.0, "fallback"), attempt(6, 0.0, "fallback")),), tries[0]])
    assert same(blank.first.grid, grid(1))


def test_no_third_try_before_every_second(sample_arc_tasks: list[ttt.Task]) -> None:
    """A doubtful answer gets its second try before no answer gets its third; an ended backend waits a round."""
    hopeless, doubtful, ended = sample_arc_tasks[:3]
    entries = [
        Entry(hopeless, [result_of(hopeless, 0.0, 5.0, late=True)] * 2),
        Entry(doubtful, [result_of(doubtful, 0.61, 5.0, late=True)]),
        Entry(ended, [result_of(ended, 0.61, 5.0, late=False)]),
    ]
    plan = Contest(
        entries,
        seconds_left=lambda: 1000.0,
        total=1800.0,
        workers=lambda: 3,
        budget=Budget(seconds=None),
        job=lambda task, _number, budget: Job(task, ColourTable(), budget, 0),
    )
    order = [job.task.id for _ in entries if (job := plan.next_job()) is not None]
    assert order == [doubtful.id, hopeless.id, ended.id]


@pytest.mark.parametrize("reason", [None, "memory", "time"])
def test_a_task_that_only_fails_is_not_tried_for_ever(
    sample_arc_tasks: list[ttt.Task], reason: StopReason | None
) -> None:
    """Three failures are enough, those at a memory limit too; one that was late may need longer."""
    failed = replace(result_of(sample_arc_tasks[0], 0.1, 1.0, late=False), status="failed", reason=reason)
    assert Entry(sample_arc_tasks[0], [failed] * 2).open
    assert Entry(sample_arc_tasks[0], [failed] * 3).open == (reason == "time")


def test_a_merged_result_adds_up(sample_arc_tasks: list[ttt.Task]) -> None:
    """Costs are sums, the state is that of the best try."""
    task = sample_arc_tasks[0]
    both = merged_result([result_of(task, 0.2, 3.0, late=True), result_of(task, 0.9, 2.0, late=False)])
    assert (both.status, both.seconds, both.confidence) == ("done", 5.0, 0.9)


def test_a_contest_uses_its_time_and_its_backends(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass is short; a task that needs longer gets longer; backends take turns; the end is kept."""
    monkeypatch.setattr(contest, "USEFUL", 1.0)
    backends = [Needs({"identity": 0.0, "mirror": 4.0}), ColourTable()]
    for total in (12, 36, 108):  # a busy machine may need longer than the first of them to start the processes
        folder = integration_test_dir / f"run-{total}"
        begun = time.monotonic()
        run = ttt.run(sample_arc_tasks[:2], backend=backends, total=total, workers=2, folder=folder)
        finished = [e.task_id for e in run if isinstance(e, ttt.Finished)]
        wall = time.monotonic() - begun
        assert wall < total + 30  # without the limit the tries go on for as long as they are useful
        if len(run.score().solved) == 2 and finished.count("mirror") > 1:
            break
    assert finished.count("mirror") > 1
    assert set(run.score().solved) == {"identity", "mirror"}
    again = ttt.run(sample_arc_tasks[:2], backend=backends, total=total, folder=folder)
    assert again.continued
    assert again.submission() == run.submission()


def test_refuses_what_excludes_each_other(sample_arc_tasks: list[ttt.Task]) -> None:
    """Steps with a total, several backends without one, and no time at all."""
    with pytest.raises(InvalidBudgetError, match="exclude each other"):
        ttt.run(sample_arc_tasks, budget="10 steps", total="1h")
    with pytest.raises(ttt.TTTError, match="take turns within a total"):
        ttt.run(sample_arc_tasks, backend=["grid", ColourTable()])
    with pytest.raises(InvalidBudgetError, match="total: got"):
        ttt.run(sample_arc_tasks, total=0)


def contest_command(folder: Path, tasks: Path, total: float) -> subprocess.Popen[str]:
    """Start the contest as its users do."""
    command = [sys.executable, "-m", "ttt", "solve", str(tasks), "--out", str(folder / "s.json"), "--json"]
    return subprocess.Popen(
        [*command, "--total", f"{total}s", "--workers", "2", "--set", 'stages=["search","trees"]'],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def watched(path: Path, ids: set[str], faults: list[str]) -> Callable[[], None]:
    """Read the submission in a loop, noting whenever it is not valid; return what ends the loop."""
    end = threading.Event()
    seen = False

    def look() -> None:
        nonlocal seen
        while not end.is_set():
            if path.exists() or seen:
                seen = True
                try:
                    if set(ttt.read_submission(path)) != ids:
                        faults.append("ids are missing")
                except ttt.TTTError as error:
                    faults.append(str(error))
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()

    def stop() -> None:
        end.set()
        thread.join()

    return stop


def killed_twice(folder: Path, tasks: Path, ids: set[str], total: float) -> tuple[float, dict[str, Any]]:
    """Run a contest that is killed -9 after each of its first two quarters; return its seconds and what it printed."""
    faults: list[str] = []
    stop = watched(folder / "s.json", ids, faults)
    alive = 0.0
    try:
        for part in (0.25, 0.25, None):
            begun = time.monotonic()
            child = contest_command(folder, tasks, total)
            try:
                out, said = child.communicate(timeout=None if part is None else part * total)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.communicate()
            alive += time.monotonic() - begun
    finally:
        stop()
    assert child.returncode in (0, 1), said
    assert faults == []
    printed: dict[str, Any] = json.loads(out)
    assert printed["run"] == str(folder / "s.run")
    return alive, printed


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_a_contest_that_is_killed_twice_keeps_its_time(real_tasks: ttt.TaskSet, integration_test_dir: Path) -> None:
    """Killed -9 twice: the time within 2 %, a valid submission always, no less solved than with even shares.

    TTT_CONTEST_SECONDS is the total, 70 by default for ten tasks; 1800 makes it the contest of a hundred. How much is
    solved in how long depends on what else the machine does: one of three rounds must come up to it.
    """
    total = float(os.environ.get("TTT_CONTEST_SECONDS", "70"))
    chosen = real_tasks.sample(min(100, round(total / 7)), seed=25)
    tasks = integration_test_dir / "tasks.json"
    from ttt._tasks.loader import task_json

    tasks.write_text(json.dumps({t.id: task_json(t.without_solutions()) for t in chosen}))
    seen = []
    for number in range(3):
        folder = integration_test_dir / f"round-{number}"
        folder.mkdir()
        alive, said = killed_twice(folder, tasks, {t.id for t in chosen}, total)
        solved = len(ttt.score(folder / "s.json", chosen).solved)
        left_open = [t for t in said["tasks"] if (t["confidence"] or 0) < 0.9]
        print(f"contest: {alive:.1f} of {total:g} s, {solved} of {len(chosen)} solved, {len(left_open)} left open")
        backend = ttt.named_backend("grid", stages=("search", "trees"))
        even = ttt.run(chosen, backend=backend, budget=2 * total / len(chosen), workers=2)
        for _ in even:
            pass
        # 2 % of a contest; of a short one a busy machine takes more, for the starts and what a kill forgets.
        in_time = alive <= total + max(10.0, 0.02 * total) and (not left_open or alive >= 0.98 * total - 1)
        seen.append((alive, total, solved, len(even.score().solved)))
        if in_time and solved >= len(even.score().solved):
            return
    pytest.fail(f"seconds, total, solved, and solved with even shares: {seen}")
