"""Run the packages' benchmarks, check their rows, and render one page.

    uv run tools/bench.py                       all packages, the full comparison
    uv run tools/bench.py xfer --quick          one package, within a minute
    uv run tools/bench.py --peers               install each package's peers in a separate environment; one that
                                                is not measured is an error
    uv run tools/bench.py --json rows.json      also write the rows as JSON
    uv run tools/bench.py --publish             also make it the published run, unless a row is invalid
    uv run tools/bench.py --render              measure nothing; write the documents from the published runs
    uv run tools/bench.py --gpu FILE            publish what tools/gpu_check.py measured on a GPU, as a page of its own

A benchmark is packages/X/benchmarks/bench.py. It runs the library and its peers on the same work in the same run,
interleaved, and writes JSON: {"machine": {…}, "versions": {…}, "rows": […]}. One row:

    {"package", "metric", "unit", "value", "peer", "peer_value", "ratio", "target", "better", "holds", "samples"}

`ratio` is value / peer_value of that run. `target` bounds the ratio, or the value if the row has no peer. `better` is
"lower" or "higher". If a peer is not installed, peer_value, ratio and holds are null.

The published run of a package is packages/X/benchmarks/results.json and results.png. packages/benchmarks.md, the
headlines in the README and the tables in the packages' READMEs are rendered from it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(script.parent.parent.name for script in ROOT.glob("packages/*/benchmarks/bench.py"))
FIELDS: dict[str, type | tuple[type, ...]] = {
    "package": str,
    "metric": str,
    "unit": str,
    "value": (int, float),
    "peer": (str, type(None)),
    "peer_value": (int, float, type(None)),
    "ratio": (int, float, type(None)),
    "target": (int, float, type(None)),
    "better": str,
    "holds": (bool, type(None)),
    "samples": list,
}
Row = dict[str, Any]
PAGE = ROOT / "packages" / "benchmarks.md"
GPU_PAGE = ROOT / "packages" / "gpu.md"
README = ROOT / "README.md"
BLOCK = r"(?<=<!-- {0}, by tools/bench.py -->\n).*?(?=<!-- end of {0} -->)"
HEADLINES = re.compile(BLOCK.format("headlines"), re.DOTALL)
GROWTH = re.compile(BLOCK.format("growth"), re.DOTALL)
MEASURED = re.compile(BLOCK.format("measured"), re.DOTALL)

# One row for each package: the metric and the peer, as named in its benchmark.
HEADLINE_ROWS = {
    "xfer": ("64 MB, copy in and full read", "SharedMemory"),
    "zerocopy": ("total memory, 8 workers", "plain Ray"),
    "isolate": ("no-op call, awaited", "pyisolate"),
    "ternary": ("linear 4096x4096 batch 1 (amx)", "onnxruntime 2-bit"),
    "ttt": ("peak memory of a task's process", None),
}

# How measurements grow: the cause, what is shown, and the package, metric, peer and field of the rows.
GROWTH_ROWS = (
    (
        "workers of a node",
        "memory for the weights, in models",
        "zerocopy",
        "total memory, {} workers",
        "the model",
        "ratio",
    ),
    (
        "nodes",
        "copies of the weights, far node with {} workers",
        "zerocopy",
        "copies on a far node with {} workers",
        None,
        "value",
    ),
    (
        "readers of an array",
        "memory over the array, {} readers",
        "xfer",
        "256 MB to {} readers, memory over the array",
        None,
        "value",
    ),
    ("calls under way", "ms for {} calls at once", "isolate", "{} concurrent calls", None, "value"),
)


def violations(row: Row) -> list[str]:
    """Describe everything that is invalid in a row; empty if the row is valid."""
    found = [f"field {name!r} is missing" for name in FIELDS.keys() - row.keys()]
    found += [f"field {name!r} is not in the contract" for name in row.keys() - FIELDS.keys()]
    if found:
        return sorted(found)
    for name, wanted in FIELDS.items():
        if not isinstance(row[name], wanted):
            found.append(f"{name} is {row[name]!r}, of type {type(row[name]).__name__}")
    if found:
        return found
    if row["better"] not in ("lower", "higher"):
        found.append(f"better is {row['better']!r}; wanted 'lower' or 'higher'")
    if row["peer_value"] is None and row["ratio"] is not None:
        found.append("ratio without a peer_value")
    if row["peer_value"]:
        expected = row["value"] / row["peer_value"]
        if row["ratio"] is None or not math.isclose(row["ratio"], expected, rel_tol=0.02, abs_tol=1e-6):
            found.append(f"ratio is {row['ratio']}; value / peer_value is {expected:.4g}")
    measured = row["value"] if row["peer"] is None else row["ratio"]
    if measured is not None and row["target"] is not None:
        holds = measured <= row["target"] if row["better"] == "lower" else measured >= row["target"]
        if row["holds"] is not holds:
            found.append(
                f"holds is {row['holds']}; {measured:.4g} against {row['target']} ({row['better']}) is {holds}"
            )
    return found


def unmeasured(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return package and name of each peer that rows name and no row has a value of."""
    named: dict[tuple[str, str], bool] = {}
    for package, result in results.items():
        for row in result["rows"]:
            if row.get("peer") is not None:
                key = package, row["peer"]
                named[key] = named.get(key, False) or row.get("peer_value") is not None
    return [key for key, found in named.items() if not found]


