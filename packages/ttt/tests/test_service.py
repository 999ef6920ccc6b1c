"""A backend that stays loaded: one process solves one task after another, with the answers that each has alone."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ttt_test_backends import Resident
from ttt_test_commands import solve_command

import ttt
from ttt._backend import preflight
from ttt._budget import peak_bytes, reset_peaks
from ttt.errors import InvalidBudgetError


def tasks(*ids: str) -> list[ttt.Task]:
    """A task of its own for each id."""
    grids = [ttt.as_grid([[i % 10, i // 10 % 10]]) for i in range(len(ids))]
    return [ttt.Task(name, (ttt.Pair(g, g),), (ttt.Pair(g),)) for name, g in zip(ids, grids, strict=True)]


def solved(folder: Path, backend: Resident, names: list[str], workers: int = 1) -> tuple[ttt.Run, list[list[str]]]:
    """Run to the end; return the run and the lines that the backend wrote down."""
    run = ttt.run(tasks(*names), backend=backend, budget="2 steps", workers=workers)
    for _ in run:
        pass
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    (folder / "log").unlink()
    return run, lines


def test_a_service_solves_what_processes_of_their_own_solve(integration_test_dir: Path) -> None:
    """The same bytes with and without it; it is loaded once, and anew only after a death, which costs no other task.

    A task that dies because of the tasks before it is solved in a new process; one that always dies keeps its answer.
    """
    names = ["a", "crowded", "dies", "c"]
    backend = Resident(str(integration_test_dir))
    run, lines = solved(integration_test_dir, backend, names)
    where = [(name, pid) for name, pid in lines if name != "load"]
    assert [name for name, _ in where] == ["a", "crowded", "crowded", "dies", "dies", "c"]
    one, two, three, four = dict.fromkeys(pid for _, pid in where)
    assert [pid for _, pid in where] == [one, one, two, two, three, four]
    assert [pid for name, pid in lines if name == "load"] == [one, two, three, four]
    alone, lines = solved(integration_test_dir, replace(backend, service=False), names)
    assert len({pid for name, pid in lines if name == "load"}) == len(names)
    assert run.submission() == alone.submission()
    for name in names:
        with_service, without = run.results[name], alone.results[name]
        assert (with_service.status, with_service.error) == (without.status, without.error)
        assert with_service.predictions[0].first.stage == ("answer 1" if name == "dies" else "answer 2")
    assert "SIGKILL" in str(run.results["dies"].error)


def test_no_service_outlives_its_driver(integration_test_dir: Path) -> None:
    """After a kill -9 of the command, the process that waits for a task ends as well as the one that solves."""
    setting = ["--backend", "ttt_test_backends:Resident", "--set", f'folder="{integration_test_dir}"']
    command = solve_command(integration_test_dir, tasks("waits", "a"), *setting, "--budget", "500s", "--workers", "2")
    log, deadline = integration_test_dir / "log", time.monotonic() + 200
    while not (log.exists() and {"waits", "a"} <= set(log.read_text().split())) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [psutil.Process(int(line.split()[1])) for line in log.read_text().splitlines() if "load" in line]
    time.sleep(0.5)  # until the other has handed over its task
    assert [w.is_running() for w in workers] == [True, True]
    command.kill()
    command.communicate()
    assert psutil.wait_procs(workers, timeout=100)[1] == []


def test_memory_is_counted_by_task() -> None:
    """The peak that the kernel counted for one task is not that of the next one in the same process."""
    held = b"1" * 200_000_000
    before = peak_bytes()
    del held
    reset_peaks()
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not let a process reset its peak")
    assert peak_bytes() < before - 100_000_000


def test_processes_that_together_need_more_than_the_machine_are_refused() -> None:
    """Before the first of them is started, with the remedy."""

    class Large(Resident):
        def memory_needed(self) -> int:
            return psutil.virtual_memory().total // 3

    preflight(Large(""), workers=3)
    with pytest.raises(InvalidBudgetError, match=r"in each of 4 processes, this machine has .* use fewer workers"):
        preflight(Large(""), workers=4)
