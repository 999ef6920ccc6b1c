"""The commands `solve` and `eval`."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from ttt._cli.arguments import Commands, add_running, add_tasks, make_run, part_of, positive, print_json, warn_rejected
from ttt._cli.display import Display
from ttt._cli.report import report_html
from ttt._events import TaskResult
from ttt._files import FULL, OUTPUT, is_stream, write_atomically
from ttt._runs.folders import keep_aside
from ttt._runs.run import Run
from ttt._runs.saved import read_run
from ttt._tasks.sources import load
from ttt.errors import TTTError
from ttt.results import Evaluation, Score, calibration_text, evaluate, read_submission

STARTING = 30.0
"""Seconds that an interpreter takes at most to start and to load ttt."""


def add_commands(sub: Commands) -> None:
    """Add these commands to the command line."""
    _add_solve(sub)
    _add_eval(sub)


@contextmanager
def interruptible(work: Run) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the run, so that its answers are still written; a second Ctrl-C raises at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_number: int, _frame: object) -> None:
        work.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _console(args: argparse.Namespace) -> Console:
    """Return a console that prints text as it is; beside JSON it prints to stderr."""
    return Console(stderr=args.json, markup=False, highlight=False)


def follow(work: Run, console: Console, *, quiet: bool, out: Path | None) -> Path | None:
    """Solve, show the progress, and keep a valid submission on disk all the time.

    Returns:
        Where the submission is; another place than `out` if its disk takes nothing more, None if none does.
    """
    # What the interpreter took to start counts as well: the total is what a contest's clock shows. A process that is
    # older was something else before: a shell script that ended in `exec ttt`, or a notebook.
    age = time.time() - psutil.Process().create_time()
    work.count_from(time.monotonic() - (age if 0 < age < STARTING else 0.0))
    files = _SubmissionFile(work, out)
    if out is not None:
        with contextlib.suppress(OSError):  # said by the first attempt to write it
            _keep_earlier(work, out)
    files.write()
    display = Display(work.tasks, console, quiet=quiet, calibrated=work.calibrated)
    # Beside JSON nothing else may come to stdout; Ray prints there that a node has ended.
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext(), interruptible(work), display:
        for event in work:
            display.show(event)
            _say_notes(work)
            files.write_now_and_then()
    _say_notes(work)
    return files.write_at_last()


def _say_notes(work: Run) -> None:
    while work.notes:
        print(f"ttt: {' '.join(work.notes.pop(0).split())}", file=sys.stderr)


class _SubmissionFile:
    """The submission on disk: written anew every second; a full disk is said and does not stop the run."""

    def __init__(self, work: Run, out: Path | None) -> None:
        self._work, self._out = work, out
        self._next = 0.0
        self._said = False

    def write_now_and_then(self) -> None:
        """Write it if a second has passed, and twenty times what the last writing took."""
        if self._out is not None and time.monotonic() >= self._next:
            begun = time.monotonic()
            self.write()
            now = time.monotonic()
            self._next = now + max(1.0, 20 * (now - begun))

    def write(self) -> bool:
        """Write it; return whether that was possible."""
        if self._out is None:
            return True
        try:
            self._work.write_submission(self._out)
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not self._said:
                self._work.notes.append(f"{self._out}: cannot be written ({error.strerror}); the run goes on in memory")
                self._said = True
            return False
        return True

    def write_at_last(self) -> Path | None:
        """Write it, at worst into the temporary folder; return where it is, None if nowhere."""
        if self._out is None or self.write():
            return self._out
        try:
            spare = Path(tempfile.mkdtemp(prefix="ttt-submission-")) / self._out.name
            self._work.write_submission(spare)
        except OSError as error:
            print(
                f"ttt: the submission cannot be written anywhere ({error.strerror}): free some space", file=sys.stderr
            )
            return None
        print(f"ttt: {self._out.parent} is full: the submission is at {spare}", file=sys.stderr)
        return spare


def _keep_earlier(work: Run, out: Path) -> None:
    """Make sure that an earlier submission is not lost: go on from it, or keep it under another name."""
    if not out.exists():
        return
    try:
        earlier = read_submission(out)
    except TTTError:
        earlier = None
    ids = {t.id for t in work.tasks} | {r.id for r in work.rejected}
    if work.continued and earlier is not None and set(earlier) <= ids:
        work.start_from(earlier)
    elif out.read_bytes() != work.submission().encode():
        _say_aside(keep_aside(out))


def _say_aside(kept: Path | None) -> None:
    if kept is not None:
        print(f"ttt: an earlier file is kept as {kept}", file=sys.stderr)


def _ending(out: Path, suffix: str) -> Path:
    """Return `--out` with another ending, for a file or folder beside it.

    Raises:
        TTTError: It is no file's name.
    """
    if out.name in ("", ".."):
        raise TTTError(f"--out {str(out)!r}: wanted the name of a file, such as {out / 'out.json'}")
    return out.with_suffix(suffix)


def _check_apart(*places: Path | None) -> None:
    """Refuse files that cannot be written where they are wanted, before anything is solved.

    Args:
        places: The files, and last the run's folder.

    Raises:
        TTTError: A file is a folder or a stream, or two of them have one name.
    """
    wanted = [p for p in places if p is not None]
    for path in wanted[:-1]:
        if path.is_dir():
            raise TTTError(f"{path}: is a folder; name a file, such as {path / 'out.json'}")
        if is_stream(path):
            raise TTTError(f"{path}: is a device or a pipe; name a file, which is written again as answers come")
    for path in wanted:
        if wanted.count(path) > 1:
            raise TTTError(f"{path}: two outputs would have this name; choose an --out that ends in .json")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in FULL:
            raise


def _add_solve(sub: Commands) -> None:
    p = sub.add_parser(
        "solve", help="solve tasks and write a submission", description="Solve tasks; write a submission."
    )
    add_tasks(p)
    p.add_argument("--out", type=Path, default=Path("submission.json"), help="default submission.json")
    add_running(p)
    p.set_defaults(function=solve)


def solve(args: argparse.Namespace) -> int:
    """`ttt solve`."""
    wanted = args.run or _ending(args.out, ".run")
    _check_apart(args.out, wanted)
    tasks = part_of(load(*args.tasks, solutions=args.solutions), args.shard)
    warn_rejected(tasks)
    _make_parent(args.out)
    work = make_run(args, tasks, wanted)
    folder = work.folder
    console = _console(args)
    begun = time.monotonic()
    written = follow(work, console, quiet=args.json, out=args.out)
    results = work.current()
    known = any(t.has_solutions for t in work.tasks)
    seconds = time.monotonic() - begun
    if args.json:
        print_json(_summary(work, results, written, folder, seconds, work.score() if known else None))
    else:
        if known:
            console.print(str(work.score()))
        console.print(
            f"{len(results)} tasks in {seconds:.0f} s; submission: {written}; records: {folder}", soft_wrap=True
        )
    if work.interrupted:
        return 130
    if written is None:
        if not args.json:
            print(work.submission(), end="")
        return 1
    return 1 if tasks.rejected or any(r.status == "failed" for r in results) else 0


def _summary(
    work: Run, results: list[TaskResult], out: Path | None, folder: Path | None, seconds: float, scored: Score | None
) -> dict[str, Any]:
    return {
        "submission": None if out is None else str(out),
        # Where no disk takes the submission, this document carries the answers.
        "answers": json.loads(work.submission()) if out is None else None,
        "run": str(folder),
        "seconds": round(seconds, 3),
        "interrupted": work.interrupted,
        "calibrated": work.calibrated,
        "score": None if scored is None else asdict(scored),
        "refused": [asdict(r) for r in work.rejected],
        "tasks": [
            {
                **{
                    name: getattr(r, name)
                    for name in (
                        "task_id", "status", "reason", "error", "seconds", "cpu_seconds", "peak_memory",
                        "peak_gpu_memory", "steps", "stage", "fraction", "answered", "reused",
                    )
                },
                "confidence": r.confidence if work.calibrated else None,
            }
            for r in results
        ],
    }  # fmt: skip


def _add_eval(sub: Commands) -> None:
    p = sub.add_parser(
        "eval",
        help="measure a solver",
        description="Solve tasks whose outputs are known; report pass@1, pass@2, cost and calibration.",
    )
    p.add_argument(
        "--split", default="arcagi1:training", metavar="TASKS", help="which tasks (default arcagi1:training)"
    )
    p.add_argument("--sample", type=positive, metavar="N", help="a random sample of N tasks, drawn by --seed")
    p.add_argument("--out", type=Path, default=Path("eval.json"), help="figures (default eval.json)")
    p.add_argument("--calibrate", type=Path, metavar="FILE", help="also fit confidence curves and write them")
    add_running(p)
    p.set_defaults(function=eval_command)


def eval_command(args: argparse.Namespace) -> int:
    """`ttt eval`."""
    page, answers = _ending(args.out, ".html"), _ending(args.out, ".submission.json")
    place = args.run or _ending(args.out, ".run")
    _check_apart(args.out, page, answers, args.calibrate, place)
    tasks = part_of(load(args.split), args.shard)
    warn_rejected(tasks)
    if args.sample is not None:
        tasks = tasks.sample(args.sample, args.seed)
    if not any(t.has_solutions for t in tasks):
        raise TTTError(f"{args.split}: no test outputs are known, so it cannot be evaluated; use solve")
    for wanted in (args.out, args.calibrate):
        if wanted is not None:
            _make_parent(wanted)
    work = make_run(args, tasks, place)
    folder = work.folder
    if not work.continued:
        for earlier in (args.out, page):
            _say_aside(keep_aside(earlier))
    console = _console(args)
    follow(work, console, quiet=args.json, out=answers)
    done = [t for t in work.tasks if work.results[t.id].status != "skipped"]
    figures = evaluate([work.results[t.id] for t in done], done)
    about = {"split": args.split, "sample": args.sample, "seed": args.seed}
    budget = asdict(work.budget)
    names = "+".join(b.name for b in work.backends)
    document = {**about, "budget": budget, "total": work.total, "backend": names, **figures.to_json()}
    _write(args.out, json.dumps(document, indent=2))
    if folder is not None:
        _write(page, report_html(read_run(folder)))
    if args.calibrate is not None:
        note = f"{len(done)} tasks of {args.split}, seed {args.seed}, budget {budget}"
        text_of_curves = calibration_text(work.backend.name, work.current(), done, note)
        _write(args.calibrate, text_of_curves)
    if args.json:
        print_json(document)
    else:
        _print_evaluation(console, figures, calibrated=work.calibrated)
        console.print(f"figures: {args.out}; report: {page}; records: {folder}", soft_wrap=True)
    return 130 if work.interrupted else 0


def _write(path: Path, text: str) -> None:
    """Write a file of figures; on a full disk say so, since the figures are also printed."""
    try:
        write_atomically(path, text.encode(), OUTPUT)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"ttt: {path}: cannot be written ({error.strerror})", file=sys.stderr)


def _print_evaluation(console: Console, figures: Evaluation, *, calibrated: bool) -> None:
    scored = figures.score
    low, high = scored.interval()
    table = Table.grid(padding=(0, 3))
    n = max(1, scored.total)
    table.add_row("solved whole", f"{len(scored.solved)} of {scored.total}, 95 % interval {low:.1%} to {high:.1%}")
    table.add_row("pass@1, pass@2", f"{scored.pass1 / n:.1%}, {scored.pass2 / n:.1%}")
    table.add_row("CPU, wall a task", f"{figures.cpu_seconds:.1f} s, {figures.seconds:.1f} s")
    table.add_row("largest memory", f"{figures.peak_memory / 1e6:.0f} MB")
    if calibrated:
        sides = [f"{x:.0%}" if x is not None else "-" for x in (figures.confidence_solved, figures.confidence_missed)]
        table.add_row("mean confidence", f"{sides[0]} of solved, {sides[1]} of missed")
        table.add_row("calibration error", f"{figures.calibration_error:.3f}")
    else:
        table.add_row("confidence", "not calibrated for this backend; fit curves with --calibrate FILE")
    for name, solved, total in figures.kinds:
        table.add_row(name, f"{solved} of {total}")
    console.print(table)
