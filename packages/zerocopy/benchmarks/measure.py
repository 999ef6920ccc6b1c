"""Measure one variant, or the race of two, in a process of its own, and print the figures as JSON for bench.py."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import os
import pickle
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
import variants
from torch import nn

# Ray beside `uv run` would build each worker an environment of its own.
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
RACED = ("zerocopy", "Ray's flag")  # its environment suits both
AGAIN = (*RACED, "zerocopy, recycling")
_PAUSE = 0.3  # seconds in which the memory of a version that was given up is freed
TOKENS = [[(7 * i) % 4000 for i in range(16)]]


def anonymous() -> int:
    """Return the anonymous memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def page_tables() -> int:
    """Return the memory of this process's page tables in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmPTE"))
    return int(line.split()[1]) * 1024


def shared_memory() -> int:
    """Return the machine's shared memory in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    line = next(line for line in lines if line.startswith("Shmem:"))
    return int(line.split()[1]) * 1024


def caretakers() -> int:
    """Return the private memory of zerocopy's caretaker processes, which belong to its bill."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"_caretaker_process.py" in (entry / "cmdline").read_bytes():
                lines = (entry / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
        except OSError:
            continue
    return total


class Worker:
    """Loads and calls a model, and measures itself."""

    def __init__(self, variant: str, blocks: int) -> None:
        torch.set_num_threads(1)
        if variant.startswith("zerocopy"):
            import zerocopy  # noqa: F401  # a warm worker has its libraries imported
        self.variant, self.blocks = variant, blocks
        with torch.no_grad():  # torch's own libraries make their threads and tables
            tiny = nn.TransformerEncoderLayer(1024, 16, 4096, batch_first=True).eval()
            tiny(torch.zeros(1, 16, 1024))
        self.model: Any = None
        del tiny
        self.before, self.tables_before = anonymous(), page_tables()

    def load(self, handle: Any) -> dict[str, Any]:
        """Load the model and call it once."""
        self.model = None  # letting go of the model before is no part of it
        start = time.perf_counter()
        if isinstance(handle, bytes):
            handle = pickle.loads(handle)
        self.model = variants.VARIANTS[self.variant].load(handle, self.blocks)
        loaded = time.perf_counter()
        output = self._call()
        end = time.perf_counter()
        return {"load_ms": (loaded - start) * 1e3, "first_ms": (end - start) * 1e3, "output": output}

    def _call(self) -> bytes:
        with torch.no_grad():
            return self.model(torch.tensor(TOKENS)).numpy().tobytes()

    def private(self) -> int:
        """Return the private growth since before the model."""
        return anonymous() - self.before

    def tables(self) -> int:
        """Return the growth of the page tables since before the model."""
        return page_tables() - self.tables_before

    def calls(self) -> dict[str, int]:
        """Call the model up to the 20th time."""
        self._call()
        second = self.private()
        for _ in range(18):
            self._call()
        return {"second": second, "last": self.private()}


def _serve(pipe: Any, variant: str, blocks: int) -> None:
    import torch.multiprocessing  # noqa: F401  # registers how tensors travel

    worker = Worker(variant, blocks)
    pipe.send(None)
    while True:
        method, arguments = pipe.recv()
        if method == "end":
            return
        pipe.send(getattr(worker, method)(*arguments))


class Processes:
    """Workers as plain processes."""

    def __init__(self, count: int, variant: str, blocks: int) -> None:
        import torch.multiprocessing  # noqa: F401  # the same on this side

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "variants"])
        self.pipes, self.processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, variant, blocks))
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def ask(self, index: int, method: str, *arguments: Any) -> Any:
        """Run a method in one worker."""
        self.pipes[index].send((method, arguments))
        return self.pipes[index].recv()

    def pack(self, handle: Any) -> Any:
        """Return what to send for a handle."""
        return bytes(ForkingPickler.dumps(handle))

    def close(self) -> None:
        """End them."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(("end", ()))
            process.join()


class Actors:
    """Workers as Ray actors."""

    def __init__(self, count: int, variant: str, blocks: int) -> None:
        import ray

        self.ray = ray
        self.actors = [ray.remote(Worker).options(num_cpus=0.1).remote(variant, blocks) for _ in range(count)]
        ray.get([actor.private.remote() for actor in self.actors])

    def ask(self, index: int, method: str, *arguments: Any) -> Any:
        """Run a method in one worker."""
        return self.ray.get(getattr(self.actors[index], method).remote(*arguments))

    def pack(self, handle: Any) -> Any:
        """Return what to send for a handle."""
        return handle

    def close(self) -> None:
        """End them."""
        for actor in self.actors:
            self.ray.kill(actor)


