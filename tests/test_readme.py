"""The README's examples run, as they stand and from top to bottom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_the_examples_of_the_readme_run(root: Path, tmp_path: Path) -> None:
    """All Python blocks, in order, in one fresh process and an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    script = tmp_path / "readme.py"
    # Worker processes may import the main module again.
    body = "\n".join(blocks).replace("\n", "\n    ")
    script.write_text(f'if __name__ == "__main__":\n    {body}\n')
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"67a3c6ac"' in (tmp_path / "submission.json").read_text()
