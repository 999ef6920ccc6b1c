"""zerocopy against the other ways to give one model to many workers, in one run.

    python packages/zerocopy/benchmarks/bench.py [--quick] [--json FILE] [--picture FILE.png]

zerocopy and Ray's flag, which targets compare, take turns at publishing and loading (the race). Then each way is
measured in a process of its own, with its own workers, one after the other, and what is known is saved after each;
needs Linux. A whole run ends within six minutes: a way for which no time is left is not measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MIB = 1 << 20
ORDER = [
    "zerocopy", "Ray's flag", "ray-zerocopy", "plain Ray", "zerocopy, no Ray", "torch.multiprocessing",
    "safetensors mmap", "torch.load mmap",
]  # fmt: skip
NEEDS = {"ray-zerocopy": "ray_zerocopy", "Ray's flag": "ray", "plain Ray": "ray", "safetensors mmap": "safetensors"}
SECONDS = 350  # for a whole run


def measured(variant: str, blocks: int, workers: list[int], end: float) -> dict[str, Any] | None:
    """Run measure.py for a variant; None, and a line that says why, if there is no result."""
    if variant in NEEDS and importlib.util.find_spec(NEEDS[variant]) is None:
        print(f"  {variant}: {NEEDS[variant]} is not installed", file=sys.stderr)
        return None
    counts = [str(count) for count in workers]
    command = [sys.executable, str(HERE / "measure.py"), variant, "--blocks", str(blocks), "--workers", *counts]
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=max(1.0, end - start))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # it stops its workers
        try:
            output, errors = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        why = "no time left" if time.monotonic() >= end else f"failed\n{errors[-2000:]}"
        print(f"  {variant}: {why}", file=sys.stderr)
        return None
    print(f"  {variant}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def row(
    metric: str, unit: str, samples: list[float], peer: str | None, peers: list[float] | None, target: float | None
) -> dict[str, Any]:
    """Return one row; lower is better in all of them."""
    value = statistics.median(samples)
    peer_value = statistics.median(peers) if peers else None
    ratio = value / peer_value if peer_value else None
    judged = ratio if peer is not None else value
    return {
        "package": "zerocopy", "metric": metric, "unit": unit, "value": value, "peer": peer, "peer_value": peer_value,
        "ratio": ratio, "target": target, "better": "lower",
        "holds": None if judged is None or target is None else bool(judged <= target), "samples": samples,
    }  # fmt: skip


def rows_of(
    results: dict[str, dict[str, Any]],
    order: list[str],
    race: dict[str, Any] | None,
    tasks: dict[str, Any] | None,
    far: dict[str, Any] | None,
    crowd: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """Turn measurements into rows with targets."""
    ours = results["zerocopy"]
    size = ours["model_bytes"]
    found: list[dict[str, Any]] = []
    if race is not None:
        mine, flag, recycling = (race["samples"][name] for name in ("zerocopy", "Ray's flag", "zerocopy, recycling"))
        found = [
            row("publish", "s", mine["publish_s"], "Ray's flag", flag["publish_s"], 1.0),
            row(
                "publish, room of a dropped model in the store",
                "s",
                mine["again_s"],
                "Ray's flag",
                flag["again_s"],
                None,
            ),
            row(
                "publish(recycle=True), room of a dropped model in the store",
                "s",
                recycling["again_s"],
                "Ray's flag",
                flag["again_s"],
                1.1,
            ),
            row("load in a warm worker", "ms", mine["loads"], None, None, 5.0),
            row("load in a warm worker", "ms", mine["loads"], "Ray's flag", flag["loads"], 1.0),
            row("first load of a worker", "ms", mine["first_loads"], "Ray's flag", flag["first_loads"], 1.0),
            row("load and first inference", "ms", mine["firsts"], "Ray's flag", flag["firsts"], 1.0),
        ]
    exact = ours["exact"] and (race is None or race["exact"])
    found += [
        row("publish, driver peak", "bytes", [ours["peak"]], "the model", [size], 1.05),
        row("handle", "bytes", [ours["handle_bytes"]], None, None, 200_000),
        row("private growth of a worker, 20 calls", "MiB", [ours["last"] / MIB], None, None, 10),
        row("growth from call 2 to 20", "MiB", [(ours["last"] - ours["second"]) / MIB], None, None, 1),
        row("10 fine-tunes over base + 10 tensors", "ratio", [ours["fine_tunes"]], None, None, 1.05),
        row("outputs that differ in a bit", "workers", [0.0 if exact else 1.0], None, None, 0),
    ]
    for count, target in (("4", 1.06), ("8", 1.10)):
        if count in ours["totals"]:
            found.append(
                row(f"total memory, {count} workers", "bytes", [ours["totals"][count]], "the model", [size], target)
            )
    for variant in order:
        if variant == "zerocopy":
            continue
        result = results.get(variant)
        if variant != "Ray's flag":  # those rows are above, from the race
            for metric, key, unit in (("publish", "publish_s", "s"), ("load and first inference", "firsts", "ms")):
                found.append(row(metric, unit, ours[key], variant, result and result[key], None))
        for count, total in ours["totals"].items():
            peer = [result["totals"][count]] if result else None
            found.append(row(f"total memory, {count} workers", "bytes", [total], variant, peer, None))
        for count, total in ours["with_tables"].items():
            if variant == "Ray's flag":
                peer = [result["with_tables"][count]] if result else None
                target = 1.0 if count in ("4", "8") else None
                metric = f"total memory with page tables, {count} workers"
                found.append(row(metric, "bytes", [total], variant, peer, target))
    if tasks is not None:
        samples = tasks["samples"]
        local = statistics.median(samples["local"])
        over = [value - local for value in samples["zerocopy"]]
        found.append(row("60-layer model, task over local call", "ms", over, None, None, 5))
        peers = [value - local for value in samples["ray-zerocopy"]] if "ray-zerocopy" in samples else None
        found.append(row("60-layer model, task over local call", "ms", over, "ray-zerocopy", peers, 1.0))
    if far is not None:
        found.append(row("copies on a far node with 3 workers", "models", [far["copies"]], None, None, 1.0))
    if crowd is not None:
        samples = crowd["samples"]
        metric = "publish of 16 KiB beside 10,000 segments, processor time"
        found.append(row(metric, "ms", samples["many"], "beside 100 segments", samples["few"], 1.1))
    return found


def print_tables(results: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Print the ways side by side, then the targets."""
    counts = list(next(iter(results.values()))["totals"])
    print(f"model: {results['zerocopy']['model_bytes'] / MIB:.0f} MiB; medians; memory without the workers' baseline\n")
    header = [
        "way",
        "publish s",
        "peak MiB",
        "load ms",
        "+ first ms",
        "private MiB",
        *[f"total, {c}" for c in counts],
        "exact",
    ]
    print(" | ".join(header))
    print(" | ".join("---" for _ in header))
    for name, result in results.items():
        cells = [
            name, f"{statistics.median(result['publish_s']):.2f}", f"{result['peak'] / MIB:.0f}",
            f"{statistics.median(result['loads']):.1f}", f"{statistics.median(result['firsts']):.0f}",
            f"{result['private'] / MIB:.1f}", *[f"{result['totals'][c] / MIB:.0f}" for c in counts],
            "yes" if result["exact"] else "no",
        ]  # fmt: skip
        print(" | ".join(cells))
    print()
    for entry in rows:
        if entry["target"] is None:
            continue
        against = f"against {entry['peer']}: ratio {entry['ratio']:.3g}" if entry["ratio"] is not None else ""
        verdict = {True: "holds", False: "FALLS SHORT", None: "not measured"}[entry["holds"]]
        value = f"{entry['value']:.4g} {entry['unit']}"
        print(f"{verdict:12s} {entry['metric']}: {value} {against} (target {entry['target']})")


