"""Run every CUDA test and measurement with the running Python, installing nothing, within eight minutes.

    python tools/gpu_check.py                    with a GPU: a CUDA test that skips for lack of one fails
    python tools/gpu_check.py --rehearse         without a GPU: on the emulator and the CPU, with small sizes
    python tools/gpu_check.py --jobs 6           run so many suites at a time, where the machine has cores for it
    python tools/gpu_check.py --json FILE        also write outcome and measurements, for `tools/bench.py --gpu FILE`
    python tools/gpu_check.py --wheels FOLDER    gather wheels that a GPU machine may lack, for the next line
    python tools/gpu_check.py --use FOLDER       unpack these wheels beside what is installed

A machine with a GPU often has its own Python with torch and CuPy, and no network. This program needs only the standard
library, pytest, NumPy and torch. It imports the packages from their sources and compiles their cores. Test files whose
imports are missing are reported as not run, with the missing module.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("packages/xfer", "packages/ternary", "packages/zerocopy", "packages/ttt", "tests", "packages/isolate")
PACKAGES = ("xfer", "zerocopy", "isolate", "ternary", "ttt")
SECONDS = 480
FOR_MEASURING = 150
CARRIED = ("cloudpickle", "lark", "ml-dtypes", "msgspec", "psutil", "rich", "scikit-learn", "scipy", "sybil", "xxhash")
PYTHON = "3.12"
NO_TIME = "no time left"
SHOWN = 3  # failures of a suite whose text is printed; the JSON file has all of them

# The workspace's own settings name options of plugins that the machine may lack.
SETTINGS = """[pytest]
addopts = --import-mode=importlib -ra
pythonpath = {root}/tests/parts
markers =
    slow: performance constraints
    cuda: needs a CUDA device, or runs on the emulator
    timeout: seconds a test may take
    xdist_group: tests of one worker
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one suite's CUDA tests.

    Attributes:
        suite: The suite's folder.
        passed: Number of tests that passed.
        failed: Names of tests that failed, each with the end of its output.
        skipped: Names of tests that were skipped, each with the reason.
        lacking: Test files that could not be imported, each with the missing module.
        seconds: How long the suite took.
    """

    suite: str
    passed: int
    failed: dict[str, str]
    skipped: dict[str, str]
    lacking: dict[str, str]
    seconds: float


def environment(rehearse: bool, carried: Path | None) -> dict[str, str]:
    """Return the environment of tests and measurements: the sources first, then carried wheels, then stand-ins."""
    paths = [str(ROOT / "packages" / name / "src") for name in PACKAGES] + [str(ROOT / "tools" / "gpu")]
    paths += [str(carried)] if carried else []
    if importlib.util.find_spec("psutil") is None and not (carried and (carried / "psutil").exists()):
        paths.append(str(ROOT / "tools" / "gpu" / "without"))
    own = {"PYTHONPATH": os.pathsep.join(paths), "REQUIRE_CUDA": "0" if rehearse else "1", "PLUGINS_FROM_SOURCES": "1"}
    return os.environ | own


def compile_cores(env: dict[str, str]) -> None:
    """Compile the C cores beside their sources; without a compiler the packages work without them."""
    hatchling = "import sys, types\nfor name in ('hatchling', 'hatchling.builders', 'hatchling.builders.hooks', "
    hatchling += "'hatchling.builders.hooks.plugin', 'hatchling.builders.hooks.plugin.interface'):\n"
    hatchling += "    sys.modules[name] = types.ModuleType(name)\n"
    hatchling += "sys.modules['hatchling.builders.hooks.plugin.interface'].BuildHookInterface = object\n"
    code = hatchling + "import runpy, pathlib\nhook = runpy.run_path('hatch_build.py')\nroot = pathlib.Path.cwd()\n"
    code += "print(hook['compile_core'](root, root / hook['CORE']) or 'compiled')"

    def compile_one(hook: Path) -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=hook.parent, env=env, capture_output=True, text=True)
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        return f"core of {hook.parent.name}: {said[-1] if said else done.returncode}"

    with ThreadPoolExecutor() as compilers:
        print(*compilers.map(compile_one, sorted(ROOT.glob("packages/*/hatch_build.py"))), sep="\n", flush=True)


def check(suite: str, env: dict[str, str], limit: float) -> Outcome:
    """Run one suite's CUDA tests in a new process."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, settings = Path(folder) / "report.xml", Path(folder) / "pytest.ini"
        settings.write_text(SETTINGS.format(root=ROOT))
        options = ["-q", "-m", "cuda and not slow", "-p", "no:cacheprovider", "-p", "limit", "-c", str(settings)]
        options += [f"--rootdir={ROOT}", "--continue-on-collection-errors", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, str(ROOT / suite)]
        env = env | {"GPU_TEST_DEADLINE": str(time.time() + limit)}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=max(limit, 0) + 60
            )
            output = done.stdout[-4000:] + done.stderr[-4000:]
        except subprocess.TimeoutExpired as error:
            output = f"not done after {error.timeout:.0f} s"
        seconds = time.monotonic() - start
        if report.exists():
            return read(suite, report, seconds)
        missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", output)
        if missing:
            return Outcome(suite, 0, {}, {}, {suite: missing[1]}, seconds)
        return Outcome(suite, 0, {suite: output}, {}, {}, seconds)


