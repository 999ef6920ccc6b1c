"""Fixtures of the tests across packages, and the check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from leftovers import leftovers, shared_files

ROOT = Path(__file__).resolve().parent.parent

# Under `uv run`, Ray would start its workers by the same `uv run`. It reads this when it is imported.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

# The names that tests publish meet no names of other programs of this user.
_SHARED = tempfile.mkdtemp(prefix="zerocopy-tests-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
os.environ["ZEROCOPY_DIRECTORY"] = _SHARED


def pytest_unconfigure() -> None:
    """Remove the folder of these tests."""
    shutil.rmtree(_SHARED, ignore_errors=True)


FROM_SOURCES = os.environ.get("PLUGINS_FROM_SOURCES") == "1"
"""Whether extensions import what the tests do: on a machine from which no wheel can be built or installed."""

# Another numpy than the host's, of a major before it where that has a build for this Python.
OTHER_NUMPY = "numpy<2" if sys.version_info < (3, 13) else "numpy==2.1.*"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """The device that holds a scenario's arrays and models; the test body is the same for each."""
    name: str = request.param
    if name == "cuda" and not importlib.import_module("torch").cuda.is_available():
        if os.environ.get("REQUIRE_CUDA") == "1":
            pytest.fail("REQUIRE_CUDA=1, and torch finds no CUDA device")
        pytest.skip("torch finds no CUDA device")
    return name


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the extensions' environments, each built once per session."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels of our packages, from which an extension's environment installs them."""
    folder = tmp_path_factory.mktemp("wheels")
    if FROM_SOURCES:
        return folder
    for package in ("xfer",):
        command = ["uv", "build", "--quiet", "--wheel", "-o", str(folder), str(ROOT / "packages" / package)]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fleet's folder: its first run trains the models and builds the plugins' environments."""
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="session")
def own_numpy() -> bool:
    """Whether an extension has another numpy than the host."""
    return not FROM_SOURCES


@pytest.fixture
def extension(tmp_path: Path) -> Callable[..., Path]:
    """`extension("life")` makes the folder of that extension, with its own numpy and further dependencies."""

    def make(name: str, *dependencies: str) -> Path:
        folder = tmp_path / "extensions" / name
        folder.mkdir(parents=True)
        code = (ROOT / "tests" / "parts" / "extensions" / f"{name}.py").read_text()
        lines = [f"  - {line}" for line in (OTHER_NUMPY, *dependencies)]
        if FROM_SOURCES:
            paths, first, lines = [path for path in sys.path if path], "from __future__ import annotations\n", ["  []"]
            code = code.replace(first, f"{first}import sys\nsys.path += {paths!r}\n", 1)
        (folder / "main.py").write_text(code)
        (folder / "manifest.yaml").write_text(
            "\n".join([f"name: {name}", "restart: {limit: 1000}", "dependencies:", *lines])
        )
        return folder

    return make


@pytest.fixture(scope="session")
def root() -> Path:
    """The root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def tool() -> Callable[[str], ModuleType]:
    """`tool("lock")` returns tools/lock.py as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look up their module by name while it is executed.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local Ray node."""
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True, scope="module")
def short_collections() -> Iterator[None]:
    """A collection looks only at what a module's tests made: with PyTorch loaded all the rest takes a second."""
    gc.collect(1)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No child process and no file in shared memory survives a test."""
    before = shared_files()
    children = set(psutil.Process().children(recursive=True))
    yield
    left = {child for child in psutil.Process().children(recursive=True) if child not in children}
    if "cluster" in request.fixturenames:
        # Ray starts and ends workers as long as its cluster runs, which is until the end of the module.
        left = {child for child in left if not of_ray(child)}
    _, alive = psutil.wait_procs(left, timeout=30)  # those that were told to end may take a moment
    assert not alive, f"child processes left: {alive}"
    files = leftovers(before)
    assert not files, f"shared memory left: {files}"


def of_ray(process: psutil.Process) -> bool:
    """Whether the process belongs to Ray, or is a zombie that Ray has not reaped yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE or any("ray" in part for part in process.cmdline())
    except psutil.Error:
        return True
