"""share: workers that start together get one copy, whatever is killed, and two builds never mix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import zerocopy
from zerocopy.errors import OtherBuildError, ShareTimeoutError

pytestmark = pytest.mark.timeout(400)

WORKER = """
import json, os, sys, time, torch, zerocopy
torch.set_num_threads(1)
folder, slow, others, kills = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def note(file):
    with open(f"{folder}/{file}", "a") as noted:
        noted.write(f"{os.getpid()}\\n")
def noted(file):
    return set(open(f"{folder}/{file}").read().split()) if os.path.exists(f"{folder}/{file}") else set()
def build():
    torch.manual_seed(0)
    layers = []
    for number in range(8):
        layers.append(torch.nn.Linear(1024, 1024))
        end = time.monotonic() + 120
        while number == 3 and len(noted("waiting")) < others and time.monotonic() < end:
            time.sleep(0.02)
        note("building")
        if number == 3 and len(noted("building")) <= kills:
            time.sleep(300)  # the test kills this process now
        time.sleep(slow)
    return torch.nn.Sequential(*layers).eval()
print("ready", flush=True)
sys.stdin.readline()
waits = []
def wait(entry):
    waits.append(entry)
    note("waiting")
model = zerocopy.share("together", build, directory=folder, on_wait=wait)
with torch.no_grad():
    answer = model(torch.ones(1, 1024)).sum().item()
line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(json.dumps({"pid": os.getpid(), "answer": answer, "anon": int(line.split()[1]), "waits": waits}), flush=True)
sys.stdin.readline()
"""


running: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """No worker survives its test."""
    yield
    for worker in running:
        worker.kill()
        worker.communicate()
    running.clear()


def start(folder: Path, slow: float, count: int, others: int = 0, kills: int = 0) -> list[subprocess.Popen[str]]:
    """Start workers that wait for a line.

    Whichever builds does not go on from its fourth layer before so many others wait, and the first builders, as many as
    are to be killed, not at all.
    """
    command = [sys.executable, "-c", WORKER, str(folder), str(slow), str(others), str(kills)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    running.extend(workers)
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    return workers


def go(workers: list[subprocess.Popen[str]]) -> None:
    """Let them share."""
    for worker in workers:
        worker.stdin.write("\n")  # type: ignore[union-attr]
        worker.stdin.flush()  # type: ignore[union-attr]


def builders(folder: Path) -> list[int]:
    """The processes that built, in order, each layer once."""
    path = folder / "building"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def taken(folder: Path) -> int:
    """Bytes that the files of the folder take."""
    total = 0
    for path in folder.glob("*.zc*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


@pytest.mark.parametrize("kills", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_that_start_together(kills: int, tmp_path: Path, eventually: Any) -> None:
    """Eight workers, and the leader killed in mid-build: one segment, one copy at most, and the same answers."""
    workers = start(tmp_path, 0.02, 8, others=6, kills=kills)
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            most[0] = max(most[0], taken(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    go(workers)
    killed: list[int] = []
    for _ in range(kills):
        assert eventually(lambda: builders(tmp_path).count(builders(tmp_path)[-1] if builders(tmp_path) else 0) >= 4)
        leader = builders(tmp_path)[-1]
        assert leader not in killed
        os.kill(leader, signal.SIGKILL)
        killed.append(leader)
        assert eventually(lambda last=leader: builders(tmp_path)[-1] != last)
    living = [worker for worker in workers if worker.pid not in killed]
    told = [json.loads(worker.stdout.readline()) for worker in living]  # type: ignore[union-attr]
    stop.set()
    watcher.join()
    size = 8 * (1024 * 1024 + 1024) * 4
    assert len({entry["answer"] for entry in told}) == 1
    assert len(set(builders(tmp_path))) == kills + 1
    assert len(list(tmp_path.glob("*.zc"))) == 1
    assert most[0] <= 1.1 * size
    anonymous = sorted(entry["anon"] for entry in told)
    assert anonymous[-1] - anonymous[0] < size / 1024 / 3  # the leader has no copy of its own either
    assert sum(bool(entry["waits"]) for entry in told) >= 6
    for worker in workers:
        worker.kill()
        worker.wait()
    (tmp_path / "building").unlink()
    (tmp_path / "waiting").unlink()
    assert eventually(lambda: list(tmp_path.iterdir()) == []), list(tmp_path.iterdir())


def narrow() -> nn.Module:
    """One build."""
    return nn.Linear(8, 8)


def test_two_builds_under_one_name(tmp_path: Path) -> None:
    """A different function, argument or checkpoint is an error that names both; the same one is the same model."""
    model = zerocopy.share("net", narrow, directory=tmp_path)
    assert zerocopy.share("net", narrow, directory=tmp_path) is model
    for other in (lambda: nn.Linear(8, 9), partial(nn.Linear, 8, 8), lambda: nn.Linear(8, 8)):
        with pytest.raises(OtherBuildError, match=r"'net' is shared from .*narrow"):
            zerocopy.share("net", other, directory=tmp_path)
    sizes = [partial(nn.Linear, 8, count) for count in (2, 3)]
    first = zerocopy.share("sizes", sizes[0], directory=tmp_path)
    assert zerocopy.share("sizes", partial(nn.Linear, 8, 2), directory=tmp_path) is first
    with pytest.raises(OtherBuildError):
        zerocopy.share("sizes", sizes[1], directory=tmp_path)
    for name in ("net", "sizes"):
        zerocopy.unpublish(zerocopy.current(name, directory=tmp_path))


def other_width(width: int) -> Any:
    """A build whose width is a keyword's default."""

    def build(*, width: int = width) -> nn.Module:
        return nn.Linear(8, width)

    return build


