"""Measures isolate against its peers, interleaved in one run: python packages/isolate/benchmarks/bench.py [--quick]."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from peers import PEERS

from isolate import EnvironmentStore, Function, Host, ProxiedSingleton, read_manifest, run, share

EXTENSION = """
class Extension:
    def __init__(self, host): self.host = host
    async def noop(self): return None
    def blocking_noop(self): return None
    async def down(self, n): return n if n == 0 else await self.host.aio.bouncer.down(n - 1)
    def first(self, array): return float(array.ravel()[0])
    def double(self, image): return image * 2
    def result(self):
        import numpy
        if not hasattr(self, "kept"): self.kept = self.host.share(numpy.ones(8 << 20))
        return self.kept
"""
# numpy 1 has no wheels for Python 3.13 and later.
OLD_NUMPY = "numpy<2" if sys.version_info < (3, 13) else "numpy<2.2"


class Bouncer(ProxiedSingleton):
    """The host's end of the recursion."""

    extension: Any = None

    async def down(self, n: int) -> int:
        """One level down."""
        return n if n == 0 else await self.extension.aio.down(n - 1)


class Table:
    """The rows of the result."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.failures: dict[str, str] = {}

    def fail(self, peer: str, failure: Exception) -> None:
        """Note why a peer is not measured. One that is installed and fails makes the run fail at its end."""
        why = " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
        print(f"{peer} is not measured: {why}", file=sys.stderr)
        if not isinstance(failure, ModuleNotFoundError):
            self.failures[peer] = why

    def add(
        self,
        metric: str,
        unit: str,
        samples: list[float],
        peer: str | None = None,
        peer_samples: list[float] | None = None,
        target: float | None = None,
    ) -> None:
        """One comparison; the target bounds the ratio where there is a peer, else the value."""
        value = statistics.median(samples)
        peer_value = statistics.median(peer_samples) if peer_samples else None
        ratio = value / peer_value if peer_value else None
        measured = ratio if peer else value
        holds = None if target is None or measured is None else measured <= target
        self.rows.append(
            {
                "package": "isolate",
                "metric": metric,
                "unit": unit,
                "value": value,
                "peer": peer,
                "peer_value": peer_value,
                "ratio": ratio,
                "target": target,
                "better": "lower",
                "holds": holds,
                "samples": [round(sample, 6) for sample in samples[:200]],
            }
        )

    def show(self) -> None:
        """Print it."""
        print(
            f"{'metric':<54} {'value':>10} {'unit':<4} {'peer':<22} {'peer value':>10} {'ratio':>6} {'target':>7} holds"
        )
        for row in self.rows:
            number = lambda name, row=row: "" if row[name] is None else f"{row[name]:.4g}"  # noqa: E731 - a column
            holds = {True: "yes", False: "NO", None: "-"}[row["holds"]]
            print(
                f"{row['metric']:<54} {number('value'):>10} {row['unit']:<4} {row['peer'] or '':<22} "
                f"{number('peer_value'):>10} {number('ratio'):>6} {number('target'):>7} {holds}"
            )


async def timed(call: Any, *args: Any) -> float:
    """Seconds of one awaited call."""
    began = time.perf_counter()
    await call(*args)
    return time.perf_counter() - began


async def no_op(table: Table, extension: Any, peers: dict[str, Any], rounds: int) -> None:
    """Blocks of calls to isolate and each peer in turn."""
    samples: dict[str, list[float]] = {name: [] for name in ("isolate", *PEERS)}
    calls = {"isolate": extension.aio.noop, **peers}
    if "rpyc" in peers:  # as its users write it, which looks the method up remotely; and with the method kept
        calls["rpyc, method kept"] = peers["rpyc"].kept
        samples["rpyc, method kept"] = []
    for number in range(rounds + 1):
        for name, call in list(calls.items()):
            try:
                block = [await timed(call) * 1e6 for _ in range(getattr(call, "block", 50))]
            except Exception as failure:
                if name == "isolate":
                    raise
                table.fail(name, failure)
                del calls[name]
                samples[name] = []
                continue
            if number:  # the first round warms up
                samples[name] += block
    table.add("no-op call, awaited", "us", samples["isolate"], target=120)
    for name in [name for name in samples if name != "isolate"]:
        target = {"pyisolate": 0.3, "rpyc": 0.9, "fal's isolate": 0.1, "Appose": 0.3}.get(name)
        table.add("no-op call, awaited", "us", samples["isolate"], name, samples[name], target)


async def concurrent(table: Table, extension: Any, peers: dict[str, Any], rounds: int) -> None:
    """A thousand calls at once."""
    calls = {"isolate": extension.aio.noop, **{k: v for k, v in peers.items() if k in ("msgspec loop", "pyisolate")}}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            await asyncio.gather(*(call() for _ in range(1000)))
            samples[name].append((time.perf_counter() - began) * 1e3)
    table.add("1000 concurrent calls", "ms", samples.pop("isolate"), target=50)
    for name, values in samples.items():
        table.add(
            "1000 concurrent calls",
            "ms",
            [row for row in table.rows if row["peer"] is None][-1]["samples"],
            name,
            values,
        )


async def arrays(table: Table, extension: Any, peers: dict[str, Any], rounds: int) -> None:
    """64 MB each way: put into shared memory by its owner, unchanged since the last call, and filled anew."""
    array = np.random.default_rng(0).random(8 << 20)
    fresh, target = array.copy(), np.empty_like(array)
    shared = share(array)
    names = ("shared", "unchanged", "filled", "result", "memcpy", "pipe", "fresh", "work")
    samples: dict[str, list[float]] = {name: [] for name in names}

    def work() -> None:
        np.copyto(target, shared * 2)

    for number in range(rounds + 3):
        fresh += 1
        block = {
            "shared": await timed(extension.aio.first, shared),
            "unchanged": await timed(extension.aio.first, array),
            "filled": await timed(extension.aio.first, fresh),
            "result": await timed(extension.aio.result),
            "fresh": await timed(extension.aio.double, shared),
            "memcpy": await timed(asyncio.to_thread, np.copyto, target, array),
            "work": await timed(asyncio.to_thread, work),
        }
        if number < 5 and "multiprocessing.Pipe" in peers:
            block["pipe"] = await timed(peers["multiprocessing.Pipe"], array)
        if (
            number > 2
        ):  # the first calls make the segments, and an array is noted at its first and tracked at its second
            for name, seconds in block.items():
                samples[name].append(seconds * 1e3)
    pipe, memcpy = samples["pipe"] or None, samples["memcpy"]
    for name, metric, bound in (
        ("shared", "64 MB ndarray argument, isolate.share", 3),
        ("unchanged", "64 MB ndarray argument, unchanged since the last call", 3),
        ("filled", "64 MB ndarray argument, filled anew", None),
        ("result", "64 MB ndarray result, host.share", 3),
    ):
        table.add(metric, "ms", samples[name], target=bound)
        if name != "result":
            table.add(metric, "ms", samples[name], "multiprocessing.Pipe", pipe)
        if name == "filled":
            table.add(metric, "ms", samples[name], "memcpy", memcpy)
    fresh, work_here = samples["fresh"], samples["work"]
    table.add("64 MB ndarray result, fresh (image * 2)", "ms", fresh, "work and memcpy", work_here, 1.3)


async def pauses(table: Table, extension: Any, rounds: int) -> None:
    """How long the event loop does nothing else while arrays are sent that must be copied."""
    for megabytes in (64, 256):
        array = np.ones(megabytes << 17)
        samples = []
        for _ in range(rounds):
            array += 1
            samples.append(await longest_pause(extension.aio.first(array)) * 1e3)
        table.add(f"longest pause of the loop, {megabytes} MB argument", "ms", samples, target=5)


async def longest_pause(call: Any) -> float:
    """Seconds between two callbacks of the loop that are due at once, while a call runs."""
    loop = asyncio.get_running_loop()
    longest, last, running = 0.0, time.perf_counter(), True

    def tick() -> None:
        nonlocal longest, last
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        if running:
            loop.call_soon(tick)

    tick()
    await call
    running = False
    return longest


def environments(table: Table, folder: Path, rounds: int) -> None:
    """An environment that is there, and one that uv has in its cache."""
    numpy = folder / "numpy"
    numpy.mkdir()
    (numpy / "manifest.yaml").write_text("name: numpy-env\ndependencies: ['" + OLD_NUMPY + "']\n")
    manifest = read_manifest(numpy)
    store = EnvironmentStore(folder / "store")
    environment = store.ensure(manifest)
    ready, warm = [], []
    for number in range(rounds):
        began = time.perf_counter()
        EnvironmentStore(folder / "store").ensure(read_manifest(numpy))
        ready.append((time.perf_counter() - began) * 1e3)
        environment.path.rename(folder / f"removed{number}")
        began = time.perf_counter()
        EnvironmentStore(folder / "store").ensure(read_manifest(numpy))
        warm.append(time.perf_counter() - began)
    table.add("unchanged environment, with its manifest", "ms", ready, target=30)
    table.add("warm environment (numpy, uv cache, locked)", "s", warm, target=0.3)


def _noop() -> None:
    return None


async def functions(table: Table, host: Host, rounds: int) -> None:
    """isolate.run: a later call, and a new process in an environment that is there, beside a bare interpreter."""
    noop = Function(_noop, host=host)
    await asyncio.to_thread(noop)
    later, new, bare = [], [], []
    for _ in range(rounds):
        later += [await timed(asyncio.to_thread, _called, noop) * 1e6 / 100 for _ in range(2)]
        await asyncio.to_thread(noop.stop)
        await asyncio.sleep(0.5)
        new.append(await timed(asyncio.to_thread, noop) * 1e3)
        bare.append(await timed(asyncio.to_thread, subprocess.run, [sys.executable, "-c", "pass"]) * 1e3)
    table.add("isolate.run, later call", "us", later, target=200)
    table.add("isolate.run, new process, environment there", "ms", new, "python -c pass", bare, 3)


def _called(noop: Function[[], None]) -> None:
    for _ in range(100):
        run(noop)


async def starts(table: Table, host: Host, folder: Path, rounds: int) -> None:
    """From the start of a worker to its first reply, beside a bare interpreter that imports asyncio."""
    ours, bare = [], []
    for number in range(rounds):
        place = folder / f"start{number}"
        place.mkdir()
        (place / "manifest.yaml").write_text(f"name: start{number}\n")
        (place / "main.py").write_text("def noop(): return None\n")
        began = time.perf_counter()
        extension = await host.aload(place)
        await extension.aio.noop()
        ours.append((time.perf_counter() - began) * 1e3)
        await extension.astop()
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "import asyncio"], check=True)
        bare.append((time.perf_counter() - began) * 1e3)
    table.add("load of a ready extension to its first reply", "ms", ours, "python -c 'import asyncio'", bare, 3)


async def measure(quick: bool, skip: list[str]) -> Table:
    """Everything, in one process."""
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "main").mkdir()
        (folder / "main" / "manifest.yaml").write_text("name: main\ndependencies: ['" + OLD_NUMPY + "']\n")
        (folder / "main" / "main.py").write_text(textwrap.dedent(EXTENSION))
        async with contextlib.AsyncExitStack() as stack:
            host = await stack.enter_async_context(Host(folder / "store"))
            bouncer = host.export(Bouncer())
            bouncer.extension = extension = await host.aload(folder / "main")
            peers = {}
            for peer, make in PEERS.items():
                if peer in skip:
                    continue
                try:
                    peers[peer] = await stack.enter_async_context(make())
                except Exception as failure:
                    table.fail(peer, failure)
            await no_op(table, extension, peers, 8 if quick else 40)
            blocking = [(await asyncio.to_thread(_blocking, extension))[1:] for _ in range(2 if quick else 10)]
            table.add(
                "no-op call, blocking, from a thread",
                "us",
                [value for block in blocking for value in block],
                target=120,
            )
            down = [await timed(extension.aio.down, 10) * 1e3 for _ in range(50 if quick else 300)]
            table.add("recursion host-extension, depth 10", "ms", down, target=1.6)
            await concurrent(table, extension, peers, 5 if quick else 20)
            await arrays(table, extension, peers, 10 if quick else 50)
            await pauses(table, extension, 5 if quick else 15)
            async with Host(folder / "store", spares=1) as own:  # as the host of functions that name none
                await functions(table, own, 5 if quick else 15)
            await starts(table, host, folder, 5 if quick else 15)
            await asyncio.to_thread(environments, table, folder, 5 if quick else 15)
            table.show()
    return table


def _blocking(extension: Any) -> list[float]:
    samples = []
    for _ in range(200):
        began = time.perf_counter()
        extension.call.blocking_noop()
        samples.append((time.perf_counter() - began) * 1e6)
    return samples


def picture(table: Table, file: str) -> None:
    """Bars of the no-op call."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in table.rows if row["metric"].startswith("no-op call, awaited") and row["peer_value"]]
    names = ["isolate", *(row["peer"] for row in rows)]
    values = [rows[0]["value"], *(row["peer_value"] for row in rows)]
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    bars = axes.barh(names[::-1], values[::-1], color=["#9aa5b1"] * len(rows) + ["#1f6feb"])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel("median time of a no-op call to another process, microseconds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--picture", metavar="FILE.png", help="draw the no-op call")
    parser.add_argument("--skip", action="append", default=[], metavar="PEER", help="leave a peer out")
    options = parser.parse_args()
    table = asyncio.run(measure(options.quick, options.skip))

    if options.json:
        names = ("pentad-isolate", "pyisolate", "appose", "rpyc", "execnet", "msgspec", "numpy", "uv")
        versions: dict[str, str | None] = {"python": platform.python_version()}
        for name in names:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
        Path(options.json).write_text(
            json.dumps({"machine": machine, "versions": versions, "rows": table.rows}, indent=1)
        )
    if options.picture:
        picture(table, options.picture)
    if table.failures:
        for peer, why in table.failures.items():
            print(f"ERROR: {peer} is installed and was not measured: {why}", file=sys.stderr)
        print("leave a peer out on purpose with --skip PEER", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
