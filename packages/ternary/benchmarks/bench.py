"""Measure ternary against its peers: python benchmarks/bench.py [--quick] [--json FILE] [--picture FILE.png].

All ends within a minute with --quick, within five without; --only language trains in full, a quarter of an hour.
Every contender runs in the same process, interleaved with the others; figures are medians, and the ratio of two figures
of one run is what counts. A peer that is not installed is a row without a value.

The peer "ggml TQ2_0" comes from llama-cpp-python, built from source (many minutes) into a folder of its own:

    CMAKE_ARGS=-DGGML_OPENMP=OFF pip install --no-binary llama-cpp-python --no-deps --target FOLDER llama-cpp-python
    PYTHONPATH=FOLDER python benchmarks/bench.py

Of it only FOLDER/llama_cpp/lib/libggml-base and libggml-cpu are used; nothing of it is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import exports
import language
import models
import runtime
import training
from measure import machine, versions

SECTIONS = ("linear", "cold", "threads", "networks", "tokens", "sizes", "exports", "language")
ALONE = ("models", "training")
"""Sections that take many minutes and run only where they are named."""


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text."""
    lines = [f"{'metric':58} {'value':>10} {'unit':8} {'peer':36} {'peer value':>10} {'ratio':>7} {'target':>7} holds"]
    for r in rows:
        value = "-" if r["value"] is None else f"{r['value']:.4g}"
        other = "-" if r["peer_value"] is None else f"{r['peer_value']:.4g}"
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.3f}"
        target = "" if r["target"] is None else f"{r['target']:.3f}"
        holds = {None: "", True: "yes", False: "NO"}[r["holds"]]
        lines.append(
            f"{r['metric']:58} {value:>10} {r['unit']:8} {r['peer'] or '':36} "
            f"{other:>10} {ratio:>7} {target:>7} {holds}"
        )
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], file: Path) -> None:
    """Bars of how many times faster than each peer, one panel per kind of work."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, list[tuple[str, float]]] = {}
    for r in rows:
        if r["ratio"] and r["unit"] in ("ms", "tokens/s"):
            faster = r["ratio"] if r["better"] == "higher" else 1 / r["ratio"]
            panels.setdefault(r["metric"], []).append((r["peer"], faster))
    columns = 3
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(16, 2.8 * height), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (metric, bars) in zip(axes.flat, panels.items(), strict=False):
        axis.set_axis_on()
        bars.sort(key=lambda bar: bar[1])
        colours = ["#2a7f62" if value >= 1 else "#b5483a" for _, value in bars]
        drawn = axis.barh([name for name, _ in bars], [value for _, value in bars], color=colours)
        axis.bar_label(drawn, fmt="%.2gx", padding=3, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(metric, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.2)
    figure.suptitle("Times faster than each peer (1 = as fast)")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="end within a minute: one matrix, fewer peers")
    parser.add_argument("--json", type=Path, help="write machine, versions and rows here")
    parser.add_argument("--picture", type=Path, help="draw the comparison here (PNG)")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="cpu: processor time of one thread, for a machine that others use",
    )
    parser.add_argument(
        "--only", action="append", metavar="SECTION", help=f"one of {', '.join((*SECTIONS, *ALONE))}; again for more"
    )
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # peers deprecate themselves at length
    clock = time.thread_time if args.clock == "cpu" else time.perf_counter
    parts = runtime.sections(args.quick, clock)
    begun, limit = time.perf_counter(), 45 if args.quick else 270

    def about_language() -> list[dict[str, Any]]:
        if args.only:
            return language.rows(args.quick)
        # Full trainings take a quarter of an hour: --only language. Here short ones, if there is time for any.
        return language.compile_rows(True) if begun + limit - time.perf_counter() < 70 else language.rows(True)

    parts |= {"exports": lambda: exports.rows(args.quick), "language": about_language}
    parts |= {"models": lambda: models.rows(args.quick, clock), "training": training.rows}
    wanted = args.only or SECTIONS
    rows: list[dict[str, Any]] = []
    for name in [n for n in (*SECTIONS, *ALONE) if n in wanted]:
        begin = time.perf_counter()
        if not args.only and begin - begun > limit:
            print(f"{name}: left out, the run's time is over; --only {name} runs it alone", file=sys.stderr)
            continue
        try:
            rows += parts[name]()
        except Exception as error:  # what was measured before is worth keeping
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    if args.json:
        result = {"machine": machine() | {"clock": args.clock}, "versions": versions(), "rows": rows}
        args.json.write_text(json.dumps(result, indent=1))
    if args.picture:
        picture(rows, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
