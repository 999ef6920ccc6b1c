"""Full disks, replaced files, planted files and killed processes: the run goes on, and believes nothing foreign."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from ttt_test_backends import ColourTable, LeavesAChild, Wanderer

import ttt
from ttt._files import read_own, read_regular, write_atomically
from ttt._runs import folders
from ttt._runs.child import Child
from ttt._runs.records import Records, describe_backend
from ttt._runs.work_folder import pack, unpack
from ttt._tasks.loader import task_json
from ttt.checkpoint import CheckpointStore
from ttt.errors import CorruptCheckpointError, ForeignCheckpointError, UnreadableFileError, UnsafeFolderError

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links, pipes and sessions of POSIX")


def finish(run: ttt.Run) -> ttt.Run:
    """Make a run go to its end."""
    for _ in run:
        pass
    return run


@posix
def test_a_full_disk_costs_no_answer(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """Cache, run folder and submission on a disk that is full from the start: all answers, at a place that is said."""
    full = integration_test_dir / "full"
    full.mkdir()
    (integration_test_dir / "tasks.json").write_text(json.dumps({t.id: task_json(t) for t in sample_arc_tasks[:2]}))
    script = 'mount -t tmpfs -o size=64k none "$0" && { head -c 99k /dev/zero > "$0/fill"; exec "$@"; }'
    command = ["unshare", "-rm", "sh", "-c", script, str(full)]
    try:
        usable = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        usable = False
    if not usable:
        pytest.skip("this system lets no ordinary user mount a tmpfs of their own")
    solve = [sys.executable, "-m", "ttt", "solve", str(integration_test_dir / "tasks.json"), "--steps", "8"]
    places = ["--out", str(full / "a" / "s.json"), "--cache", str(full / "cache"), "--json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    backend = ["--backend", "ttt_test_backends:ColourTable"]
    done = subprocess.run(
        [*command, *solve, *places, *backend], capture_output=True, text=True, env=env, check=False, timeout=250
    )
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert len(told["score"]["solved"]) == 2
    assert "No space left" in done.stderr
    spare = Path(told["submission"])
    assert set(ttt.read_submission(spare)) == {t.id for t in sample_arc_tasks[:2]}
    shutil.rmtree(spare.parent)


@pytest.mark.parametrize("allowed", range(0, 12, 3))
def test_a_disk_that_fills_up_costs_no_answer(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """Wherever the space ends, every task is solved, it is said, and no half file lies about."""
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder, cache = integration_test_dir / "run", integration_test_dir / "cache"
    run = ttt.run(sample_arc_tasks[:2], backend=ColourTable(), budget="8 steps", folder=folder, cache=cache)
    assert len(finish(run).score().solved) == 2
    assert any("No space left" in note for note in run.notes)
    assert not [p for p in integration_test_dir.rglob("*") if p.name.startswith(".tmp-")]
    monkeypatch.undo()
    again = ttt.run(sample_arc_tasks[:2], backend=ColourTable(), budget="8 steps", folder=folder, cache=cache)
    assert finish(again).submission() == run.submission()


def test_a_full_disk_does_not_stop_a_training(integration_test_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that cannot be written is said, and the backend goes on."""
    pytest.importorskip("torch")
    from test_vit import SHAPE, task

    from ttt._budget import Budget, Clock
    from ttt.backends.vit import VitBackend

    (integration_test_dir / "vit").write_text("no folder: nothing can be written here")
    backend = VitBackend(shape=SHAPE, device="cpu", answer_every=1, prediction_views=1)
    answers = list(backend.solve(task(), Clock(Budget(seconds=None, steps=2), 1), integration_test_dir))
    assert answers[-1].steps_done == 2
    assert "goes on without this checkpoint" in capsys.readouterr().err


