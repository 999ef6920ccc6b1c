"""The committed lock contains no download address and pins what `uv lock` pins."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

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
    """Versions, dependencies, markers, file names and hashes stay; addresses and the copy of the requirements go."""
    lock = tool("lock")
    sealed = lock.seal(FULL)
    assert "://" not in sealed
    assert "metadata" not in sealed
    parsed = tomllib.loads(sealed)
    assert [p["name"] for p in parsed["package"]] == ["alpha", "member", "beta"]
    assert parsed["package"][0]["dependencies"][0]["marker"] == "os_name == 'nt'"
    assert lock.pins(sealed) == lock.pins(FULL) == {("alpha", "1.2.3"), ("beta", "2.0")}
    assert lock.hashes(sealed) == lock.hashes(FULL)
    assert lock.hashes(sealed)["alpha-1.2.3.tar.gz"] == "sha256:00"
    assert len(lock.hashes(sealed)) == 4


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


def test_an_opened_lock_knows_only_the_sealed_files(tool: Tool) -> None:
    """Opening keeps the files whose hashes are sealed, drops later ones, and refuses a changed hash."""
    lock = tool("lock")
    sealed = lock.seal(FULL)
    assert lock.opened(sealed, FULL) == FULL
    later = FULL.replace(
        '    { url = "https://files.example/beta-2.0-cp311',
        '    { url = "https://files.example/beta-2.0-cp312-none-any.whl", hash = "sha256:44" },\n'
        '    { url = "https://files.example/beta-2.0-cp311',
    )
    assert lock.opened(sealed, later) == FULL
    with pytest.raises(
        lock.LockError, match=r"beta-2\.0-py3-none-any\.whl: the index has sha256:99, uv\.lock sha256:22"
    ):
        lock.opened(sealed, FULL.replace("sha256:22", "sha256:99"))
    with pytest.raises(lock.LockError, match="no file of beta"):
        lock.opened(sealed, FULL.replace("beta-2.0-", "beta-2.0-1-"))


class Index:
    """A package index on 127.0.0.1 that offers one wheel, alpha 1.0, with any content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "packages" / "alpha"
        self._folder.mkdir(parents=True)
        quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        handler = functools.partial(quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/packages/"

    def offer(self, content: str, listed: bool = True) -> None:
        """Replace the wheel, and its hash on the index page if `listed`."""
        file = self._folder / "alpha-1.0-py3-none-any.whl"
        info = "alpha-1.0.dist-info"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("alpha.py", content)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: alpha\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        if listed:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            (self._folder / "index.html").write_text(f'<a href="{file.name}#sha256={digest}">{file.name}</a>')

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The local index, the only one that uv uses, with a cache of its own."""
    served = Index(tmp_path)
    served.offer("value = 1\n")
    for name in (
        "VIRTUAL_ENV",
        "UV_PROJECT_ENVIRONMENT",
        "UV_FIND_LINKS",
        "UV_INDEX",
        "UV_EXTRA_INDEX_URL",
        "UV_NO_SYNC",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", served.address)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    yield served
    served.close()


@pytest.fixture
def project(tool: Tool, index: Index, tmp_path: Path) -> Path:
    """A project that depends on alpha, with a sealed lock."""
    place = tmp_path / "project"
    place.mkdir()
    text = '[project]\nname = "p"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["alpha"]\n'
    (place / "pyproject.toml").write_text(text + "[tool.uv]\npackage = false\n")
    assert uv(place, "lock").returncode == 0
    lock = place / "uv.lock"
    lock.write_text(tool("lock").seal(lock.read_text()))
    assert "://" not in lock.read_text()
    return place


def uv(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv in a project."""
    return subprocess.run(["uv", *arguments], cwd=place, capture_output=True, text=True)


def test_an_opened_lock_works_locked_frozen_and_offline(tool: Tool, project: Path) -> None:
    """After `open`, uv takes the lock as it is: with --locked, with --frozen, and offline after one run."""
    assert uv(project, "sync", "--locked").returncode != 0
    tool("lock").open_lock(project)
    before = (project / "uv.lock").read_bytes()
    for arguments in (("sync", "--locked"), ("sync", "--frozen"), ("sync", "--locked", "--offline", "--reinstall")):
        done = uv(project, *arguments)
        assert done.returncode == 0, done.stderr
    show = uv(project, "run", "--frozen", "--offline", "python", "-c", "import alpha; print(alpha.value)")
    assert show.stdout == "1\n", show.stderr
    assert (project / "uv.lock").read_bytes() == before


# Root may write everywhere, unless it gives that up.
AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@pytest.mark.skipif(os.name != "posix" or (os.geteuid() == 0 and not shutil.which("setpriv")), reason="needs setpriv")
def test_a_read_only_checkout_works(tool: Tool, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing in the checkout can be written, uv syncs and runs with the environment elsewhere."""
    tool("lock").open_lock(project)
    shutil.rmtree(project / ".venv", ignore_errors=True)
    monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", str(project.parent / "elsewhere"))
    project.chmod(0o555)
    prefix = AS_OTHERS if os.geteuid() == 0 else []

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*prefix, *command], cwd=project, capture_output=True, text=True)

    try:
        assert run("touch", "new").returncode != 0
        done = run("uv", "sync", "--locked")
        assert done.returncode == 0, done.stderr
        show = run("uv", "run", "--frozen", "python", "-c", "import alpha; print(alpha.value)")
        assert show.stdout == "1\n", show.stderr
        assert sorted(path.name for path in project.iterdir()) == ["pyproject.toml", "uv.lock"]
    finally:
        project.chmod(0o755)


def test_a_file_that_was_replaced_on_the_index_is_refused(tool: Tool, project: Path, index: Index) -> None:
    """A wheel that the index lists with another hash than the sealed lock is refused by `open`, and named."""
    index.offer("value = 2\n")
    shutil.rmtree(project.parent / "cache")
    lock = tool("lock")
    with pytest.raises(
        lock.LockError, match=r"alpha-1\.0-py3-none-any\.whl: the index has sha256:\w+, uv\.lock sha256"
    ):
        lock.open_lock(project)


def test_a_tampered_download_is_refused(tool: Tool, project: Path, index: Index) -> None:
    """A wheel whose bytes do not have the listed hash is refused by uv with the opened lock."""
    tool("lock").open_lock(project)
    index.offer("value = 2\n", listed=False)
    shutil.rmtree(project.parent / "cache")
    done = uv(project, "sync", "--frozen")
    assert done.returncode != 0
    assert "Hash mismatch" in done.stderr
