"""Batches of tensors from a worker process, and small tensors: xfer against torch's queue and against itself.

Imported by bench.py; the worker is a spawned process that sends when it is told.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import Any

import numpy as np

TENSORS = 114
WHOLE = 64_000_000  # so that the tree and the array, which is smaller, take turns in the same memory of the pool
HEAL = "heal after a restart of the receiver, p99"


def tree() -> dict[str, Any]:
    """Return 114 tensors of different sizes, 64 MB in all, as a model's state."""
    import torch

    return {f"layer.{number}.weight": torch.ones(count) for number, count in enumerate(counts())}


def counts() -> list[int]:
    """Return how many elements each tensor of the tree has."""
    shares = [1 + number % 7 for number in range(TENSORS)]
    unit = WHOLE // 4 // sum(shares)
    return [unit * share + (WHOLE // 4 - unit * sum(shares)) * (number == 0) for number, share in enumerate(shares)]


def worker(sender: Any, queue: Any, control: Any) -> None:
    """Send what the other process asks for, with the time before it."""
    import torch

    things = {
        "tree": tree(),
        "one": torch.ones(WHOLE // 4),
    }
    while (order := control.recv()) is not None:
        way, what = order
        thing = things[what]
        control.send(time.perf_counter_ns())
        if way == "queue":
            queue.put(thing)
        else:
            sender.send(thing)


def measure(context: Any, workers: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds from before the send to the end of a full read, for each kind of batch, taking turns.

    The pages that a process happens to get make it up to a third faster or slower, so several workers are measured.
    """
    import torch
    import torch.multiprocessing as tmp

    torch.set_num_threads(1)  # the reading is the same for all, and threads of their own would only disturb
    tmp.set_sharing_strategy("file_descriptor")
    samples: dict[str, list[float]] = {"xfer tree": [], "xfer one": [], "xfer parts": [], "queue tree": []}
    for _ in range(workers):
        take_turns(context, rounds, samples)
    return samples


def take_turns(context: Any, rounds: int, samples: dict[str, list[float]]) -> None:
    """Add the seconds of one worker process; "parts" is the one tensor, read in as many parts as the tree has."""
    import torch.multiprocessing as tmp

    import xfer

    queue = tmp.get_context("spawn").Queue()
    ours, theirs = context.Pipe()
    kinds = list(samples)
    with xfer.Channel(4) as channel:
        process = tmp.get_context("spawn").Process(target=worker, args=(channel.sender, queue, theirs), daemon=True)
        process.start()
        for number in range(rounds + 2):
            first = number % len(kinds)  # what one leaves in the cache is not always the same one's to find
            for kind in kinds[first:] + kinds[:first]:
                way, what = kind.split()
                ours.send((way, "tree" if what == "tree" else "one"))
                start = ours.recv()
                got = queue.get(timeout=60) if way == "queue" else channel.receiver.recv(timeout=60, as_="torch")
                parts = got.values() if what == "tree" else got.split(counts()) if what == "parts" else [got]
                total = sum(float(tensor.sum()) for tensor in parts)
                if number >= 2:
                    samples[kind].append((time.perf_counter_ns() - start) / 1e9)
                assert total == WHOLE // 4
                del got, parts
        ours.send(None)
        process.join(10)


def stamper(receiver: Any, control: Any) -> None:
    """Receive in the library that is asked for, and answer with the time of arrival."""
    import torch  # noqa: F401 - before the first tensor comes

    control.send("up")
    while (order := control.recv()) is not None:
        library, count = order
        control.send("ready")
        for _ in range(count):
            got = receiver.recv(as_=library)
            control.send(time.perf_counter_ns())
            del got


def small(context: Any, count: int) -> dict[str, list[float]]:
    """Return seconds from before the send to the arrival in another process, of 32 bytes as tensor and as array."""
    import torch

    import xfer

    found: dict[str, list[float]] = {"torch": [], "numpy": []}
    things = {"torch": torch.ones(8), "numpy": np.ones(8, np.float32)}
    ours, theirs = context.Pipe()
    with xfer.Channel(64) as channel:
        process = context.Process(target=stamper, args=(channel.receiver, theirs), daemon=True)
        process.start()
        ours.recv()
        for number in range(12):
            for library, thing in things.items():
                ours.send((library, count // 10))
                ours.recv()
                for _ in range(count // 10):
                    start = time.perf_counter_ns()
                    channel.sender.send(thing)
                    stamp = ours.recv()
                    if number >= 2:
                        found[library].append((stamp - start) / 1e9)
        ours.send(None)
        process.join(10)
    return found


def reader(receiver: Any) -> None:
    """Receive for ever."""
    with receiver:
        for array in receiver:
            del array


def heal(context: Any, rounds: int) -> list[float]:
    """Return seconds from a receiver's death until its sender has noticed."""
    import xfer

    times = []
    with xfer.Channel(2) as channel:
        for _ in range(rounds):
            process = context.Process(target=reader, args=(channel.receiver,), daemon=True)
            process.start()
            while True:
                try:
                    channel.sender.send(np.zeros(50_000), timeout=30)
                    channel.sender.flush(timeout=30)
                    break
                except xfer.errors.PeerDiedError:  # the next receiver is still starting
                    time.sleep(0.001)
            os.kill(process.pid, signal.SIGSTOP)
            for _ in range(2):
                channel.sender.send(np.zeros(50_000), timeout=5)
            os.kill(process.pid, signal.SIGKILL)
            start = time.perf_counter()
            try:
                channel.sender.send(np.zeros(50_000), timeout=5)
            except xfer.errors.PeerDiedError:
                times.append(time.perf_counter() - start)
            process.join()
        channel.receiver.close()
    return times


def rows(make: Any, context: Any, quick: bool) -> list[Any]:
    """Return the rows of these measurements; `make` is bench.py's row()."""
    batches = measure(context, 3 if quick else 7, 4 if quick else 8)
    middle = {name: statistics.median(values) * 1e3 for name, values in batches.items()}
    ours = [value * 1e3 for value in batches["xfer tree"]]
    single = small(context, 2000 if quick else 20_000)
    healed = heal(context, 5 if quick else 40)
    return [
        make(f"{TENSORS} tensors, 64 MB, from a worker", "ms", ours, "torch queue", middle["queue tree"], 0.5),
        make(f"{TENSORS} tensors, 64 MB, from a worker", "ms", ours, "one 64 MB tensor", middle["xfer one"], 1.05),
        make(f"{TENSORS} tensors, 64 MB, from a worker", "ms", ours, "one, read in parts", middle["xfer parts"], 1.05),
        make(
            "32 B torch tensor, one way, p50", "us", [value * 1e6 for value in single["torch"]], "NumPy array",
            statistics.median(single["numpy"]) * 1e6, 1.5,
        ),
        make(HEAL, "ms", [float(np.percentile(healed, 99)) * 1e3], None, None, 100.0),
    ]  # fmt: skip
