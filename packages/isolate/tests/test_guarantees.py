"""The pages name only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"


def defined(path: Path) -> set[str]:
    """Return the tests of a file, those of a class as `Class::test`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return names


def test_every_test_that_is_named_exists() -> None:
    """Each row of the guarantees names a test, and each of these tests exists."""
    text = (DOCS / "guarantees.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::([\w:]+)`", text)
    assert len(named) > 20
    missing = [f"{file}::{name}" for file, name in named if name not in defined(TESTS / file)]
    assert missing == []
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    assert [row for row in rows if "::test_" not in row and "| Test |" not in row] == []


@pytest.mark.parametrize("page", ["security.md"])
def test_every_file_that_is_named_exists(page: str) -> None:
    """The other page names files of tests and attacks."""
    for name in re.findall(r"`((?:escapes/|exhaustion/|test_)\w+\.py)`", (DOCS / page).read_text()):
        assert list(TESTS.rglob(name)), name
