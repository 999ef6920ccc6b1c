"""The commands `compare` and `merge`: what several runs say together."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ttt._cli.arguments import Commands, add_json, print_json
from ttt._cli.report import document, task_section
from ttt._events import TaskResult
from ttt._files import OUTPUT, is_stream, write_atomically
from ttt._runs.folders import keep_aside
from ttt._runs.saved import SavedRun, read_run
from ttt._tasks.loader import Rejected
from ttt.errors import TTTError
from ttt.results import Comparison, choose, compare, merged, read_submission, solved, submission_text
from ttt.values import Attempt, Prediction

UNKNOWN_FIRST, UNKNOWN_SECOND = 0.3, 0.1
"""What a submission's attempts count for where no run beside it says how sure they are."""


def add_commands(sub: Commands) -> None:
    """Add these commands to the command line."""
    text = "Which tasks changed between two runs, and whether chance explains it; with pictures of those tasks."
    p = sub.add_parser("compare", help="compare two runs task by task", description=text)
    p.add_argument("first", type=Path, metavar="RUN_A")
    p.add_argument("second", type=Path, metavar="RUN_B")
    p.add_argument("--out", type=Path, help="page with pictures of the changed tasks (default: none)")
    add_json(p)
    p.set_defaults(function=compare_command)

    text = (
        "Merge the answers of several machines or runs into one submission: for each test input the two attempts that "
        "most confidence speaks for. Each argument is a run's folder, or a submission; the run beside a submission "
        "(s.run beside s.json) tells how sure its answers are."
    )
    p = sub.add_parser("merge", help="merge submissions by confidence", description=text)
    p.add_argument("parts", nargs="+", type=Path, metavar="RUN_OR_SUBMISSION")
    p.add_argument("--out", type=Path, default=Path("merged.json"), help="default merged.json")
    add_json(p)
    p.set_defaults(function=merge_command)


def compare_command(args: argparse.Namespace) -> int:
    """`ttt compare`."""
    runs = [read_run(args.first), read_run(args.second)]
    known = [_outcomes(run) for run in runs]
    found = compare(*known)
    if not found.total:
        raise TTTError("no task of known outputs is finished in both runs: nothing to compare")
    if args.out is not None:
        write_atomically(args.out, _page(found, runs).encode(), OUTPUT)
    if args.json:
        low, high = found.interval()
        figures = {"difference": found.difference, "low": low, "high": high, "p_value": found.p_value}
        print_json({**asdict(found), **figures, "page": None if args.out is None else str(args.out)})
        return 0
    console = Console(highlight=False, markup=False)
    console.print(str(found), soft_wrap=True)
    for name, ids in (("only the first", found.only_a), ("only the second", found.only_b)):
        if ids:
            console.print(f"{name}: {' '.join(ids)}", soft_wrap=True)
    if args.out is not None:
        console.print(f"pictures: {args.out}", soft_wrap=True)
    return 0


def _outcomes(run: SavedRun) -> dict[str, bool]:
    outcomes = {t.id: solved(t, run.results[t.id]) for t in run.tasks if t.id in run.results}
    return {i: right for i, right in outcomes.items() if right is not None}


def _page(found: Comparison, runs: list[SavedRun]) -> str:
    parts = [f'<h1>ttt compare</h1><p class="soft">{found}</p>']
    for title, ids in (("Only the first solved", found.only_a), ("Only the second solved", found.only_b)):
        parts.append(f"<h2>{title}: {len(ids)}</h2>")
        for task_id in ids:
            for run in runs:
                task, result = run.task(task_id), run.results[task_id]
                parts.append(task_section(task, result, first=len(parts) < 12, calibrated=run.calibrated))
    return document("ttt compare", "".join(parts))


def merge_command(args: argparse.Namespace) -> int:
    """`ttt merge`."""
    answers: dict[str, list[tuple[Prediction, ...]]] = {}
    refused: dict[str, Rejected] = {}
    for part in args.parts:
        found, without = _predictions(part)
        refused |= {r.id: r for r in without}
        for task_id, predictions in found.items():
            before = answers.setdefault(task_id, [])
            if before and len(before[0]) != len(predictions):
                raise TTTError(f"{part}: task {task_id} has {len(predictions)} answers, elsewhere {len(before[0])}")
            before.append(predictions)
    results = [TaskResult(i, merged(several), "done") for i, several in answers.items()]
    text = submission_text(results, [r for r in refused.values() if r.id not in answers])
    if not is_stream(args.out) and args.out.exists() and args.out.read_bytes() != text.encode():
        kept = keep_aside(args.out)
        Console(stderr=True, highlight=False, markup=False).print(f"ttt: an earlier file is kept as {kept}")
    write_atomically(args.out, text.encode(), OUTPUT)
    several = sum(len(p) > 1 for p in answers.values())
    if args.json:
        print_json({"submission": str(args.out), "tasks": len(answers), "in_several": several})
    else:
        Console(highlight=False, markup=False).print(
            f"{len(answers)} tasks from {len(args.parts)} parts, {several} of them in several: {args.out}",
            soft_wrap=True,
        )
    return 0


def _predictions(part: Path) -> tuple[dict[str, tuple[Prediction, ...]], tuple[Rejected, ...]]:
    """Return the answers of a run's folder, or of a submission with the confidences of the run beside it.

    A submission must have every id: a run's tasks that have not finished come with fallbacks, beside those that it
    refused.
    """
    if part.is_dir():
        run = read_run(part)
        every = {t.id: r.predictions if (r := run.results.get(t.id)) else choose(t, None) for t in run.tasks}
        return every, run.rejected
    beside = part.with_suffix(".run")
    sure = read_run(beside).results if (beside / "run.json").is_file() else {}
    found = {}
    for task_id, grids in read_submission(part).items():
        result = sure.get(task_id)
        given = tuple(
            Prediction(Attempt(a, UNKNOWN_FIRST, "submission"), Attempt(b, UNKNOWN_SECOND, "submission"))
            for a, b in grids
        )
        found[task_id] = result.predictions if result and _same_answers(result, given) else given
    return found, ()


def _same_answers(result: TaskResult, given: tuple[Prediction, ...]) -> bool:
    """Return whether a record holds the very answers of a submission."""
    if len(result.predictions) != len(given):
        return False
    pairs = zip(result.predictions, given, strict=True)
    return all(
        a.first.grid.tolist() == b.first.grid.tolist() and a.second.grid.tolist() == b.second.grid.tolist()
        for a, b in pairs
    )
