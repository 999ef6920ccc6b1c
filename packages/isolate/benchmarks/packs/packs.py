"""Tries the requirement files of popular node packs: python benchmarks/packs/packs.py [--build] [--write].

The names and pins in `requirements.json` were read from public repositories. Without `--build` versions are chosen and
nothing is installed. With it each environment is built, every package that the file names is imported there, an image
is flipped there by the pack's own library, and the environment is removed again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isolate import EnvironmentStore, Host, Policy, read_manifest
from isolate._locks import Locks
from isolate.errors import IsolateError

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
BLOCK = re.compile(r"(?<=<!-- by packs.py -->\n).*?(?=<!-- end -->)", re.DOTALL)
IMPORT_SECONDS = 300


@dataclass
class Result:
    """What became of one pack; a step that was not reached is empty."""

    pack: str
    resolved: str = ""
    built: str = ""
    imported: str = ""
    ran: str = ""
    why: str = ""

    def row(self) -> str:
        """Return it as a line of the table."""
        why = self.why.replace("|", "\\|").replace("<", "&lt;")
        return f"| {self.pack} | {self.resolved} | {self.built} | {self.imported} | {self.ran} | {why} |"


def resolve(folder: Path, name: str, lines: list[str], constraints: list[str], policy: Policy) -> tuple[Result, str]:
    """Choose versions; return what became of it, and the lock."""
    result = Result(name)
    place = folder / name
    place.mkdir()
    (place / "constraints.txt").write_text("\n".join(constraints))
    lines = [*lines, "-c constraints.txt"]
    (place / "requirements.txt").write_text("\n".join(lines))
    shutil.copy(HERE / "node" / "main.py", place)
    try:
        manifest = read_manifest(place)
        lock = EnvironmentStore(folder / "store", policy)._compile(Locks(manifest, policy, []))
    except IsolateError as failure:
        result.resolved, result.why = "no", _reason(failure)
        return result, ""
    result.resolved = f"{lock.count('==')} packages"
    return result, lock


def _reason(failure: object) -> str:
    """Return what stands in the way, and what the host or the author could do; uv's hints have it if there are any."""
    text = str(failure)
    sources = re.findall(r"hint: Wheels are required for `([^`]+)`", text)
    if sources:
        return f"no wheel of {', '.join(sources)}; building from source runs their code: Policy(allow_sdists=True)"
    hints = re.findall(r"hint: (.+)", text)
    return _short(hints[0] if hints else text.partition(": ")[2])


def _short(text: str) -> str:
    """Return one line, without the paths of this machine."""
    line = " ".join(re.sub(r" ?\(?(?<![\w:/])/[\w./+-]+\)?", "", text).split())
    return line if len(line) <= 200 else f"{line[:200]} …"


def heavy(lock: str, names: list[str]) -> str:
    """Return the first package of a lock that is not to be built."""
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)==", lock)
    return next((name for name in found if any(re.fullmatch(pattern, name) for pattern in names)), "")


def build(folder: Path, result: Result, policy: Policy) -> None:
    """Build, import, run, and remove the environment again."""
    with Host(folder / "store", policy=policy) as host:
        began = time.perf_counter()
        try:
            extension = host.load(folder / result.pack)
        except IsolateError as failure:
            result.built, result.why = "no", _reason(failure)
            return
        assert extension.report is not None
        assert extension.report.environment is not None
        environment = extension.report.environment
        size = sum(file.lstat().st_size for file in environment.path.rglob("*") if not file.is_dir())
        result.built = f"{size / 1e6:.0f} MB, {time.perf_counter() - began:.0f} s"
        try:
            failed = extension.call(timeout=IMPORT_SECONDS).import_all()
            result.imported = "no" if failed else "yes"
            result.why = "; ".join(_short(f"{module}: {why}") for module, why in failed.items())
            result.ran = run(extension, environment.packages)
        except Exception as failure:
            result.why = _short(str(failure))
            result.imported, result.ran = result.imported or "no", "no"
    host.store.discard(environment.key)


def run(extension: object, packages: tuple[str, ...]) -> str:
    """Run the node; return which library flipped the image."""
    if not any(package.startswith("numpy==") for package in packages):
        return "bytes" if extension.call.reverse(b"node") == b"edon" else "no"
    image = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    library, flipped = extension.call(timeout=IMPORT_SECONDS).flip(image)
    return library if np.array_equal(flipped, image[:, ::-1]) else "no"


def summary(results: list[Result], builds: bool) -> str:
    """Return the counts as a sentence."""
    resolved = [result for result in results if result.resolved != "no"]
    text = f"{len(resolved)} of {len(results)} resolve"
    if builds:
        tried = [result for result in resolved if result.built]
        built = [result for result in tried if result.built != "no"]
        counts = Counter(result.imported for result in built)
        ran = [result for result in built if result.ran != "no"]
        text += f"; {len(built)} of {len(tried)} tried were built, {counts['yes']} of them import all, {len(ran)} ran"
    return text


def write(results: list[Result]) -> None:
    """Write the table into the page beside this file."""
    table = ["| pack | resolved | built | imported | ran | why not |", "|---|---|---|---|---|---|"]
    table += [result.row() for result in results]
    block = "\n".join([f"Python 3.{sys.version_info[1]}: {summary(results, True)}.", "", *table, ""])
    PAGE.write_text(BLOCK.sub(lambda _: block, PAGE.read_text()))


def main() -> None:
    """Print a line for each pack, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", action="store_true", help="allow URLs and builds from source, which run code")
    parser.add_argument("--build", action="store_true", help="build each environment that resolves, and run a node")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="PATTERN", help="do not build what needs such a package"
    )
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="LINE", help='such as "torch==2.13.0+cpu", for each pack'
    )
    parser.add_argument("--find-links", action="append", default=[], metavar="FOLDER", help="a folder with wheels")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    policy = Policy(
        allow_urls=options.sources, allow_sdists=options.sources, find_links=tuple(options.find_links), max_start=600
    )
    packs = json.loads((HERE / "requirements.json").read_text())
    results = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as threads:
        folder = Path(name)
        jobs = [threads.submit(resolve, folder, *pack, options.constraint, policy) for pack in packs.items()]
        for job in jobs:
            result, lock = job.result()
            if options.build and result.resolved != "no":
                skipped = heavy(lock, options.skip)
                if skipped:
                    result.why = f"not tried: needs {skipped}"
                else:
                    build(folder, result, policy)
            results.append(result)
            print(*vars(result).values(), sep="\t", flush=True)
    print(summary(results, options.build))
    if options.write:
        write(results)


if __name__ == "__main__":
    main()
