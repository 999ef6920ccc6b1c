"""A contest at home: 100 tasks within 30 minutes on two workers; start it again and it goes on with the time left.

    python packages/ttt/benchmarks/contest.py FOLDER [--tasks 100] [--total 30min] [--workers 2] [--set training]
    python packages/ttt/benchmarks/contest.py FOLDER --set evaluation --kills 2 --even beside --json FILE

The tasks are drawn from ARC-1 by a fixed seed, and written without their test outputs. Until the end, the submission in
FOLDER is read in a loop and must be valid. A contest that was killed, however often, goes on when the same command is
given again; the time between the starts does not count. `--kills` does this to it: the driver gets SIGKILL at random
moments of a fixed seed, and is started again. `--even` solves the same tasks with the same time given evenly: after
the contest, or beside it, so that other load of the machine meets both. The last lines are the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ttt
from ttt._budget import parse_seconds
from ttt._tasks.loader import task_json

SEED = 25
"""Of the sample, and of the moments at which the driver is killed."""
TOLERANCE = 0.02
"""Share of the total by which the wall time may miss it."""


@dataclass
class Reader:
    """Reads a submission in a loop, as a contest's machine might at any moment."""

    submission: Path
    ids: set[str]
    looks: int = 0
    faults: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Read it once; from the first time that it is there it must hold every id."""
        if not self.looks and not self.submission.exists():
            return
        self.looks += 1
        try:
            if set(ttt.read_submission(self.submission)) != self.ids:
                self.faults.append("ids are missing")
        except (ttt.TTTError, OSError) as error:
            self.faults.append(str(error))


def contest(command: list[str], reader: Reader, kill_after: list[float]) -> list[float]:
    """Run the command to its end, killed after these seconds of its starts; return the seconds of each start."""
    walls = []
    for limit in [*kill_after, None]:
        begun = time.monotonic()
        child = subprocess.Popen(command, stdout=sys.stderr)
        try:
            while child.poll() is None:
                reader.look()
                if limit is not None and time.monotonic() - begun > limit:
                    child.kill()
                time.sleep(0.1)
        finally:
            child.kill()
            child.wait()
        walls.append(time.monotonic() - begun)
        if child.returncode not in (0, 1, -9):
            reader.faults.append(f"ended with status {child.returncode}")
        if child.returncode != -9:
            break
    return walls


def timed(command: list[str]) -> float:
    """Run a command to its end; return the seconds that it took."""
    begun = time.monotonic()
    subprocess.run(command, stdout=sys.stderr, check=False)
    return time.monotonic() - begun


def moments(kills: int, total: float) -> list[float]:
    """Return after how many seconds of each start the driver is killed: somewhere within the whole time."""
    drawn = random.Random(SEED)
    at = sorted(drawn.uniform(0.1, 0.9) * total for _ in range(kills))
    return [b - a for a, b in zip([0.0, *at], at, strict=False)]


def figures(submission: Path, chosen: Any, wall: float) -> dict[str, Any]:
    """Return what an arm reached."""
    scored = ttt.score(submission, chosen)
    return {"solved": len(scored.solved), "pass@1": scored.pass1, "pass@2": scored.pass2, "wall s": round(wall, 1)}


def main(argv: list[str] | None = None) -> int:
    """Run the contest; 0 when the submission was valid at every look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where tasks, records and submission are kept")
    parser.add_argument("--tasks", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--set", choices=["training", "evaluation"], default="training", help="default: training")
    parser.add_argument("--total", default="30min", help="time for all of them together (default: 30min)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stages", default="search,restated,trees,net", help="of the grid backend (default: all)")
    parser.add_argument("--kills", type=int, default=0, help="how often the driver is killed (default: 0)")
    parser.add_argument("--even", choices=["after", "beside"], help="also solve them with even shares of the time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    chosen = ttt.load(f"arcagi1:{args.set}").sample(args.tasks, seed=SEED)
    total = parse_seconds(args.total)
    tasks, submission, even = (args.folder / f"{name}.json" for name in ("tasks", "submission", "even"))
    tasks.write_text(json.dumps({t.id: task_json(t.without_solutions()) for t in chosen}))
    solve = [sys.executable, "-m", "ttt", "solve", str(tasks), "--workers", str(args.workers)]
    solve += ["--set", f"stages={json.dumps(args.stages.split(','))}"]
    share = args.workers * total / len(chosen)
    evenly = [*solve, "--budget", f"{share}s", "--out", str(even)]
    reader = Reader(submission, {t.id for t in chosen})
    with ThreadPoolExecutor(1) as aside:
        beside = aside.submit(timed, evenly) if args.even == "beside" else None
        walls = contest([*solve, "--total", args.total, "--out", str(submission)], reader, moments(args.kills, total))
    document: dict[str, Any] = {
        "tasks": len(chosen), "set": args.set, "seed": SEED, "total": total, "workers": args.workers,
        "stages": args.stages, "python": platform.python_version(), "ttt": version("pentad-ttt"),
        "cpus": os.cpu_count(), "load": os.getloadavg(),
        "starts": [round(w, 1) for w in walls],
        "contest": figures(submission, chosen, sum(walls)),
    }  # fmt: skip
    if args.even is not None:
        document["even"] = figures(even, chosen, beside.result() if beside else timed(evenly))
    document |= {"looks": reader.looks, "faults": sorted(set(reader.faults))}
    for name in ("contest", "even"):
        if name in document:
            print(f"{name + ':':9}{document[name]}")
    print(f"starts:  {document['starts']} s of a total of {total:g}; {reader.looks} looks at the submission")
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    if args.kills and abs(sum(walls) / total - 1) > TOLERANCE:
        document["faults"].append(f"the wall time misses the total by more than {TOLERANCE:.0%}")
    for fault in document["faults"]:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if document["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
