"""The commands `score`, `show`, `report`, `leaks`, `checkpoints`, `explain` and `doctor`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ttt._cli.arguments import Commands, add_json, add_tasks, positive, print_json, warn_rejected
from ttt._cli.report import write_report
from ttt._doctor import examine
from ttt._files import OUTPUT, write_atomically
from ttt._runs.saved import read_run
from ttt._runs.wire import predictions_out
from ttt._tasks.leak import find_leaks
from ttt._tasks.loader import task_json
from ttt._tasks.picture import answer_view, png, task_image, task_view
from ttt._tasks.sources import load
from ttt.checkpoint import CheckpointStore
from ttt.errors import CheckpointNotFoundError, TTTError
from ttt.results._scoring import score, solved


def add_commands(sub: Commands) -> None:
    """Add these commands to the command line."""
    p = sub.add_parser("score", help="score a submission", description="Score a submission against known outputs.")
    p.add_argument("submission", type=Path)
    add_tasks(p)
    add_json(p)
    p.set_defaults(function=score_command)

    text = "Show tasks in the terminal, or write a picture; with a run's folder first, show its answers to its tasks."
    p = sub.add_parser("show", help="look at tasks, or at a run's answers", description=text)
    add_tasks(p)
    p.add_argument("--png", type=Path, help="write the (one) task as a picture instead")
    p.add_argument("--hide", action="store_true", help="do not show the test outputs")
    p.add_argument("--color", action="store_true", help="use colours even if the output is not a terminal")
    add_json(p)
    p.set_defaults(function=show)

    p = sub.add_parser("report", help="one HTML page on a run", description="Write one HTML page with pictures.")
    p.add_argument("run", type=Path, help="the folder that solve or eval named")
    p.add_argument("--out", type=Path, help="default report.html in that folder")
    add_json(p)
    p.set_defaults(function=report)

    text = "Which evaluated tasks share pairs with a set that was trained on, by content and under any name."
    p = sub.add_parser("leaks", help="compare a training set with what is evaluated", description=text)
    p.add_argument("evaluated")
    p.add_argument("trained_on")
    add_json(p)
    p.set_defaults(function=leaks)

    p = sub.add_parser("checkpoints", help="list, verify or prune checkpoints", description="Look after checkpoints.")
    p.add_argument("action", choices=["list", "verify", "prune"])
    p.add_argument("folder", type=Path)
    p.add_argument("--kind", help="what the states are of, such as lm or vit (default: whatever is there)")
    p.add_argument("--keep", type=positive, default=3, metavar="N", help="prune: newest versions to keep (default 3)")
    add_json(p)
    p.set_defaults(function=checkpoints)

    text = "Where in the source each step of an answer lives: the words as solve and eval show them."
    p = sub.add_parser("explain", help="find the source of an answer's steps", description=text)
    p.add_argument("words", help="the words of an answer, in quotes")
    add_json(p)
    p.set_defaults(function=explain)

    p = sub.add_parser("doctor", help="what this machine offers", description="Look at this machine; change nothing.")
    p.add_argument("--folder", type=Path, default=Path(), help="where runs would be written")
    add_json(p)
    p.set_defaults(function=doctor)


def score_command(args: argparse.Namespace) -> int:
    """`ttt score`."""
    result = score(args.submission, load(*args.tasks, solutions=args.solutions))
    if args.json:
        low, high = result.interval()
        print_json({**asdict(result), "total": result.total, "low": low, "high": high})
        return 0
    Console().print(str(result))
    for name, ids in (("solved", result.solved), ("missed", result.missed), ("outputs unknown", result.unknown)):
        if ids:
            Console().print(f"{name}: {' '.join(ids)}", highlight=False, markup=False)
    return 0


def show(args: argparse.Namespace) -> int:
    """`ttt show`."""
    if (Path(args.tasks[0]) / "run.json").is_file():
        return show_run(args)
    tasks = load(*args.tasks, solutions=args.solutions)
    warn_rejected(tasks)
    if args.png is not None:
        if len(tasks) != 1:
            raise TTTError(f"--png needs exactly one task, got {len(tasks)}")
        task = tasks[0].without_solutions() if args.hide else tasks[0]
        write_atomically(args.png, png(task_image(task)), OUTPUT)
        return 0
    if args.json:
        print_json({t.id: task_json(t.without_solutions() if args.hide else t) for t in tasks})
        return 1 if tasks.rejected else 0
    console = Console(force_terminal=True, color_system="truecolor") if args.color else Console()
    width = max(40, shutil.get_terminal_size().columns)
    for task in tasks:
        console.print(task_view(task, width=width, solutions=not args.hide), soft_wrap=True)
    return 1 if tasks.rejected else 0


def show_run(args: argparse.Namespace) -> int:
    """`ttt show RUN [TASK ...]`: the answers of a run beside the truth."""
    run = read_run(Path(args.tasks[0]))
    tasks = [run.task(i) for i in args.tasks[1:]] or [t for t in run.tasks if t.id in run.results]
    missing = [t.id for t in tasks if t.id not in run.results]
    if args.png is not None:
        raise TTTError("--png draws a task; ttt report draws a run with its answers")
    if args.json:
        print_json(
            {
                t.id: {
                    "solved": solved(t, r),
                    "why": [p.first.why for p in r.predictions],
                    "answers": predictions_out(r.predictions),
                }
                for t in tasks
                if (r := run.results.get(t.id)) is not None
            }
        )
        return 1 if missing else 0
    console = Console(force_terminal=True, color_system="truecolor") if args.color else Console()
    width = max(40, shutil.get_terminal_size().columns)
    for task in tasks:
        console.print(task_view(task, width=width, solutions=False), soft_wrap=True)
        if (result := run.results.get(task.id)) is not None:
            shown = task.without_solutions() if args.hide else task
            console.print(answer_view(shown, result.predictions, percentages=run.calibrated), soft_wrap=True)
    for task_id in missing:
        print(f"ttt: {task_id}: not finished in this run", file=sys.stderr)
    return 1 if missing else 0


def report(args: argparse.Namespace) -> int:
    """`ttt report`."""
    out = args.out or args.run / "report.html"
    write_report(args.run, out)
    if args.json:
        print_json({"report": str(out)})
    else:
        print(out)
    return 0


def leaks(args: argparse.Namespace) -> int:
    """`ttt leaks`; status 1 when there are any."""
    evaluated = load(args.evaluated)
    found = find_leaks(evaluated, load(args.trained_on))
    if args.json:
        print_json([asdict(leak) for leak in found])
        return 1 if found else 0
    console = Console(highlight=False, markup=False)
    for leak in found:
        kind = "test pair known" if leak.test else "training pairs only"
        console.print(f"{leak.task_id}: {leak.pairs} of {leak.of} pairs, {kind}, in {', '.join(leak.found_in)}")
    console.print(f"{len(found)} of {len(evaluated)} evaluated tasks share pairs with the training set")
    return 1 if found else 0


def checkpoints(args: argparse.Namespace) -> int:
    """`ttt checkpoints`; status 1 when a version is not sound."""
    if not args.folder.is_dir():
        raise CheckpointNotFoundError(f"{args.folder}: no such folder")
    kind = args.kind
    if kind is None:
        manifest = next(args.folder.glob("v*/manifest.json"), None)
        kind = _kind_in(manifest) if manifest else "state"
    store = CheckpointStore(args.folder, kind=kind)
    removed = store.prune(args.keep) if args.action == "prune" else []
    entries = store.history()
    if args.json:
        print_json({"kind": kind, "removed": removed, "versions": [asdict(e) for e in entries]})
    else:
        table = Table("version", "bytes", "score", "state", box=None)
        for e in entries:
            score = "" if e.score is None else f"{e.score:g}"
            table.add_row(str(e.version), f"{e.bytes:,}", score, Text(e.fault or "sound"))
        Console().print(table)
        if removed:
            Console().print(f"removed {len(removed)} versions")
    return 1 if any(e.fault for e in entries) else 0


def _kind_in(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_bytes())["kind"])
    except (ValueError, KeyError, TypeError):
        return "state"


def explain(args: argparse.Namespace) -> int:
    """`ttt explain`; status 1 when no step is known."""
    from ttt._grid.where import steps  # here, because the search takes half a second to load

    found = steps(args.words)
    if args.json:
        print_json([asdict(step) for step in found])
        return 0 if found else 1
    for step in found:
        print(f"{step.words}: {', '.join(step.places)}")
    if not found:
        print("no step of the search has a name in these words")
    return 0 if found else 1


def doctor(args: argparse.Namespace) -> int:
    """`ttt doctor`; status 1 when something stands in the way."""
    found = examine(args.folder)
    if args.json:
        print_json([asdict(f) for f in found])
    else:
        table = Table.grid(padding=(0, 2))
        for f in found:
            mark = {True: "[green]ok[/]", False: "[red]no[/]", None: "[dim]--[/]"}[f.ok]
            table.add_row(mark, f.name, Text(f.text))
        Console().print(table)
    return 1 if any(f.ok is False for f in found) else 0
