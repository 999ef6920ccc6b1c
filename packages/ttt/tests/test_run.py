"""A run from tasks to submission: budgets held, failures contained, the same bytes whatever the order."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ttt_test_backends import ColourTable, Counting, Holding, HoldsMemory, Misbehaving, StartsAChild, Wanderer
from ttt_test_commands import solve_command

import ttt
from ttt._runs.records import Records
from ttt._runs.saved import read_run
from ttt.errors import InvalidBackendError, TTTError


def finish(run: ttt.Run) -> dict[str, ttt.TaskResult]:
    """Make a run go to its end."""
    for _ in run:
        pass
    return run.results


def solved_within(tasks: list[ttt.Task], backend: ttt.Backend) -> tuple[int, dict[str, ttt.TaskResult]]:
    """Return the first seconds in which every task is answered, and the results.

    The time of a task starts before its process, which a busy machine may need longer than the first of them to start.
    """
    for seconds in (2, 6, 20, 60):
        results = finish(ttt.run(tasks, backend=backend, budget=ttt.Budget(seconds=seconds, grace=0.2)))
        if all(r.answered for r in results.values()):
            return seconds, results
    pytest.fail(f"no answer within a minute: {results}")


def test_solves_what_its_backend_can(sample_arc_tasks: list[ttt.Task]) -> None:
    """Every synthetic task, two test inputs included, is solved through real worker processes."""
    run = ttt.run(sample_arc_tasks, backend=ColourTable(), workers=2, budget=100)
    results = finish(run)
    assert {i: r.status for i, r in results.items()} == {t.id: "done" for t in sample_arc_tasks}
    assert run.score().solved == tuple(t.id for t in sample_arc_tasks)
    assert len(results["two-tests"].predictions) == 2


def test_events_come_in_order(sample_arc_tasks: list[ttt.Task]) -> None:
    """Each task starts once, improves, and finishes once."""
    kinds: dict[str, list[str]] = {}
    for event in ttt.run(sample_arc_tasks[:2], backend=ColourTable(), budget=100):
        kinds.setdefault(event.task_id, []).append(type(event).__name__)
    for names in kinds.values():
        assert names[0] == "Started"
        assert names[-1] == "Finished"
        assert set(names[1:-1]) == {"Improved"}


def test_order_and_workers_do_not_change_a_byte(sample_arc_tasks: list[ttt.Task]) -> None:
    """With a budget in work units: 1 worker, 2 workers and a shuffled order give identical submissions."""
    shuffled = list(sample_arc_tasks)
    random.Random(1).shuffle(shuffled)
    texts = []
    for tasks, workers in ((sample_arc_tasks, 1), (sample_arc_tasks, 2), (shuffled, 2)):
        run = ttt.run(tasks, backend=Wanderer(), budget="40 steps", workers=workers, seed=3)
        results = finish(run)
        assert {(r.status, r.reason, r.steps) for r in results.values()} == {("stopped", "steps", 40)}
        texts.append(run.submission())
    assert texts[0] == texts[1] == texts[2]
    other = ttt.run(sample_arc_tasks, backend=Wanderer(), budget="40 steps", seed=4)
    finish(other)
    assert other.submission() != texts[0]
    # The same test input with other training pairs is another task, with a seed of its own.
    first = sample_arc_tasks[0]
    pair = ttt.run([first, replace(first, id="fewer", train=first.train[:1])], backend=Wanderer(), budget="40 steps")
    one, two = finish(pair).values()
    assert not np.array_equal(one.predictions[0].first.grid, two.predictions[0].first.grid)


def test_hidden_outputs_do_not_influence_answers(sample_arc_tasks: list[ttt.Task]) -> None:
    """Replacing every test output leaves seeds and answers as they are."""
    forged = [
        replace(t, test=tuple(ttt.Pair(p.input, ttt.as_grid([[7]])) for p in t.test)) for t in sample_arc_tasks[:3]
    ]
    texts = []
    for tasks in (sample_arc_tasks[:3], forged):
        run = ttt.run(tasks, backend=Wanderer(), budget="10 steps")
        finish(run)
        texts.append(run.submission())
    assert texts[0] == texts[1]


def test_soft_time_limit_keeps_the_best(sample_arc_tasks: list[ttt.Task]) -> None:
    """A backend that obeys its clock is stopped by time, and what it had counts."""
    for seconds in (2, 6, 20, 60):  # a busy machine may need longer than the first of them to start a process
        result = finish(ttt.run(sample_arc_tasks[:1], backend=Wanderer(0.01), budget=seconds))["identity"]
        if result.answered:
            break
    assert (result.status, result.reason) == ("stopped", "time")
    assert result.steps > 0
    assert result.answered


def test_hard_time_limit_ends_the_process(sample_arc_tasks: list[ttt.Task]) -> None:
    """A backend that ignores its clock is ended, with a typed error; its earlier answer and the other task count."""
    good = replace(sample_arc_tasks[0], id="good")
    seconds, results = solved_within([sample_arc_tasks[1], good], Misbehaving("ignores the clock"))
    assert results["mirror"].status == "failed"
    assert results["mirror"].error is not None
    assert results["mirror"].error.startswith(f"TimeLimitError: did not stop within {seconds} s")
    assert results["mirror"].answered
    assert results["good"].status == "done"


def test_memory_limit_ends_the_task_only(sample_arc_tasks: list[ttt.Task]) -> None:
    """A task above its memory is ended with a typed error, its first answer and the other task count."""
    good = replace(sample_arc_tasks[0], id="good")
    budget = ttt.Budget(seconds=60, memory=300_000_000)
    results = finish(ttt.run([sample_arc_tasks[1], good], backend=Misbehaving("allocates"), budget=budget))
    assert results["mirror"].reason == "memory"
    assert results["mirror"].error is not None
    assert results["mirror"].error.startswith("MemoryLimitError: held ")
    assert results["mirror"].answered
    assert results["good"].status == "done"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's own figure from /proc")
def test_peak_memory_agrees_with_the_kernel(sample_arc_tasks: list[ttt.Task]) -> None:
    """The reported peak is the kernel's within 10 %, and contains what the backend held."""
    result = finish(ttt.run(sample_arc_tasks[:1], backend=HoldsMemory(300), budget=100))["identity"]
    kernel = int(result.predictions[0].first.why) * 1024
    assert result.peak_memory == pytest.approx(kernel, rel=0.1)
    assert result.peak_memory > 300_000_000