def test_replaced_weights_and_newer_solvers_are_others(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same name and settings: other bytes of weights, or other source code, give other keys."""
    pytest.importorskip("torch")
    from ttt.backends.vit import VitBackend

    weights = integration_test_dir / "w.safetensors"
    backend = VitBackend(weights=str(weights))
    seen = []
    for content in (b"first", b"other", b"first"):
        weights.write_bytes(content)
        seen.append(describe_backend(backend))
    assert seen[0] == seen[2] != seen[1]

    source = integration_test_dir / "ttt_test_own_solver.py"
    source.write_text(
        "class Own:\n    name = 'own'\n    def solve(self, task, clock, workdir):\n        yield from ()\n"
    )
    monkeypatch.syspath_prepend(str(integration_test_dir))
    own = importlib.import_module("ttt_test_own_solver").Own()
    folder = integration_test_dir / "run"
    first = finish(ttt.run(sample_arc_tasks[:1], backend=own, budget="5 steps", folder=folder))
    assert finish(ttt.run(sample_arc_tasks[:1], backend=own, budget="5 steps", folder=folder)).continued
    source.write_text(source.read_text() + "# a newer solver\n")
    newer = ttt.run(sample_arc_tasks[:1], backend=own, budget="5 steps", folder=folder)
    assert not newer.continued
    assert newer.folder != first.folder


@posix
def test_what_is_planted_in_a_cache_is_not_believed(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path
) -> None:
    """A pipe, a link, a foreign file and one that others can write, in the place of a record: solved anew, at once."""
    cache = integration_test_dir / "cache"
    task = sample_arc_tasks[:1]
    finish(ttt.run(task, backend=Wanderer(), budget="5 steps", cache=cache))
    record = next(cache.glob("*.json"))
    aside = integration_test_dir / "aside"
    record.rename(aside)

    def pipe() -> None:
        os.mkfifo(record)

    def link() -> None:
        record.symlink_to(aside)

    def open_to_others() -> None:
        shutil.copy(aside, record)
        record.chmod(0o666)

    def foreign() -> None:
        shutil.copy(aside, record)
        os.chown(record, 12345, -1)

    for plant in (pipe, link, open_to_others, *((foreign,) if os.geteuid() == 0 else ())):
        plant()
        begun = time.monotonic()
        run = ttt.run(task, backend=Wanderer(), budget="5 steps", cache=cache)
        assert time.monotonic() - begun < 60, "a pipe is not waited for"
        assert not run._kept, plant.__name__
        record.unlink()
    aside.rename(record)
    assert ttt.run(task, backend=Wanderer(), budget="5 steps", cache=cache)._kept


@posix
def test_folders_of_others_are_refused(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """A cache or run folder that others can write to is refused, with the remedy; so is one of another user."""
    open_to_all = integration_test_dir / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(UnsafeFolderError, match="chmod go-w"):
        ttt.run(sample_arc_tasks[:1], cache=open_to_all)
    with pytest.raises(UnsafeFolderError, match="chmod go-w"):
        ttt.run(sample_arc_tasks[:1], folder=open_to_all)
    if os.geteuid() == 0:
        open_to_all.chmod(0o755)
        os.chown(open_to_all, 12345, -1)
        with pytest.raises(UnsafeFolderError, match="another user"):
            Records(open_to_all)


@posix
def test_pipes_are_not_waited_for(integration_test_dir: Path) -> None:
    """A pipe as run.json, as a task file or as a checkpoint's part is a typed error at once."""
    pipe = integration_test_dir / "run.json"
    os.mkfifo(pipe)
    claimed, continued = folders.claim_folder(integration_test_dir, {"keys": {}})
    assert (claimed.name, continued) == (f"{integration_test_dir.name}-2", False)
    shutil.rmtree(claimed)
    with pytest.raises(OSError, match="wanted a file"):
        read_regular(pipe, 100)
    from ttt._tasks.loader import read_json

    with pytest.raises(UnreadableFileError, match="wanted a file"):
        read_json(pipe)
    store = CheckpointStore(integration_test_dir / "store")
    version = store.folder / f"v{store.save({}):08d}"
    (version / "payload.safetensors").unlink()
    os.mkfifo(version / "payload.safetensors")
    with pytest.raises(CorruptCheckpointError, match="wanted a file"):
        store.load()


@posix
def test_records_are_private_and_outputs_follow_the_umask(
    sample_arc_tasks: list[ttt.Task], integration_test_dir: Path
) -> None:
    """Folders 0700 and files 0600 for what ttt keeps; the submission has the mode that any program's file would."""
    folder = integration_test_dir / "run"
    run = finish(ttt.run(sample_arc_tasks[:1], backend=Wanderer(), budget="5 steps", folder=folder))
    CheckpointStore(folder / "store").save({})
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    plain, submission = integration_test_dir / "plain", integration_test_dir / "s.json"
    plain.touch()
    run.write_submission(submission)
    assert stat.S_IMODE(submission.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_file_is_synced_before_it_gets_its_name(integration_test_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content reaches the disk first, then the name, then the folder: else a crash could leave an empty file."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy(descriptor: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f"{os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append("name"), replace(*names))[1])
    write_atomically(integration_test_dir / "file", b"12345")
    assert seen == ["5 bytes", "name", "folder"][: 3 if os.name == "posix" else 2]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    integration_test_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A disk that is full at the last moment takes nothing away, and leaves no temporary file."""
    place = integration_test_dir / "submission.json"
    write_atomically(place, b"old")

    def full(*_: object) -> None:
        assert place.read_bytes() == b"old", "a reader sees the old file until the new one is complete"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            write_atomically(place, b"new")
    assert [file.read_bytes() for file in integration_test_dir.iterdir()] == [b"old"]


@posix
def test_kill_ends_the_process_and_its_session(sample_arc_tasks: list[ttt.Task]) -> None:
    """A child is gone when `kill` returns; it leads a session, so that Ctrl-C in a terminal does not reach it."""
    child = Child("ttt._runs.child", lambda _pipe: iter(()), own_session=True)
    pid = child._process.pid
    try:
        assert os.getsid(pid) == pid
        killing = threading.Thread(target=child.kill, daemon=True)  # it waits for the end, which might not come
        killing.start()
        killing.join(200)
        assert child._process.poll() == -9
    finally:
        if child._process.poll() is None:
            os.kill(pid, 9)
    with child:
        pass


@posix
def test_what_a_task_has_started_ends_with_it(sample_arc_tasks: list[ttt.Task]) -> None:
    """At the hard limit the task's process and the one that it started are gone."""
    for seconds in (2, 6, 20, 60):  # a busy machine may need longer than the first of them to start two processes
        budget = ttt.Budget(seconds=seconds, grace=0.2)
        run = finish(ttt.run(sample_arc_tasks[:1], backend=LeavesAChild(), budget=budget))
        if run.results["identity"].answered:
            break
    pids = [int(pid) for pid in run.results["identity"].predictions[0].first.why.split()]
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already
            found.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(found, timeout=100)
    for left in alive:
        left.kill()
    assert (len(pids), alive) == (2, [])


def test_work_folders_travel_whole(integration_test_dir: Path) -> None:
    """Every file but unfinished ones comes back; a path that leads out is refused and nothing is written."""
    here, there = integration_test_dir / "here", integration_test_dir / "there"
    (here / "a" / "v1").mkdir(parents=True)
    (here / "a" / ".writing-x").mkdir()
    (here / "a" / "v1" / "payload").write_bytes(b"123")
    (here / "a" / ".writing-x" / "payload").write_bytes(b"1")
    unpack(pack(here), there)
    assert pack(there) == {"a/v1/payload": b"123"}
    for name in ("../out", "/out", "a/../../out"):
        with pytest.raises(ForeignCheckpointError, match="leads out"):
            unpack({name: b""}, there)
    assert sorted(p.name for p in integration_test_dir.iterdir()) == ["here", "there"]
    if os.name == "posix":
        (here / "a" / "link").symlink_to(here / "a" / "v1" / "payload")
        assert set(pack(here)) == {"a/v1/payload"}
        with pytest.raises(OSError, match=r"[Ll]ink"):
            read_own(here / "a" / "link", 10)
