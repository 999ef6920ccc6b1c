"""A generator in a process of its own: what it yields, what it costs, and that it never outlives its purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest
from ttt_test_backends import WorksApart

import ttt
from ttt._runs.child import in_child
from ttt.errors import WorkerDiedError


def gone(pid: int) -> bool:
    """Whether a process ends within minutes."""
    try:
        psutil.Process(pid).wait(200)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def ignore(cpu_seconds: float, resident: int, peak: int) -> None:
    """Takes note of nothing."""


def test_yields_what_the_generator_yields() -> None:
    """Values arrive in order, from another process, which is gone afterwards (the leak check looks)."""
    seen = list(in_child("ttt_test_backends:squares", (4,), lambda: False, ignore))
    assert [v.tolist() for _, v in seen] == [[0], [1, 1], [4, 4, 4], [9, 9, 9, 9]]
    assert len({pid for pid, _ in seen} - {os.getpid()}) == 1


def test_failures_are_told() -> None:
    """What the generator raises is raised here; a process that vanishes is an error with its status."""
    with pytest.raises(ZeroDivisionError, match="by design"):
        list(in_child("ttt_test_backends:fails", (), lambda: False, ignore))
    with pytest.raises(WorkerDiedError, match="status 7"):
        list(in_child("ttt_test_backends:exits", (), lambda: False, ignore))


def test_its_cost_is_counted() -> None:
    """CPU and the kernel's peak are those of the other process, and nothing is held once it has ended."""
    told: list[tuple[float, int, int]] = []
    assert list(in_child("ttt_test_backends:burns", (200, 1.0), lambda: False, lambda *t: told.append(t))) == [1]
    cpu, resident, peak = told[-1]
    assert 1.0 <= cpu < 10
    assert resident == 0
    assert 200e6 < peak < 400e6
    assert max(now for _, now, _ in told) > 0


def test_stop_ends_it() -> None:
    """Soon after stop says so the process is gone, whatever it does."""
    begun, pids = time.monotonic(), list[int]()
    for pid in in_child("ttt_test_backends:pids_then_work", (1,), lambda: bool(pids), ignore):
        pids.append(pid)
    assert time.monotonic() - begun < 200, "it would work for five minutes"
    assert all(map(gone, pids))
    assert len(pids) == 1


@pytest.mark.parametrize(
    "how", [*(pytest.param(how, marks=pytest.mark.slow) for how in ("hard time", "soft time")), "memory", "interrupt"]
)
def test_limits_of_a_task_end_it(sample_arc_tasks: list[ttt.Task], how: str) -> None:
    """A limit that ends a task's process ends what works for it, and both count as the task's."""
    backend = WorksApart(600 if how == "memory" else 200, heeds=how != "hard time")
    # Where the time ends it, a busy machine may need longer than the first of them to start two processes.
    for seconds in (8, 24, 72) if "time" in how else (100,):
        budget = ttt.Budget(seconds=seconds, grace=0.2, memory=500_000_000 if how == "memory" else None)
        run = ttt.run(sample_arc_tasks[:1], backend=backend, budget=budget)
        begun = time.monotonic()
        for event in run:
            if how == "interrupt" and isinstance(event, ttt.Improved):
                run.interrupt()
        assert time.monotonic() - begun < seconds + 60
        (result,) = run.results.values()
        if result.answered:
            break
    why = result.predictions[0].first.why
    assert result.peak_memory > 200e6, result
    if how == "memory":  # the worker may be ended before it could send its first answer
        assert result.reason == "memory"
        assert result.peak_memory > 450e6  # 90 % of the limit, where the backend is asked to stop
    else:
        assert result.reason == ("interrupt" if how == "interrupt" else "time"), result.error
        assert gone(int(why))
        assert 1.0 < result.cpu_seconds < 2 * seconds


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_it_ends_with_the_process_that_started_it() -> None:
    """After kill -9 of its starter it does not live on."""
    code = (
        "from ttt._runs.child import in_child\n"
        "for pid in in_child('ttt_test_backends:pids_then_work', (1,), lambda: False, lambda *_: None):\n"
        "    print(pid, flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert psutil.pid_exists(pid)
        starter.kill()
    assert gone(pid)
