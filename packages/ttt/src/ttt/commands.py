"""What each ``ttt`` command does with its arguments. Knows the terminal; the work is done elsewhere."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ttt.backend import Backend, named_backend
from ttt.budget import Budget, parse_bytes, parse_seconds
from ttt.data import TaskSet, load
from ttt.errors import InvalidBackendError
from ttt.events import TaskResult
from ttt.live import Display
from ttt.orchestrator import Run, run
from ttt.picture import png, task_image, task_view
from ttt.scoring import Score, score

T = TypeVar("T")
Commands = Any  # argparse gives its sub-parser collection no public type

TASKS_HELP = (
    "a JSON file, a folder, Kaggle's challenges file, or arcagi1:training, arcagi1:evaluation, arcagi2:training, "
    "arcagi2:evaluation, each also with chosen ids: arcagi1:training/ID,ID"
)


def add_all(sub: Commands) -> None:
    """Add every command to the command line."""
    _add_solve(sub)
    _add_score(sub)
    _add_show(sub)


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Arguments that name tasks."""
    parser.add_argument("tasks", nargs="+", metavar="TASKS", help=TASKS_HELP)
    parser.add_argument("--solutions", type=Path, help="Kaggle's solutions file, where it is not found by itself")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how tasks are solved."""
    parser.add_argument("--budget", type=_seconds, metavar="TIME", help="wall time per task: 20s, 2min (default 60s)")
    parser.add_argument("--steps", type=int, metavar="N", help="work units per task; the same answers on every machine")
    parser.add_argument("--memory", type=_bytes, default="10GB", metavar="SIZE", help="per task (default 10GB)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="tasks at a time (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default 0)")
    parser.add_argument("--backend", default="grid", help="grid (default), lm, vit or package.module:Class")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the backend, as JSON; repeatable"
    )
    parser.add_argument("--ray", action="store_true", help="solve on a Ray cluster (extra ray)")
    parser.add_argument("--resume", action="store_true", help="go on with the run that was cut short")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="records of the run (default: beside the output)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="records shared between runs")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def _seconds(text: str) -> float:
    return _argument(parse_seconds, text)


def _bytes(text: str) -> int:
    return _argument(parse_bytes, text)


def _argument(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def budget_of(args: argparse.Namespace) -> Budget:
    """The budget that the arguments describe: 60 s, unless time or steps are given."""
    seconds = args.budget if args.budget is not None else (None if args.steps else 60.0)
    return Budget(seconds=seconds, memory=args.memory, steps=args.steps)


def backend_of(args: argparse.Namespace) -> Backend:
    """The backend that the arguments name, with its settings."""
    settings = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise InvalidBackendError(f"--set {item!r}: wanted KEY=VALUE")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return named_backend(args.backend, **settings)


def make_run(args: argparse.Namespace, tasks: TaskSet, folder: Path) -> Run:
    """The run that the arguments describe."""
    return run(
        tasks,
        backend=backend_of(args),
        budget=budget_of(args),
        workers=args.workers,
        seed=args.seed,
        folder=folder,
        resume=args.resume,
        cache=args.cache,
        pool="ray" if args.ray else "local",
    )


@contextmanager
def interruptible(work: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to end, so what is known is still written; a second Ctrl-C is Python's own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        work.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(work: Run, console: Console, *, quiet: bool, out: Path | None) -> None:
    """Make a run go, show it, and keep the submission on disk valid all the time."""
    written = 0.0
    if out is not None:
        work.write_submission(out)
    with interruptible(work), Display(work.tasks, console, quiet=quiet) as display:
        for event in work:
            display.show(event)
            if out is not None and time.monotonic() - written > 1:
                work.write_submission(out)
                written = time.monotonic()
    if out is not None:
        work.write_submission(out)


def warn_rejected(tasks: TaskSet) -> None:
    """Tell about each task that the loader refused."""
    console = Console(stderr=True, highlight=False, markup=False)
    for refused in tasks.rejected:
        console.print(f"refused {refused.id}: {refused.reason}", style="yellow")


def _add_solve(sub: Commands) -> None:
    p = sub.add_parser(
        "solve", help="solve tasks and write a submission", description="Solve tasks; write a submission."
    )
    add_tasks(p)
    p.add_argument("--out", type=Path, default=Path("submission.json"), help="default submission.json")
    add_running(p)
    p.set_defaults(function=solve)


def solve(args: argparse.Namespace) -> int:
    """``ttt solve``."""
    tasks = load(*args.tasks, solutions=args.solutions)
    warn_rejected(tasks)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    folder = args.run or args.out.with_suffix(".run")
    work = make_run(args, tasks, folder)
    console = Console(stderr=True) if args.json else Console()
    begun = time.monotonic()
    follow(work, console, quiet=args.json, out=args.out)
    results = work.current()
    known = len(work.tasks) > 0 and all(t.has_solutions for t in work.tasks)
    seconds = time.monotonic() - begun
    if args.json:
        print(json.dumps(_summary(work, results, args.out, folder, seconds, work.score() if known else None), indent=1))
    else:
        if known:
            console.print(str(work.score()))
        console.print(
            f"{len(results)} tasks in {seconds:.0f} s; submission: {args.out}; records: {folder}", soft_wrap=True
        )
    if work.interrupted:
        return 130
    return 1 if tasks.rejected or any(r.status == "failed" for r in results) else 0


def _summary(
    work: Run, results: list[TaskResult], out: Path, folder: Path, seconds: float, scored: Score | None
) -> dict[str, Any]:
    return {
        "submission": str(out),
        "run": str(folder),
        "seconds": round(seconds, 3),
        "interrupted": work.interrupted,
        "score": None if scored is None else asdict(scored),
        "refused": [asdict(r) for r in work.rejected],
        "tasks": [
            {
                name: getattr(r, name)
                for name in (
                    "task_id", "status", "reason", "error", "confidence", "seconds", "cpu_seconds", "peak_memory",
                    "steps", "stage", "fraction", "answered", "reused",
                )
            }
            for r in results
        ],
    }  # fmt: skip


def _add_score(sub: Commands) -> None:
    p = sub.add_parser("score", help="score a submission", description="Score a submission against known outputs.")
    p.add_argument("submission", type=Path)
    add_tasks(p)
    p.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    p.set_defaults(function=score_command)


def score_command(args: argparse.Namespace) -> int:
    """``ttt score``."""
    result = score(args.submission, load(*args.tasks, solutions=args.solutions))
    if args.json:
        low, high = result.interval()
        print(json.dumps({**asdict(result), "total": result.total, "low": low, "high": high}, indent=1))
        return 0
    Console().print(str(result))
    for name, ids in (("solved", result.solved), ("missed", result.missed)):
        if ids:
            Console().print(f"{name}: {' '.join(ids)}", highlight=False, markup=False)
    return 0


def _add_show(sub: Commands) -> None:
    p = sub.add_parser("show", help="look at tasks", description="Show tasks in the terminal, or write a picture.")
    add_tasks(p)
    p.add_argument("--png", type=Path, help="write the (one) task as a picture instead")
    p.add_argument("--hide", action="store_true", help="do not show the test outputs")
    p.add_argument("--color", action="store_true", help="colours also where the output is no terminal")
    p.set_defaults(function=show)


def show(args: argparse.Namespace) -> int:
    """``ttt show``."""
    tasks = load(*args.tasks, solutions=args.solutions)
    warn_rejected(tasks)
    if args.png is not None:
        if len(tasks) != 1:
            print(f"ttt: --png wants one task, got {len(tasks)}", file=sys.stderr)
            return 2
        task = tasks[0].without_solutions() if args.hide else tasks[0]
        args.png.write_bytes(png(task_image(task)))
        return 0
    console = Console(force_terminal=True, color_system="truecolor") if args.color else Console()
    width = max(40, shutil.get_terminal_size().columns)
    for task in tasks:
        console.print(task_view(task, width=width, solutions=not args.hide), soft_wrap=True)
    return 1 if tasks.rejected else 0