def test_memory_of_children_counts(sample_arc_tasks: list[ttt.Task]) -> None:
    """What a backend's own child process holds counts against the task's limit, and the child is ended too."""
    budget = ttt.Budget(seconds=50, memory=300_000_000)
    result = finish(ttt.run(sample_arc_tasks[:1], backend=StartsAChild(300), budget=budget))["identity"]
    assert result.reason == "memory", result.error
    assert result.peak_memory > 300_000_000
    assert result.answered


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "RuntimeError: no idea <b>what</b> to do"),
        ("fills a GPU", "MemoryLimitError: CUDA out of memory. Tried to allocate 2.00 GiB: raise gpu_memory"),
        ("exits", "WorkerDiedError: the worker exited with status 7"),
        ("wrong count", "InvalidAnswerError: task mirror: the backend answered 2 test inputs, it has 1"),
        ("wrong grid", "InvalidTaskError: the backend's answer, row 0, column 0: got colour 17"),
    ],
)
def test_failures_are_named_and_contained(sample_arc_tasks: list[ttt.Task], how: str, message: str) -> None:
    """Whatever a backend does wrong, its earlier answer stays and the failure is told."""
    result = finish(ttt.run([sample_arc_tasks[1]], backend=Misbehaving(how), budget=100))["mirror"]
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.startswith(message)
    assert result.answered
    assert result.reason == ("memory" if message.startswith("MemoryLimitError") else None)


def test_what_a_backend_prints_is_no_message(sample_arc_tasks: list[ttt.Task]) -> None:
    """Printing what looks like our own lines changes nothing."""
    result = finish(ttt.run([sample_arc_tasks[1]], backend=Misbehaving("prints"), budget=100))["mirror"]
    assert (result.status, result.error) == ("done", None)


