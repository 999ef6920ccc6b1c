"""The program for GPU machines, tried without one."""

from __future__ import annotations

import os
import subprocess
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
        assert ours.num_fds() == theirs.num_fds()
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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_group_is_measured_on_the_emulator(tool: Tool) -> None:
    """No measurement fails for anything but the lack of a GPU."""
    check = tool("gpu_check")
    result = check.measure(True, check.environment(True, None), 300)
    assert result["failed"] == {}
    assert {row["package"] for row in result["rows"]} == {"xfer", "zerocopy", "ternary", "ttt"}
    assert all(row["value"] > 0 for row in result["rows"])