def run(package: str, quick: bool, peers: bool, folder: Path) -> dict[str, Any]:
    """Run one package's benchmark and return its JSON. Its progress and tables go straight to the terminal."""
    out = folder / f"{package}.json"
    interpreter = [sys.executable]
    if peers:
        own = ["--no-default-groups", "--package", f"pentad-{package}", "--group", "bench", "--group", "test"]
        interpreter = ["uv", "run", "--isolated", *own, "python"]
    script = ROOT / "packages" / package / "benchmarks" / "bench.py"
    picture = ["--picture", str(folder / f"{package}.png")]
    quickly = ["--quick"] if quick else []
    subprocess.run([*interpreter, str(script), *quickly, "--json", str(out), *picture], cwd=ROOT, check=True)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def published() -> dict[str, dict[str, Any]]:
    """Return each package's published run."""
    files = {package: results_file(package) for package in PACKAGES}
    return {package: json.loads(file.read_text()) for package, file in files.items() if file.exists()}


def results_file(package: str) -> Path:
    """Return the path of a package's published run; its picture is beside it."""
    return ROOT / "packages" / package / "benchmarks" / "results.json"


def publish(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """Publish these runs and their pictures, which are in `folder`."""
    for package, result in results.items():
        file = results_file(package)
        file.write_text(json.dumps(_rounded(result), indent=1) + "\n")
        picture = folder / f"{package}.png"
        if picture.exists():
            shutil.copy(picture, file.with_suffix(".png"))


def _rounded(value: Any) -> Any:
    # Five digits: further ones are noise, and there are many samples.
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def table(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown table of these rows."""
    lines = ["| metric | value | peer | peer's value | ratio | target | holds |", "|---|---|---|---|---|---|---|"]
    shown: tuple[str, str] | None = None
    for row in rows:
        bound = {"lower": "<=", "higher": ">="}[row["better"]]
        measurement = row["metric"], _with_unit(row["value"], row["unit"])
        cells = [
            # Beside several peers a measurement is named once.
            *(("", "") if measurement == shown else measurement),
            row["peer"] or "",
            "not measured" if row["peer"] and row["peer_value"] is None else _with_unit(row["peer_value"], row["unit"]),
            _number(row["ratio"]),
            "" if row["target"] is None else f"{bound} {_number(row['target'])}",
            {True: "yes", False: "no", None: ""}[row["holds"]],
        ]
        lines.append("| " + " | ".join(cells) + " |")
        shown = measurement
    return lines


def _with_unit(value: float | None, unit: str) -> str:
    return f"{_number(value)} {unit}".strip() if value is not None else ""


def measured(result: dict[str, Any]) -> str:
    """Render the rows of a package that have a target, for its README."""
    return "\n".join(table([row for row in result["rows"] if row["target"] is not None])) + "\n"


def page(results: dict[str, dict[str, Any]]) -> str:
    """Render the benchmarks page in Markdown: a table and a picture per package."""
    lines = ["# Benchmarks", ""]
    lines += ["Rendered by `uv run tools/bench.py` from the last published run of each package. Medians; a ratio is"]
    lines += ["value / peer of the same run, which took turns. Targets bound the ratio, or the value without a peer."]
    for package, result in results.items():
        machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        lines += ["", f"## {package}", "", machine, ""]
        if results_file(package).with_suffix(".png").exists():
            lines += [f"![{package} beside its peers]({package}/benchmarks/results.png)", ""]
        lines += table(result["rows"])
    return "\n".join(lines) + "\n"


def headlines(results: dict[str, dict[str, Any]]) -> str:
    """Render one row for each package in Markdown, for the README."""
    lines = ["| | measured | value | beside | its value | ratio |", "|---|---|---|---|---|---|"]
    for package, (metric, peer) in HEADLINE_ROWS.items():
        for row in results.get(package, {"rows": []})["rows"]:
            if (row["metric"], row["peer"]) == (metric, peer):
                beside = (peer, row["peer_value"]) if peer else ("its target", row["target"])
                values = f"{_number(row['value'])} {row['unit']} | {beside[0]} | {_number(beside[1])} {row['unit']}"
                lines.append(f"| {package} | {metric} | {values} | {_number(row['ratio'])} |")
    return "\n".join(lines) + "\n"


def growth(results: dict[str, dict[str, Any]]) -> str:
    """Render in Markdown how measurements grow with workers, nodes, readers and calls."""
    lines = ["| with more | what | measured |", "|---|---|---|"]
    for cause, what, package, metric, peer, field in GROWTH_ROWS:
        pattern = re.compile(re.escape(metric).replace(r"\{\}", "([a-z0-9]+)"))
        found = [
            (match[1], row[field])
            for row in results.get(package, {"rows": []})["rows"]
            if (match := pattern.fullmatch(row["metric"])) and row["peer"] == peer and row[field] is not None
        ]
        if found and "{}" in what:
            lines += [f"| {cause} | {what.format(count)} | {_number(value)} |" for count, value in found]
        elif found:
            values = ", ".join(f"{count}: {value:.3f}" for count, value in found)
            lines.append(f"| {cause} | {what} | {values} |")
    return "\n".join(lines) + "\n"


def render() -> None:
    """Write the page and the tables of the READMEs from the published runs."""
    results = published()
    PAGE.write_text(page(results))
    _fill(README, HEADLINES, headlines(results))
    _fill(README, GROWTH, growth(results))
    for package, result in results.items():
        _fill(ROOT / "packages" / package / "README.md", MEASURED, measured(result))


def _fill(file: Path, block: re.Pattern[str], text: str) -> None:
    file.write_text(block.sub(lambda _: text, file.read_text()))


def _number(value: float | None) -> str:
    """Format with three significant digits; large numbers as integers with separators."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def gpu_page(result: dict[str, Any]) -> str:
    """Render what tools/gpu_check.py measured and tested on a GPU.

    Raises:
        ValueError: It was rehearsed without a GPU, or a row is invalid.
    """
    broken = [violation for row in result["rows"] for violation in violations(row)]
    if result.get("rehearsed") or broken:
        raise ValueError(f"nothing to publish: {'; '.join(broken) or 'the run was rehearsed without a GPU'}")
    machine = ", ".join(f"{key} {value}" for key, value in (result["machine"] | result["versions"]).items())
    lines = [
        "# On a GPU",
        "",
        f"Rendered by `tools/bench.py --gpu` from one run of `tools/gpu_check.py`: {machine}.",
        "",
    ]
    for package in dict.fromkeys(row["package"] for row in result["rows"]):
        lines += [f"## {package}", "", *table([row for row in result["rows"] if row["package"] == package]), ""]
    lines += ["## Tests", "", "| suite | passed | failed | skipped | not run |", "|---|---|---|---|---|"]
    for suite in result["tests"]:
        counts = (suite["passed"], *(len(suite[key]) for key in ("failed", "skipped", "lacking")))
        lines.append("| " + " | ".join(map(str, (suite["suite"], *counts))) + " |")
    failed = [name for suite in result["tests"] for name in suite["failed"]]
    lines += ["", "Failed:", "", *(f"- `{name}`" for name in failed)] if failed else []
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the chosen benchmarks; return 0 if every row is valid. A missed target is reported and is no error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"which: {', '.join(PACKAGES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="within 60 s per package")
    parser.add_argument("--peers", action="store_true", help="install each package's peers in a separate environment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows")
    parser.add_argument("--publish", action="store_true", help="make this the run that the documents show")
    parser.add_argument(
        "--render", action="store_true", help="measure nothing; write the documents from the published runs"
    )
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="publish a result of tools/gpu_check.py")
    args = parser.parse_args(argv)
    unknown = set(args.packages) - set(PACKAGES)
    if unknown:
        parser.error(f"no benchmark for {sorted(unknown)}; there are {', '.join(PACKAGES)}")

    if args.gpu:
        result = json.loads(args.gpu.read_text())
        GPU_PAGE.write_text(gpu_page(result))
        for suite in result["tests"]:  # their output names folders of that machine
            suite["failed"] = dict.fromkeys(suite["failed"], "")
        GPU_PAGE.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        return 0
    if args.render:
        render()
        return 0

    with tempfile.TemporaryDirectory() as folder:
        results = {name: run(name, args.quick, args.peers, Path(folder)) for name in args.packages or PACKAGES}
        broken = [
            f"bench: {package}: {row.get('metric', row)}: {violation}"
            for package, result in results.items()
            for row in result["rows"]
            for violation in violations(row)
        ]
        if args.peers:
            broken += [f"bench: {package}: {peer} was not measured" for package, peer in unmeasured(results)]
        print("".join(f"{line}\n" for line in broken), end="", file=sys.stderr)
        if args.publish and not broken:
            publish(results, Path(folder))
            render()
    rows = [row for result in results.values() for row in result["rows"]]
    judged = [row for row in rows if row.get("holds") is not None]
    print(f"{len(rows)} rows, {sum(row['holds'] for row in judged)} of {len(judged)} targets hold")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
