"""Memory with one and with many Ray workers: weights are counted once, and repeated calls add nothing.

Private memory is what a process would free by ending (anonymous pages); a mapping's share is its Pss. A worker's
baseline, once it has loaded and called a model of one small layer, is taken off.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef

Publish = Callable[..., ModelRef]
pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")
MIB = 1 << 20


def memory() -> dict[str, int]:
    """Return this process's proportional and anonymous memory in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"pss": values["Pss"], "anonymous": values["Anonymous"]}


class Worker:
    """An actor that measures itself while it loads and calls a model."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            nn.Linear(2048, 2048)(torch.randn(2, 2048))
        self.before: dict[str, int] = {}
        self.model: Any = None

    def settle(self, small: ModelRef) -> None:
        """Load and call a small model and take the baseline: what Ray and torch keep for themselves comes before."""
        with torch.no_grad():
            small.load(cached=False)(torch.ones(2, 8))
        self.before = memory()

    def load(self, ref: ModelRef) -> list[float]:
        """Load the model and return its answer."""
        self.model = ref.load()
        return self.call()

    def call(self) -> list[float]:
        """Run the model and return the answer, exactly."""
        with torch.no_grad():
            return self.model(torch.ones(2, 2048))[:, :8].flatten().tolist()  # type: ignore[no-any-return]

    def growth(self) -> dict[str, int]:
        """Return what this process has more than before it loaded the model."""
        now = memory()
        return {key: now[key] - self.before[key] for key in now}

    def segments(self) -> set[tuple[int, int]]:
        """Return device and inode of every segment that is mapped here."""
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".zc")}
        return {(os.stat(path).st_dev, os.stat(path).st_ino) for path in paths}


@pytest.fixture
def workers(ray: Any, publish: Publish) -> Iterator[Callable[[int], list[Any]]]:
    """Start workers; they end with the test."""
    started: list[Any] = []
    small = publish(nn.Linear(8, 8))

    def start(count: int) -> list[Any]:
        fresh = [ray.remote(Worker).options(num_cpus=0.1).remote() for _ in range(count)]
        ray.get([worker.settle.remote(small) for worker in fresh])
        started.extend(fresh)
        return fresh

    yield start
    for worker in started:
        ray.kill(worker)


def expected(model: nn.Module) -> list[float]:
    """The original's answer to what workers ask."""
    with torch.no_grad():
        return model(torch.ones(2, 2048))[:, :8].flatten().tolist()  # type: ignore[no-any-return]


def test_memory_footprint_single_worker(ray: Any, large_model: nn.Module, publish: Publish, workers: Any) -> None:
    """The baseline: one worker has the weights mapped and less than a fifth of their size to itself."""
    ref = publish(large_model)
    (worker,) = workers(1)
    assert ray.get(worker.load.remote(ref)) == expected(large_model)
    growth = ray.get(worker.growth.remote())
    print(f"model {ref.nbytes / MIB:.0f} MiB; one worker grew by {growth['anonymous'] / MIB:.1f} MiB of its own")
    assert growth["anonymous"] < ref.nbytes / 5
    assert growth["pss"] <= ref.nbytes + growth["anonymous"] + 8 * MIB


def test_memory_footprint_multiple_workers(ray: Any, large_model: nn.Module, publish: Publish, workers: Any) -> None:
    """The critical one: four workers together take one copy of the weights, not four."""
    ref = publish(large_model)
    four = workers(4)
    answers = ray.get([worker.load.remote(ref) for worker in four])
    assert answers == [expected(large_model)] * 4
    growth = ray.get([worker.growth.remote() for worker in four])
    private = [entry["anonymous"] for entry in growth]
    total = os.stat(ref.path).st_blocks * 512 + sum(private)
    print(
        f"model {ref.nbytes / MIB:.0f} MiB; 4 workers and it take {total / MIB:.0f} MiB, each {max(private) / MIB:.1f}"
    )
    assert max(private) < ref.nbytes / 5
    assert sum(entry["pss"] for entry in growth) <= 2 * ref.nbytes
    assert total <= 1.8 * ref.nbytes  # the libraries make pages of their own; the weights do not:
    views = [view for view in zerocopy.report().views if ref.path.endswith(view.segment)]
    assert [view.private for view in views] == [0] * 4
    assert sum(view.proportional for view in views) <= 1.01 * ref.nbytes