def start_ray(variant: variants.Variant, store: int) -> None:
    """Start a local cluster whose workers find these files."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.environ.update({**QUIET, **dict(variant.env)})
    import ray

    ray.init(
        address="local", num_cpus=4, object_store_memory=store, include_dashboard=False, logging_level=logging.ERROR,
        log_to_driver=False,
    )  # fmt: skip


def timed_publish(variant: variants.Variant, model: nn.Module, folder: Path) -> tuple[Any, float, int]:
    """Publish; return handle, seconds, and the peak of this process's own memory and shared memory over before."""
    base = anonymous() + shared_memory()
    peak, done = base, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.004):
            peak = max(peak, anonymous() + shared_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    handle = variant.publish(model, folder)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return handle, seconds, max(peak, anonymous() + shared_memory()) - base


def measure(name: str, blocks: int, workers: list[int]) -> dict[str, Any]:
    """Measure one variant."""
    variant = variants.VARIANTS[name]
    torch.manual_seed(0)
    model = variants.build(blocks)
    nbytes = sum(p.nbytes for p in model.parameters())
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).numpy().tobytes()
    if variant.on_ray:
        start_ray(variant, int(nbytes * 2.5) + (200 << 20))
    pool = (Actors if variant.on_ray else Processes)(max(workers), name, blocks)
    result: dict[str, Any] = {
        "variant": name,
        "model_bytes": nbytes,
        "totals": {},
        "with_tables": {},
        "loads": [],
        "firsts": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        publishes, peaks = [], []
        handle = None
        for _ in range(3):
            handle = None
            subject = copy.deepcopy(model) if name == "torch.multiprocessing" else model
            before = shared_memory()
            handle, seconds, peak = timed_publish(variant, subject, folder)
            publishes.append(seconds)
            peaks.append(peak)
        store = nbytes if variant.on_disk or len(publishes) > 1 else shared_memory() - before
        if not variant.on_disk:  # what this one publish holds, not what a collector has yet to free
            store = max(nbytes, min(shared_memory() - before, peaks[-1]))
        packed = pool.pack(handle)
        result["handle_bytes"] = len(packed) if isinstance(packed, bytes) else len(_pickled(packed))
        exact = True
        for index in range(max(workers)):
            loaded = pool.ask(index, "load", pool.pack(handle))
            result["loads"].append(loaded["load_ms"])
            result["firsts"].append(loaded["first_ms"])
            exact = exact and loaded["output"] == expected
            if index + 1 in workers:
                private = [pool.ask(i, "private") for i in range(index + 1)]
                extra = caretakers() if name.startswith("zerocopy") else 0
                result["totals"][index + 1] = store + sum(private) + extra
                result["private"] = statistics.median(private)
                tables = [pool.ask(i, "tables") for i in range(index + 1)]
                result["with_tables"][index + 1] = result["totals"][index + 1] + sum(tables)
        result.update(pool.ask(0, "calls"))
        result.update(publish_s=publishes, peak=statistics.median(peaks), exact=exact, caretaker=caretakers())
        if name == "zerocopy":
            result["fine_tunes"] = fine_tunes(model, handle)
        pool.close()
    return result


def measure_race(blocks: int, count: int, rounds: int) -> dict[str, Any]:
    """Let the ways that targets compare take turns, publish by publish and load by load, each round with another model.

    Every handle is kept until the rounds are over, so that Ray's store, which never gives memory back, takes new memory
    for each publish as a segment does. Publishes with room of dropped models in the store come after: zerocopy has
    given their memory back to the system, or keeps that of one version. Loads of the first round are apart: they are
    the first of their processes.
    """
    torch.manual_seed(0)
    model = variants.build(blocks)
    nbytes = sum(p.nbytes for p in model.parameters())
    start_ray(variants.VARIANTS["Ray's flag"], nbytes * (rounds + 1) + (200 << 20))
    pools = {name: Actors(count, name, blocks) for name in RACED}
    torch.empty(nbytes * (rounds + 3), dtype=torch.uint8).fill_(1)  # what a virtual machine gets on first use, it has
    names = ("publish_s", "again_s", "warming_s", "first_loads", "loads", "firsts")
    samples: dict[str, dict[str, list[float]]] = {name: {key: [] for key in names} for name in AGAIN}
    exact, kept = True, []

    def published(name: str, number: int, key: str) -> Any:
        with torch.no_grad():
            model[0].weight[0, 0] = number
        start = time.perf_counter()
        handle = variants.VARIANTS[name].publish(model, Path())
        samples[name][key].append(time.perf_counter() - start)
        return handle

    for turn in range(rounds):
        handles = {name: published(name, turn, "publish_s") for name in _rotated(RACED, turn)}
        with torch.no_grad():
            expected = model(torch.tensor(TOKENS)).numpy().tobytes()
        for index in range(count):
            for name in _rotated(RACED, turn + index):
                loaded = pools[name].ask(index, "load", handles[name])
                samples[name]["loads" if turn else "first_loads"].append(loaded["load_ms"])
                samples[name]["firsts"].append(loaded["first_ms"])
                exact = exact and loaded["output"] == expected
        kept.append(handles)
    for pool in pools.values():
        pool.close()
    handles.clear()
    kept.clear()
    for turn in range(-2, rounds):  # from the third on, each finds room of the one before
        for name in _rotated(AGAIN, turn):
            published(name, rounds + turn, "again_s" if turn >= 0 else "warming_s")  # and its handle is dropped
            time.sleep(_PAUSE)
    return {"variant": "race", "samples": samples, "exact": exact}


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def _pickled(handle: Any) -> bytes:
    import ray

    return bytes(ray.cloudpickle.dumps(handle))


def fine_tunes(model: nn.Module, base: Any) -> float:
    """Return what base and ten fine-tunes take, over base plus ten times the tensor that differs."""
    import zerocopy

    tensor = model[1].linear1.weight
    refs = []
    for index in range(10):
        with torch.no_grad():
            tensor.add_(index + 1)
        refs.append(zerocopy.publish(model, base=base))
    taken = sum(os.stat(ref.path).st_blocks * 512 for ref in [base, *refs])
    for ref in refs:
        zerocopy.unpublish(ref)
    return taken / (base.nbytes + 10 * tensor.nbytes)


def measure_tasks(calls: int) -> dict[str, Any]:
    """Compare a local call of a 60-layer model with one in a Ray task, for zerocopy and ray-zerocopy."""
    import zerocopy

    torch.set_num_threads(1)
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(60)]).eval()
    start_ray(variants.VARIANTS["plain Ray"], 200 << 20)
    ways = {"local": model, "zerocopy": zerocopy.rewrite_pipeline(model)}
    try:
        from ray_zerocopy import ModelWrapper

        ways["ray-zerocopy"] = ModelWrapper.for_tasks(model)
    except ImportError:
        pass
    inputs = torch.randn(1, 256)
    samples: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for call in range(calls + 8):
            for name, way in ways.items():
                start = time.perf_counter()
                way(inputs)
                if call >= 8:
                    samples[name].append((time.perf_counter() - start) * 1e3)
    return {"variant": "tasks", "samples": samples}


