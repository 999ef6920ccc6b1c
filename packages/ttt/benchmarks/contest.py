"""A contest at home: 100 tasks within 30 minutes on two workers; start it again and it goes on with the time left.

    python packages/ttt/benchmarks/contest.py FOLDER [--tasks 100] [--total 30min] [--workers 2] [--even]

The tasks are drawn from ARC-1's training tasks by a fixed seed, and written without their test outputs. Until the end,
the submission in FOLDER is read in a loop and must be valid. A contest that was killed, however often, goes on when
the same command is given again; the time between the starts does not count. `--even` then solves the same tasks with
the same time given evenly, for comparison. The last lines are the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import ttt
from ttt._budget import parse_seconds
from ttt._tasks.loader import task_json

SEED = 25
"""Of the sample."""


def contest(command: list[str], submission: Path, ids: set[str]) -> list[str]:
    """Run the command to its end; return the faults of the submission that a reader saw meanwhile."""
    faults: list[str] = []
    child = subprocess.Popen(command, stdout=sys.stderr)
    try:
        while child.poll() is None:
            if submission.exists():
                try:
                    if set(ttt.read_submission(submission)) != ids:
                        faults.append("ids are missing")
                except ttt.TTTError as error:
                    faults.append(str(error))
            time.sleep(0.1)
    finally:
        child.wait()
    return [*faults, *([f"ended with status {child.returncode}"] if child.returncode not in (0, 1) else [])]


def main(argv: list[str] | None = None) -> int:
    """Run the contest; 0 when the submission was valid at every look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where tasks, records and submission are kept")
    parser.add_argument("--tasks", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--total", default="30min", help="time for all of them together (default: 30min)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stages", default="search,trees,net", help="of the grid backend (default: all)")
    parser.add_argument("--even", action="store_true", help="also solve them with even shares of the time")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    chosen = ttt.load("arcagi1:training").sample(args.tasks, seed=SEED)
    tasks, submission = args.folder / "tasks.json", args.folder / "submission.json"
    tasks.write_text(json.dumps({t.id: task_json(t.without_solutions()) for t in chosen}))
    stages = args.stages.split(",")
    solve = [sys.executable, "-m", "ttt", "solve", str(tasks), "--workers", str(args.workers)]
    solve += ["--set", f"stages={json.dumps(stages)}"]
    begun = time.monotonic()
    faults = contest([*solve, "--total", args.total, "--out", str(submission)], submission, {t.id for t in chosen})
    print(f"this start: {time.monotonic() - begun:.1f} s of a total of {args.total}")
    print(f"contest:     {ttt.score(submission, chosen)}")
    if args.even:
        share = args.workers * parse_seconds(args.total) / len(chosen)
        even = args.folder / "even.json"
        subprocess.run([*solve, "--budget", f"{share}s", "--out", str(even)], stdout=sys.stderr, check=False)
        print(f"even shares: {ttt.score(even, chosen)}")
    for fault in sorted(set(faults)):
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
