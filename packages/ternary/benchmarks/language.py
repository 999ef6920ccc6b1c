"""Compile speed and accuracy on real data: `python language.py [--quick] [--json FILE] [--picture FILE.png]`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import machine, row, versions

import ternary
from ternary import _plot as plot
from ternary import zoo
from ternary._training import TrainConfig, data, experiment

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = ("float", "twn", "ttq", "absmean")
# Data set, shape of a sample, epochs, and how many points of accuracy a ternary network may lose.
TASKS = (("digits", (1, 8, 8), 15, 1.0), ("mnist1d", (1, 40), 20, 3.0))


def layers_in_a_row(count: int) -> str:
    """A program of many layers."""
    members = "\n".join(f"a{i} = ternary Linear(8, 8)" for i in range(count))
    steps = "\n".join(f"y{i + 1} = a{i}(y{i})" for i in range(count))
    return f"model M {{\n{members}\nforward(y0: float[N, 8]) -> float[N, 8] {{\n{steps}\nreturn y{count}\n}}\n}}\n"


def layers_in_one_another(count: int) -> str:
    """A wrong program: definitions nested too deep."""
    return "".join(
        f"layer L{i} {{ a = {f'L{i - 1}()' if i else 'ReLU()'}\nforward(x: float[N]) -> float[N] {{ return a(x) }} }}\n"
        for i in range(count)
    )


def milliseconds(
    work: Callable[[str], Any], text: str, repeat: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Times of some work on a source."""
    times = []
    for _ in range(repeat):
        begin = clock()
        work(text)
        times.append(1e3 * (clock() - begin))
    return times


def compile_rows(quick: bool) -> list[dict[str, Any]]:
    """Compiling ResNet-18, ten thousand layers against one thousand, and sources that end in an error."""
    repeat = 5 if quick else 15
    source = zoo.source("resnet18")
    milliseconds(ternary.compile, source, 2)
    times = milliseconds(ternary.compile, source, repeat)
    found = [row("compile resnet18.tri", "ms", statistics.median(times), target=50.0, samples=times)]
    # Processor time: what is asked is how the work grows, and the two sizes are far apart in wall time.
    small = statistics.median(milliseconds(ternary.compile, layers_in_a_row(1000), 3, time.process_time))
    times = milliseconds(ternary.compile, layers_in_a_row(10_000), 1 if quick else 3, time.process_time)
    large = statistics.median(times)
    metric = "compile 10,000 layers, processor time"
    found.append(row(metric, "ms", large, "1,000 layers", small, target=13.0, samples=times))
    wrong = {
        "refuse 10,000 definitions in one another": layers_in_one_another(10_000),
        "refuse a line of 1 MB": "model M { a = Linear(" + "4 + " * 250_000 + "4, 4) }",
        "refuse a line of 10 MB": "model M { a = Linear(" + "4 + " * 2_500_000 + "4, 4) }",
    }
    for metric, text in wrong.items():
        times = milliseconds(ternary.check, text, 1 if quick else 3)
        found.append(row(metric, "ms", statistics.median(times), target=2000.0, samples=times))
    return found


def accuracy_rows(picture: Path | None, seeds: int) -> list[dict[str, Any]]:
    """Held-out accuracy of each quantizer beside that of float."""
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    table: dict[str, dict[str, list[float]]] = {}
    for name, shape, epochs, points in TASKS:
        source = (EXAMPLES / f"{name}.tri").read_text(encoding="utf-8")
        config = TrainConfig(epochs=epochs)
        plan = experiment.Plan(source, methods=METHODS, seeds=seeds, shape=shape, config=config)
        results = experiment.run(plan, data.load(name))
        table[name] = {r.method: list(r.accuracies) for r in results}
        plain = 100 * results[0].mean
        for r in results:
            samples = [100 * a for a in r.accuracies]
            value = statistics.fmean(samples)
            if r.method == "float":
                found.append(
                    row(f"{name} accuracy, float, {seeds} seeds", "%", value, better="higher", samples=samples)
                )
            else:
                bound = (plain - points) / plain
                metric = f"{name} accuracy, {r.method}, {seeds} seeds"
                found.append(row(metric, "%", value, "float", plain, target=bound, better="higher", samples=samples))
    if picture is not None:
        plot.accuracies(table, picture)
    return found


def rows(quick: bool, picture: Path | None = None, seeds: int = 1) -> list[dict[str, Any]]:
    """All rows of the language and the framework; the trainings, a minute and a half per seed, only without `quick`."""
    return compile_rows(quick) + ([] if quick else accuracy_rows(picture, seeds))


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description="Compile speed and accuracy of ternary.")
    parser.add_argument("--quick", action="store_true", help="under 15 seconds: no trainings")
    parser.add_argument("--seeds", type=int, default=5, help="trainings per method (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--picture", type=Path, help="draw the accuracies here, a dot per seed (not with --quick)")
    arguments = parser.parse_args()
    found = rows(arguments.quick, arguments.picture, arguments.seeds)
    print(f"{'metric':42} {'value':>10} {'spread':>7} {'unit':4} {'peer':>12} {'ratio':>7} {'target':>8}  holds")
    for r in found:
        spread = statistics.stdev(r["samples"]) if len(r["samples"]) > 1 else 0.0
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.3f}"
        target = "" if r["target"] is None else f"{r['target']:.3f}"
        holds = {None: "", True: "yes", False: "NO"}[r["holds"]]
        value = f"{r['value']:10.2f} {spread:7.2f} {r['unit']:4}"
        print(f"{r['metric']:42} {value} {r['peer'] or '':>12} {ratio:>7} {target:>8}  {holds}")
    if arguments.json:
        document = {"machine": machine(), "versions": versions(), "rows": found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
