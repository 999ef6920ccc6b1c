"""The manifest of an extension, YAML or TOML, checked strictly."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from isolate._foreign_manifests import is_foreign, read_foreign
from isolate._places import read_regular
from isolate._worker.spelling import suggest
from isolate._yamlsafe import YamlError, read_yaml
from isolate.errors import InvalidManifestError

FILES = ("manifest.yaml", "manifest.yml", "manifest.toml")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_ENTRY = re.compile(r"(\.|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)(:[A-Za-z_]\w*)?\Z")
_PYTHON = re.compile(r"3\.\d{1,2}(\.\d{1,2})?\Z")
_SIZE_LIMIT = 256 << 10


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resource limits of a worker; None means no limit.

    Attributes:
        memory: Bytes of private memory: a number, or a text with a unit (`2GiB`). A worker that exceeds it ends.
        cpu_seconds: Processor time of each call, on its own thread. A call that exceeds it raises `CpuLimitError`; one
            that does not end within a second more of it, inside C code for instance, ends the worker.
        processes: Processes of the extension, its children and theirs included. A worker that exceeds it ends.
        threads: Threads of all these processes. A worker that exceeds it ends.
        open_files: Open descriptors of each process.
    """

    memory: int | str | None = None
    cpu_seconds: float | None = None
    processes: int | None = None
    threads: int | None = None
    open_files: int | None = None

    def as_numbers(self) -> dict[str, Any]:
        """Return the limits that are set, memory in bytes."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        if isinstance(self.memory, str):
            values["memory"] = _bytes(self.memory)
        return {name: value for name, value in values.items() if value is not None}


class Sandbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a worker is confined.

    Attributes:
        level: `none`, `limits`, `landlock` or `bwrap`.
        required: Whether the extension fails to load if any part of the level is missing.
        gpus: Whether it may use the machine's GPUs at the levels `landlock` and `bwrap`; below them it may.
        network: Whether the extension may use the network; levels `landlock` and `bwrap` can forbid it.
        write: Folders that the extension may write to.
        read: Folders that the extension may read besides its own, its environment and the system's libraries.
    """

    level: Literal["none", "limits", "landlock", "bwrap"] = "none"
    required: bool = False
    gpus: bool = False
    network: bool = True
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds to start, for a call without its own timeout (None: no limit), and to stop."""

    start: float = 60.0
    call: float | None = None
    stop: float = 5.0


class Restart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What follows a crash.

    Attributes:
        policy: `on-failure` or `never`.
        limit: Crashes within `window` seconds after which the extension counts as failed.
        window: Seconds.
        backoff: Seconds before the first restart; doubled for each further one in the window, 30 at most.
    """

    policy: Literal["on-failure", "never"] = "on-failure"
    limit: int = 3
    window: float = 60.0
    backoff: float = 0.1


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an extension is and what it asks for; the README describes each key.

    Attributes:
        directory: The extension's folder; not a key of the file.
        lock_file: The name of its lock file there; not a key of the file.

    Example:
        >>> manifest = Manifest(name="stats", directory=extensions / "stats")
        >>> manifest.isolated, manifest.timeouts.start
        (True, 60.0)
    """

    name: str
    entry: str = "main"
    version: str = "0"
    description: str = ""
    dependencies: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    index: str | None = None
    extra_indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    python: str | None = None
    isolated: bool = True
    share_torch: bool = False
    serial: bool = False
    enabled: bool = True
    provides: tuple[str, ...] = ()
    needs: dict[str, tuple[str, ...]] | None = None
    limits: Limits = Limits()
    sandbox: Sandbox = Sandbox()
    env: tuple[str, ...] = ()
    timeouts: Timeouts = Timeouts()
    restart: Restart = Restart()
    directory: Path = Path()
    lock_file: str = "isolate.lock"


_SECONDS, _NUMBERS = 1e7, 1 << 63
"""Above every time and every limit that a manifest can set: the kernel's numbers have 64 bits."""
_NO_KEYS = ("directory", "lock_file")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; wanted bytes, or a number with KB, MB, GB, KiB, MiB or GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))


def find_manifest(path: Path) -> Path:
    """Return the manifest file of a folder, or the file itself."""
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise InvalidManifestError(f"{path}: there is no {' or '.join(FILES)}, pyproject.toml or requirements.txt")