def draw(results: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw memory against workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, result in results.items():
        counts = [int(count) for count in result["totals"]]
        weight = 3 if name == "zerocopy" else 1.3
        axes.plot(counts, [total / MIB for total in result["totals"].values()], marker="o", lw=weight, label=name)
    size = results["zerocopy"]["model_bytes"] / MIB
    axes.axhline(size, color="grey", ls=":", label="one copy of the weights")
    axes.set(xlabel="workers", ylabel="MiB, without the workers' baseline", xscale="log", yscale="log", xticks=counts)
    axes.set_xticklabels(counts)
    most = max(max(result["totals"].values()) for result in results.values()) / MIB
    ticks = [size * 2**step for step in range(-1, 8) if size * 2**step <= 2 * most or step < 2]
    axes.set(ylim=(ticks[0], ticks[-1]), yticks=ticks, yticklabels=[f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"Memory for one {size:.0f} MiB model")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


def machine() -> dict[str, Any]:
    """Describe the machine in a line of JSON."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30), "kernel": platform.release()}


def version(name: str) -> str | None:
    """Return the installed version of a distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(rows: list[dict[str, Any]], file: Path) -> None:
    """Write the rows, with the machine and the versions."""
    names = ("pentad-zerocopy", "torch", "ray", "ray-zerocopy", "safetensors")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    file.write_text(json.dumps({"machine": machine(), "versions": versions, "rows": rows}, indent=1))


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; 0 if every target that was measured holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a 64 MiB model, 2 workers, three ways; within a minute")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=None, help=f"end after so long ({SECONDS}; 55 with --quick)")
    args = parser.parse_args(argv)
    order = ["zerocopy", "Ray's flag", "torch.load mmap"] if args.quick else ORDER
    blocks, workers = (1, [1, 2]) if args.quick else (8, [1, 2, 4, 8])
    end = time.monotonic() + (args.seconds or (55 if args.quick else SECONDS))
    results: dict[str, dict[str, Any]] = {}
    extras = {"race": measured("race", blocks, workers, end), "tasks": None, "far": None, "crowd": None}
    rows: list[dict[str, Any]] = []
    # What has no peer to wait for comes right after the two ways that most rows compare.
    for name in order if args.quick else [*order[:2], "tasks", "far", "crowd", *order[2:]]:
        result = measured(name, blocks, workers, end)
        if name in extras:
            extras[name] = result
        elif result is not None:
            results[name] = result
        if "zerocopy" not in results:
            return 1
        rows = rows_of(results, order, **extras)
        if args.json:
            save(rows, args.json)
    print_tables(results, rows)
    if args.picture:
        draw(results, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
