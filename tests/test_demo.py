"""The demo ends with a page of pictures, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


def test_the_demo_writes_its_page(root: Path, tmp_path: Path) -> None:
    """A quick demo of two libraries prints its table and writes a page that needs no other file."""
    report = tmp_path / "report.html"
    command = [sys.executable, "tools/demo.py", "xfer", "ternary", "--report", str(report)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = report.read_text()
    assert "memory that reading all of it added to the reader" in page
    assert "float32" in page
    assert "src='http" not in page
    assert "<script" not in page


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_ends_with_the_fleet(root: Path, tmp_path: Path) -> None:
    """The last part serves a model and changes its version; its picture is in the page."""
    report = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "tools/demo.py", "fleet", "--report", str(report)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = report.read_text()
    assert "while a new version was rolled out</td><td>0</td>" in page
    assert "src='data:image/png;base64," in page
    assert "src='http" not in page


def command_line(process: psutil.Process) -> list[str]:
    """Return a process's command, or nothing if it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_interrupted_demo_leaves_nothing(root: Path, tmp_path: Path) -> None:
    """After Ctrl-C during solving, the exit status is 130 and all child processes end."""
    command = [sys.executable, "tools/demo.py", "ttt", "--report", str(tmp_path / "report.html")]
    process = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    demo = psutil.Process(process.pid)
    end = time.monotonic() + 120
    while not any("ttt._runs.worker" in command_line(child) for child in demo.children(recursive=True)):
        assert time.monotonic() < end, "no task was started"
        time.sleep(0.1)
    family = demo.children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out.decode()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
