"""Several publishers, followers and forks at once: versions only go forward, and what somebody needs stays."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import zerocopy
from zerocopy import ModelRef

Publish = Callable[..., ModelRef]
pytestmark = [
    # Python 3.12 and later warn of forking beside threads; torch and pytest-timeout have some that no child needs.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.timeout(300),
]
PUBLISHER = """
import sys, torch, zerocopy
model = torch.nn.Linear(2, 2)
torch.nn.init.constant_(model.weight, float(sys.argv[2]))
ref = zerocopy.publish(model, name="net", directory=sys.argv[1])
print(ref.version, ref.path, flush=True)
sys.stdin.readline()
"""


def layer(value: float) -> nn.Linear:
    """A layer that shows which version it is of."""
    made = nn.Linear(2, 2)
    nn.init.constant_(made.weight, value)
    return made


def value(model: Any) -> float:
    """The value that the layer was made with."""
    return float(model.weight.detach()[0, 0])


def other_publisher(folder: Path, value: float) -> tuple[subprocess.Popen[str], int, str]:
    """A process that publishes a version and waits."""
    command = [sys.executable, "-c", PUBLISHER, str(folder), str(value)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    version, path = process.stdout.readline().split()  # type: ignore[union-attr]
    return process, int(version), path


def ended(process: subprocess.Popen[str]) -> None:
    """Kill a process and collect it."""
    process.kill()
    process.communicate()


def test_a_canary_that_dies_before_anybody_loads_it(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """A follower stays with its version, a new one finds it too, and the next version is a new number."""
    publish(layer(1), name="net", directory=tmp_path)
    live, eager = (zerocopy.follow("net", directory=tmp_path) for _ in range(2))
    assert value(live.model) == value(eager.model) == 1
    canary, version, path = other_publisher(tmp_path, 2)
    assert version == 2
    ended(canary)
    for _ in range(200):
        assert value(eager.model) in (1, 2)  # 2 as long as its file is there; then this follower holds it
    del eager
    gc.collect()
    assert eventually(lambda: not Path(path).exists())
    for _ in range(200):
        assert value(live.model) == 1
    assert live.ref.version == 1
    assert zerocopy.current("net", directory=tmp_path).version == 1
    assert zerocopy.follow("net", directory=tmp_path).ref.version == 1
    assert publish(layer(3), name="net", directory=tmp_path).version == 3
    assert value(live.model) == 3


def test_the_current_version_is_removed_by_hand(publish: Publish, tmp_path: Path) -> None:
    """The name still points to it, and everybody finds the newest version that is there."""
    first, second = (publish(layer(number), name="net", directory=tmp_path) for number in (1, 2))
    live, held = zerocopy.follow("net", directory=tmp_path), first.load()
    Path(second.path).unlink()
    assert zerocopy.current("net", directory=tmp_path) == first
    assert zerocopy.follow("net", directory=tmp_path).ref == first
    assert value(live.model) == 2  # it has this version
    assert value(held) == 1


def test_the_only_holder_is_a_follower(tmp_path: Path, eventually: Any) -> None:
    """When every publisher is gone, a follower's own version goes on, and is found by others."""
    first, _, path = other_publisher(tmp_path, 1)
    live = zerocopy.follow("net", directory=tmp_path)
    ended(first)
    second, version, newer = other_publisher(tmp_path, 2)
    ended(second)
    assert eventually(lambda: not Path(newer).exists())
    assert (version, live.ref.version, Path(path).exists()) == (2, 1, True)
    assert zerocopy.current("net", directory=tmp_path).path == path
    del live
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_a_slow_publisher_does_not_move_the_name_back(publish: Publish, tmp_path: Path) -> None:
    """Version 2, finished after version 3, leaves version 3 current; both can be loaded."""
    publish(layer(1), name="net", directory=tmp_path)
    start, go = threading.Event(), threading.Event()
    refs: list[ModelRef] = []

    def slow() -> None:
        from zerocopy import _publish

        real = _publish.write_segment

        def late(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is thread:
                start.set()
                go.wait(200)
            return real(*args, **options)

        _publish.write_segment = late
        try:
            refs.append(publish(layer(2), name="net", directory=tmp_path))
        finally:
            _publish.write_segment = real

    thread = threading.Thread(target=slow)
    thread.start()
    assert start.wait(200)
    process, version, _ = other_publisher(tmp_path, 3)
    live = zerocopy.follow("net", directory=tmp_path)
    assert (version, live.ref.version) == (3, 3)
    go.set()
    thread.join()
    assert refs[0].version == 2
    assert live.ref.version == zerocopy.current("net", directory=tmp_path).version == 3
    assert value(refs[0].load(cached=False)) == 2
    with pytest.raises(ValueError, match="version 3 of 'net' is not newer than the current one, 3"):
        publish(layer(4), name="net", version=3, directory=tmp_path)
    ended(process)


def test_four_at_once_get_four_versions(tmp_path: Path) -> None:
    """Processes and threads that publish at the same moment get different numbers, and the greatest is current."""
    code = """
import sys, threading, torch, zerocopy
together, refs = threading.Barrier(4), []
def go():
    together.wait()
    refs.append(zerocopy.publish(torch.nn.Linear(2, 2), name="net", directory=sys.argv[1]))
sys.stdin.readline()
threads = [threading.Thread(target=go) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(*(ref.version for ref in refs), flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    given = [int(word) for process in processes for word in process.stdout.readline().split()]  # type: ignore[union-attr]
    assert sorted(given) == list(range(1, 13))
    assert zerocopy.current("net", directory=tmp_path).version == 12
    for process in processes:
        ended(process)


def test_a_forked_child_keeps_nothing_that_it_does_not_use(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """Children forked after a publish do not keep the old version once the parent has published a new one."""
    old = publish(layer(1), name="net", directory=tmp_path)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        live = zerocopy.follow("net", directory=tmp_path)
        theirs.send(value(live.model))
        theirs.recv()
        theirs.send(value(live.model))
        theirs.recv()

    worker = context.Process(target=child, daemon=True)
    worker.start()
    theirs.close()  # the child's end: without the child it says so
    assert ours.recv() == 1
    publish(layer(2), name="net", directory=tmp_path)
    assert Path(old.path).exists()  # the child uses it
    ours.send("go on")
    assert ours.recv() == 2
    assert eventually(lambda: not Path(old.path).exists())
    ours.send("end")
    worker.join()
    worker.close()
    ours.close()


def test_a_fork_of_a_reader_is_a_reader(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """A model loaded before the fork belongs to both: the child's keeps the segment when the parent lets go."""
    old = publish(layer(1), name="net", directory=tmp_path)
    held = [old.load(cached=False)]
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        theirs.send("ready")
        theirs.recv()
        theirs.send(value(held[0]))
        held[0].weight.data.add_(1)
        theirs.send([entry.name for entry in zerocopy.written(held[0])])
        held.clear()
        theirs.send("dropped")
        theirs.recv()

    worker = context.Process(target=child, daemon=True)
    worker.start()
    theirs.close()  # the child's end: without the child it says so
    ours.recv()
    assert {view.pid for view in zerocopy.report(directory=tmp_path).views} == {os.getpid(), worker.pid}
    held.clear()
    publish(layer(2), name="net", directory=tmp_path)
    time.sleep(0.3)
    assert Path(old.path).exists()
    (info,) = (info for info in zerocopy.report(directory=tmp_path).segments if info.version == 1)
    assert info.readers == 1
    ours.send("go on")
    assert ours.recv() == 1
    assert ours.recv() == ["weight"]
    assert ours.recv() == "dropped"
    assert eventually(lambda: not Path(old.path).exists())
    ours.send("end")
    worker.join()
    worker.close()
    ours.close()


def test_a_killed_master_with_living_workers(tmp_path: Path, eventually: Any) -> None:
    """A publisher that forks workers and is killed: a worker's version stays, and goes with the worker."""
    code = """
import os, sys, time, torch, zerocopy
ref = zerocopy.publish(torch.nn.Linear(2, 2), name="net", directory=sys.argv[1])
unused = zerocopy.publish(torch.nn.Linear(2, 2), name="unused", directory=sys.argv[1])
child = os.fork()
if child == 0:
    model = ref.load()
    print(os.getpid(), flush=True)
    time.sleep(280)
    os._exit(0)
time.sleep(280)
"""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())  # type: ignore[union-attr]
    process.kill()
    process.wait()
    assert eventually(lambda: not list(tmp_path.glob("unused@*")))
    assert len(list(tmp_path.glob("net@1-*.zc"))) == 1
    os.kill(child, signal.SIGKILL)
    assert eventually(lambda: list(tmp_path.iterdir()) == [])
    process.stdout.close()  # type: ignore[union-attr]


