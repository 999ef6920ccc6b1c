"""Each package imports on every system; where a system lacks something, its use is a typed error.

On Linux the other systems are simulated, as far as that goes: modules, functions and /proc are taken away from the
package in a new process. On macOS and Windows the same programs run with nothing taken away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["isolate", "ternary", "ttt", "xfer", "zerocopy"]
# Each use imports a package in a new process, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(240)
HERE = {"linux": "linux", "darwin": "macos", "win32": "windows"}[sys.platform]

# How each package is used first: what must work where it works, and raise the typed error where it does not.
USE = {
    "isolate": ("isolate.Host('store').close()", "IsolateError"),
    "ternary": (
        "ternary.compile('model M() { forward(x: float[N, 8]) -> float[N, 8] { return relu(x) } }')()",
        "TernaryError",
    ),
    "ttt": ("ttt.score({}, [])", "TTTError"),
    "xfer": ("xfer.get(xfer.put(__import__('numpy').ones(3)))", "XferError"),
    "zerocopy": (
        "zerocopy.unpublish(zerocopy.publish(__import__('torch').nn.Linear(2, 2), name='s'))",
        "ZerocopyError",
    ),
}

WORKS = """
{take}
import {package}, {package}.errors
{use}
"""

RAISES = """
{take}
import {package}, {package}.errors
try:
    {use}
except {package}.errors.{error} as error:
    assert str(error), "an empty message"
else:
    raise SystemExit("no error")
"""


def promise(package: str, system: str) -> str:
    """Return what a package's pyproject promises on a system."""
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())
    found: str = project["tool"]["pentad"]["systems"][system]
    return found


@pytest.fixture(scope="module", params=PACKAGES)
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """A package's first use on each system that can be shown here: exit status and stderr; two processes at a time."""
    package: str = request.param
    folder = tmp_path_factory.mktemp("used")
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "parts")}
    env.pop("ZEROCOPY_DIRECTORY")  # below /dev/shm, which other systems lack

    def use(system: str) -> tuple[int, str]:
        work, error = USE[package]
        take = "" if system == HERE else f"import without; without.take({package!r}, {system!r})"
        code = RAISES if promise(package, system) == "import" else WORKS
        command = [sys.executable, "-c", code.format(take=take, package=package, use=work, error=error)]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        return done.returncode, done.stderr

    systems = [system for system in ("macos", "windows") if HERE in ("linux", system)]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(systems, pool.map(use, systems), strict=True))


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_it_imports_and_works_or_raises_the_typed_error(used: dict[str, tuple[int, str]], system: str) -> None:
    """It imports everywhere. Its first use works, or raises the typed error where only the import is promised."""
    if system not in used:
        pytest.skip(f"{system} is simulated on Linux only")
    status, said = used[system]
    assert status == 0, said
