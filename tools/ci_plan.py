"""From the paths that a change touches to the packages whose tests must run.

    git diff --name-only origin/main... | uv run tools/ci_plan.py            a JSON object on stdout
    git diff --name-only origin/main... | uv run tools/ci_plan.py --github   the same as lines for $GITHUB_OUTPUT

The plan is a pure function of the paths. A package's own files mean that package and those that offer it as an extra;
what only the suite across packages reads means that suite; other prose at the top means none, and neither do the
workflows, which the job `checks` looks at whatever changed; everything else means all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

PACKAGES = ("isolate", "ternary", "ttt", "xfer", "zerocopy")
SYSTEMS = ("ubuntu-latest", "macos-latest", "windows-latest")
PYTHONS = ("3.11", "3.12", "3.13")

# Who offers whom as an extra: a change of the value's package can break the key.
USERS = {"xfer": ("isolate",), "zerocopy": ("ttt",)}
_PROSE = {"CONTRIBUTING.md", "LICENSE", ".gitignore"}
# The suite across packages runs the examples of the one, and holds both to the published benchmarks.
_READ_BY_TESTS = {"README.md", "packages/benchmarks.md"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a change needs: package names for the matrix, and whether the suite across packages runs."""

    packages: tuple[str, ...]
    integration: bool


def plan(paths: Iterable[str]) -> Plan:
    """The plan for a change of these paths, each relative to the repository's root with forward slashes."""
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
        elif parts[0] == "tests" or path in _READ_BY_TESTS:
            integration = True
        else:
            # pyproject.toml, uv.lock, tools/, .ci/ and whatever has no name here yet: all of it.
            packages |= set(PACKAGES)
            integration = True
    return Plan(tuple(sorted(packages)), integration)


def matrix(chosen: Plan) -> list[dict[str, str]]:
    """One row per job of the test matrix."""
    return [
        {"package": package, "os": system, "python": python}
        for package in chosen.packages
        for system in SYSTEMS
        for python in PYTHONS
    ]


def main(argv: list[str] | None = None) -> int:
    """Read paths from stdin, print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--github", action="store_true", help="lines of NAME=JSON, for $GITHUB_OUTPUT")
    parser.add_argument("--all", action="store_true", help="as if everything had changed")
    args = parser.parse_args(argv)
    paths = ["pyproject.toml"] if args.all else [line.strip() for line in sys.stdin if line.strip()]
    chosen = plan(paths)
    fields = {**asdict(chosen), "matrix": matrix(chosen)}
    if args.github:
        for name, value in fields.items():
            print(f"{name}={json.dumps(value)}")
    else:
        print(json.dumps(fields, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
