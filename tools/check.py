"""Run all checks except the workspace's own tests, and print a table of the results.

    uv run tools/check.py                   style, types, imports, workflows, CUDA, the site, every package alone
    uv run tools/check.py style types       only these
    uv run tools/check.py alone --package ttt
    uv run tools/check.py coverage          not part of the default: the tests run once more

style      ruff: lint and format
types      mypy --strict, each package's src on its own, the tools, the fleet; pyright knows the types of public names
imports    import-linter: what a package and its rooms must not import
workflows  .github/workflows against GitHub's schema, and zizmor's security audit, both offline
cuda       each function with a path for CUDA is run by something in the tests
site       the documentation builds without a warning
alone      each package as a wheel in an empty environment outside the workspace: it imports with nothing but its own
           dependencies, and its tests pass with its dev extra
coverage   each package's tests cover the percentage of lines that its pyproject demands; writes coverage.xml

Versions are those of uv.lock. torch is a CPU build: from UV_FIND_LINKS or PIP_FIND_LINKS if one offers it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(project.parent.name for project in ROOT.glob("packages/*/pyproject.toml"))
# The least share of public names whose types a type checker must know.
KNOWN_TYPES = 0.98
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check that ran: its name, its seconds, and its output if it failed."""

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
    tools = ROOT / "tools"
    files = [*sorted(tools.glob("*.py")), *sorted(tools.glob("gpu/*.py"))]
    yield run("mypy tools", ["mypy", *map(str, files)], env=os.environ | {"MYPYPATH": str(tools)})
    fleet = ROOT / "examples" / "fleet"
    files = [*sorted(fleet.glob("*.py")), *sorted(fleet.glob("trial/*.py"))]
    yield run("mypy fleet", ["mypy", *map(str, files)], env=os.environ | {"MYPYPATH": str(fleet)})
    for package in packages:
        yield _public_types(package)


def _public_types(package: str) -> Outcome:
    """Whether a type checker knows the types of nearly all public names; basedpyright is pyright without a download."""
    start = time.perf_counter()
    name = f"public types of {package}"
    sources = os.pathsep.join(str(path) for path in sorted(ROOT.glob("packages/*/src")))
    programs = str(Path(sys.executable).parent)
    env = os.environ | {"PYTHONPATH": sources, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")])}
    command = ["basedpyright", "--verifytypes", package, "--ignoreexternal", "--outputjson"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    found = json.loads(done.stdout or "{}").get("typeCompleteness", {"completenessScore": 0, "symbols": []})
    unknown = [
        f"{symbol['name']}: {problem['message'].splitlines()[0]}"
        for symbol in found["symbols"]
        for problem in symbol["diagnostics"]
    ]
    known = found["completenessScore"]
    failure = None if known >= KNOWN_TYPES else "\n".join([f"{known:.1%} are known", *unknown, done.stderr])
    outcome = Outcome(name, time.perf_counter() - start, failure)
    shown = f"({known:.1%}, {outcome.seconds:.0f} s)"
    console.print(f"{'[red]failed[/]' if failure else '[green]ok[/]'} {name} {shown}")
    if failure:
        console.print(failure[-40000:], markup=False, soft_wrap=True)
    return outcome


def imports(_: list[str]) -> Iterator[Outcome]:
    """The contracts of import-linter hold."""
    yield run("import-linter", ["lint-imports"])


def workflows(_: list[str]) -> Iterator[Outcome]:
    """The workflows fit GitHub's schema and pass a security audit; neither needs a network."""
    files = [str(path) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))]
    yield run("workflow schema", ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files])
    yield run("zizmor", ["zizmor", "--offline", "--no-progress", ".github/workflows"])


def cuda(_: list[str]) -> Iterator[Outcome]:
    """Each function with a path for CUDA is run by a test, on a GPU or without."""
    yield run("CUDA branches", [sys.executable, "tools/cuda_branches.py"])


def site(_: list[str]) -> Iterator[Outcome]:
    """The documentation builds without a warning."""
    with tempfile.TemporaryDirectory(prefix="pentad-site-") as folder:
        yield run("site", [sys.executable, "tools/docs.py", "--out", folder])


def alone(packages: list[str]) -> Iterator[Outcome]:
    """Each package works as a wheel outside the workspace, with its own dependencies only."""
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT")}
    # Under `uv run`, Ray would start its workers by the same `uv run`, in this environment instead of the wheel's.
    env["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    with tempfile.TemporaryDirectory(prefix="pentad-check-") as folder:
        base = Path(folder)
        wheels = base / "wheels"
        # An extra finds a sibling here, as it would on an index.
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
    # As deep as in the repository: pytest names test modules by their path, and a folder with the package's name at its
    # root would shadow the package.
    place = base / "packages" / package
    # Without src, imports can only find the wheel.
    shutil.copytree(ROOT / "packages" / package, place, ignore=shutil.ignore_patterns("src", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", base / "pyproject.toml")
    venv = place / ".venv"
    python = str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    wheel = next(wheels.glob(f"pentad_{package}-*.whl"))
    install = ["uv", "pip", "install", "--quiet", "--python", python, "--constraints", str(pins)]
    if not (os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")):
        install += ["--torch-backend", "cpu"]
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


def coverage(packages: list[str]) -> Iterator[Outcome]:
    """Each package's tests cover enough lines of it, and of the parts that its pyproject names."""
    for package in packages:
        project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())
        floors: dict[str, int] = project["tool"]["pentad"]["coverage"]
        with tempfile.TemporaryDirectory(prefix="pentad-coverage-") as folder:
            data = os.environ | {"COVERAGE_FILE": str(Path(folder) / "data")}
            tests = ["pytest", "-q", f"--cov={package}", "--cov-report=xml", f"packages/{package}"]
            yield run(f"coverage of {package}", [sys.executable, "-m", *tests], env=data)
            for part, floor in floors.items():
                report = ["coverage", "report", f"--include=*/src/{part}/*", f"--fail-under={floor}"]
                yield run(f"{part} >= {floor} %", [sys.executable, "-m", *report], env=data)


CHECKS: dict[str, Callable[[list[str]], Iterator[Outcome]]] = {
    "style": style,
    "types": types,
    "imports": imports,
    "workflows": workflows,
    "cuda": cuda,
    "site": site,
    "alone": alone,
    "coverage": coverage,
}
DEFAULT = [name for name in CHECKS if name != "coverage"]


def main(argv: list[str] | None = None) -> int:
    """Run the chosen checks; return 0 if all pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"which: {', '.join(CHECKS)}")
    parser.add_argument("--package", action="append", choices=PACKAGES, help="only this package (repeatable)")
    args = parser.parse_args(argv)
    unknown = set(args.checks) - CHECKS.keys()
    if unknown:
        parser.error(f"no check is called {sorted(unknown)}; there are {', '.join(CHECKS)}")

    outcomes = [outcome for name in (args.checks or DEFAULT) for outcome in CHECKS[name](args.package or PACKAGES)]
    table = Table("check", "seconds", "result", title="checks")
    for outcome in outcomes:
        table.add_row(outcome.name, f"{outcome.seconds:.1f}", "[red]failed[/]" if outcome.failure else "[green]ok[/]")
    console.print(table)
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
