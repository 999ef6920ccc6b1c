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
        (["packages/mutations.md"], (), True),
        (["packages/ternary/src/ternary/errors.py"], ("ternary",), True),
        (["packages/xfer/README.md"], ("isolate", "xfer"), True),
        (["packages/zerocopy/tests/test_x.py"], ("ternary", "ttt", "zerocopy"), True),
        (["packages/gone/src/gone/x.py"], (), True),
        (["tests/conftest.py"], (), True),
        (["examples/fleet/gateway.py"], (), True),
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


def test_no_job_contradicts_a_promise(tool: Tool) -> None:
    """Each promised system has its jobs, an import-only system runs no package tests, and others have no job."""
    plan = tool("ci_plan")
    promised = {"xfer": {"linux": "full", "macos": "partial", "windows": "import"}, "ternary": {"linux": "full"}}
    rows = plan.matrix(plan.Plan(("ternary", "xfer"), True), promised, "integration")
    jobs = {(row["package"], row["os"], row["tests"]) for row in rows}
    assert jobs == {
        ("ternary", "ubuntu-latest", "packages/ternary"),
        ("xfer", "ubuntu-latest", "packages/xfer"),
        ("xfer", "macos-latest", "packages/xfer"),
        ("xfer", "windows-latest", "tests/test_systems.py -k xfer"),
    }
    assert len(rows) == 4 * len(plan.PYTHONS)
    quick = plan.matrix(plan.Plan(("ternary", "xfer"), True), promised, "quick")
    assert {(row["os"], row["python"]) for row in quick} == {("ubuntu-latest", "3.11")}


def test_promises_are_complete_and_agree_with_the_metadata(tool: Tool, root: Path) -> None:
    """Each package promises a known level on each system, and its classifiers name the systems on which it works."""
    plan = tool("ci_plan")
    names = {"linux": ("POSIX :: Linux",), "macos": ("MacOS",), "windows": ("Microsoft :: Windows",)}
    for package, promised in plan.promises().items():
        assert set(promised) == set(plan.RUNNERS), package
        assert set(promised.values()) <= set(plan.LEVELS), package
        text = (root / "packages" / package / "pyproject.toml").read_text()
        everywhere = "Operating System :: OS Independent" in text
        for system, level in promised.items():
            named = everywhere or any(f"Operating System :: {name}" in text for name in names[system])
            assert named is (level != "import"), (package, system)


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
    row = {"package": "ternary", "level": "full", "os": "windows-latest", "python": "3.13", "tests": "packages/ternary"}
    assert row in rows
