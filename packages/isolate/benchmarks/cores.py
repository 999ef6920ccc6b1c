"""Shows what the kernel's choice of a core makes of a call: python packages/isolate/benchmarks/cores.py.

Each measurement is repeated with host and worker on one core, on two, and where the kernel puts them. A wake-up on
another core that sleeps takes tens of microseconds, and a call waits for two wake-ups or more.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from bench import EXTENSION, Bouncer, _blocking, timed

from isolate import Host

ROUNDS = 6


def place(process: int, cores: set[int]) -> None:
    """Put every thread of a process on these cores."""
    for thread in os.listdir(f"/proc/{process}/task"):
        os.sched_setaffinity(int(thread), cores)


async def measure(extension: Any, found: dict[str, list[float]]) -> None:
    """Add the medians of some calls of each kind."""
    found["no-op call, awaited, us"].append(
        statistics.median([await timed(extension.aio.noop) * 1e6 for _ in range(150)])
    )
    blocking = await asyncio.to_thread(_blocking, extension)
    found["no-op call, blocking, us"].append(statistics.median(blocking))
    found["recursion, depth 10, ms"].append(
        statistics.median([await timed(extension.aio.down, 10) * 1e3 for _ in range(30)])
    )


async def main() -> None:
    """Measure in turns, and print the least and the middle of the medians."""
    every = os.sched_getaffinity(0)
    first, *others = sorted(every)
    places = {"one core": ({first}, {first}), "two cores": ({first}, {*others[:1]} or {first}), "free": (every, every)}
    kinds = ("no-op call, awaited, us", "no-op call, blocking, us", "recursion, depth 10, ms")
    found: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in places}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "calls").mkdir()
        (Path(name) / "calls" / "main.py").write_text(textwrap.dedent(EXTENSION))
        (Path(name) / "calls" / "manifest.yaml").write_text("name: calls\n")
        async with Host(Path(name) / "store") as host:
            bouncer = host.export(Bouncer())
            bouncer.extension = extension = await host.aload(Path(name) / "calls")
            assert extension.pid is not None
            for _ in range(ROUNDS):
                for name, (ours, theirs) in places.items():
                    place(os.getpid(), ours)
                    place(extension.pid, theirs)
                    await measure(extension, found[name])
    for kind in kinds:
        for name, results in found.items():
            print(f"{kind:<26} {name:<10} {min(results[kind]):8.2f} {statistics.median(results[kind]):8.2f}")


if __name__ == "__main__":
    asyncio.run(main())