def test_a_fork_meets_locked_locks(publish: Publish, tmp_path: Path) -> None:
    """A child forked while other threads publish and follow can publish and follow itself."""
    publish(layer(1), name="net", directory=tmp_path)
    live = zerocopy.follow("net", directory=tmp_path)
    stop = threading.Event()
    five, seven = (
        layer(5),
        layer(7),
    )  # made here: a lock of torch's generator that a thread holds stays locked in a child

    def busy() -> None:
        while not stop.is_set():
            zerocopy.unpublish(zerocopy.publish(five, directory=tmp_path))
            live.get()

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's handler does not run in a child that hangs
                signal.alarm(200)
                ref = zerocopy.publish(seven, directory=tmp_path)
                good = value(ref.load()) == 7 and live.get()[0].version == 1
                zerocopy.unpublish(ref)
                os._exit(0 if good else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_sweep_touches_only_what_is_ours(tmp_path: Path, publish: Publish) -> None:
    """A user's files that end in .part or .zc stay, however often somebody publishes beside them."""
    mine = [tmp_path / "film.part", tmp_path / "notes.zc", tmp_path / "a@b.zc", tmp_path / "x@1-zz.zc"]
    for path in mine:
        path.write_bytes(b"precious")
    (tmp_path / "loose").symlink_to("nowhere")
    for _ in range(3):
        publish(nn.Linear(2, 2), directory=tmp_path)
    zerocopy.sweep(tmp_path)
    assert all(path.read_bytes() == b"precious" for path in mine)
    assert (tmp_path / "loose").is_symlink()


def test_the_next_publish_sweeps_any_directory(tmp_path: Path, fresh_python: Any) -> None:
    """What a publisher and its caretaker left that were killed together goes with the next process's publish."""
    code = """
import os, signal, sys, torch, zerocopy
from zerocopy import _caretaker
_caretaker.caretaker.take = lambda path: None  # as if it were killed with us
zerocopy.publish(torch.nn.Linear(2, 2), name="lost", directory=sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("lost@1-*.zc"))
    code = "import sys, torch, zerocopy; zerocopy.publish(torch.nn.Linear(2, 2), directory=sys.argv[1])"
    fresh_python(code, str(tmp_path))
    assert not list(tmp_path.glob("lost*"))


def test_many_files_take_few_threads(tmp_path: Path, eventually: Any) -> None:
    """A publisher of 600 segments that is killed leaves none, with 300 of them still read for a while."""
    code = """
import sys, torch, zerocopy
for index in range(600):
    zerocopy.publish({"w": torch.zeros(index + 1)}, directory=sys.argv[1])
print(flush=True)
sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()  # type: ignore[union-attr]
    from zerocopy._ref import ref_of

    held = [ref_of(path).load(cached=False) for path in sorted(tmp_path.glob("*.zc"))[:300]]
    ended(process)
    assert eventually(lambda: len(list(tmp_path.glob("*.zc"))) == 300)
    assert all(not model["w"].any() for model in held)
    held.clear()
    assert eventually(lambda: list(tmp_path.iterdir()) == [])
