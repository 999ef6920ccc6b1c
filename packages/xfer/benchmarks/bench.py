"""Measure xfer against its peers: python bench.py [--quick] [--json FILE] [--picture FILE.png].

Same work, same run, peers taking turns.
"""

# ruff: noqa: D102  # the class docstrings say it

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, os.path.dirname(__file__))
import batches
import lookups
from peers import PEERS, Xfer

MIB = 1 << 20
BACK_IN_RECV = 50_000  # ns, less than any peer looks for an array before it sleeps
# metric, unit, bound of the ratio to each peer, and of the value itself
TARGETS: dict[str, dict[str | None, float]] = {
    "1 KB, one way, p50": {None: 12.0, "iceoryx2": 0.5, "Pipe": 0.35},
    "64 MB, copy in and full read": {"iceoryx2": 0.9, "SharedMemory": 0.2},
    "64 MB, the same after a pause": {},
    "10,000 x 4 KB, each": {"iceoryx2": 0.6, "Pipe": 0.3},
    "256 MB to four readers": {"iceoryx2": 0.9},
}


def child(peer: str, token: Any, control: Any) -> None:
    """Receive as told: "one" stamps each arrival, "read" reads each array fully first, "many" stamps the end."""
    recv = None
    while (order := control.recv()) is not None:
        what, count = order
        recv = recv or PEERS[peer].receiver(token)
        control.send("ready")
        if what == "many":
            for _ in range(count):
                got = recv()
                del got
            control.send(time.perf_counter_ns())
            continue
        for _ in range(count):
            got = recv()
            if what == "read":
                view = got[0] if isinstance(got, tuple) else got
                view.reshape(-1).view(np.uint8).view(np.int64).sum()
            stamp = time.perf_counter_ns()
            used = usage() if what == "read" else None
            del got
            with contextlib.suppress(UnboundLocalError):
                del view
            control.send((stamp, used))


class Usage(NamedTuple):
    """What a process has used up or holds: page faults, descriptors, mappings, bytes with shared pages divided."""

    faults: int
    descriptors: int
    mappings: int
    memory: int


def usage() -> Usage:
    """Look at this process."""
    with open("/proc/self/maps") as lines:
        mappings = sum(1 for _ in lines)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return Usage(faults, len(os.listdir("/proc/self/fd")), mappings, proportional_bytes())


def proportional_bytes() -> int:
    """Memory of this process with shared pages divided among those that map them."""
    return proportional_bytes_of(os.getpid())


def proportional_bytes_of(pid: int) -> int:
    """Memory of a process, likewise."""
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