def is_extension(path: Path) -> bool:
    """Return whether a folder or file is an extension: one with a manifest, or that another tool's files describe."""
    return (path.is_dir() and any((path / name).exists() for name in FILES)) or is_foreign(path)


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest.

    Args:
        path: The file, or the folder that holds it. A folder with `pyproject.toml` or `requirements.txt`, or a Python
            file with inline script metadata, needs no manifest.

    Returns:
        The manifest.

    Raises:
        InvalidManifestError: The file cannot be read or is invalid; the message has file and line.

    Example:
        >>> read_manifest(extensions / "stats").name
        'stats'
    """
    path = Path(path)
    try:
        ours = path.is_dir() and any((path / name).is_file() for name in FILES)
        if not ours and (path.suffix == ".py" or path.is_dir()) and (path.is_file() or is_foreign(path)):
            return _read_foreign(path)
        file = find_manifest(path)
    except OSError as failure:  # a name that is too long, a folder that may not be searched
        raise InvalidManifestError(f"{str(path)!r:.200}: {failure.strerror}") from None
    try:
        data = read_regular(file, _SIZE_LIMIT)
    except OSError as failure:
        raise InvalidManifestError(f"{file}: {failure.strerror}") from None
    except ValueError as failure:
        raise InvalidManifestError(f"a manifest cannot be read: {failure}") from None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as failure:
        line = data[: failure.start].count(b"\n") + 1
        raise InvalidManifestError(f"{file}, line {line}: byte 0x{data[failure.start]:02x} is not UTF-8") from None
    lines: dict[str, int] = {}
    try:
        if file.suffix == ".toml":
            values: Any = tomllib.loads(text)
        else:
            values, lines = read_yaml(text)
    except YamlError as failure:
        raise InvalidManifestError(f"{file}, line {failure.line}: {failure}") from None
    except tomllib.TOMLDecodeError as failure:
        raise InvalidManifestError(f"{file}: not TOML: {failure}") from None
    except RecursionError:  # tomllib has no limit of its own
        raise InvalidManifestError(f"{file}: its values are nested too deep") from None

    def problem(where: str, message: str) -> InvalidManifestError:
        line = lines.get(where) or lines.get(re.sub(r"(\.[^.]*|\[\d+\])\Z", "", where))
        return InvalidManifestError(f"{file}{f', line {line}' if line else ''}: {message}")

    return _check(values, file, problem)


def _read_foreign(path: Path) -> Manifest:
    file, values = read_foreign(path)
    manifest = _check(values, file, lambda _, message: InvalidManifestError(f"{file}: {message}"))
    return msgspec.structs.replace(manifest, lock_file=f"{path.name}.isolate.lock") if path.is_file() else manifest


def _check(values: Any, file: Path, problem: Any) -> Manifest:
    if not isinstance(values, dict):
        raise problem("", f"a manifest is a map of keys, not {'empty' if values is None else type(values).__name__}")
    values = dict(values)
    if "module" in values:
        if "entry" in values:
            raise problem("module", "give either module or entry, not both")
        values["entry"] = values.pop("module")
    fields = {"": Manifest, "limits": Limits, "sandbox": Sandbox, "timeouts": Timeouts, "restart": Restart}
    for section, kind in fields.items():
        part = values if not section else values.get(section)
        known = [name for name in kind.__struct_fields__ if name not in _NO_KEYS] + ([] if section else ["module"])
        for key in part if isinstance(part, dict) else ():
            if key not in known:
                where = f"{section}.{key}" if section else key
                raise problem(where, f"unknown key {where!r}{suggest(key, known)}")
    try:
        manifest = msgspec.convert(
            {**values, "directory": str(file.parent.resolve())}, Manifest, strict=True, dec_hook=_path
        )
    except msgspec.ValidationError as failure:
        message, _, where = str(failure).partition(" - at `$.")
        where = where.rstrip("`").replace("[...]", "[0]")
        is_number = message.startswith("Expected `str") and message.endswith(("got `float`", "got `int`"))
        hint = "; put it in quotes" if is_number else ""
        raise problem(where, f"{where + ': ' if where else ''}{message}{hint}") from None
    _check_values(manifest, problem)
    return manifest


def check_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest that a program has made, checked as one of a file is.

    Raises:
        InvalidManifestError: A key has a wrong type or value.
    """
    owner = f"the manifest of {manifest.name!r:.80}"
    try:
        values = msgspec.to_builtins(manifest, enc_hook=str)
        checked = msgspec.convert(values, Manifest, strict=True, dec_hook=_path)
    except (msgspec.ValidationError, TypeError, ValueError) as failure:
        raise InvalidManifestError(f"{owner}: {failure}") from None
    _check_values(checked, lambda _, message: InvalidManifestError(f"{owner}: {message}"))
    return msgspec.structs.replace(checked, directory=checked.directory.absolute())


def _path(kind: type, value: object) -> object:
    return Path(str(value)) if kind is Path else value


def _check_values(manifest: Manifest, problem: Any) -> None:
    if not NAME.match(manifest.name):
        raise problem("name", f"the name {manifest.name!r:.80} is not of the form [a-z0-9][a-z0-9._-]{{0,63}}")
    if not _ENTRY.match(manifest.entry):
        raise problem("entry", f"the entry {manifest.entry!r:.80} is not of the form module or module:Class")
    if manifest.python is not None and not _PYTHON.match(manifest.python):
        raise problem("python", f"python {manifest.python!r:.80} is not a version such as '3.12'")
    if manifest.python is not None and int(manifest.python.split(".")[1]) < 11:
        raise problem("python", f"python {manifest.python} is too old; workers need 3.11 or later")
    if not manifest.isolated and (manifest.dependencies or manifest.python):
        raise problem(
            "isolated", "an extension with isolated: false runs in the host's process and cannot have dependencies"
        )
    for name in manifest.provides:
        if not name.isidentifier() or name.startswith("_"):
            raise problem("provides", f"{name!r:.80} is not the name of a public method")
    for name in manifest.env:
        if not re.match(r"[A-Za-z_]\w*\Z", name):
            raise problem("env", f"{name!r:.80} is not the name of an environment variable")
    try:
        numbers = manifest.limits.as_numbers()
    except ValueError as failure:
        raise problem("limits.memory", f"limits.memory: {failure}") from None
    for name, value in numbers.items():
        if not value > 0:
            raise problem(f"limits.{name}", f"limits.{name}: {value} is not positive")
        if value >= (_SECONDS if name == "cpu_seconds" else _NUMBERS):
            raise problem(f"limits.{name}", f"limits.{name}: {value} is too large; leave it out for no limit")
    for name in ("start", "call", "stop"):
        seconds = getattr(manifest.timeouts, name)
        if seconds is not None and not 0 < seconds < _SECONDS:
            raise problem(f"timeouts.{name}", f"timeouts.{name}: {seconds} is not a positive number of seconds")
    for name in ("limit", "window", "backoff"):
        value = getattr(manifest.restart, name)
        if not 0 <= value < _SECONDS:
            raise problem(f"restart.{name}", f"restart.{name}: {value} is not between 0 and {_SECONDS:,.0f}")
