"""Timing, rows and the machine's description, shared by the benchmarks of ternary."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Run = Callable[[], Any]


@dataclass
class Timings:
    """Milliseconds per call of each named contender, one median per burst."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        """Median over bursts, None for a contender that is not there."""
        return statistics.median(self.samples[name]) if self.samples.get(name) else None


def interleaved(
    contenders: dict[str, Run | None], budget_s: float, bursts: int, clock: Callable[[], float] = time.perf_counter
) -> Timings:
    """Run all contenders in turn, in bursts, so that each is hot in cache and all see the same drift of the machine."""
    timings = Timings({name: [] for name in contenders})
    calls: dict[str, int] = {}
    runs = {name: run for name, run in contenders.items() if run is not None}
    for name, run in runs.items():
        run()
        started = clock()
        run()
        once = clock() - started
        calls[name] = max(2, min(300, int(budget_s / bursts / len(runs) / max(once, 1e-6))))
    for _ in range(bursts):
        for name, run in runs.items():
            run()
            took = []
            for _ in range(calls[name]):
                started = clock()
                run()
                took.append((clock() - started) * 1e3)
            timings.samples[name].append(statistics.median(took))
    return timings


def row(
    metric: str,
    unit: str,
    value: float | None,
    peer: str | None = None,
    peer_value: float | None = None,
    target: float | None = None,
    better: str = "lower",
    samples: list[float] | None = None,
) -> dict[str, Any]:
    """One row of the JSON; `target` bounds the ratio where there is a peer, else the value."""
    ratio = value / peer_value if value is not None and peer_value else None
    judged = ratio if peer else value
    holds = None
    if target is not None and judged is not None:
        holds = judged <= target if better == "lower" else judged >= target
    return {
        "package": "ternary",
        "metric": metric,
        "unit": unit,
        "value": value,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "target": target,
        "better": better,
        "holds": holds,
        "samples": samples or [],
    }


def machine() -> dict[str, Any]:
    """Processor and system, in plain words."""
    model, flags = platform.processor(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        entries = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        entries = {key.strip(): value.strip() for key, value in entries.items()}
        model, flags = entries.get("model name", model), entries.get("flags", "")
    import os

    from ternary.runtime import doctor

    wide = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if name in flags.split()]
    return {"cpu": model, "cores": os.cpu_count(), "instructions": wide, "kernel": doctor().active}


def versions() -> dict[str, str | None]:
    """Versions of the peers, None for the absent ones."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "onnxruntime", "llama-cpp-python", "torchao", "numpy", "pentad-ternary"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