def test_interrupt_leaves_a_valid_submission(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """After interrupt() every task still has two attempts, and those not begun are marked."""
    run = ttt.run(sample_arc_tasks, backend=Wanderer(0.01), budget=60)
    for event in run:
        if isinstance(event, ttt.Improved):
            run.interrupt()
    assert run.interrupted
    assert run.results["identity"].reason == "interrupt"
    assert run.results["turn"].status == "skipped"
    run.write_submission(integration_test_dir / "s.json")
    answers = ttt.read_submission(integration_test_dir / "s.json")
    assert {i: len(a) for i, a in answers.items()} == {t.id: len(t.test) for t in sample_arc_tasks}


def test_leaving_the_loop_ends_the_workers(sample_arc_tasks: list[ttt.Task]) -> None:
    """Breaking out of the iteration leaves no process behind (the leak check looks)."""
    for event in ttt.run(sample_arc_tasks, backend=Wanderer(0.01), budget=60, workers=2):
        if isinstance(event, ttt.Improved):
            break


def test_resume_reuses_records(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """A second run of the same tasks takes them from the records, with the same bytes; another seed does not."""
    folder = integration_test_dir / "run"
    first = ttt.run(sample_arc_tasks, backend=Wanderer(), budget="20 steps", folder=folder)
    finish(first)
    second = ttt.run(sample_arc_tasks, backend=Wanderer(), budget="20 steps", folder=folder)
    assert second.continued
    assert second.submission() == first.submission(), "known before it goes"
    assert all(r.reused for r in finish(second).values())
    assert second.submission() == first.submission()
    third = ttt.run(sample_arc_tasks[:1], backend=Wanderer(), budget="20 steps", folder=folder, seed=9)
    assert not any(r.reused for r in finish(third).values())
    assert third.folder == integration_test_dir / "run-2"


@pytest.mark.skipif(os.name != "posix", reason="folders are held by POSIX locks")
def test_two_runs_at_once_in_one_folder(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """The same command started twice: neither takes the other's checkpoints away, both solve all, and it is said."""
    arguments: dict[str, Any] = {"backend": Counting(0.001), "budget": "60 steps", "folder": integration_test_dir / "r"}
    first = ttt.run(sample_arc_tasks[:2], **arguments)
    events = iter(first)
    while not isinstance(next(events), ttt.Improved):
        pass
    second = ttt.run(sample_arc_tasks[:2], **arguments)
    finish(second)
    for _ in events:
        pass
    for run in (first, second):
        assert {(r.status, r.error, r.steps) for r in run.results.values()} == {("stopped", None, 60)}
    assert {r.predictions[0].first.why for r in second.results.values()} == {"from 0"}, "no checkpoint of the first"
    assert first.notes == []
    assert [n for n in second.notes if "another run works there now" in n]
    third = ttt.run(sample_arc_tasks[:2], **arguments)
    assert all(r.reused for r in finish(third).values())
    assert third.notes == []


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_no_run_takes_anything_away(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """Other tasks, another budget, fewer tasks and a fresh start leave every file of an earlier run as it was."""
    folder = integration_test_dir / "run"
    finish(ttt.run(sample_arc_tasks[:3], backend=Wanderer(), budget="5 steps", folder=folder))
    before = snapshot(folder)
    others = [
        ttt.run(sample_arc_tasks[3:], backend=Wanderer(), budget="5 steps", folder=folder),
        ttt.run(sample_arc_tasks[:3], backend=Wanderer(), budget="6 steps", folder=folder),
        ttt.run(sample_arc_tasks[:2], backend=Wanderer(), budget="5 steps", folder=folder),
        ttt.run(sample_arc_tasks[:3], backend=Wanderer(), budget="5 steps", folder=folder, fresh=True),
    ]
    assert not any(run.continued for run in others)
    assert len({run.folder for run in others} | {folder}) == 5
    for run in others:
        finish(run)
    assert snapshot(folder) == before
    more = ttt.run(sample_arc_tasks[:4], backend=Wanderer(), budget="5 steps", folder=folder)
    assert (more.folder, more.continued) == (folder, True), "more tasks go on where their part has been solved"
    assert sum(r.reused for r in finish(more).values()) == 3


def test_the_same_content_under_another_id_or_without_outputs_takes_nothing_away(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path
) -> None:
    """A renamed task gets a folder of its own; a run that goes on without test outputs keeps those that were known."""
    folder, task = integration_test_dir / "run", sample_arc_tasks[1]
    ttt.run([task], backend=Wanderer(), budget="5 steps", folder=folder)
    renamed = ttt.run([replace(task, id="renamed")], backend=Wanderer(), budget="5 steps", folder=folder)
    assert (renamed.folder, renamed.continued) == (integration_test_dir / "run-2", False)
    hidden = ttt.run([task.without_solutions()], backend=Wanderer(), budget="5 steps", folder=folder)
    assert (hidden.folder, hidden.continued) == (folder, True)
    assert read_run(folder).task(task.id).has_solutions
    (folder / "tasks.json").write_text("{")
    ttt.run([task.without_solutions()], backend=Wanderer(), budget="5 steps", folder=folder)
    assert not read_run(folder).task(task.id).has_solutions, "a damaged file does not keep a run from going on"


def test_a_task_whose_process_died_is_tried_again(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """A task that failed without breaking a limit is solved again; its failure replaces no better record."""
    folder = integration_test_dir / "run"
    for _ in range(2):
        run = ttt.run(sample_arc_tasks[1:2], backend=Misbehaving("exits"), budget=100, folder=folder)
        assert not finish(run)["mirror"].reused
    store = Records(folder / "records")
    store.put("k", ttt.TaskResult("mirror", run.results["mirror"].predictions, "done"))
    store.put("k", run.results["mirror"])
    kept = store.get("k", "mirror")
    assert kept is not None
    assert kept.status == "done"


def test_a_damaged_record_is_solved_again(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """A flipped byte in a record makes its task run again, with the same answer."""
    first = ttt.run(sample_arc_tasks[:2], backend=Wanderer(), budget="20 steps", folder=integration_test_dir / "run")
    finish(first)
    record = next((integration_test_dir / "run" / "records").glob("*.json"))
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(bytes(data))
    again = ttt.run(sample_arc_tasks[:2], backend=Wanderer(), budget="20 steps", folder=integration_test_dir / "run")
    assert sorted(r.reused for r in finish(again).values()) == [False, True]
    assert again.submission() == first.submission()
    body, digest = record.read_bytes().split(b"\n")[:2]
    changed = json.loads(body)
    changed["result"]["steps"] += 1  # a record that is whole but not the one that was written
    record.write_bytes(json.dumps(changed, sort_keys=True).encode() + b"\n" + digest + b"\n")
    third = ttt.run(sample_arc_tasks[:2], backend=Wanderer(), budget="20 steps", folder=integration_test_dir / "run")
    assert sorted(r.reused for r in finish(third).values()) == [False, True]


def test_cache_answers_the_same_content_under_another_name(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path
) -> None:
    """A shared cache knows tasks by content: a renamed copy is not solved twice."""
    finish(ttt.run(sample_arc_tasks[:1], backend=Wanderer(), budget="20 steps", cache=integration_test_dir))
    copy = replace(sample_arc_tasks[0], id="copy")
    result = finish(ttt.run([copy], backend=Wanderer(), budget="20 steps", cache=integration_test_dir))["copy"]
    assert result.reused
    assert result.task_id == "copy"
    other = finish(ttt.run([copy], backend=Wanderer(), budget="20 steps", cache=integration_test_dir, seed=9))["copy"]
    assert not other.reused, "with another seed the answers may be others"


def test_refuses_what_cannot_work(sample_arc_tasks: list[ttt.Task]) -> None:
    """Same ids, a backend without a home or that cannot travel, unknown names, no workers: refused before a start."""

    class Local(ColourTable):
        pass

    with pytest.raises(InvalidBackendError, match="top level of a module"):
        ttt.run(sample_arc_tasks, backend=Local())
    with pytest.raises(InvalidBackendError, match="cannot be pickled"):
        ttt.run(sample_arc_tasks, backend=Holding(lambda: 0))
    with pytest.raises(InvalidBackendError, match="wanted one of grid, lm, vit"):
        ttt.run(sample_arc_tasks, backend="best")
    with pytest.raises(InvalidBackendError, match="wanted an object with 'name' and 'solve'"):
        ttt.run(sample_arc_tasks, backend=object())  # type: ignore[arg-type]
    with pytest.raises(TTTError, match="same id"):
        ttt.run([sample_arc_tasks[0]] * 2, backend=ColourTable())
    with pytest.raises(ValueError, match="one of local, ray"):
        ttt.run(sample_arc_tasks, backend=ColourTable(), pool="rya")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or more"):
        ttt.run(sample_arc_tasks, backend=ColourTable(), workers=0)


SLOW_WALK = ["--backend", "ttt_test_backends:Wanderer", "--set", "seconds_per_step=0.01"]


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("backend", [SLOW_WALK, ["--backend", "grid"]], ids=["walk", "grid"])
def test_ctrl_c_leaves_a_valid_submission(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path, backend: list[str]
) -> None:
    """SIGINT to the command, while workers solve: status 130 soon, and a submission with every id."""
    child = solve_command(integration_test_dir, sample_arc_tasks[::-1], *backend, "--budget", "500s", "--workers", "2")
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 100
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = psutil.Process(child.pid).children()
        time.sleep(0.05)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    # Five seconds, of which a busy backend may take two; the bound is for a busy machine, the budget is 500 s.
    out, _ = child.communicate(timeout=200)
    assert child.returncode == 130, out
    answers = ttt.read_submission(integration_test_dir / "out.json")
    assert {i: len(a) for i, a in answers.items()} == {t.id: len(t.test) for t in sample_arc_tasks}


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_kill_and_resume_give_the_same_bytes(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """Kill -9, then the same again: the submission of an undisturbed run, and finished tasks are not done twice."""
    arguments = [*SLOW_WALK, "--steps", "30"]
    child = solve_command(integration_test_dir, sample_arc_tasks, *arguments)
    records = integration_test_dir / "out.run" / "records"
    deadline = time.monotonic() + 100
    while not (records.is_dir() and len(list(records.glob("*.json"))) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.communicate(timeout=200)
    again = solve_command(integration_test_dir, sample_arc_tasks, *arguments, "--json")
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0, out
    assert sum(t["reused"] for t in json.loads(out)["tasks"]) >= 2
    resumed = (integration_test_dir / "out.json").read_bytes()
    whole = ttt.run(sample_arc_tasks, backend=Wanderer(0.0), budget="30 steps", workers=2)
    finish(whole)
    assert resumed == whole.submission().encode()


def test_workers_end_with_their_parent(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """Killing the command with -9 leaves no worker alive, also none that never writes to the pipe that has closed."""
    backend = ["--backend", "ttt_test_backends:Misbehaving", "--set", 'how="ignores the clock"']
    child = solve_command(integration_test_dir, sample_arc_tasks, *backend, "--budget", "500s", "--workers", "2")
    deadline = time.monotonic() + 100
    workers: list[psutil.Process] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = psutil.Process(child.pid).children()
        time.sleep(0.05)
    while any(w.cpu_times().user < 1.5 for w in workers) and time.monotonic() < deadline:
        time.sleep(0.05)  # until they have their tasks: a worker that starts with no job ends for another reason
    child.kill()
    child.communicate()
    _, alive = psutil.wait_procs(workers, timeout=200)
    assert len(workers) == 2
    assert alive == []


def test_answers_of_numpy_views_are_taken(sample_arc_tasks: list[ttt.Task]) -> None:
    """Attempts are plain read-only grids of their own, in uint8."""
    run = ttt.run(sample_arc_tasks[1:2], backend=ColourTable(), budget=100)
    grid = finish(run)["mirror"].predictions[0].first.grid
    assert grid.dtype == np.uint8
    assert not grid.flags.writeable


def test_the_last_answer_counts_even_right_before_a_hang(sample_arc_tasks: list[ttt.Task]) -> None:
    """Answers may follow one another too quickly to be sent one by one: the last still arrives before the kill."""
    for seconds in (2, 6, 20, 60):  # a busy machine may need longer than the first of them to start a process
        budget = ttt.Budget(seconds=seconds, grace=0.2)
        result = finish(ttt.run(sample_arc_tasks[1:2], backend=Misbehaving("answers twice, then hangs"), budget=budget))
        assert result["mirror"].status == "failed"
        if result["mirror"].predictions[0].first.stage == "second":
            return
    pytest.fail(f"the second answer did not arrive: {result}")


@pytest.mark.parametrize(
    "steps", [37, 77, 100, pytest.param(60, marks=pytest.mark.slow), pytest.param(90, marks=pytest.mark.slow)]
)
def test_steps_are_exact_wherever_they_end(steps: int) -> None:
    """A budget of steps that ends in any stage of the default solver is used up to the last step, and so recorded."""
    rng = np.random.default_rng(7)
    pairs = [
        ttt.Pair(ttt.as_grid(rng.integers(0, 4, (3, 3))), ttt.as_grid(rng.integers(0, 4, (3, 3)))) for _ in range(3)
    ]
    task = ttt.Task("noise", tuple(pairs), (ttt.Pair(ttt.as_grid(rng.integers(0, 4, (3, 3)))),))
    result = finish(ttt.run([task], budget=f"{steps} steps"))["noise"]
    assert (result.status, result.reason, result.steps) == ("stopped", "steps", steps)
