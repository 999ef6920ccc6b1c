"""Train a program on real data, pack it, and compare quantizers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ternary._cli.sources import locate, shape_of
from ternary._cli.values import fraction, pair, positive, rate, sizes
from ternary._wholefile import whole_file
from ternary.errors import TernaryError


def _arguments(program: Any, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the arguments given for the model of a program; an unknown name is an error."""
    from ternary._language.diagnostics import did_you_mean

    known = {p.name for d in program.definitions if d.kind == "model" for p in d.parameters}
    for name, _ in pairs:
        if name not in known:
            advice = did_you_mean(name, known) or f"its parameters are {', '.join(sorted(known)) or 'none'}"
            raise TernaryError(f"the model has no parameter '{name}'; {advice}")
    return dict(pairs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", help="a .tri file, a zoo name, or - for standard input")
    parser.add_argument(
        "--data", required=True, help="digits, mnist1d, python-docs, or a .npz file with arrays x and y"
    )
    parser.add_argument(
        "--shape", type=sizes, default=(), help="shape of one sample (1,8,8), where the program leaves it open"
    )
    parser.add_argument(
        "--compare",
        default="as written",
        help="float, distilled (starts from the float network, its teacher) and names of quantizers, joined by commas",
    )
    parser.add_argument("--seeds", type=positive, default=1, help="trainings per quantizer (default %(default)s)")
    parser.add_argument("--epochs", type=positive, default=20, help="passes over the data (default %(default)s)")
    parser.add_argument("--batch", type=positive, default=64, help="samples per step (default %(default)s)")
    parser.add_argument("--learning-rate", type=rate, default=2e-3, help="its peak (default %(default)s)")
    parser.add_argument(
        "--student-learning-rate", type=rate, help="its peak for distilled networks (default: --learning-rate)"
    )
    parser.add_argument(
        "--student-cutmix",
        type=fraction,
        default=0.0,
        metavar="FRACTION",
        help="of samples of distilled networks that get a span from another sample (default %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        type=pair,
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model, may be given again",
    )
    parser.add_argument(
        "--student-set",
        action="append",
        type=pair,
        default=[],
        metavar="NAME=VALUE",
        help="an argument of distilled models, where it differs from that of the others (a dropout)",
    )
    parser.add_argument(
        "--threads", type=positive, default=1, help="threads of torch (small networks are fastest with one)"
    )
    parser.add_argument("--out", default="runs", help="directory for model files, table and pictures")


def _row(data: str, result: Any) -> dict[str, Any]:
    """Return a result as results.json has it."""
    return {
        "data": data,
        "method": result.method,
        "accuracy": result.mean,
        "spread": result.spread,
        "seeds": list(result.accuracies),
        "file": str(result.file),
        "bytes": result.file_bytes,
    }


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    import torch

    from ternary import _plot as plot
    from ternary._language.compiler import parse_source, read_source
    from ternary._training import TrainConfig, data, experiment

    torch.set_num_threads(a.threads)
    source, name = locate(a.source)
    text = read_source(source, name).text
    program = parse_source(text, name=name)[0]
    arguments, student_arguments = _arguments(program, a.set), _arguments(program, a.student_set)
    split = data.load(a.data)
    shape = a.shape or shape_of(program)
    config = TrainConfig(epochs=a.epochs, learning_rate=a.learning_rate)
    student = replace(config, learning_rate=a.student_learning_rate or a.learning_rate, cutmix=a.student_cutmix)
    plan = experiment.Plan(
        text,
        arguments=arguments,
        methods=tuple(a.compare.split(",")),
        seeds=a.seeds,
        batch=a.batch,
        config=config,
        student=student,
        student_arguments=student_arguments,
        shape=shape,
    )
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    show = sys.stderr.isatty()

    def progress(method: str, seed: int, epoch: int, history: Any) -> None:
        if show:
            bar = "█" * (20 * epoch // a.epochs)
            state = f"loss {history.loss[-1]:.4f}  held-out {history.accuracy[-1]:.4f}"
            print(f"\r{method:>10} seed {seed} {bar:20} {epoch}/{a.epochs}  {state}", end="", file=sys.stderr)

    results = experiment.run(plan, split, out, progress=progress)
    if show:
        print(file=sys.stderr)
    rows = [_row(a.data, r) for r in results]
    with whole_file(out / "results.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if a.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'method':12} {'accuracy':>9} {'+-':>7} {'bytes':>10}")
        for r in results:
            print(f"{r.method:12} {r.mean:9.2%} {r.spread:7.2%} {r.file_bytes:10,}  {r.file}")
    try:
        plot.curves({r.method: r.history for r in results}, out / "curves.png", f"{name} on {a.data}")
        plot.accuracies({a.data: {r.method: list(r.accuracies) for r in results}}, out / "accuracy.png")
    except TernaryError as e:
        print(f"ternary: no pictures: {e}", file=sys.stderr)
    return 0
