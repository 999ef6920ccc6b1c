"""Workers, extensions and readers are killed at random: each answer is right or a typed error, and nothing leaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SECONDS = int(os.environ.get("DRILL_SECONDS", "20"))  # ten minutes every night


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_the_drill(root: Path, tmp_path: Path, extension: Callable[..., Path], wheels: Path) -> None:
    """All five libraries work while their processes are killed; no answer is wrong and nothing is left behind."""
    command = [sys.executable, "tests/parts/drill.py", str(extension("arrays", "pentad-xfer")), str(wheels)]
    report = tmp_path / "drill.json"
    command += ["--seconds", str(SECONDS), "--json", str(report)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["left"] == {"shared": [], "processes": [], "temporary": [], "descriptors": 0}
    assert set(found["right"]) == {"read", "serve", "plug in", "solve", "ray"}
    assert sum(found["killed"].values()) >= SECONDS / 6
    assert len(found["killed"]) >= 3
    assert sum(found["errors"].values()) >= 1
