"""The workspace's layout, names and licences, and its independence of any one machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["isolate", "ternary", "ttt", "xfer", "zerocopy"]


def tracked() -> list[str]:
    """Return every file that git tracks."""
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return out.splitlines()


def test_the_top_level_holds_only_what_it_should() -> None:
    """The top level holds these folders and files and no others."""
    top = {path.split("/")[0] for path in tracked()}
    assert top == {
        ".ci",
        ".gitattributes",
        ".github",
        ".gitignore",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "packages",
        "pyproject.toml",
        "tests",
        "tools",
        "uv.lock",
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_its_parts(package: str) -> None:
    """Each package has a project file, documents, typed marker and tests, a static version and our licence."""
    folder = ROOT / "packages" / package
    for part in ("pyproject.toml", "README.md", "CHANGELOG.md", "tests", f"src/{package}/py.typed"):
        assert (folder / part).exists(), part
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"pentad-{package}"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11"
    assert "Apache-2.0" in (folder / "README.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_init_is_a_contents_page(package: str) -> None:
    """`__init__.py` is short, has `__all__` and no logic but the lazy lookup of its names."""
    text = (ROOT / "packages" / package / "src" / package / "__init__.py").read_text()
    assert len(text.splitlines()) <= 80
    assert "__all__" in text
    assert not re.search(r"^(def (?!__getattr__|__dir__)|class |for |while |try:)", text, re.MULTILINE)


@pytest.mark.parametrize("package", PACKAGES)
def test_coverage_floors_name_what_exists(package: str) -> None:
    """Each package has a floor of at least 90 % for all of it, and each floor's folder exists."""
    floors = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["tool"]["pentad"]["coverage"]
    assert floors[package] >= 90
    assert all((ROOT / "packages" / package / "src" / part).is_dir() for part in floors)


def test_no_init_in_a_tests_folder() -> None:
    """No tests folder has an `__init__.py`: two of them would break pytest's collection. Emulators have no tests."""
    assert [path for path in tracked() if re.search(r"(^|/)tests?/(?!emulator/)(.*/)?__init__\.py$", path)] == []


def test_no_package_index_is_named() -> None:
    """No file names the host of a package index; each machine configures its own."""
    pattern = r"https?://[^ \"'>)]*/simple\b|files\.[a-z]+hosted\."
    found = subprocess.run(["git", "grep", "-nIE", pattern, "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == ""


def test_source_files_stay_readable() -> None:
    """No source file grows past 800 lines."""
    long = {
        p: n
        for p in tracked()
        if "/src/" in p and p.endswith(".py")
        if (n := len((ROOT / p).read_text().splitlines())) > 800
    }
    assert long == {}
