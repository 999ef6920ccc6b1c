"""No library needs another: each imports while the others cannot be imported, and its wheel contains only itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["isolate", "ternary", "ttt", "xfer", "zerocopy"]

IMPORT_ALL = """
import importlib, pathlib, sys

own, others = sys.argv[1], sys.argv[2:]


class OutOfReach:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise AssertionError(f"{own} imports {name}")


sys.meta_path.insert(0, OutOfReach())
package = importlib.import_module(own)
root = pathlib.Path(package.__file__).parent
for file in root.rglob("*.py"):
    parts = file.relative_to(root).with_suffix("").parts
    if parts[-1] not in ("__init__", "__main__"):
        importlib.import_module(".".join((own, *parts)))
print(len([name for name in sys.modules if name.startswith(own)]))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, subprocess.CompletedProcess[str]]:
    """Each package imported whole, without the others; two at a time."""

    def load(package: str) -> subprocess.CompletedProcess[str]:
        others = [name for name in PACKAGES if name != package]
        command = [sys.executable, "-c", IMPORT_ALL, package, *others]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PACKAGES, pool.map(load, PACKAGES), strict=True))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports_without_the_siblings(
    package: str, imported: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    """Every module of a package imports while the other packages cannot be imported."""
    done = imported[package]
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


@pytest.mark.parametrize("package", PACKAGES)
def test_a_sibling_is_an_extra_with_a_bounded_range(package: str) -> None:
    """A sibling is never a hard dependency; as an extra it has a range that ends before the next breaking version."""
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    assert not [line for line in project.get("dependencies", []) if line.startswith("pentad-")]
    extras = project["optional-dependencies"]
    links = [line for lines in extras.values() for line in lines if line.startswith("pentad-")]
    siblings = [line for line in links if not line.startswith(f"pentad-{package}")]
    assert all(re.fullmatch(r"pentad-\w+>=0\.\d+,<0\.\d+", line) for line in siblings), siblings


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of all packages, each in a folder of its own; two are built at a time."""
    folder = tmp_path_factory.mktemp("built")

    def build(package: str) -> None:
        place = ["-o", str(folder / package), str(ROOT / "packages" / package)]
        subprocess.run(["uv", "build", "--quiet", "--wheel", *place], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, PACKAGES))
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_one_package(package: str, built: Path) -> None:
    """The wheel contains the package with its typed marker and licence, and neither tests nor a sibling."""
    (wheel,) = (built / package).glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"{package}/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {package}
