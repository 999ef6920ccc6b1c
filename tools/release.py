"""Tie a package's tag, its pyproject version and its CHANGELOG heading together.

    uv run tools/release.py status                  each package: version, CHANGELOG heading, its next tag
    uv run tools/release.py check xfer-v0.1.0       0 if that tag may be published, else 1 with what disagrees

To release: write the version into packages/X/pyproject.toml, head the CHANGELOG with `## VERSION (YYYY-MM-DD)`, commit,
and push the tag X-vVERSION. The release workflow runs `check` before it builds anything.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_TAG = re.compile(r"(?P<package>[a-z]+)-v(?P<version>\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?)")
_HEADING = re.compile(r"^## (?P<version>\S+) \((?P<date>[^)]*)\)$", re.MULTILINE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def version(package: str, root: Path = ROOT) -> str:
    """The static version in a package's pyproject.toml."""
    project = tomllib.loads((root / "packages" / package / "pyproject.toml").read_text())["project"]
    found: str = project["version"]
    return found


def heading(package: str, root: Path = ROOT) -> tuple[str, str]:
    """The newest CHANGELOG heading of a package: (version, what stands in the brackets); empty strings if none."""
    match = _HEADING.search((root / "packages" / package / "CHANGELOG.md").read_text())
    return (match["version"], match["date"]) if match else ("", "")


def disagreements(tag: str, root: Path = ROOT) -> list[str]:
    """Why this tag may not be published, in words; empty when it may."""
    match = _TAG.fullmatch(tag)
    if match is None:
        return [f"tag {tag!r} is not PACKAGE-vX.Y.Z, as in xfer-v1.2.3"]
    package, tagged = match["package"], match["version"]
    if not (root / "packages" / package / "pyproject.toml").exists():
        known = sorted(path.parent.name for path in root.glob("packages/*/pyproject.toml"))
        return [f"tag {tag!r} names no package; there are {', '.join(known)}"]
    found = []
    stated = version(package, root)
    if stated != tagged:
        found.append(f"packages/{package}/pyproject.toml has version {stated}, the tag {tagged}")
    written, date = heading(package, root)
    if written != tagged:
        found.append(f"packages/{package}/CHANGELOG.md begins with {written or 'no heading'}, the tag {tagged}")
    elif not _DATE.fullmatch(date):
        found.append(f"packages/{package}/CHANGELOG.md dates {tagged} {date!r}; wanted YYYY-MM-DD")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="every package")
    commands.add_parser("check", help="one tag").add_argument("tag")
    args = parser.parse_args(argv)
    if args.command == "check":
        found = disagreements(args.tag)
        for line in found:
            print(f"release: {line}", file=sys.stderr)
        if not found:
            print(f"{args.tag}: tag, pyproject and CHANGELOG agree")
        return 1 if found else 0
    for project in sorted(ROOT.glob("packages/*/pyproject.toml")):
        package = project.parent.name
        written, date = heading(package)
        print(f"{package:10} {version(package):10} changelog {written} ({date})  tag {package}-v{version(package)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
