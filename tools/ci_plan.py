"""Plan which tests a change needs, and on which systems.

    git diff --name-only origin/main... | python3 tools/ci_plan.py            print a JSON object
    git diff --name-only origin/main... | python3 tools/ci_plan.py --github   print lines for $GITHUB_OUTPUT
    python3 tools/ci_plan.py --all --tier integration                         as if everything had changed

The plan depends on the changed paths and on what each package's pyproject.toml promises per system (table
`tool.pentad.systems`). A package's own files select that package and the packages that offer it as an extra. Files that
only the tests across packages read select those tests. Other prose and the workflows select nothing; the job `checks`
runs for every change. All other files select everything.

The tiers: `quick` runs on every commit, on Linux with the oldest Python; `integration` runs on pull requests, on every
promised system and Python. A package that only imports on a system runs nothing there but tests/test_systems.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("isolate", "ternary", "ttt", "xfer", "zerocopy")
RUNNERS = {"linux": "ubuntu-latest", "macos": "macos-latest", "windows": "windows-latest"}
PYTHONS = ("3.11", "3.12", "3.13")
TIERS = ("quick", "integration")
LEVELS = ("full", "partial", "import")

# Which packages offer a package as an extra: a change of the key can break the values.
USERS = {"xfer": ("isolate",), "zerocopy": ("ternary", "ttt")}
_PROSE = {"CONTRIBUTING.md", "LICENSE", ".gitignore"}
# The tests across packages run the examples of the first, and compare the others with what they are made of.
_READ_BY_TESTS = {"README.md", "packages/benchmarks.md", "packages/mutations.md"}

Promises = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Plan:
    """The packages whose tests run, and whether the tests across packages run."""

    packages: tuple[str, ...]
    integration: bool


def plan(paths: Iterable[str]) -> Plan:
    """Return the plan for a change of these paths, each relative to the repository with forward slashes."""
    packages: set[str] = set()
    integration = False
    for path in paths:
        parts = PurePosixPath(path).parts
        if not parts or path in _PROSE or parts[0] == ".github":
            continue
        if parts[0] == "packages" and len(parts) > 2:
            if parts[1] in PACKAGES:
                packages |= {parts[1], *USERS.get(parts[1], ())}
            integration = True
        elif parts[0] in ("tests", "examples") or path in _READ_BY_TESTS:
            integration = True
        else:
            # pyproject.toml, uv.lock, tools/, .ci/ and every unknown path.
            packages |= set(PACKAGES)
            integration = True
    return Plan(tuple(sorted(packages)), integration)


def promises(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Return what each package promises on each system: "full", "partial" or "import"."""
    found = {}
    for package in PACKAGES:
        project = tomllib.loads((root / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))
        found[package] = dict(project["tool"]["pentad"]["systems"])
    return found


def matrix(chosen: Plan, promised: Promises, tier: str) -> list[dict[str, str]]:
    """Return one row per job: package, promised level, runner, Python and the tests to run.

    Args:
        chosen: The plan.
        promised: What each package promises on each system.
        tier: "quick" or "integration".
    """
    return [
        {
            "package": package,
            "level": promised[package][system],
            "os": RUNNERS[system],
            "python": python,
            "tests": f"tests/test_systems.py -k {package}"
            if promised[package][system] == "import"
            else f"packages/{package}",
        }
        for package in chosen.packages
        for system in (RUNNERS if tier == "integration" else ("linux",))
        for python in (PYTHONS if tier == "integration" else PYTHONS[:1])
        if system in promised[package]
    ]


def main(argv: list[str] | None = None) -> int:
    """Read paths from stdin and print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--github", action="store_true", help="print lines of NAME=JSON, for $GITHUB_OUTPUT")
    parser.add_argument("--all", action="store_true", help="plan as if everything had changed")
    parser.add_argument("--tier", choices=TIERS, default="integration", help="(default: integration)")
    args = parser.parse_args(argv)
    paths = ["pyproject.toml"] if args.all else [line.strip() for line in sys.stdin if line.strip()]
    chosen = plan(paths)
    rows = matrix(chosen, promises(), args.tier)
    fields = {**asdict(chosen), "integration": chosen.integration and args.tier == "integration", "matrix": rows}
    if args.github:
        for name, value in fields.items():
            print(f"{name}={json.dumps(value)}")
    else:
        print(json.dumps(fields, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