CELL = """
WIDTH = {width}
SCALES = {{"all": {width}}}
calls = 0

class Net(torch.nn.Module):
    EXTRA = {extra}

    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(8, width + self.EXTRA)

def helper(width):
    return Net(width) if width else build()

def build():
    global calls
    calls += 1
    return helper(WIDTH if __name__ else SCALES)
"""


def cell(width: int, extra: int = 0, text: str = CELL) -> Any:
    """The build function of a notebook's cell, as it was run with these constants."""
    space: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    exec(text.format(width=width, extra=extra), space)
    return space["build"]


def test_what_a_build_uses_counts(tmp_path: Path) -> None:
    """Its keyword defaults, constants, functions and classes are part of it; what it changes itself is not."""
    assert zerocopy.share("keyword", other_width(2), directory=tmp_path).out_features == 2
    with pytest.raises(OtherBuildError):
        zerocopy.share("keyword", other_width(3), directory=tmp_path)
    model = zerocopy.share("cell", cell(4), directory=tmp_path)
    assert zerocopy.share("cell", cell(4), directory=tmp_path) is model
    for other in (cell(5), cell(4, 1), cell(4, text=CELL.replace("Net(width)", "Net(2 * width)"))):
        with pytest.raises(OtherBuildError):
            zerocopy.share("cell", other, directory=tmp_path)
    for name in ("keyword", "cell"):
        zerocopy.unpublish(zerocopy.current(name, directory=tmp_path))


@pytest.mark.parametrize("timeout", [float("nan"), "5", -1, True])
def test_a_timeout_that_is_no_number(tmp_path: Path, timeout: Any) -> None:
    """It is refused before anything is made; one of NaN waited for ever."""
    with pytest.raises(ValueError, match="no number of seconds"):
        zerocopy.share("net", narrow, timeout=timeout, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_shared(tmp_path: Path) -> None:
    """From a file: its tensors, once; a file that changed is another checkpoint."""
    saved = narrow()
    path = tmp_path / "m.safetensors"
    save_file(saved.state_dict(), path)
    model = zerocopy.share("net", path, build=narrow, directory=tmp_path)
    assert torch.equal(model.weight, saved.weight)
    assert zerocopy.share("net", path, build=narrow, directory=tmp_path) is model
    save_file(narrow().state_dict(), path)
    with pytest.raises(OtherBuildError, match=r"m\.safetensors"):
        zerocopy.share("net", path, build=narrow, directory=tmp_path)
    zerocopy.unpublish(zerocopy.current("net", directory=tmp_path))


def test_a_build_that_fails(tmp_path: Path) -> None:
    """The leader's error is the caller's, nothing stays, and the next one may try again."""

    def broken() -> nn.Module:
        raise ZeroDivisionError("from the build")

    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="from the build"):
            zerocopy.share("net", broken, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
    zerocopy.share("net", narrow, directory=tmp_path)
    zerocopy.unpublish(zerocopy.current("net", directory=tmp_path))


def test_a_leader_that_takes_too_long(tmp_path: Path) -> None:
    """Waiting ends with an error that says so, and the leader goes on."""
    begun, go_on, models = threading.Event(), threading.Event(), []

    def slow() -> nn.Module:
        begun.set()
        go_on.wait(200)
        return narrow()

    leader = threading.Thread(target=lambda: models.append(zerocopy.share("net", slow, directory=tmp_path)))
    leader.start()
    assert begun.wait(200)
    with pytest.raises(ShareTimeoutError, match="another process builds 'net'"):
        zerocopy.share("net", slow, directory=tmp_path, timeout=0.2)
    go_on.set()
    leader.join()
    assert len(models) == 1
    models.clear()
    zerocopy.unpublish(zerocopy.current("net", directory=tmp_path))


def test_a_later_worker_without_the_leader(tmp_path: Path, eventually: Any) -> None:
    """When the leader has left, a worker keeps the model for those that start later."""
    first, second = start(tmp_path, 0, 1), start(tmp_path, 0, 1)
    go(first)
    answer = json.loads(first[0].stdout.readline())["answer"]  # type: ignore[union-attr]
    go(second)
    assert json.loads(second[0].stdout.readline())["answer"] == answer  # type: ignore[union-attr]
    first[0].kill()
    first[0].wait()
    third = start(tmp_path, 0, 1)
    go(third)
    assert json.loads(third[0].stdout.readline())["answer"] == answer  # type: ignore[union-attr]
    assert len(set(builders(tmp_path))) == 1
    for worker in (*second, *third):
        worker.kill()
        worker.wait()
    (tmp_path / "building").unlink()
    assert eventually(lambda: list(tmp_path.iterdir()) == [])
