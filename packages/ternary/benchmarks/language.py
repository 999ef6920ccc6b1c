"""Compile speed and accuracy on real data: `python language.py [--quick] [--json FILE] [--picture FILE.png]`."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy
import torch

import ternary
from ternary import data, experiment, plot, zoo
from ternary.train import TrainConfig

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = ("float", "twn", "ttq", "absmean")
POINTS = {"digits": 1.0, "mnist1d": 3.0}


def program(layers: int) -> str:
    """A program of many layers in a row."""
    members = "\n".join(f"a{i} = ternary Linear(8, 8)" for i in range(layers))
    steps = "\n".join(f"y{i + 1} = a{i}(y{i})" for i in range(layers))
    return f"model M {{\n{members}\nforward(y0: float[N, 8]) -> float[N, 8] {{\n{steps}\nreturn y{layers}\n}}\n}}\n"


def milliseconds(text: str, repeat: int) -> list[float]:
    """Times of compiling a source to a class."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        ternary.compile(text)
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def row(
    metric: str, unit: str, samples: list[float], target: float, better: str, peer: str = "", base: float = 0.0
) -> Any:
    """One row of the table; with a peer the target bounds the ratio, without one the value."""
    value = statistics.median(samples) if unit == "ms" else statistics.fmean(samples)
    ratio = value / base if peer else None
    measured = value if ratio is None else ratio
    return {
        "package": "ternary",
        "metric": metric,
        "unit": unit,
        "value": value,
        "peer": peer or None,
        "peer_value": base if peer else None,
        "ratio": ratio,
        "target": target,
        "better": better,
        "holds": measured <= target if better == "lower" else measured >= target,
        "samples": samples,
    }


def compile_rows(quick: bool) -> list[dict[str, Any]]:
    """Compiling ResNet-18, and ten thousand layers against one thousand."""
    repeat = 5 if quick else 15
    source = zoo.source("resnet18")
    milliseconds(source, 2)
    rows = [row("compile resnet18.tri", "ms", milliseconds(source, repeat), 50.0, "lower")]
    small = statistics.median(milliseconds(program(1000), 3))
    large = milliseconds(program(10_000), 1 if quick else 3)
    rows.append(row("compile 10,000 layers", "ms", large, 13.0, "lower", "1,000 layers", small))
    return rows


def accuracy_rows(quick: bool, picture: Path | None) -> list[dict[str, Any]]:
    """Held-out accuracy of each quantizer in points below float; the picture shows every seed."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    table: dict[str, dict[str, list[float]]] = {}
    for name, shape, epochs in (("digits", (1, 8, 8), 15), ("mnist1d", (1, 40), 20)):
        plan = experiment.Plan(
            (EXAMPLES / f"{name}.tri").read_text(encoding="utf-8"),
            methods=METHODS,
            seeds=1 if quick else 5,
            shape=shape,
            arguments={"width": 12} if quick else {},
            config=TrainConfig(epochs=3 if quick else epochs),
        )
        results = experiment.run(plan, data.load(name))
        plain = 100 * results[0].mean
        table[name] = {r.method: list(r.accuracies) for r in results}
        for r in results:
            samples = [100 * a for a in r.accuracies]
            made = row(f"{name} accuracy, {r.method}", "%", samples, 0.0, "higher", "float", plain)
            made["target"] = 1.0 if r.method == "float" else (plain - POINTS[name]) / plain
            made["holds"] = made["ratio"] >= made["target"]
            rows.append(made)
    if picture is not None:
        plot.accuracies(table, picture)
    return rows


def rows(quick: bool, picture: Path | None = None) -> list[dict[str, Any]]:
    """All rows of this half."""
    return [*compile_rows(quick), *accuracy_rows(quick, picture)]


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description="Compile speed and accuracy of ternary.")
    parser.add_argument("--quick", action="store_true", help="under a minute; accuracies are then of short trainings")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--picture", type=Path, help="draw the accuracies here")
    arguments = parser.parse_args()
    found = rows(arguments.quick, arguments.picture)
    print(f"{'metric':32} {'value':>10} {'unit':4} {'peer':>12} {'ratio':>7} {'target':>7}  holds")
    for r in found:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.3f}"
        peer = r["peer"] or ""
        print(
            f"{r['metric']:32} {r['value']:10.2f} {r['unit']:4} {peer:>12} {ratio:>7} {r['target']:7.3f}  {r['holds']}"
        )
    if arguments.json:
        machine = {"machine": platform.machine(), "processor": platform.processor(), "system": platform.platform()}
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
        document = {"machine": machine, "versions": versions, "rows": found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
