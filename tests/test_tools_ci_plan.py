"""The CI plan: changed paths decide which packages' tests run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Tool = Callable[[str], ModuleType]
ALL = ("isolate", "ternary", "ttt", "xfer", "zerocopy")


@pytest.mark.parametrize(
    ("paths", "packages", "integration"),
    [
        ([], (), False),
        (["CONTRIBUTING.md", "LICENSE"], (), False),
        (["README.md"], (), True),
        (["packages/benchmarks.md"], (), True),
        (["packages/ternary/src/ternary/errors.py"], ("ternary",), True),
        (["packages/xfer/README.md"], ("isolate", "xfer"), True),
        (["packages/zerocopy/tests/test_x.py"], ("ttt", "zerocopy"), True),
        (["packages/gone/src/gone/x.py"], (), True),
        (["tests/conftest.py"], (), True),
        ([".github/workflows/ci.yml"], (), False),
        (["pyproject.toml"], ALL, True),
        (["uv.lock"], ALL, True),
        ([".ci/run"], ALL, True),
        (["something/new.py"], ALL, True),
    ],
)
def test_plan(tool: Tool, paths: list[str], packages: tuple[str, ...], integration: bool) -> None:
    """Each kind of path, changed alone, plans the packages that it affects."""
    chosen = tool("ci_plan").plan(paths)
    assert (chosen.packages, chosen.integration) == (packages, integration)


def test_packages_are_those_that_exist(tool: Tool, root: Path) -> None:
    """The tool lists every package in packages/."""
    assert list(tool("ci_plan").PACKAGES) == sorted(p.parent.name for p in root.glob("packages/*/pyproject.toml"))


def test_users_are_those_that_declare_the_extra(tool: Tool, root: Path) -> None:
    """The table of users lists exactly the siblings that packages name in their extras."""
    declared: dict[str, set[str]] = {}
    for package in ALL:
        text = (root / "packages" / package / "pyproject.toml").read_text()
        for sibling in set(ALL) - {package}:
            if f'"pentad-{sibling}>' in text:
                declared.setdefault(sibling, set()).add(package)
    assert {name: set(users) for name, users in tool("ci_plan").USERS.items()} == declared


def test_command_line_reads_paths_and_writes_github_output(root: Path) -> None:
    """As the workflow calls it, the tool reads paths on stdin and writes NAME=JSON lines on stdout."""
    out = subprocess.run(
        [sys.executable, "tools/ci_plan.py", "--github"],
        cwd=root,
        input="packages/ternary/pyproject.toml\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    fields = dict(line.split("=", 1) for line in out.splitlines())
    assert json.loads(fields["packages"]) == ["ternary"]
    rows = json.loads(fields["matrix"])
    assert len(rows) == 9
    assert {"package": "ternary", "os": "windows-latest", "python": "3.13"} in rows
