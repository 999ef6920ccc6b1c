"""The page of guarantees names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "guarantees.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the page is not beside the tests")
def test_every_named_test_exists() -> None:
    """Each `file::test` of the page is a function of that file, and every row of a table names one."""
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 20
    files = {file: (Path(__file__).parent / file).read_text(encoding="utf-8") for file, _ in named}
    missing = [f"{file}::{test}" for file, test in named if not re.search(rf"def {test}\(", files[file])]
    assert missing == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and "guarantee | test" not in line]
    assert [row for row in rows if "::" not in row] == []
