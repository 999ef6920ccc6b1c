"""Shared by all tests: one store of environments per session, and checks that nothing is left behind."""

from __future__ import annotations

import gc
import os
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from isolate import Host, Loaded, ProxiedSingleton


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
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, f"children left: {alive}"
    threads = lambda: sum(thread.name.startswith(("isolate", "extension")) for thread in threading.enumerate())  # noqa: E731
    assert _settled(threads, 0) == 0, [thread.name for thread in threading.enumerate()]
    left = _settled(lambda: len(os.listdir("/proc/self/fd")), descriptors)
    assert left <= descriptors, f"{left - descriptors} descriptors left"


class IntegrationTestBase:
    """Makes extensions on the fly, in real environments, and loads them; a host that a test opens is closed after it."""

    @pytest.fixture(autouse=True)
    def set_up_environment(self, tmp_path: Path, store: Path) -> Iterator[None]:
        """A folder for extensions, a shared store of environments, and the clean-up of every host."""
        self.root = tmp_path / "extensions"
        self.root.mkdir()
        self.store = store
        self._hosts: list[Host] = []
        yield
        for host in reversed(self._hosts):
            host.close()

    def create_extension(self, name: str, code: str, **keys: object) -> Path:
        """Write an extension: `main.py` with the code, `manifest.yaml` with the keys."""
        folder = self.root / name
        folder.mkdir()
        (folder / "main.py").write_text(textwrap.dedent(code))
        (folder / "manifest.yaml").write_text(yaml.safe_dump({"name": name, **keys}))
        return folder

    def make_host(self, *apis: object, **options: Any) -> Host:
        """An open host that exports the given APIs."""
        host = Host(options.pop("store", self.store), **options).__enter__()
        self._hosts.append(host)
        for api in apis:
            host.export(api)
        return host

    def load_extensions(self, *apis: object, **options: Any) -> tuple[Host, Loaded]:
        """Load everything that was created."""
        host = self.make_host(*apis, **options)
        return host, host.load_all(self.root)


class DatabaseSingleton(ProxiedSingleton):
    """The shared store of values that host and extensions talk through."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._lock = threading.Lock()

    def put(self, key: str, value: Any) -> None:
        """Keep a value."""
        with self._lock:
            self.values[key] = value

    def get(self, key: str) -> Any:
        """A kept value."""
        with self._lock:
            return self.values[key]

    async def keys(self) -> list[str]:
        """What is kept."""
        return sorted(self.values)

    def _secret(self) -> str:
        return "not exported"
