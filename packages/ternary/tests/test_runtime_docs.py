"""The examples of docs/runtime.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "runtime.md"


@pytest.mark.skipif(not PAGE.exists(), reason="these tests stand outside the source tree")
def test_examples_run(capsys) -> None:
    """Each block of Python on the page runs, and the doctor's report is printed."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), {})
    assert "active kernel" in capsys.readouterr().out
