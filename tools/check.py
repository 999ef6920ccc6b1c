"""Every check but the workspace's own tests, with one table at the end.

    uv run tools/check.py                   style, types, imports, workflows, the site, and every package alone
    uv run tools/check.py style types       only these
    uv run tools/check.py alone --package ttt

style      ruff: lint and format
types      mypy --strict, each package's src by itself, and the tools
imports    import-linter: no package imports a sibling
workflows  .github/workflows against GitHub's schema, and zizmor's security audit, both offline
site       the documentation, whose warnings are errors
alone      each package as a wheel in an empty environment outside the workspace: first with nothing but its own hard
           dependencies (it imports), then with its dev extra (its tests pass)

Versions are those of uv.lock. A CPU build of torch is taken where UV_FIND_LINKS or PIP_FIND_LINKS offers one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(project.parent.name for project in ROOT.glob("packages/*/pyproject.toml"))
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check that ran: what it is called, how long it took in seconds, and what it printed if it failed."""

    name: str
    seconds: float
    failure: str | None


def run(name: str, *commands: list[str], cwd: Path = ROOT, env: dict[str, str] | None = None) -> Outcome:
    """Run commands one after the other; the first that fails ends the check with its output."""
    start = time.perf_counter()
    env = dict(env or os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    failure = None
    for command in commands:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        if done.returncode:
            failure = f"$ {' '.join(command)}\n{done.stdout}{done.stderr}"
            break
    outcome = Outcome(name, time.perf_counter() - start, failure)
    console.print(f"{'[red]failed[/]' if failure else '[green]ok[/]'} {name} ({outcome.seconds:.0f} s)")
    if failure:
        console.print(failure[-40000:], markup=False, soft_wrap=True)
    return outcome


def style(_: list[str]) -> Iterator[Outcome]:
    """Lint and format of everything."""
    yield run("ruff check", ["ruff", "check", "."])
    yield run("ruff format", ["ruff", "format", "--check", "."])


def types(packages: list[str]) -> Iterator[Outcome]:
    """Strict types of each package's src, and of the tools."""
    for package in packages:
        yield run(f"mypy {package}", ["mypy", f"packages/{package}/src/{package}"])
    yield run("mypy tools", ["mypy", *map(str, sorted((ROOT / "tools").glob("*.py")))])


def imports(_: list[str]) -> Iterator[Outcome]:
    """No package imports a sibling."""
    yield run("import-linter", ["lint-imports"])


def workflows(_: list[str]) -> Iterator[Outcome]:
    """GitHub's schema and a security audit, neither of which needs a network."""
    files = [str(path) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))]
    yield run("workflow schema", ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files])
    yield run("zizmor", ["zizmor", "--offline", "--no-progress", ".github/workflows"])


def site(_: list[str]) -> Iterator[Outcome]:
    """The documentation builds without a warning."""
    with tempfile.TemporaryDirectory(prefix="pentad-site-") as folder:
        yield run("site", [sys.executable, "tools/docs.py", "--out", folder])


def alone(packages: list[str]) -> Iterator[Outcome]:
    """Each package's wheel, outside the workspace, with only what it asks for."""
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT")}
    # Under `uv run`, Ray would start its workers by the same `uv run`, in this environment instead of the wheel's.
    env["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    with tempfile.TemporaryDirectory(prefix="pentad-check-") as folder:
        base = Path(folder)
        wheels = base / "wheels"
        # A sibling wanted by an extra is found here, as an index would offer it.
        offered = env.get("UV_FIND_LINKS", "").split(",") + env.get("PIP_FIND_LINKS", "").split()
        env["UV_FIND_LINKS"] = ",".join([str(wheels), *filter(None, offered)])
        builds = [
            ["uv", "build", "--quiet", "--wheel", "-o", str(wheels), f"packages/{package}"] for package in PACKAGES
        ]
        yield run("build wheels", *builds)
        pins = base / "pins.txt"
        yield run("export pins", ["uv", "export", "--quiet", "--no-hashes", "--no-emit-workspace", "-o", str(pins)])
        for package in packages:
            yield _wheel_tests(package, base, wheels, pins, env)


def _wheel_tests(package: str, base: Path, wheels: Path, pins: Path, env: dict[str, str]) -> Outcome:
    # As deep as in the repository: pytest names test modules by their path, and a folder with the package's name at the
    # root of that path would shadow the package.
    place = base / "packages" / package
    # The package's folder without its src: nothing but the wheel can satisfy the imports.
    shutil.copytree(ROOT / "packages" / package, place, ignore=shutil.ignore_patterns("src", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", base / "pyproject.toml")
    venv = place / ".venv"
    python = str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    wheel = next(wheels.glob(f"pentad_{package}-*.whl"))
    install = ["uv", "pip", "install", "--quiet", "--python", python, "--constraints", str(pins)]
    outcome = run(
        f"{package} alone",
        ["uv", "venv", "--quiet", "--python", sys.executable, str(venv)],
        [*install, str(wheel)],
        [python, "-I", "-c", f"import {package}"],
        [*install, f"{wheel}[dev]"],
        [
            python,
            "-m",
            "pytest",
            "-q",
            "-c",
            str(base / "pyproject.toml"),
            "--rootdir",
            str(base),
            str(place / "tests"),
        ],
        cwd=place,
        env=env,
    )
    shutil.rmtree(place, ignore_errors=True)
    return outcome


CHECKS: dict[str, Callable[[list[str]], Iterator[Outcome]]] = {
    "style": style,
    "types": types,
    "imports": imports,
    "workflows": workflows,
    "site": site,
    "alone": alone,
}


def main(argv: list[str] | None = None) -> int:
    """Run the checks asked for; 0 when all pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"which: {', '.join(CHECKS)} (default: all)")
    parser.add_argument("--package", action="append", choices=PACKAGES, help="only this package (repeatable)")
    args = parser.parse_args(argv)
    unknown = set(args.checks) - CHECKS.keys()
    if unknown:
        parser.error(f"no check is called {sorted(unknown)}; there are {', '.join(CHECKS)}")

    outcomes = [outcome for name in (args.checks or CHECKS) for outcome in CHECKS[name](args.package or PACKAGES)]
    table = Table("check", "seconds", "result", title="checks")
    for outcome in outcomes:
        table.add_row(outcome.name, f"{outcome.seconds:.1f}", "[red]failed[/]" if outcome.failure else "[green]ok[/]")
    console.print(table)
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
