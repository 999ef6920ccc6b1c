"""A tag may be published only if pyproject and CHANGELOG state its version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Tool = Callable[[str], ModuleType]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one package, alpha 1.2.3, that was released."""
    package = tmp_path / "packages" / "alpha"
    package.mkdir(parents=True)
    (package / "pyproject.toml").write_text('[project]\nname = "pentad-alpha"\nversion = "1.2.3"\n')
    (package / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-01-31)\n\nNew.\n\n## 1.2.2 (2025-01-31)\n")
    return tmp_path


def test_agreement(tool: Tool, repository: Path) -> None:
    """If tag, pyproject and heading agree, nothing is reported."""
    assert tool("release").disagreements("alpha-v1.2.3", repository) == []


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("alpha-1.2.3", "not PACKAGE-vX.Y.Z"),
        ("v1.2.3", "not PACKAGE-vX.Y.Z"),
        ("beta-v1.2.3", "names no package"),
        ("alpha-v1.2.4", "has version 1.2.3, the tag 1.2.4"),
    ],
)
def test_a_tag_that_disagrees(tool: Tool, repository: Path, tag: str, words: str) -> None:
    """Each wrong tag is refused, and the message says what disagrees."""
    found = tool("release").disagreements(tag, repository)
    assert any(words in line for line in found), found


@pytest.mark.parametrize(
    ("changelog", "words"),
    [
        ("# Changelog\n\n## 1.2.3 (unreleased)\n", "wanted YYYY-MM-DD"),
        ("# Changelog\n\n## 1.2.2 (2025-01-31)\n", "begins with 1.2.2"),
        ("# Changelog\n", "begins with no heading"),
    ],
)
def test_a_changelog_that_disagrees(tool: Tool, repository: Path, changelog: str, words: str) -> None:
    """A missing, older or undated heading is refused."""
    (repository / "packages/alpha/CHANGELOG.md").write_text(changelog)
    found = tool("release").disagreements("alpha-v1.2.3", repository)
    assert any(words in line for line in found), found


def test_every_package_has_the_two_places(tool: Tool, root: Path) -> None:
    """In this repository each CHANGELOG starts with the version of its pyproject."""
    release = tool("release")
    for project in root.glob("packages/*/pyproject.toml"):
        package = project.parent.name
        assert release.heading(package)[0] == release.version(package)