class FarWorker:
    """Loads a model on another node, and says which files it has mapped."""

    def load(self, ref: Any) -> list[tuple[str, int]]:
        """Return file name and size of each mapped segment."""
        self.model = ref.load()
        lines = Path("/proc/self/maps").read_text().splitlines()
        files = {line.split()[-1] for line in lines if line.endswith(".zc")}
        return [(file, os.stat(file).st_size) for file in files]


def measure_far(blocks: int) -> dict[str, Any]:
    """Return how many copies of the weights three workers of a second raylet have between them."""
    import ray
    from ray.cluster_utils import Cluster

    import zerocopy

    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.environ.update(QUIET)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    cluster.add_node(num_cpus=3, resources={"far": 3}, object_store_memory=100 << 20)
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    ref = zerocopy.publish(variants.build(blocks))
    workers = [ray.remote(FarWorker).options(resources={"far": 1}).remote() for _ in range(3)]
    mapped = {file for files in ray.get([worker.load.remote(ref) for worker in workers]) for file in files}
    ray.shutdown()
    cluster.shutdown()
    assert all(file != ref.path for file, _ in mapped)
    return {"variant": "far", "copies": sum(size for _, size in mapped) // ref.nbytes}


def measure_crowd(many: int, few: int, rounds: int) -> dict[str, Any]:
    """Measure a publish in a folder with many segments, and in one with few, in turns."""
    import zerocopy
    from zerocopy._caretaker_process import SUFFIX

    model = nn.Linear(64, 64)
    samples: dict[str, list[float]] = {"many": [], "few": []}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        folders = {name: Path(root) / name for name in samples}
        for name, others in (("many", many), ("few", few)):
            kept = zerocopy.publish(model, name="kept", directory=folders[name], keep=True)
            content = Path(kept.path).read_bytes()
            for number in range(others):
                file = folders[name] / f"kept@{number + 2}-{number:08x}{SUFFIX}"
                file.write_bytes(content)
                file.chmod(0o400)
        for turn in range(rounds + 1):
            for name in _rotated(list(samples), turn):
                start = time.thread_time()
                ref = zerocopy.publish(model, name=f"model-{turn}", directory=folders[name])
                taken = time.thread_time() - start
                if turn:  # the first publish of a process in a folder looks at more files
                    samples[name].append(taken * 1e3)
                zerocopy.unpublish(ref)
    return {"samples": samples}


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=[*variants.VARIANTS, "race", "tasks", "far", "crowd"])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.variant == "race":
        result = measure_race(args.blocks, min(4, max(args.workers)), 3 if args.blocks == 1 else 7)
    elif args.variant == "tasks":
        result = measure_tasks(30)
    elif args.variant == "crowd":
        result = measure_crowd(10_000, 100, 200)
    elif args.variant == "far":
        result = measure_far(2)
    else:
        result = measure(args.variant, args.blocks, args.workers)
    print("\nRESULT " + json.dumps(result), flush=True)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


if __name__ == "__main__":
    main()
