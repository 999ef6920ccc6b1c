"""Runs exhaustion attacks at once beside a neighbour, and prints what they did to it and to the host, as JSON.

Run as `run_exhaustion.py FOLDER SECONDS NAME...`. `burner1`, `burner2` and so on are no attacks: they only use the
processor. As many of them as there are attacks show what the kernel's scheduler alone does to a neighbour.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from isolate import Host, Manifest, Policy, ProxiedSingleton
from isolate._manifest import Restart

ATTACKS = Path(__file__).parent / "exhaustion"
BURNER = """
import time
def attack(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
"""


class StoreSingleton(ProxiedSingleton):
    """What the host exports."""

    async def size(self) -> int:
        """Answer at once."""
        return 1

    def sleep(self, seconds: float) -> None:
        """Take a thread."""
        time.sleep(min(seconds, 5))

    async def keep(self, value: Any) -> int:
        """Look at a value."""
        return len(value)


def percentile(samples: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    return round(sorted(samples)[int(len(samples) * share)] * 1e3, 2)


async def probe(neighbour: Any, seconds: float, peak: list[int]) -> list[float]:
    """Call the neighbour until the time is over; return how long each call took."""
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        await neighbour.aio.fine()
        samples.append(time.perf_counter() - began)
        peak[0] = max(peak[0], psutil.Process().memory_info().rss)
        await asyncio.sleep(0.005)
    return samples


async def run(folder: Path, seconds: float, names: list[str]) -> dict[str, Any]:
    """Load everything, then attack."""
    (folder / "neighbour").mkdir(parents=True)
    (folder / "neighbour" / "main.py").write_text("async def fine(): return 1\n")
    for name in names:
        (folder / name).mkdir()
        code = BURNER if name.startswith("burner") else (ATTACKS / f"{name}.py").read_text()
        (folder / name / "main.py").write_text(code)
    never = Restart(policy="never")
    async with Host(folder / "store", policy=Policy()) as host:
        host.export(StoreSingleton)
        neighbour = await host.aload(Manifest(name="neighbour", directory=folder / "neighbour"))
        loads = (host.aload(Manifest(name=name, directory=folder / name, restart=never)) for name in names)
        attackers = await asyncio.gather(*loads)
        pid, peak = neighbour.pid, [0]
        quiet = await probe(neighbour, 1.5, peak)
        before = psutil.Process().memory_info().rss
        peak = [before]
        attacks = [asyncio.ensure_future(one.aio(timeout=seconds).attack(seconds)) for one in attackers]
        samples = await probe(neighbour, seconds, peak)
        outcomes = await asyncio.gather(*attacks, return_exceptions=True)
        result = {
            "calls": len(samples),
            "quiet_p99_ms": percentile(quiet, 0.99),
            "p50_ms": percentile(samples, 0.5),
            "p99_ms": percentile(samples, 0.99),
            "max_ms": percentile(samples, 0.9999),
            "host_mb": round((peak[0] - before) / 1e6),
            "neighbour_lives": neighbour.pid == pid and neighbour.state.value == "ready",
            "outcomes": {name: repr(outcome)[:100] for name, outcome in zip(names, outcomes, strict=True)},
        }
    result["left"] = len(psutil.Process().children(recursive=True))
    return result


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(asyncio.run(run(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))))
