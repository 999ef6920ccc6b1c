"""The examples of the README and of the guides run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ternary

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch deprecates parts of itself
@pytest.mark.parametrize("name", ["README.md", "docs/language.md"])
def test_python_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of a document, one after another in one namespace, in an empty directory."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), space)
    assert blocks


@pytest.mark.parametrize("name", ["README.md", "docs/language.md"])
def test_programs_in_documents_check(name: str) -> None:
    """Every program shown is right and in the canonical form."""
    for program in re.findall(r"```tri\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        assert ternary.check(program) == ()
        assert ternary.format_source(program) == program


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.tri")), ids=lambda p: p.name)
def test_examples_check(path: Path) -> None:
    """Every example is right and in the canonical form."""
    assert ternary.check(path) == ()
    assert ternary.format_source(path) == path.read_text(encoding="utf-8")