def forked(ref: ModelRef, pipe: Any) -> None:
    """A plain process that measures its own growth by a model."""
    with torch.no_grad():
        nn.Linear(2048, 2048)(torch.randn(2, 2048))
        before = memory()["anonymous"]
        model = ref.load(cached=False)
        answer = model(torch.ones(2, 2048))[:, :8].flatten().tolist()
    pipe.send((answer, memory()["anonymous"] - before))
    pipe.recv()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(("count", "bound"), [(4, 1.06), (8, 1.10)])
def test_memory_footprint_plain_processes(count: int, bound: float, large_model: nn.Module, publish: Publish) -> None:
    """Segment and private growth of four and of eight processes stay within 6 and 10 % of one copy of the weights."""
    ref = publish(large_model)
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        processes.append(context.Process(target=forked, args=(ref, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
    answers, growth = zip(*[pipe.recv() for pipe in pipes], strict=True)
    views = zerocopy.report(pids=[process.pid for process in processes]).views
    shares = [view.proportional for view in views if ref.path.endswith(view.segment)]
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send("end")
        process.join()
        pipe.close()
    assert list(answers) == [expected(large_model)] * count
    assert os.stat(ref.path).st_blocks * 512 + sum(growth) <= bound * ref.nbytes
    assert len(shares) == count
    assert sum(shares) <= 1.01 * ref.nbytes


def test_publish_takes_no_second_copy(fresh_python: Any) -> None:
    """While 64 MiB are published, the publisher's own memory and the segment stay within 5 % of one copy."""
    code = """
import os, threading, torch, zerocopy
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(4)])
zerocopy.unpublish(zerocopy.publish(torch.nn.Linear(8, 8)))
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
ref = zerocopy.publish(model)
done.set()
thread.join()
print((max(peak, anonymous()) - before + os.stat(ref.path).st_blocks * 512) / ref.nbytes)
"""
    assert float(fresh_python(code).stdout) <= 1.05


def test_memory_footprint_sequential_calls(ray: Any, large_model: nn.Module, publish: Publish, workers: Any) -> None:
    """Twenty calls: no growth between the second and the last, and the same bits each time."""
    ref = publish(large_model)
    (worker,) = workers(1)
    answers = [ray.get(worker.load.remote(ref)), ray.get(worker.call.remote())]
    second = ray.get(worker.growth.remote())["anonymous"]
    answers += [ray.get(worker.call.remote()) for _ in range(18)]
    last = ray.get(worker.growth.remote())["anonymous"]
    print(f"private growth after call 2: {second / MIB:.1f} MiB, after call 20: {last / MIB:.1f} MiB")
    assert answers == [expected(large_model)] * 20
    assert last - second <= 2 * MIB
    assert last < ref.nbytes / 5


def test_object_store_sharing(
    ray: Any, large_model: nn.Module, publish: Publish, workers: Any, eventually: Any
) -> None:
    """References that travel by different ways lead to one file, mapped by all; Ray's own store holds no weights."""
    ref = publish(large_model)
    put, nested = ray.put(ref), ray.put({"models": [ref]})
    one, two, three = workers(3)
    ray.get([one.load.remote(ref), two.load.remote(put), three.load.remote(ray.get(nested)["models"][0])])
    inodes = ray.get([worker.segments.remote() for worker in (one, two, three)])
    assert inodes == [{(os.stat(ref.path).st_dev, os.stat(ref.path).st_ino)}] * 3

    def stored() -> float:
        return ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0)

    assert eventually(lambda: stored() < ref.nbytes / 10)  # nodes tell what they have now and then
    views = [view for view in zerocopy.report().views if view.segment == Path(ref.path).name]
    assert len(views) == 3
    assert sum(view.proportional for view in views) <= 1.02 * ref.nbytes + sum(view.private for view in views)
    assert all(view.private == 0 for view in views)
