"""The package builds with and without a C compiler; the wheel says which of the two it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ternary._core import CORE_FILE, find_core

PACKAGE = Path(__file__).parent.parent
# The one beside this Python first: what the PATH finds may be a shell script, which needs a PATH itself.
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
CORE = "ternary/runtime/libternary_core.so"


def build(folder: Path, path: str) -> zipfile.ZipFile:
    """A wheel of a copy of the package, built with only the programs in `path`."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("*.so", "tests", "benchmarks", "__pycache__")
    shutil.copytree(PACKAGE, source, ignore=ignored)
    command = [UV, "build", "--wheel", "--python", sys.executable, "--out-dir", str(folder / "dist"), str(source)]
    environment = {"PATH": path, "HOME": str(folder)}
    environment |= {k: v for k, v in os.environ.items() if k.startswith(("UV_", "PIP_", "SSL_", "HTTP"))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode and ("hatchling" in done.stderr and "resolve" in done.stderr):
        pytest.skip("the build backend cannot be fetched here")
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((folder / "dist").glob("*.whl")))


@pytest.mark.skipif(find_core(CORE_FILE).library is None, reason="no compiled core in this installation")
def test_a_core_of_other_sources_is_refused(tmp_path: Path) -> None:
    """A core that was compiled before its sources changed is one clear error; without sources it runs, as does none."""
    copy = tmp_path / "ternary"
    shutil.copytree(CORE_FILE.parent.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ternary import _core; print(_core.core().reason)"

    def run() -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
        return done.returncode, (done.stdout or done.stderr).splitlines()[-1]

    assert run() == (0, f"loaded from {copy / 'runtime' / CORE_FILE.name}")
    with (copy / "llm" / "csrc" / "head.c").open("a") as file:
        file.write("/* changed */\n")
    status, said = run()
    assert status == 1
    assert said.startswith("ternary.errors.StaleCoreError: ")
    assert f"{CORE_FILE.name} was compiled from other sources" in said
    assert "install pentad-ternary again" in said
    for room in ("llm", "runtime"):
        shutil.rmtree(copy / room / "csrc")  # as where an installation leaves the sources out
    assert run()[0] == 0
    (copy / "runtime" / CORE_FILE.name).unlink()
    assert run() == (0, "not built (no C compiler at installation)")


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="uv is not installed")
@pytest.mark.skipif(not (PACKAGE / "hatch_build.py").exists(), reason="these tests stand outside the source tree")
class TestWheel:
    """What `pip install` makes of the source."""

    def test_without_a_compiler_the_wheel_is_pure(self, tmp_path) -> None:
        """No program but Python in reach: the build succeeds and holds no library."""
        wheel = build(tmp_path, str(tmp_path))
        assert CORE not in wheel.namelist()
        assert str(wheel.filename).endswith("py3-none-any.whl")

    @pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
    def test_with_a_compiler_the_wheel_is_for_the_platform(self, tmp_path) -> None:
        """The library is in the wheel, which is bound to the platform and to no version of Python."""
        wheel = build(tmp_path, os.environ["PATH"])
        assert CORE in wheel.namelist()
        assert "py3-none-" in str(wheel.filename)
        assert not str(wheel.filename).endswith("any.whl")
