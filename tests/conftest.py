"""What every test across packages may use: the tools as modules, and the promise that nothing is left behind."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def tool() -> Callable[[str], ModuleType]:
    """`tool("lock")` is tools/lock.py as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up by name while it is being executed.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


def shared_files() -> set[Path]:
    """Files in shared memory under names that our libraries give; other programs of this machine use it too."""
    names = ("xfer", "zerocopy", "isolate", "ternary", "ttt")
    places = [place for place in Path("/dev/shm").glob("*") if place.name.startswith(names)]
    return {file for place in places for file in (place, *place.rglob("*")) if file.is_file()}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No child process and no file in shared memory survives a test."""
    before = shared_files()
    children = set(psutil.Process().children(recursive=True))
    yield
    left = {child for child in psutil.Process().children(recursive=True) if child not in children}
    assert not left, f"child processes left: {left}"
    files = shared_files() - before
    assert not files, f"shared memory left: {files}"
