"""The store of environments: named by content, built once by uv, published by a rename."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isolate._integrity import (
    MARKER,
    Marker,
    changes,
    complete,
    first_change,
    interpreter_files,
    read_marker,
)
from isolate._locks import Locks
from isolate._manifest import Manifest
from isolate._places import (
    locked,
    open_private,
    private_folder,
    put_in_place,
    read_private,
    size_below,
    spread,
    sweep,
    try_locked,
    workplace,
    write_atomically,
)
from isolate._policy import Policy
from isolate._programs import Stop, create_environment, run_program
from isolate._requirements import environment_key
from isolate.errors import EnvironmentBuildError, IsolateError, UnsupportedSystemError

if sys.platform != "win32":
    import fcntl

_logger = logging.getLogger("isolate")
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


@contextlib.contextmanager
def typed_errors(name: str, root: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error of this package."""
    try:
        yield
    except IsolateError:
        raise
    except OSError as failure:
        raise EnvironmentBuildError(f"{name}: the store {root} cannot be used: {failure}") from failure


def _check_interpreter(building: Path, before: dict[str, str]) -> None:
    now = interpreter_files(building)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise EnvironmentBuildError(
            f"a package puts {changed[0]} into the environment, by which Python finds what it runs; leave it out"
        )


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
        self.root: Path = (Path(root) if root is not None else default_store()).absolute()
        self.policy: Policy = policy or Policy()
        self._offline = offline
        self._local = threading.local()
        self._progress = progress
        # A host adds a variable by which its guardian finds what it must end if the host is killed.
        self.variables: Callable[[], dict[str, str]] = dict

    def key_of(self, manifest: Manifest, excluded: list[str] | None = None) -> tuple[str, str]:
        """Return the hash of a manifest's inputs and the key of its environment; runs nothing."""
        locks = Locks(manifest, self.policy, excluded or [])
        return locks.inputs, environment_key(locks.inputs, locks.own)

    def find(self, key: str) -> Environment | None:
        """Return the complete environment of that key; None if there is none, or if a file was changed or is missing.

        Raises:
            UnsafeStoreError: Another user could write to the store.
        """
        path = self.root / "envs" / key
        marker = self._marker(key)
        while marker is not None:
            change = first_change(path, marker)
            if not change:
                return Environment(key, path, marker.packages, "ready", 0.0)
            before, marker = marker, self._marker(key)
            if marker == before:  # else another process has put a new one in its place, or removed it
                _logger.warning("the environment %s of %s is damaged: %s", key, marker.extension, change)
                return None
        return None

    def _marker(self, key: str) -> Marker | None:
        path = self.root / "envs" / key
        try:
            private_folder(path, create=False)
            return read_marker(read_private(path / MARKER))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def verify(self, key: str) -> list[str]:
        """Return all that has changed in an environment since it was built; reads every file but bytecode."""
        marker = self._marker(key)
        while marker is not None:
            found = changes(self.root / "envs" / key, marker)
            before, marker = marker, self._marker(key)
            if marker == before:  # else another process has put a new one in its place, or removed it
                return found
        return ["it is not complete"]

    def ensure(
        self,
        manifest: Manifest,
        excluded: list[str] | None = None,
        cancel: threading.Event | None = None,
        *,
        anew: bool = False,
    ) -> Environment:
        """Return the environment of a manifest; build it if it does not exist.

        Args:
            manifest: The manifest.
            excluded: Distributions not to install, because a lower layer provides them.
            cancel: Set it from another thread to end a build within a second.
            anew: Whether to build it even if it exists; workers that run in the old one keep what they have opened.

        Raises:
            InvalidRequirementError: A dependency line is malformed or not allowed.
            EnvironmentBuildError: uv could not resolve or install them, or the store's disk is full.
            UnsafeStoreError: Another user could write to the store.
        """
        began = time.perf_counter()
        self._local.stop = Stop(self.policy.build_seconds, cancel)
        locks = Locks(manifest, self.policy, excluded or [])
        key = environment_key(locks.inputs, locks.own)
        with typed_errors(manifest.name, self.root):
            found = None if anew else self.find(key)
            if found is None:
                with self._locked(f"{key}.build"):
                    found = None if anew else self.find(key)
                    if found is None:
                        found = self._build(locks, key)
        return Environment(key, found.path, found.packages, found.origin, time.perf_counter() - began)

    def lock(self, manifest: Manifest, excluded: list[str] | None = None) -> str:
        """Choose versions anew, write them with hashes beside the manifest, and return the text.

        The lock is good for every platform and every patch version of the manifest's Python; without one, for Python
        3.11 and later.
        """
        locks = Locks(manifest, self.policy, excluded or [])
        with typed_errors(manifest.name, self.root):
            text = f"{locks.header}\n{self._compile(locks, universal=True)}"
            write_atomically(manifest.directory / manifest.lock_file, text.encode(), private=False)
        return text

    def key_of_inputs(self, manifest: Manifest, excluded: list[str] | None = None) -> tuple[str, str]:
        """Like `key_of`, but ignore a lock file beside the manifest."""
        inputs = Locks(manifest, self.policy, excluded or []).inputs
        return inputs, environment_key(inputs, None)

    def _folder(self, name: str) -> Path:
        """Return a folder of the store, created if needed, that no other user can write to."""
        private_folder(self.root / name)
        return self.root / name

    def _locked(self, name: str) -> contextlib.AbstractContextManager[None]:
        stop = self._stop

        def wait() -> None:  # another process builds the same
            stop.check()
            time.sleep(0.02)

        return locked(self._folder("locks") / f"{name}.flock", wait)

    def hold(self, key: str) -> contextlib.AbstractContextManager[object]:
        """Protect an environment from `gc` in any process until the result is closed."""
        with typed_errors(key, self.root):
            fd = open_private(self._folder("locks") / f"{key}.use", write=True)
        file = open(fd, "rb")  # noqa: SIM115 - the caller keeps it open
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def _uv(self, manifest: Manifest, *arguments: str, stdin: str | None = None, offline: bool = False) -> str:
        flags = ["--offline"] if self._offline or offline else []
        command = [find_uv(), "--quiet", "--no-progress", *flags, *arguments]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
        }
        environment.update(self.variables())
        # A neutral folder, so that no uv.toml or pyproject.toml of the host's working folder is used.
        status, out, err = run_program(command, environment, self.root, stdin, self._stop)
        if status != 0:
            said = err.strip() or f"exit code {status}"
            if "no usable wheels" in said and not self.policy.allow_sdists:
                said += (
                    "\nThe host can allow to build packages from source, which runs their code while installing: "
                    "Policy(allow_sdists=True)"
                )
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
        with typed_errors(manifest.name, self.root):
            lock = self._compile(locks) if locks.own is None else locks.own
            folder.mkdir(parents=True, exist_ok=True)
            before = set(folder.iterdir())
            if lock.strip():
                self._progress(manifest.name, "downloading packages")
                with workplace(self._folder("tmp")) as scratch:
                    self._uv(manifest, *locks.download_arguments(lock, folder, scratch))
            return sorted(path.name for path in set(folder.iterdir()) - before)

    def _compile(self, locks: Locks, universal: bool = False) -> str:
        self._progress(locks.manifest.name, "choosing versions")
        if not locks.requirements:
            return ""
        with workplace(self._folder("tmp")) as scratch:
            return self._uv(locks.manifest, *locks.compile_arguments(scratch, universal), stdin=locks.text)

    def _build(self, locks: Locks, key: str) -> Environment:
        sweep(self._folder("tmp"))
        spread(self._folder("tmp"))
        manifest, lock = locks.manifest, locks.own
        kept = self._folder("locks") / f"{key}.txt"
        if lock is None:
            try:
                lock = read_private(kept).decode()
            except FileNotFoundError:
                lock = self._compile(locks)
        write_atomically(kept, lock.encode())
        # uv asks an interpreter about itself once, and remembers the answer by the interpreter's path.
        named = hashlib.sha256((manifest.python or sys.executable).encode()).hexdigest()[:16]
        with workplace(self._folder("tmp"), named) as work, workplace(self._folder("tmp")) as apart:
            (work / "apart").symlink_to(apart)
            building = work / "apart" / "environment"
            self._progress(manifest.name, "creating the environment")
            self._create(manifest, building)
            if lock.strip():
                self._progress(manifest.name, "installing packages")
                self._install(locks, building, kept)
            marker = complete(building, locks.inputs, manifest.name, self._stop.check)
            write_atomically(building / MARKER, marker)
            target = self._folder("envs") / key
            put_in_place(building, target, work / "old")
        self._progress(manifest.name, "ready")
        found = read_marker(marker)
        return Environment(key, target, found.packages if found else (), "built", 0.0)

    def _create(self, manifest: Manifest, building: Path) -> None:
        if manifest.python is None and os.pathsep not in str(building):  # which the standard library refuses
            create_environment(building)
            return
        options = ("--relocatable", "--no-project", "--python", manifest.python or sys.executable)
        self._uv(manifest, "venv", *options, str(building))

    def _install(self, locks: Locks, building: Path, kept: Path) -> None:
        python = ["--no-deps", "--python", str(building / "bin" / "python")]
        install = ("pip", "install", *python, *locks.index_arguments, "-r", str(kept))
        changing = [part for item in locks.requirements if item.url for part in ("--refresh-package", item.name)]
        before = interpreter_files(building)
        if not changing:
            try:
                # The versions are chosen, so the cache is enough if it has them.
                self._uv(locks.manifest, *install, offline=True)
            except EnvironmentBuildError:
                if self._offline:
                    raise
            else:
                _check_interpreter(building, before)
                return
            # What may be half installed: uv can run the interpreter, which would run that.
            shutil.rmtree(building)
            self._create(locks.manifest, building)
        self._uv(locks.manifest, *install, *([] if self._offline else changing))
        _check_interpreter(building, before)

    def all_keys(self) -> list[str]:
        """Return the keys of the environments in the store, complete or not."""
        folder = self.root / "envs"
        with typed_errors("list", self.root):
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def gc(self, keep: set[str], dry_run: bool = False) -> list[tuple[str, int]]:
        """Remove the environments that are neither in `keep` nor in use by a running host nor being built.

        Returns:
            Key and size in bytes of each removed environment; hard links that other environments share count in full.
        """
        keys = [key for key in self.all_keys() if key not in keep]
        if self.root.is_dir():
            sweep(self._folder("tmp"))
        removed = []
        for key in keys:
            size = size_below(self.root / "envs" / key)
            if self.discard(key, dry_run=dry_run):
                removed.append((key, size))
        return removed

    def discard(self, key: str, *, dry_run: bool = False) -> bool:
        """Remove one environment unless a running host uses or builds it; return whether it is removed, or could be."""
        locks = self._folder("locks")
        with typed_errors(key, self.root), contextlib.ExitStack() as held:
            # The builder's lock too: who repairs an environment need not use it.
            for name in (f"{key}.use", f"{key}.build.flock"):
                if not held.enter_context(try_locked(locks / name)):
                    return False
            if not dry_run:
                with workplace(self._folder("tmp")) as work, contextlib.suppress(FileNotFoundError):
                    os.rename(self._folder("envs") / key, work / "old")
                (locks / f"{key}.txt").unlink(missing_ok=True)
        return True