def read(suite: str, report: Path, seconds: float) -> Outcome:
    """Read the outcome from a JUnit report."""
    passed, failed, skipped, lacking = 0, {}, {}, {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname') or ''}.{case.get('name')}".lstrip(".")
        bad = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        if bad is not None:
            text = bad.text or bad.get("message") or ""
            missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text)
            if bad.tag == "error" and missing and "collection" in (bad.get("message") or ""):
                lacking[name] = missing[1]
            else:
                failed[name] = text[-4000:]
        elif (skip := case.find("skipped")) is not None:
            message = skip.get("message") or ""
            # The reason why a whole file is skipped is the last part of the text.
            skipped[name] = (
                (skip.text or message).rpartition("Skipped: ")[2].rstrip("'\")") if "collection" in message else message
            )
        else:
            passed += 1
    return Outcome(suite, passed, failed, skipped, lacking, seconds)


def measure(rehearse: bool, env: dict[str, str], limit: float) -> dict[str, Any]:
    """Measure in a new process, which leaves the GPU's memory to the tests, and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, str(ROOT / "tools" / "gpu" / "measure.py"), str(file)]
        env = dict(env)
        if rehearse:
            command.append("--rehearse")
            emulator = ROOT / "packages" / "xfer" / "tests" / "emulator"
            env["PYTHONPATH"] = os.pathsep.join([str(emulator), env["PYTHONPATH"]])
            env["EMULATED_CUDA"] = folder
        try:
            subprocess.run(command, cwd=ROOT, env=env, timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            print(f"measurements were not done after {limit:.0f} s")
        result: dict[str, Any] = {"rows": [], "failed": {"all": "no result"}}
        return json.loads(file.read_text()) if file.exists() else result


def gather(folder: Path) -> int:
    """Download the wheels that a GPU machine may lack."""
    command = ["uv", "run", "--no-project", "--with", "pip", "python", "-m", "pip"]
    command += ["download", "--quiet", "--only-binary=:all:", "--python-version", PYTHON, "--no-deps"]
    command += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64", "-d", str(folder)]
    done = subprocess.run([*command, *CARRIED, "threadpoolctl", "joblib", "markdown-it-py", "mdurl", "narwhals"])
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) if folder.exists() else 0
    print(f"{size / 1e6:.0f} MB of wheels for Python {PYTHON} in {folder}")
    return done.returncode


def unpack(wheels: Path, into: Path) -> Path:
    """Unpack wheels; those that are installed already come first in any case."""
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    return into


def show(outcome: Outcome) -> None:
    """Print the outcome of a suite."""
    counts = f"{outcome.passed} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped"
    print(f"{outcome.suite}: {counts} in {outcome.seconds:.0f} s", flush=True)
    for number, (name, text) in enumerate(outcome.failed.items()):
        print(f"  failed {name}\n{text if number < SHOWN else ''}".rstrip())
    for reason in sorted(set(outcome.skipped.values())):
        print(f"  skipped {list(outcome.skipped.values()).count(reason)}: {reason}")
    for module in sorted(set(outcome.lacking.values())):
        files = [name for name, lacks in outcome.lacking.items() if lacks == module]
        print(f"  not run {len(files)}, which need {module}: {', '.join(files[:3])}{' …' * (len(files) > 3)}")


def main(argv: list[str] | None = None) -> int:
    """Run the suites and the measurements and print their outcomes; return 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"which: {', '.join(SUITES)} (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: on the emulator and the CPU")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="suites that run at a time (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome and the measurements")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="gather wheels into a folder and do no more")
    parser.add_argument("--use", type=Path, metavar="FOLDER", help="use the wheels of a folder")
    args = parser.parse_args(argv)
    if args.wheels:
        return gather(args.wheels)
    unknown = set(args.suites) - set(SUITES)
    if unknown:
        parser.error(f"no suite {sorted(unknown)}; there are {', '.join(SUITES)}")

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        env = environment(args.rehearse, unpack(args.use, Path(folder)) if args.use else None)
        compile_cores(env)

        def check_in_time(suite: str) -> Outcome:
            return check(suite, env, SECONDS - FOR_MEASURING - (time.monotonic() - start))

        outcomes = []
        with ThreadPoolExecutor(args.jobs) as suites:
            for outcome in suites.map(check_in_time, args.suites or SUITES):
                outcomes.append(outcome)
                show(outcome)
        measured = measure(args.rehearse, env, SECONDS - (time.monotonic() - start))
    print(f"done in {time.monotonic() - start:.0f} s of at most {SECONDS}")
    if args.json:
        result = measured | {"tests": [asdict(outcome) for outcome in outcomes], "rehearsed": args.rehearse}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    broken = {name: why for name, why in measured["failed"].items() if "ModuleNotFoundError" not in why}
    late = any(NO_TIME in reason for outcome in outcomes for reason in outcome.skipped.values())
    return 1 if late or broken or any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
