"""Arguments that several commands share, and the values they describe."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ttt._backend import Backend, named_backend
from ttt._budget import Budget, parse_bytes, parse_seconds
from ttt._runs.run import Run, run
from ttt._tasks.sources import TaskSet
from ttt.backends._recipes import RECIPES
from ttt.errors import InvalidBackendError

T = TypeVar("T")
Commands = Any  # argparse gives its sub-parser collection no public type

TASKS_HELP = (
    "a JSON file, a folder, Kaggle's challenges file, or arcagi1:training, arcagi1:evaluation, arcagi2:training, "
    "arcagi2:evaluation, each also with chosen ids: arcagi1:training/ID,ID"
)


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name tasks."""
    parser.add_argument("tasks", nargs="+", metavar="TASKS", help=TASKS_HELP)
    parser.add_argument("--solutions", type=Path, help="Kaggle's solutions file, if it is not found automatically")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how tasks are solved."""
    parser.add_argument("--budget", type=seconds, metavar="TIME", help="wall time per task: 20s, 2min (default 60s)")
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="work units per task; the same answers on every machine"
    )
    parser.add_argument("--memory", type=_bytes, default="10GB", metavar="SIZE", help="per task (default 10GB)")
    parser.add_argument(
        "--total",
        type=seconds,
        metavar="TIME",
        help="for all tasks together: 90min, 11.5h; --budget then limits a try",
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="tasks at a time (default 1; one a GPU; with --ray all CPUs)"
    )
    parser.add_argument("--gpu-tasks", type=positive, default=1, metavar="N", help="tasks that share a GPU (default 1)")
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="only part I of N of the tasks, see ttt merge")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default 0)")
    add_backend(parser, several="; with --total repeatable, and they take turns")
    parser.add_argument("--ray", action="store_true", help="solve on a Ray cluster (extra ray)")
    parser.add_argument("--fresh", action="store_true", help="start anew, in a folder of its own")
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)  # the default; kept for old scripts
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="records of the run (default: beside the output)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="records shared between runs")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="confidence curves of eval --calibrate (default: ttt's own)"
    )
    add_json(parser)


def add_backend(parser: argparse.ArgumentParser, *, several: str = "") -> None:
    """Add the arguments that `backends_of` reads; `several` says what more than one backend does."""
    parser.add_argument(
        "--backend",
        action="append",
        metavar="NAME",
        help=f"grid (default), lm, vit or package.module:Class{several}",
    )
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="settings for a GPU; lm wants --set model=FOLDER",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the backend, as JSON; repeatable; with several backends NAME.KEY=VALUE",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the argument that asks for JSON."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2), flush=True)


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def seconds(text: str) -> float:
    """Parse a time such as 20s or 11.5h, for argparse."""
    return _argument(parse_seconds, text)


def _bytes(text: str) -> int:
    return _argument(parse_bytes, text)


def _argument(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 1/4")
    return int(number), int(of)


def budget_of(args: argparse.Namespace) -> Budget:
    """Return the budget that the arguments describe: 60 s, unless time, steps or a total are given."""
    seconds = args.budget if args.budget is not None else (None if args.steps or args.total else 60.0)
    return Budget(seconds=seconds, memory=args.memory, steps=args.steps)


def backends_of(args: argparse.Namespace) -> list[Backend]:
    """Return the backends that the arguments name, each with its settings."""
    recipe, start = RECIPES[args.recipe] if args.recipe else ("grid", {})
    names: list[str] = args.backend or [recipe]
    settings: dict[str, dict[str, Any]] = {name: deepcopy(start) if name == recipe else {} for name in names}
    if args.recipe and recipe not in settings:
        raise InvalidBackendError(f"--recipe {args.recipe} is of the backend {recipe}, which --backend leaves out")
    for item in args.set:
        key, equals, text = item.partition("=")
        name, dot, own = key.rpartition(".")
        if not equals or (dot and name not in settings) or (not dot and len(settings) > 1):
            wanted = "KEY=VALUE" if len(settings) == 1 else f"NAME.KEY=VALUE, with a name of {', '.join(settings)}"
            raise InvalidBackendError(f"--set {item!r}: wanted {wanted}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        mine = settings[name if dot else names[0]]
        both = isinstance(value, dict) and isinstance(mine.get(own), dict)
        mine[own] = mine[own] | value if both else value
    return [named_backend(name, **settings[name]) for name in settings]


def make_run(args: argparse.Namespace, tasks: TaskSet, folder: Path) -> Run:
    """Return the run that the arguments describe."""
    return run(
        tasks,
        backend=backends_of(args),
        budget=budget_of(args),
        workers=args.workers,
        seed=args.seed,
        folder=folder,
        fresh=args.fresh,
        cache=args.cache,
        pool="ray" if args.ray else "local",
        calibration=args.calibration,
        total=args.total,
        gpu_tasks=args.gpu_tasks,
    )


def part_of(tasks: TaskSet, shard: tuple[int, int] | None) -> TaskSet:
    """Return the part of the tasks that `--shard` names; refused tasks belong to the first part."""
    if shard is None:
        return tasks
    number, of = shard
    return TaskSet(tasks.tasks[number - 1 :: of], tasks.rejected if number == 1 else ())


def warn_rejected(tasks: TaskSet) -> None:
    """Print each task that the loader refused, with the reason."""
    console = Console(stderr=True, highlight=False, markup=False)
    for refused in tasks.rejected:
        console.print(f"refused {refused.id}: {refused.reason}", style="yellow")
