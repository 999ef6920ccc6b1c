"""The workspace's layout, names and licences, and its independence of any one machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
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
        "conftest.py",
        "examples",
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
    """No file names the host of a package index; each machine configures its own. Reserved names are no hosts."""
    pattern = r"https?://[^ \"'>)]*/simple\b|files\.[a-z]+hosted\."
    found = subprocess.run(["git", "grep", "-nIE", pattern, "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert [
        line for line in found.stdout.splitlines() if not re.search(r"https?://[\w.]+\.(invalid|example)/", line)
    ] == []


def test_source_files_stay_readable() -> None:
    """No source file grows past 800 lines."""
    long = {
        p: n
        for p in tracked()
        if "/src/" in p and p.endswith(".py")
        if (n := len((ROOT / p).read_text().splitlines())) > 800
    }
    assert long == {}


# Root may write everywhere, unless it gives that up.
AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("setpriv"), reason="needs Linux and setpriv")
@pytest.mark.parametrize("package", ["ternary", "ttt", "xfer"])
def test_a_read_only_checkout_builds_its_core(package: str, tmp_path: Path) -> None:
    """A wheel of a checkout that cannot be written has the compiled core, also beside one that an older source made."""
    place = tmp_path / package
    shutil.copytree(ROOT / "packages" / package, place, ignore=shutil.ignore_patterns("*.so", "tests", "__pycache__"))
    names = re.findall(r'^CORE = Path\("src/(.*)"\)$', (place / "hatch_build.py").read_text(), re.MULTILINE)
    stale = place / "src" / names[0]
    stale.write_bytes(b"old")
    os.utime(stale, (0, 0))
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    prefix = AS_OTHERS if os.geteuid() == 0 else []
    command = [*prefix, "uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path / "dist"), str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    for folder in folders:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert stale.read_bytes() == b"old"
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(names[0]).startswith(b"\x7fELF")


def test_no_test_keeps_half_a_compiled_module() -> None:
    """Where a file may not grow Python keeps what it wrote of a module, and every later import of it fails."""
    tests = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("packages/*/tests/**/*.py")]
    limiting = [path for path in tests if "RLIMIT_FSIZE, (" in path.read_text()]
    assert limiting
    assert [path.name for path in limiting if "dont_write_bytecode" not in path.read_text()] == []
