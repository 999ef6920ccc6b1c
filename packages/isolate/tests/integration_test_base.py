"""What the integration tests share: extensions made on the fly in real environments, and the host's database."""

from __future__ import annotations

import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from isolate import Host, Loaded, ProxiedSingleton

# Two versions of numpy that cannot meet in one environment. numpy 1 has no wheels for Python 3.13 and later.
BOUNDARY = Version("2") if sys.version_info < (3, 13) else Version("2.2")
OLD_NUMPY, NEW_NUMPY = f"numpy<{BOUNDARY}", f"numpy>={BOUNDARY}"


class IntegrationTestBase:
    """Makes extensions on the fly, in real environments; a host that a test opens is closed after it."""

    @pytest.fixture(autouse=True)
    def set_up_environment(self, tmp_path: Path, store: Path) -> Iterator[None]:
        """A folder for extensions, a shared store, and the clean-up of every host."""
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
