"""Run every CUDA test with the running Python, installing nothing.

    python tools/gpu_check.py                 with a GPU: a test that skips for lack of one fails
    python tools/gpu_check.py --rehearse      without a GPU: show what would run and which modules are missing
    python tools/gpu_check.py --json FILE     also write the outcome as JSON

A machine with a GPU often has its own Python with torch and CuPy, and no network. This program therefore needs only the
standard library and pytest, and imports the packages from their sources. A test file whose imports are missing is
reported as not run, with the missing module.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("packages/xfer", "packages/zerocopy", "packages/isolate", "packages/ternary", "packages/ttt", "tests")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one suite's CUDA tests.

    Attributes:
        suite: The suite's folder.
        passed: Number of tests that passed.
        failed: Names of tests that failed, each with the end of its output.
        skipped: Names of tests that were skipped, each with the reason.
        lacking: Test files that could not be imported, each with the missing module.
    """

    suite: str
    passed: int
    failed: dict[str, str]
    skipped: dict[str, str]
    lacking: dict[str, str]


def check(suite: str, rehearse: bool) -> Outcome:
    """Run one suite's CUDA tests in a new process."""
    sources = [str(ROOT / "packages" / name / "src") for name in ("xfer", "zerocopy", "isolate", "ternary", "ttt")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sources), "REQUIRE_CUDA": "0" if rehearse else "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", suite]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if not report.exists():
            return Outcome(suite, 0, {suite: done.stdout[-4000:] + done.stderr[-4000:]}, {}, {})
        return read(suite, report)


def read(suite: str, report: Path) -> Outcome:
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
            skipped[name] = skip.get("message") or ""
        else:
            passed += 1
    return Outcome(suite, passed, failed, skipped, lacking)


def main(argv: list[str] | None = None) -> int:
    """Run the suites and print their outcomes; return 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"which: {', '.join(SUITES)} (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: skip instead of failing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome")
    args = parser.parse_args(argv)
    unknown = set(args.suites) - set(SUITES)
    if unknown:
        parser.error(f"no suite {sorted(unknown)}; there are {', '.join(SUITES)}")

    outcomes = []
    for suite in args.suites or SUITES:
        outcome = check(suite, args.rehearse)
        outcomes.append(outcome)
        print(f"{suite}: {outcome.passed} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped")
        for name, text in outcome.failed.items():
            print(f"  failed {name}\n{text}")
        for reason in sorted(set(outcome.skipped.values())):
            print(f"  skipped {list(outcome.skipped.values()).count(reason)}: {reason}")
        for name, module in outcome.lacking.items():
            print(f"  not run {name}: needs {module}, which is not installed here")
    if args.json:
        args.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
