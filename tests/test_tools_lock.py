"""The committed lock contains no download address and pins what `uv lock` pins."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

Tool = Callable[[str], ModuleType]

FULL = """\
version = 1
requires-python = ">=3.11"

[[package]]
name = "alpha"
version = "1.2.3"
source = { registry = "https://index.example/root" }
dependencies = [
    { name = "beta", version = "2.0", source = { registry = "https://index.example" }, marker = "os_name == 'nt'" },
]
sdist = { url = "https://files.example/alpha-1.2.3.tar.gz", hash = "sha256:00", size = 1 }
wheels = [
    { url = "https://files.example/alpha-1.2.3-py3-none-any.whl", hash = "sha256:11" },
]

[[package]]
name = "member"
version = "0.1.0"
source = { editable = "packages/member" }
dependencies = [
    { name = "alpha" },
]

[package.metadata]
requires-dist = [{ name = "alpha" }]

[package.metadata.requires-dev]
test = [{ name = "alpha", index = "https://index.example/root" }]

[[package]]
name = "beta"
version = "2.0"
source = { registry = "https://index.example/root" }
wheels = [
    { url = "https://files.example/beta-2.0-py3-none-any.whl", hash = "sha256:22" },
    { url = "https://files.example/beta-2.0-cp311-none-any.whl", hash = "sha256:33" },
]
"""


def test_sealing_keeps_pins_and_drops_places(tool: Tool) -> None:
    """Versions, dependencies and markers stay; addresses and the copy of the requirements go; the result is TOML."""
    lock = tool("lock")
    sealed = lock.seal(FULL)
    assert "://" not in sealed
    assert "metadata" not in sealed
    parsed = tomllib.loads(sealed)
    assert [p["name"] for p in parsed["package"]] == ["alpha", "member", "beta"]
    assert parsed["package"][0]["dependencies"][0]["marker"] == "os_name == 'nt'"
    assert lock.pins(sealed) == lock.pins(FULL) == {("alpha", "1.2.3"), ("beta", "2.0")}


def test_sealing_twice_changes_nothing(tool: Tool) -> None:
    """Sealing is idempotent and independent of line endings."""
    lock = tool("lock")
    sealed = lock.seal(FULL)
    assert lock.seal(sealed) == sealed
    assert lock.seal(FULL.replace("\n", "\r\n")) == sealed


def test_an_address_is_a_problem(tool: Tool) -> None:
    """A lock that contains an address is refused, and the message says which command to run."""
    lock = tool("lock")
    found = lock.problems(FULL, FULL)
    assert len(found) == 1
    assert "addresses" in found[0]
    assert "tools/lock.py seal" in found[0]


def test_a_stale_pin_is_a_problem(tool: Tool) -> None:
    """A lock that pins another version than `uv lock` is refused, and the message names both versions."""
    lock = tool("lock")
    sealed = lock.seal(FULL)
    found = lock.problems(sealed, FULL.replace("1.2.3", "1.2.4"))
    assert len(found) == 1
    assert "1.2.3" in found[0]
    assert "1.2.4" in found[0]


def test_the_committed_lock_is_sealed(tool: Tool, root: Path) -> None:
    """The committed file, not the one in the work tree, is in the sealed form."""
    lock = tool("lock")
    blob = subprocess.run(["git", "show", "HEAD:uv.lock"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert lock.problems(blob, blob) == []
