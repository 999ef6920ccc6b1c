"""The program for GPU machines, tried without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest

ROOT = Path(__file__).parent.parent
Tool = Callable[[str], ModuleType]


def test_the_stand_in_says_what_psutil_says(tool: Tool, tmp_path: Path) -> None:
    """Leak checks see the same with the part of psutil that stands in for it."""
    standin, file = tool("gpu/without/psutil"), tmp_path / "open"
    with file.open("w"), subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        ours, theirs = standin.Process(), psutil.Process()
        # Other threads open and close files: the same number on both sides of ours counts.
        counts = [(theirs.num_fds(), ours.num_fds(), theirs.num_fds()) for _ in range(100)]
        assert any(len(set(count)) == 1 for count in counts), counts[-1]
        assert {one.path for one in ours.open_files()} >= {one.path for one in theirs.open_files()} >= {str(file)}
        assert child.pid in {one.pid for one in ours.children()}
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait() == 0


def test_cores_are_compiled_by_the_packages_own_hooks(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    """A hook that changes its face is noticed here and not on a borrowed machine."""
    tool("gpu_check").compile_cores(os.environ | {})
    hooks = sorted(hook.parent.name for hook in ROOT.glob("packages/*/hatch_build.py"))
    assert capsys.readouterr().out.splitlines() == [f"core of {name}: compiled" for name in hooks]


BENCHMARK_OPTIONS = "min-time max-time min-rounds timer warmup warmup-iterations only skip disable enable json compare"


@pytest.mark.slow
def test_suites_start_beside_plugins_of_others(tool: Tool, tmp_path: Path) -> None:
    """A machine with a GPU often has pytest-benchmark, whose options no suite may take for itself."""
    (tmp_path / "elsewhere.py").write_text(
        "def pytest_addoption(parser):\n"
        f"    for name in {BENCHMARK_OPTIONS.split()}:\n"
        "        parser.getgroup('benchmark').addoption('--benchmark-' + name, dest='theirs_' + name)\n"
    )
    made = tmp_path / "pytest_benchmark-5.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: pytest-benchmark\nVersion: 5.0\n")
    (made / "entry_points.txt").write_text("[pytest11]\nbenchmark = elsewhere\n")
    check = tool("gpu_check")
    settings = tmp_path / "pytest.ini"
    settings.write_text(check.SETTINGS.format(root=ROOT))
    env = check.environment(True, tmp_path)
    suites = [str(ROOT / (suite if suite == "tests" else f"{suite}/tests")) for suite in check.SUITES]
    command = [sys.executable, "-m", "pytest", "--markers", "-p", "limit", "-c", str(settings), f"--rootdir={ROOT}"]
    done = subprocess.run([*command, *suites], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_group_is_measured_on_the_emulator(tool: Tool) -> None:
    """No measurement fails for anything but the lack of a GPU."""
    check = tool("gpu_check")
    result = check.measure(True, check.environment(True, None), 300)
    assert result["failed"] == {}
    assert {row["package"] for row in result["rows"]} == {"xfer", "zerocopy", "ternary", "ttt"}
    assert all(row["value"] > 0 for row in result["rows"])
