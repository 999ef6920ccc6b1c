"""The store of environments: named by content, built once by uv, published by a rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from isolate._locks import Locks
from isolate._manifest import Manifest
from isolate._policy import Policy
from isolate._programs import Stop, run_program
from isolate._requirements import environment_key
from isolate.errors import EnvironmentBuildError, UnsupportedSystemError

if sys.platform != "win32":
    import fcntl

_MARKER = ".isolate.json"
Progress = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment on disk.

    Attributes:
        key: Its name, a hash of everything that decides its content.
        path: Its folder.
        packages: The installed packages, as `name==version`.
        origin: `ready` if it existed, `built` if this call built it.
        seconds: How long finding or building it took.

    Example:
        >>> environment = EnvironmentStore(store).ensure(read_manifest(extensions / "stats"))
        >>> environment.packages, environment.python.name
        ((), 'python')
    """

    key: str
    path: Path
    packages: tuple[str, ...]
    origin: str
    seconds: float

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """The folder of its packages."""
        return next((self.path / "lib").glob("python*/site-packages"))


def default_store() -> Path:
    """Return the user's cache folder for environments."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pentad-isolate"


def find_uv() -> str:
    """Return the path of uv: the one installed with this package, or the first on PATH."""
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        if found is None:
            raise EnvironmentBuildError("uv is not installed; run: pip install uv") from None
        return found


def _quiet(_name: str, _stage: str) -> None:
    return None


class EnvironmentStore:
    """Builds and keeps environments in one folder, which any number of hosts may share.

    Args:
        root: The folder, created when needed; the user's cache folder if not given.
        policy: What extensions may ask for.
        offline: Whether to use only what uv has in its cache.
        progress: Called with an extension's name and the stage that begins.

    Raises:
        UnsupportedSystemError: On Windows.

    Example:
        >>> environments = EnvironmentStore(store)
        >>> environment = environments.ensure(read_manifest(extensions / "stats"))
        >>> environments.find(environment.key).path == environment.path
        True
    """

    def __init__(
        self,
        root: Path | None = None,
        policy: Policy | None = None,
        *,
        offline: bool = False,
        progress: Progress = _quiet,
    ) -> None:
        if sys.platform == "win32":
            raise UnsupportedSystemError(
                "isolate runs on Linux and macOS; Windows has no file locks and descriptor passing as it needs them"
            )
        # Builds run in another working folder, so the path must be absolute.
        self.root = (Path(root) if root is not None else default_store()).absolute()
        self.policy = policy or Policy()
        self._offline = offline
        self._local = threading.local()
        self._progress = progress

    def key_of(self, manifest: Manifest, excluded: list[str] | None = None) -> tuple[str, str]:
        """Return the hash of a manifest's inputs and the key of its environment; runs nothing."""
        inputs, _ = self.key_of_inputs(manifest, excluded)
        return inputs, environment_key(inputs, Locks(manifest, self.policy, excluded or []).own())

    def find(self, key: str) -> Environment | None:
        """Return the complete environment of that key; None if there is none."""
        path = self.root / "envs" / key
        try:
            marker = json.loads((path / _MARKER).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if not (path / "bin" / "python").exists():
            return None
        return Environment(key, path, tuple(marker["packages"]), "ready", 0.0)

    def ensure(
        self, manifest: Manifest, excluded: list[str] | None = None, cancel: threading.Event | None = None
    ) -> Environment:
        """Return the environment of a manifest; build it if it does not exist.

        Args:
            manifest: The manifest.
            excluded: Distributions not to install, because a lower layer provides them.
            cancel: Set it from another thread to end a build within a second.

        Raises:
            InvalidRequirementError: A dependency line is malformed or not allowed.
            EnvironmentBuildError: uv could not resolve or install them.
        """
        began = time.perf_counter()
        self._local.stop = Stop(self.policy.build_seconds, cancel)
        inputs, key = self.key_of(manifest, excluded)
        found = self.find(key)
        if found is None:
            with self._locked(f"{key}.build"):
                found = self.find(key)
                if found is None:
                    found = self._build(manifest, inputs, key, excluded or [])
        return Environment(key, found.path, found.packages, found.origin, time.perf_counter() - began)

    def lock(self, manifest: Manifest, excluded: list[str] | None = None) -> str:
        """Choose versions anew, write them with hashes beside the manifest, and return the text.

        The lock is good for every platform and every patch version of the manifest's Python; without one, for Python
        3.11 and later.
        """
        locks = Locks(manifest, self.policy, excluded or [])
        with self._scratch("lock") as scratch:
            text = f"{locks.header}\n{self._compile(locks, scratch, universal=True)}"
        write_atomically(manifest.directory / manifest.lock_file, text)
        return text

    def key_of_inputs(self, manifest: Manifest, excluded: list[str] | None = None) -> tuple[str, str]:
        """Like `key_of`, but ignore a lock file beside the manifest."""
        inputs = Locks(manifest, self.policy, excluded or []).inputs
        return inputs, environment_key(inputs, None)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.flock", "w") as file:
            stop = self._stop
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # another process builds the same
                    stop.check()
                    time.sleep(0.02)
            yield

    def hold(self, key: str) -> contextlib.AbstractContextManager[object]:
        """Protect an environment from `gc` in any process until the result is closed."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / f"{key}.use", "w")  # noqa: SIM115 - the caller keeps it open
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def _uv(self, manifest: Manifest, *arguments: str, stdin: str | None = None, offline: bool = False) -> str:
        flags = ["--offline"] if self._offline or offline else []
        command = [find_uv(), "--quiet", "--no-progress", *flags, *arguments]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
        }
        # A neutral folder, so that no uv.toml or pyproject.toml of the host's working folder is used.
        status, out, err = run_program(command, environment, self.root, stdin, self._stop)
        if status != 0:
            said = err.strip() or f"exit code {status}"
            raise EnvironmentBuildError(f"{manifest.name}: uv {arguments[0]} failed: {said}")
        return out

    @property
    def _stop(self) -> Stop:
        return getattr(self._local, "stop", None) or Stop(self.policy.build_seconds)

    def export(self, manifest: Manifest, folder: Path, excluded: list[str] | None = None) -> list[str]:
        """Download the wheels of a manifest for this platform into a folder, and return their names.

        On a machine without a network, `Policy(find_links=(folder,))` and `offline=True` build the same environment.
        """
        locks = Locks(manifest, self.policy, excluded or [])
        lock = locks.own()
        folder.mkdir(parents=True, exist_ok=True)
        before = set(folder.iterdir())
        with self._scratch("export") as scratch:
            lock = self._compile(locks, scratch) if lock is None else lock
            if lock.strip():
                self._progress(manifest.name, "downloading packages")
                self._uv(manifest, *locks.download_arguments(lock, folder, scratch))
        return sorted(path.name for path in set(folder.iterdir()) - before)

    def _compile(self, locks: Locks, scratch: Path, universal: bool = False) -> str:
        self._progress(locks.manifest.name, "choosing versions")
        if not locks.requirements:
            return ""
        return self._uv(locks.manifest, *locks.compile_arguments(scratch, universal), stdin=locks.text)

    @contextlib.contextmanager
    def _scratch(self, name: str) -> Iterator[Path]:
        """A folder that goes when the work is done, or when a later build finds that its process has ended."""
        folder = self.root / "tmp" / f"{name}-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _build(self, manifest: Manifest, inputs: str, key: str, excluded: list[str]) -> Environment:
        self.root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        locks = Locks(manifest, self.policy, excluded)
        lock = locks.own()
        kept = self.root / "locks" / f"{key}.txt"
        if lock is None:
            try:
                lock = kept.read_text("utf-8")
            except FileNotFoundError:
                with self._scratch("lock") as scratch:
                    lock = self._compile(locks, scratch)
        write_atomically(kept, lock)
        building = self.root / "tmp" / f"{key}-{os.getpid()}-{secrets.token_hex(4)}"
        building.parent.mkdir(exist_ok=True)
        try:
            self._progress(manifest.name, "creating the environment")
            self._uv(
                manifest,
                "venv",
                "--relocatable",
                "--no-project",
                "--python",
                manifest.python or sys.executable,
                str(building),
            )
            if lock.strip():
                self._progress(manifest.name, "installing packages")
                options = ["--no-deps", "--python", str(building / "bin" / "python"), *locks.index_arguments]
                self._install(locks, ("pip", "install", *options, "-r", str(kept)))
            own_files(building)
            packages = _installed(building)
            write_atomically(
                building / _MARKER, json.dumps({"packages": packages, "inputs": inputs, "extension": manifest.name})
            )
            target = self.root / "envs" / key
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # incomplete: it has no marker, or no interpreter
                shutil.rmtree(target)
            os.rename(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        self._progress(manifest.name, "ready")
        return Environment(key, target, tuple(packages), "built", 0.0)

    def _install(self, locks: Locks, install: tuple[str, ...]) -> None:
        changing = [part for item in locks.requirements if item.url for part in ("--refresh-package", item.name)]
        if not changing:
            try:
                # The versions are chosen, so the cache is enough if it has them.
                self._uv(locks.manifest, *install, offline=True)
                return
            except EnvironmentBuildError:
                if self._offline:
                    raise
        self._uv(locks.manifest, *install, *([] if self._offline else changing))

    def _sweep(self) -> None:
        """Remove the unfinished builds of processes that no longer exist."""
        for path in (self.root / "tmp").glob("*"):
            owner = path.name.split("-")[-2] if path.name.count("-") >= 2 else ""
            if owner.isdigit() and not _alive(int(owner)):
                shutil.rmtree(path, ignore_errors=True)

    def all_keys(self) -> list[str]:
        """Return the keys of the environments in the store, complete or not."""
        folder = self.root / "envs"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def gc(self, keep: set[str], dry_run: bool = False) -> list[tuple[str, int]]:
        """Remove the environments that are neither in `keep` nor in use by a running host.

        Returns:
            Key and size in bytes of each removed environment; hard links that other environments share count in full.
        """
        removed = []
        if self.root.is_dir():
            self._sweep()
        for key in self.all_keys():
            if key in keep:
                continue
            with open(self.root / "locks" / f"{key}.use", "w") as use:
                try:
                    fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                path = self.root / "envs" / key
                size = sum(entry.lstat().st_size for entry in path.rglob("*") if not entry.is_dir())
                if not dry_run:
                    # The marker goes first, so that an interrupted removal leaves no environment that looks complete.
                    (path / _MARKER).unlink(missing_ok=True)
                    shutil.rmtree(path, ignore_errors=True)
                    (self.root / "locks" / f"{key}.txt").unlink(missing_ok=True)
                removed.append((key, size))
        return removed


def own_files(folder: Path) -> None:
    """Replace every hard link below a folder by a copy.

    uv links installed files to its cache. A write into such a file would change it for every other environment, for
    later builds and for the user's own projects. On file systems with shared extents the kernel copies nothing.
    """
    linked = [
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if (status := os.lstat(os.path.join(place, name))).st_nlink > 1 and stat.S_ISREG(status.st_mode)
    ]
    with ThreadPoolExecutor(4, "isolate-copy") as threads:
        for _ in threads.map(_own_file, linked):
            pass


def _own_file(path: Path) -> None:
    copy = path.with_name(f"{path.name}.isolate-copy")
    with open(path, "rb", buffering=0) as source, open(copy, "xb", buffering=0) as target:
        status = os.fstat(source.fileno())
        left = status.st_size
        while left:
            left -= _copy_some(source.fileno(), target.fileno(), left)
        os.fchmod(target.fileno(), stat.S_IMODE(status.st_mode))
        os.utime(target.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(copy, path)


def _copy_some(source: int, target: int, count: int) -> int:
    try:
        done = os.copy_file_range(source, target, count)
    except OSError as failure:
        if failure.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        done = os.sendfile(target, source, None, count)
    if not done:
        raise EnvironmentBuildError("a file of the environment became shorter while it was copied")
    return done


def _installed(environment: Path) -> list[str]:
    names = []
    for info in (environment / "lib").glob("python*/site-packages/*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        names.append(f"{name.replace('_', '-').lower()}=={version}")
    return sorted(names)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that its readers see the old content or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