class Line:
    """One peer with a receiver process that only works when told to."""

    def __init__(self, context: Any, peer: str, capacity: int, sender: Any = None) -> None:
        self.peer = peer
        self.sender = sender or PEERS[peer](context, capacity)
        self.control, theirs = context.Pipe()
        self.process = context.Process(target=child, args=(peer, self.sender.token, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def order(self, what: str, count: int) -> None:
        self.control.send((what, count))
        self.answer()

    def answer(self) -> Any:
        if not self.control.poll(60):
            raise TimeoutError(f"{self.peer} did not answer")
        return self.control.recv()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.control.send(None)
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
        with contextlib.suppress(Exception):
            self.sender.close()


def latency(line: Line, array: Any, count: int, what: str) -> list[float]:
    """Seconds from before the send to the arrival, or to the end of a full read, for each of `count` arrays.

    The receiver waits when an array is sent: its answer to the last one wakes this process before it is back in recv,
    and what it still does then is no part of the way.
    """
    line.order(what, count)
    times = []
    for _ in range(count):
        back = time.perf_counter_ns() + BACK_IN_RECV
        while (start := time.perf_counter_ns()) < back:
            pass
        line.sender.send(array)
        times.append((line.answer()[0] - start) / 1e9)
    return times


def burst(line: Line, array: Any, count: int) -> list[float]:
    """Seconds per array when `count` are sent one after another."""
    line.order("many", count)
    start = time.perf_counter_ns()
    for _ in range(count):
        line.sender.send(array)
    return [(line.answer() - start) / 1e9 / count]


def compare(
    context: Any, names: list[str], rounds: int, capacity: int, work: Any, again: Any = lambda line: None
) -> dict[str, list[float]]:
    """Run the same work with every peer, taking turns, and return the samples of each; `again` starts a turn."""
    lines, samples = {}, {}
    for name in names:
        try:
            lines[name] = Line(context, name, capacity)
            work(lines[name])  # warm-up, not counted
            samples[name] = []
        except Exception as error:  # a peer that is absent or breaks is reported, not fatal
            print(f"  {name}: left out ({type(error).__name__}: {error})", file=sys.stderr)
            if name in lines:
                lines.pop(name).close()
    for _ in range(rounds):
        for name, line in list(lines.items()):
            try:
                again(line)
                samples[name] += work(line)
            except Exception as error:  # as above
                print(f"  {name}: stopped ({type(error).__name__}: {error})", file=sys.stderr)
                lines.pop(name).close()
    for line in lines.values():
        line.close()
    return {name: values for name, values in samples.items() if values}


def fan_out(context: Any, name: str, array: Any, rounds: int) -> tuple[list[float], float]:
    """Seconds until four readers have read the array fully, and the growth of all processes' memory over its size."""
    first = PEERS[name](context, 4)
    lines = [Line(context, name, 4, first)]
    for _ in range(3):
        other = first if name == "iceoryx2" else Xfer(context, 4, first.pool) if name == "xfer" else None
        lines.append(Line(context, name, 4, other))
    before = proportional_bytes()
    times, growth, idle = [], 0.0, 0
    for number in range(rounds + 1):
        for line in lines:
            line.order("read", 1)
        if not number:
            idle = proportional_bytes_of(lines[0].process.pid)
        start = time.perf_counter_ns()
        if name == "xfer":
            handle = first.pool.put(array)
            for line in lines:
                line.sender.channel.sender.send(handle)
            first.pool.release(handle)
        elif name == "iceoryx2":
            first.send(array)
        else:
            for line in lines:
                line.sender.send(array)
        answers = [line.answer() for line in lines]
        if number:
            times.append((max(answer[0] for answer in answers) - start) / 1e9)
        growth = proportional_bytes() - before + sum(answer[1].memory for answer in answers) - 4 * idle
    for line in lines:
        line.close()
    return times, growth / array.nbytes


def ray_samples(rounds: int) -> dict[str, list[float]]:
    """Seconds for Ray's object store: put, and an actor that stamps or reads fully."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

    @ray.remote
    class Actor:
        def stamp(self, array: Any) -> int:
            return time.perf_counter_ns()

        def read(self, array: Any) -> int:
            array.view(np.int64).sum()
            return time.perf_counter_ns()

    actor, small, large = Actor.remote(), np.ones(256, np.float32), np.ones(64 * MIB, np.uint8)
    found: dict[str, list[float]] = {"1 KB, one way, p50": [], "64 MB, copy in and full read": []}
    for number in range(rounds + 3):
        for metric, array, method in zip(found, (small, large), (actor.stamp, actor.read), strict=True):
            start = time.perf_counter_ns()
            end = ray.get(method.remote(ray.put(array)))
            if number >= 3:
                found[metric].append((end - start) / 1e9)
    ray.shutdown()
    return found


def loan_against_copy(rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to compute an array in place in a loan, and to compute it in own memory and put it."""
    import xfer

    pool, count = xfer.Pool("1GiB"), 8 * MIB
    base, own = np.ones(count), np.empty(count)
    loaned, copied = [], []
    for number in range(rounds + 2):
        start = time.perf_counter()
        loan = pool.loan(count, np.float64)
        with loan as array:
            np.multiply(base, 2, out=array)
        middle = time.perf_counter()
        np.multiply(base, 2, out=own)
        handle = pool.put(own)
        end = time.perf_counter()
        if number >= 2:
            loaned.append(middle - start)
            copied.append(end - middle)
        pool.release(loan.handle)
        pool.release(handle)
        del array
    pool.close()
    return loaned, copied


def steady(context: Any, count: int) -> dict[str, tuple[float, int, int, int]]:
    """Hand 64 MB over `count` times and return, per side, page faults each and what grew since the tenth time."""
    line, array = Line(context, "xfer", 2), np.ones(64 * MIB, np.uint8)
    line.order("read", count + 10)
    marks = []
    for number in range(count + 10):
        line.sender.send(array)
        _, theirs = line.answer()
        if number in (9, count + 9):
            marks.append((usage(), theirs))
    line.close()
    changes = ([b - a for a, b in zip(*pair, strict=True)] for pair in zip(*marks, strict=True))
    return {
        side: (faults / count, descriptors, mappings, memory)
        for side, (faults, descriptors, mappings, memory) in zip(("sender", "receiver"), changes, strict=True)
    }


def kept(samples: list[float]) -> list[float]:
    """Return at most 200 samples, taken evenly over all rounds."""
    step = max(1, -(-len(samples) // 200))
    return samples[::step]


def row(
    metric: str, unit: str, samples: list[float], peer: str | None, other: float | None, target: float | None
) -> Any:
    """Make one row of the result: the bound is on the ratio if there is a peer, else on the value."""
    value = statistics.median(samples)
    ratio = value / other if other else None
    tested = value if peer is None else ratio
    return {
        "package": "xfer", "metric": metric, "unit": unit, "value": value, "peer": peer, "peer_value": other,
        "ratio": ratio, "target": target, "better": "lower",
        "holds": None if target is None or tested is None else tested <= target, "samples": kept(samples),
    }  # fmt: skip


def rows_of(metric: str, unit: str, scale: float, samples: dict[str, list[float]]) -> list[Any]:
    """Make a row for xfer alone if it has a bound of its own, and one against each peer."""
    samples = {name: values for name, values in samples.items() if values}  # none of a peer that is not installed
    mine = [value * scale for value in samples.get("xfer", [])]
    if not mine:
        return []
    targets = TARGETS[metric]
    rows = [row(metric, unit, mine, None, None, targets[None])] if None in targets else []
    absent = [name for name in targets if name and name not in samples]
    rows += [row(metric, unit, mine, name, None, targets[name]) for name in absent]
    for name, values in samples.items():
        if name != "xfer":
            rows.append(row(metric, unit, mine, name, statistics.median(values) * scale, targets.get(name)))
    return rows


def picture(rows: list[Any], path: str) -> None:
    """Draw how many times faster than each peer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = list(dict.fromkeys(r["metric"] for r in rows if r["ratio"] and r["metric"] in TARGETS))
    figure, axes = plt.subplots(1, len(metrics), figsize=(4 * len(metrics), 3.5))
    for axis, metric in zip(np.atleast_1d(axes), metrics, strict=True):
        chosen = [r for r in rows if r["metric"] == metric and r["ratio"]]
        values = [chosen[0]["value"]] + [r["peer_value"] for r in chosen]
        colours = ["tab:green"] + ["tab:gray"] * len(chosen)
        bars = axis.barh(["xfer"] + [r["peer"] for r in chosen], values, color=colours)
        axis.bar_label(bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", padding=3)
        axis.set(xscale="log", title=f"{metric}, {chosen[0]['unit']}", xlim=(min(values) / 3, max(values) * 15))
        axis.xaxis.set_visible(False)
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer peers and rounds, under a minute")
    parser.add_argument("--json", metavar="FILE", help="write machine, versions and rows")
    parser.add_argument("--picture", metavar="FILE.png", help="draw the comparison")
    arguments = parser.parse_args()
    quick, context = arguments.quick, multiprocessing.get_context("spawn")
    names = ["xfer", "xfer, Python only", "iceoryx2", "Pipe", "SharedMemory"] if quick else list(PEERS)
    rows: list[Any] = []

    small, page, large = np.ones(256, np.float32), np.ones(1024, np.float32), np.ones(64 * MIB, np.uint8)
    one = compare(context, names, 3 if quick else 5, 64, lambda line: latency(line, small, 300, "one"))
    whole = [name for name in names if name != "xfer, Python only"]  # its large copies are the same
    first: dict[str, list[float]] = {name: [] for name in whole}
    big = compare(
        context, whole, 3 if quick else 7, 4, lambda line: latency(line, large, 2, "read"),
        lambda line: first[line.peer].extend(latency(line, large, 1, "read")),
    )  # fmt: skip
    fast = {"xfer", "xfer, Python only", "iceoryx2", "Pipe", "Unix socket"}
    many = compare(
        context, names, 3 if quick else 5, 256, lambda line: burst(line, page, 10_000 if line.peer in fast else 500)
    )
    if not quick:
        try:
            ray = ray_samples(10)
            one["Ray"], big["Ray"] = ray["1 KB, one way, p50"], ray["64 MB, copy in and full read"]
        except Exception as error:  # as in compare
            print(f"  Ray: left out ({type(error).__name__}: {error})", file=sys.stderr)
    rows += rows_of("1 KB, one way, p50", "us", 1e6, one)
    rows += rows_of("64 MB, copy in and full read", "ms", 1e3, big)
    rows += rows_of("64 MB, the same after a pause", "ms", 1e3, first)  # in which xfer has unmapped what it did not use
    rows += rows_of("10,000 x 4 KB, each", "us", 1e6, many)

    huge, fans, peak = np.ones(256 * MIB, np.uint8), {}, 0.0
    for name in ("xfer", "iceoryx2") if quick else ("xfer", "iceoryx2", "SharedMemory", "Unix socket"):
        try:
            fans[name], growth = fan_out(context, name, huge, 3 if quick else 5)
        except Exception as error:  # as in compare
            print(f"  {name}: left out of the fan-out ({type(error).__name__}: {error})", file=sys.stderr)
            continue
        peak = growth if name == "xfer" else peak
    rows += rows_of("256 MB to four readers", "ms", 1e3, fans)
    rows.append(row("256 MB to four readers, memory over the array", "x", [peak], None, None, 1.15))
    loaned, copied = loan_against_copy(5 if quick else 15)
    copy = statistics.median(copied) * 1e3
    rows.append(row("64 MB made in a loan", "ms", [value * 1e3 for value in loaned], "make and put", copy, 1 / 1.3))
    for side, (faults, descriptors, mappings, memory) in steady(context, 40 if quick else 200).items():
        rows.append(row(f"page faults per 64 MB, {side}", "", [faults], None, None, 64))
        rows.append(row(f"descriptors gained in steady state, {side}", "", [descriptors], None, None, 0))
        rows.append(row(f"mappings gained in steady state, {side}", "", [mappings], None, None, 4))
        rows.append(row(f"memory gained in steady state, {side}", "MiB", [memory / MIB], None, None, 4))

    rows += lookups.rows(row, context, quick)
    try:
        rows += batches.rows(row, context, quick)
    except Exception as error:  # torch is not installed, or as in compare
        print(f"  batches: left out ({type(error).__name__}: {error})", file=sys.stderr)

    print(f"{'metric':44} {'xfer':>10} {'peer':>18} {'its value':>10} {'ratio':>6} {'target':>6}  holds")
    for r in rows:
        other = ("not measured" if r["peer"] else "") if r["peer_value"] is None else f"{r['peer_value']:.2f}"
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        target = "" if r["target"] is None else f"{r['target']:.2f}"
        holds = {True: "yes", False: "NO", None: ""}[r["holds"]]
        value = f"{r['value']:.2f} {r['unit']}"
        print(f"{r['metric']:44} {value:>10} {r['peer'] or '':>18} {other:>10} {ratio:>6} {target:>6}  {holds}")
    if arguments.json:
        versions = {"python": platform.python_version()}
        for name in ("pentad-xfer", "numpy", "torch", "iceoryx2", "pyarrow", "ray"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        machine = {"cpus": os.cpu_count(), "system": platform.platform(), "processor": platform.machine()}
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "versions": versions, "rows": rows}, file, indent=1)
    if arguments.picture:
        picture(rows, arguments.picture)


if __name__ == "__main__":
    main()
