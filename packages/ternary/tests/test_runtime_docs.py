"""The examples of docs/runtime.md run."""

from __future__ import annotations

import gc
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "runtime.md"


@pytest.mark.skipif(not PAGE.exists(), reason="these tests stand outside the source tree")
def test_examples_run(capsys) -> None:
    """Each block of Python on the page runs, and the doctor's report is printed."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), {})
    assert "active kernel" in capsys.readouterr().out


@pytest.mark.skipif(not PAGE.exists(), reason="these tests stand outside the source tree")
def test_examples_of_language_models_run(tmp_path, monkeypatch, capsys) -> None:
    """The blocks of docs/language-models.md run from top to bottom; one needs the extra "share"."""
    monkeypatch.chdir(tmp_path)
    page = PAGE.with_name("language-models.md")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        if "import zerocopy" not in block or find_spec("zerocopy") is not None:
            exec(compile(block, str(page), "exec"), names)
    assert "(3, 64)" in capsys.readouterr().out
    names.clear()
    gc.collect()
