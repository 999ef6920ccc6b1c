"""Keep download addresses out of the committed uv.lock, and prove that what is installed is what was tested.

    uv run tools/lock.py seal       rewrite uv.lock in the committed form, without addresses
    uv run tools/lock.py check      test that the committed lock is sealed, up to date and has the index's hashes
    python3 tools/lock.py open      complete uv.lock, for `uv sync --locked`, `--frozen`, `--offline` and containers

uv writes the address of every file into its lock and has no option to leave them out, so a lock made with one package
index is wrong with another. The sealed form keeps every package, version, dependency, marker, file name and hash. It
drops the files' addresses, the index's name and the copy of the requirements. uv completes a sealed lock from the index
that the machine uses, but replaces a hash that differs there without a word. `open` lets uv complete a copy, refuses a
file whose hash differs from the sealed one, and drops files that the sealed lock does not know. The opened lock is
uv's own format, so uv itself refuses a download with another hash.

In a git checkout `open` also sets up a filter, so that git compares and commits the sealed form.
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

_FILE = re.compile(r'\{ (?:url|path) = "(?:[^"]*/)?(?P<name>[^"/]+)", hash = "(?P<hash>[^"]+)"[^}\n]*\}')
_REGISTRY = re.compile(r'source = \{ registry = "[^"]*" \}')
# Without these tables uv assumes that the requirements changed, and refreshes the lock: that fills in the rest.
_METADATA = re.compile(r"^\[package\.metadata[^\n]*\n(?:(?!\[\[package\]\]).*\n)*", re.MULTILINE)
_FILTER = "sealed-lock"


class LockError(Exception):
    """A lock is not what it should be; the message says why."""


def seal(lock: str) -> str:
    """Return the same lock without download addresses. Sealing a sealed lock changes nothing."""
    text = _METADATA.sub("", lock.replace("\r\n", "\n"))
    text = _FILE.sub(r'{ path = "\g<name>", hash = "\g<hash>" }', text)
    text = _REGISTRY.sub('source = { registry = "." }', text)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def pins(lock: str) -> set[tuple[str, str]]:
    """Return every (package, version) that a lock pins, without the workspace's own packages."""
    packages = tomllib.loads(lock)["package"]
    return {(p["name"], p["version"]) for p in packages if "registry" in p["source"]}


def hashes(lock: str) -> dict[str, str]:
    """Return the hash of every file in a lock, by the file's name."""
    return {match["name"]: match["hash"] for match in _FILE.finditer(lock)}


def changed(sealed: str, resolved: str) -> list[str]:
    """Describe every file whose hash on the index differs from the sealed one."""
    known = hashes(sealed)
    return [
        f"{name}: the index has {found}, uv.lock {known[name]}; the file was replaced after it was locked"
        for name, found in hashes(resolved).items()
        if known.get(name, found) != found
    ]


def opened(sealed: str, resolved: str) -> str:
    """Return what uv made of a sealed lock, limited to files that the sealed lock knows.

    Args:
        sealed: The sealed lock.
        resolved: The text that `uv lock` makes of it.

    Raises:
        LockError: A hash differs, a pin differs, or no known file of a package is left.
    """
    if wrong := changed(sealed, resolved):
        raise LockError("\n".join(wrong))
    if pins(sealed) != pins(resolved):
        raise LockError("uv.lock does not pin what the pyproject files ask for; run `uv lock`")
    known = hashes(sealed)
    lines = resolved.splitlines(keepends=True)
    kept = [line for line in lines if (match := _FILE.search(line)) is None or match["name"] in known]
    text = "".join(kept)
    empty = [
        package["name"]
        for package in tomllib.loads(text)["package"]
        if "registry" in package["source"] and not (package.get("wheels") or package.get("sdist"))
    ]
    if empty:
        raise LockError(f"the index has no file of {', '.join(empty)} that uv.lock knows")
    return text


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
    return found + changed(committed, resolved)


def _committed() -> str:
    blob = subprocess.run(["git", "show", "HEAD:uv.lock"], cwd=ROOT, capture_output=True, check=True)
    return blob.stdout.decode()


def resolve(sealed: str, root: Path = ROOT) -> str:
    """Return what `uv lock` makes of a sealed lock, in a copy that leaves the work tree unchanged."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for project in [root / "pyproject.toml", *sorted(root.glob("packages/*/pyproject.toml"))]:
            target = copy / project.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project, target)
        (copy / "uv.lock").write_text(sealed)
        subprocess.run(["uv", "lock", "--quiet"], cwd=copy, check=True)
        return (copy / "uv.lock").read_text()


def open_lock(root: Path = ROOT) -> None:
    """Complete a project's uv.lock in place, after its hashes were compared with the index's."""
    path = root / "uv.lock"
    sealed = seal(path.read_text())
    path.write_text(opened(sealed, resolve(sealed, root)))


def _set_up_filter() -> bool:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return False
    clean = ["git", "config", f"filter.{_FILTER}.clean", "python3 tools/lock.py seal --filter"]
    if subprocess.run(clean, cwd=ROOT, capture_output=True).returncode:
        return False
    # git notices that the file is, sealed, what is committed.
    return subprocess.run(["git", "add", "--renormalize", "uv.lock"], cwd=ROOT, capture_output=True).returncode == 0


def main(argv: list[str] | None = None) -> int:
    """Run a command; return 0 if the lock is in order, else 1 with the reasons on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["seal", "check", "open"])
    parser.add_argument("--filter", action="store_true", help="seal stdin to stdout, as git's filter does")
    args = parser.parse_args(argv)
    path = ROOT / "uv.lock"
    if args.command == "seal" and args.filter:
        sys.stdout.write(seal(sys.stdin.read()))
        return 0
    if args.command == "seal":
        path.write_text(seal(path.read_text()))
        print(f"uv.lock: {len(pins(path.read_text()))} packages pinned, no address")
        return 0
    if args.command == "open":
        try:
            open_lock()
        except LockError as error:
            print(f"lock: {error}", file=sys.stderr)
            return 1
        tracked = "git compares and commits its sealed form" if _set_up_filter() else "seal it before you commit"
        print(
            f"uv.lock: complete, {len(hashes(path.read_text()))} files with the hashes that were committed; {tracked}"
        )
        return 0
    committed = _committed()
    found = problems(committed, resolve(committed))
    for line in found:
        print(f"lock: {line}", file=sys.stderr)
    if not found:
        print(f"uv.lock: sealed, {len(pins(committed))} packages pinned and {len(hashes(committed))} files known")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
