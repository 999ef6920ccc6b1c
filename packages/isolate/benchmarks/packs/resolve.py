"""Chooses versions for the requirement files of popular node packs: python benchmarks/packs/resolve.py.

The names and pins in `requirements.json` were read from public repositories. Nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isolate import EnvironmentStore, Policy, read_manifest
from isolate._locks import Locks
from isolate.errors import IsolateError


def resolve(folder: Path, name: str, lines: list[str], policy: Policy) -> tuple[str, str, float]:
    """Return what became of a pack's requirements, why, and the seconds that it took."""
    place = folder / name
    place.mkdir()
    (place / "requirements.txt").write_text("\n".join(lines))
    (place / "main.py").write_text("")
    began = time.perf_counter()
    try:
        manifest = read_manifest(place)
        text = EnvironmentStore(folder / "store", policy)._compile(Locks(manifest, policy, []))
    except IsolateError as failure:
        return type(failure).__name__, " ".join(str(failure).split()), time.perf_counter() - began
    return "resolved", f"{text.count('==')} packages", time.perf_counter() - began


def main() -> None:
    """Print a line for each pack, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", action="store_true", help="allow URLs and builds from source, which run code")
    options = parser.parse_args()
    policy = Policy(allow_urls=options.sources, allow_sdists=options.sources)
    packs = json.loads((Path(__file__).parent / "requirements.json").read_text())
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as threads:
        folder = Path(name)
        jobs = {pack: threads.submit(resolve, folder, pack, lines, policy) for pack, lines in packs.items()}
        for pack, job in jobs.items():
            outcome, why, seconds = job.result()
            counts[outcome] += 1
            print(f"{pack:<32} {outcome:<24} {seconds:6.1f} s  {why[:400]}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()), "of", len(packs))


if __name__ == "__main__":
    main()
