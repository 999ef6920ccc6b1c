"""Keep the committed uv.lock free of download addresses: `seal` removes them, `check` tests that none is left.

uv writes the address of every file into its lock and has no option to leave them out, so a lock made with one package
index is wrong with another. The sealed form keeps every package, version, dependency and marker. It drops the files'
addresses, the index's name and the copy of the requirements. At the next sync uv fills them in again from the index
that the machine uses, and keeps every pinned version.

    uv run tools/lock.py seal       rewrite uv.lock in the sealed form
    uv run tools/lock.py check      the committed blob is sealed and pins what `uv lock` pins
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_SDIST = re.compile(r"^sdist = \{.*\}\n", re.MULTILINE)
_WHEELS = re.compile(r"^wheels = \[\n(?:    .*\n)*\]\n", re.MULTILINE)
_REGISTRY = re.compile(r'source = \{ registry = "[^"]*" \}')
# Without these tables uv assumes that the requirements changed, and refreshes the lock: that fills in the rest.
_METADATA = re.compile(r"^\[package\.metadata[^\n]*\n(?:(?!\[\[package\]\]).*\n)*", re.MULTILINE)


def seal(lock: str) -> str:
    """Return the same lock without download addresses. Sealing a sealed lock changes nothing."""
    text = lock.replace("\r\n", "\n")
    for pattern in (_METADATA, _SDIST, _WHEELS):
        text = pattern.sub("", text)
    text = _REGISTRY.sub('source = { registry = "." }', text)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def pins(lock: str) -> set[tuple[str, str]]:
    """Return every (package, version) that a lock pins, without the workspace's own packages."""
    packages = tomllib.loads(lock)["package"]
    return {(p["name"], p["version"]) for p in packages if "registry" in p["source"]}


def problems(committed: str, resolved: str) -> list[str]:
    """Describe everything that is wrong with a committed lock; empty if nothing is.

    Args:
        committed: The text of the committed uv.lock.
        resolved: The text that `uv lock` makes of it.
    """
    found = []
    addresses = [line for line in committed.splitlines() if "://" in line]
    if addresses:
        found.append(
            f"uv.lock names {len(addresses)} addresses, the first in {addresses[0].strip()[:60]!r}; expected none: "
            "run `uv run tools/lock.py seal` and commit"
        )
    elif seal(committed) != committed:
        found.append("uv.lock is not in the sealed form: run `uv run tools/lock.py seal` and commit")
    held, wanted = pins(committed), pins(resolved)
    if held != wanted:
        gone, new = sorted(held - wanted), sorted(wanted - held)
        found.append(
            f"uv.lock does not pin what the pyproject files ask for: `uv lock` drops {gone[:5]} and adds {new[:5]}; "
            "run `uv lock`, then `uv run tools/lock.py seal`, and commit"
        )
    return found


def _committed() -> str:
    blob = subprocess.run(["git", "show", "HEAD:uv.lock"], cwd=ROOT, capture_output=True, check=True)
    return blob.stdout.decode()


def _resolved(committed: str) -> str:
    """Return what `uv lock` makes of the committed lock, in a copy that leaves the work tree unchanged."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for project in [ROOT / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]:
            target = copy / project.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project, target)
        (copy / "uv.lock").write_text(committed)
        subprocess.run(["uv", "lock", "--quiet"], cwd=copy, check=True)
        return (copy / "uv.lock").read_text()


def main(argv: list[str] | None = None) -> int:
    """Run a command; return 0 if the lock is in order, else 1 with the reasons on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["seal", "check"])
    command = parser.parse_args(argv).command
    path = ROOT / "uv.lock"
    if command == "seal":
        path.write_text(seal(path.read_text()))
        print(f"uv.lock: {len(pins(path.read_text()))} packages pinned, no address")
        return 0
    committed = _committed()
    found = problems(committed, _resolved(committed))
    for line in found:
        print(f"lock: {line}", file=sys.stderr)
    if not found:
        print(f"uv.lock: sealed, {len(pins(committed))} packages pinned as `uv lock` pins them")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
