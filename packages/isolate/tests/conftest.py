"""Shared by all tests: one store of environments per session, and checks that nothing is left behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# The base class of the integration tests lies beside them; `importlib` mode leaves this folder off the path.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A store that all tests of a session share, across xdist workers too."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if hasattr(request.config, "workerinput") else base) / "store"


def _settled(count: object, bound: int) -> int:
    value = count()  # type: ignore[operator]
    end = time.monotonic() + 10
    while value > bound and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
        value = count()  # type: ignore[operator]
    return int(value)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No descriptor, child process or thread of isolate survives a test."""
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, f"children left: {alive}"
    threads = lambda: sum(thread.name.startswith(("isolate", "extension")) for thread in threading.enumerate())  # noqa: E731
    assert _settled(threads, 0) == 0, [thread.name for thread in threading.enumerate()]
    left = _settled(lambda: len(os.listdir("/proc/self/fd")), descriptors)
    assert left <= descriptors, f"{left - descriptors} descriptors left"
