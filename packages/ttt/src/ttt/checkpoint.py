"""Versions of a training state on disk: whole, verified, never overwritten.

A store is a folder. A version is a folder `v00000001` within it with two files: `payload.safetensors` (every
tensor) and `manifest.json` (everything else, and the SHA-256 of the payload). The manifest is the canonical JSON of
an object whose `sha256` is that of the same JSON without it, so that any changed bit of either file is found. A
version is written under a temporary name, synced, and renamed into place; the rename fails if the name is taken, which
makes versions distinct among any number of writers. Pickle is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ttt.errors import (
    CheckpointNotFoundError,
    CheckpointWriteError,
    CorruptCheckpointError,
    ForeignCheckpointError,
)

__all__ = ["Checkpoint", "CheckpointStore", "Entry"]

FORMAT = "ttt-checkpoint"
FORMAT_VERSION = 1
MAX_MANIFEST = 16 << 20
PAYLOAD = "payload.safetensors"
MANIFEST = "manifest.json"
NAME = re.compile(r"v(\d{8,})")

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """One verified version: its tensors as arrays, and its JSON values in `about`.

    Example:
        >>> import numpy
        >>> from ttt.checkpoint import CheckpointStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = CheckpointStore(folder)
        ...     version = store.save({"weights": numpy.ones(3)}, {"step": 7})
        ...     store.load(version).tensors["weights"]
        array([1., 1., 1.])
    """

    version: int
    tensors: dict[str, npt.NDArray[Any]]
    about: dict[str, Any]
    score: float | None
    written: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One version in a listing; `fault` says why it cannot be used, and is None for a sound one.

    Example:
        >>> import numpy
        >>> from ttt.checkpoint import CheckpointStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = CheckpointStore(folder)
        ...     version = store.save({"weights": numpy.ones(3)}, score=0.5)
        ...     [(entry.version, entry.score, entry.fault) for entry in store.history()]
        [(1, 0.5, None)]
    """

    version: int
    bytes: int
    score: float | None
    written: float
    fault: str | None


class CheckpointStore:
    """The versions of one training state, in one folder; any number of processes may write and read at once.

    Example:
        >>> import numpy
        >>> from ttt.checkpoint import CheckpointStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = CheckpointStore(folder)
        ...     version = store.save({"weights": numpy.ones(3)}, {"step": 7})
        ...     version, store.load().about
        (1, {'step': 7})
    """

    def __init__(self, folder: Path | str, *, kind: str = "state") -> None:
        """Open a folder of versions; `kind`, such as a backend's name, must equal that of every version."""
        self.folder: Path = Path(folder)
        self.kind = kind

    def save(self, tensors: Tensors, about: Mapping[str, Any] | None = None, *, score: float | None = None) -> int:
        """Write a new version and return its number.

        Args:
            tensors: Arrays by name, of any dtype of safetensors.
            about: Further values of the state, as JSON values.
            score: Its quality, larger is better; used by `best`.

        Raises:
            CheckpointWriteError: The disk is full or the folder read-only; earlier versions are untouched.
            ValueError: `about` is not JSON, or the score is not finite.
        """
        if score is not None and not math.isfinite(score):
            raise ValueError(f"score: got {score}, wanted a finite number or None")
        payload = safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in tensors.items()})
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "files": {PAYLOAD: {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}},
            "about": dict(about or {}),
            "score": score,
            "written": time.time(),
        }
        try:
            manifest = _sealed(body)
        except TypeError as error:
            raise ValueError(f"about: {error}") from error
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".writing-"))
            os.chmod(temporary, 0o755)
            _write(temporary / PAYLOAD, payload)
            _write(temporary / MANIFEST, manifest)
            _sync_folder(temporary)
            return self._publish(temporary)
        except OSError as error:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointWriteError(
                error.errno or 0, f"{self.folder}: no new version was written ({error.strerror}); earlier ones remain"
            ) from error

    def _publish(self, temporary: Path) -> int:
        version = max(self.versions(), default=0) + 1
        while True:
            try:
                # Never replaces: a version's folder is not empty, and renaming onto one such fails.
                os.rename(temporary, self._path(version))
            except OSError:
                if not self._path(version).exists():
                    raise
                version += 1
            else:
                _sync_folder(self.folder)
                return version

    def versions(self) -> list[int]:
        """Return the numbers of all versions, ascending, sound or not."""
        if not self.folder.is_dir():
            return []
        found = (NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(m[1]) for m in found if m)

    def load(self, version: int | None = None) -> Checkpoint:
        """Read and verify a version, the newest without a number.

        Raises:
            CheckpointNotFoundError: The version does not exist, or the store is empty.
            CorruptCheckpointError: Its bytes have changed; the message names a sound earlier version.
            ForeignCheckpointError: It has another format or kind, is newer than this ttt, or is a pickle.
        """
        if version is None:
            version = max(self.versions(), default=None)
            if version is None:
                raise CheckpointNotFoundError(f"{self.folder}: holds no checkpoint")
        try:
            return self._read(version)
        except (CorruptCheckpointError, ForeignCheckpointError) as error:
            sound = next((v for v in reversed(self.versions()) if v < version and self._fault(v) is None), None)
            offer = "no earlier version is sound" if sound is None else f"version {sound} is sound"
            raise type(error)(f"{error}; {offer}") from error

    def newest_sound(self) -> Checkpoint | None:
        """Return the newest usable version, or None; a resumed run starts from it."""
        for version in reversed(self.versions()):
            try:
                return self._read(version)
            except (CorruptCheckpointError, ForeignCheckpointError, CheckpointNotFoundError):
                continue
        return None

    def best(self) -> Checkpoint:
        """Return the sound version with the highest score, the newest of equals.

        Raises:
            CheckpointNotFoundError: No sound version has a score.
        """
        scored = [(e.score, e.version) for e in self.history() if e.score is not None and e.fault is None]
        if not scored:
            raise CheckpointNotFoundError(f"{self.folder}: no sound version has a score")
        return self.load(max(scored)[1])

    def history(self) -> list[Entry]:
        """Read and verify every version; return its size, score, time and fault, ascending."""
        entries = []
        for version in self.versions():
            path = self._path(version)
            try:
                found = self._read(version)
            except CheckpointNotFoundError:
                continue  # pruned by another process meanwhile
            except (CorruptCheckpointError, ForeignCheckpointError) as error:
                entries.append(Entry(version, _size(path), None, 0.0, str(error)))
            else:
                entries.append(Entry(version, _size(path), found.score, found.written, None))
        return entries

    def prune(self, keep: int) -> list[int]:
        """Remove all but the newest `keep` sound versions and the best one; return the removed numbers.

        The highest number always stays, so that no number is used twice. Remains of writers that crashed more than a
        day ago are removed too.
        """
        if keep < 1:
            raise ValueError(f"keep: got {keep}, wanted 1 or more")
        entries = self.history()
        sound = [e for e in entries if e.fault is None]
        stay = {e.version for e in sound[-keep:]} | {e.version for e in entries[-1:]}
        scored = [(e.score, e.version) for e in sound if e.score is not None]
        stay |= {max(scored)[1]} if scored else set()
        removed = [e.version for e in entries if e.version not in stay]
        for version in removed:
            # Renamed first: a reader sees a whole version or none.
            doomed = Path(tempfile.mkdtemp(dir=self.folder, prefix=".writing-"))
            with contextlib.suppress(FileNotFoundError):  # another process prunes too
                os.rename(self._path(version), doomed / "gone")
            shutil.rmtree(doomed)
        for left in self.folder.glob(".writing-*"):
            with contextlib.suppress(FileNotFoundError):  # published or removed meanwhile
                if time.time() - left.stat().st_mtime > 86400:
                    shutil.rmtree(left, ignore_errors=True)
        return removed

    def _path(self, version: int) -> Path:
        return self.folder / f"v{version:08d}"

    def _fault(self, version: int) -> str | None:
        try:
            self._read(version)
        except (CorruptCheckpointError, ForeignCheckpointError, CheckpointNotFoundError) as error:
            return str(error)
        return None

    def _read(self, version: int) -> Checkpoint:
        path = self._path(version)
        if not path.is_dir():
            raise CheckpointNotFoundError(f"{self.folder}: has no version {version}")
        body = self._manifest(path)
        expected = body["files"][PAYLOAD]
        payload = _read_file(path / PAYLOAD, expected["bytes"])
        if hashlib.sha256(payload).hexdigest() != expected["sha256"]:
            raise CorruptCheckpointError(f"{path.name}: {PAYLOAD} is not what was written (its SHA-256 differs)")
        try:
            tensors = safetensors.numpy.load(payload)
        except safetensors.SafetensorError as error:
            raise CorruptCheckpointError(f"{path.name}: {PAYLOAD} is no safetensors file: {error}") from error
        return Checkpoint(version, tensors, body["about"], body["score"], body["written"])

    def _manifest(self, path: Path) -> dict[str, Any]:
        data = _read_file(path / MANIFEST, None)
        if data[:1] == b"\x80" or data[:2] == b"PK":
            raise ForeignCheckpointError(f"{path.name}: {MANIFEST} is a pickle or an archive, which ttt never reads")
        try:
            value = json.loads(data)
        except ValueError as error:
            raise CorruptCheckpointError(f"{path.name}: {MANIFEST} is not JSON") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ForeignCheckpointError(f"{path.name}: {MANIFEST} is not a manifest of {FORMAT}")
        claimed = value.pop("sha256", None)
        if claimed is None or _sealed(value) != data:
            raise CorruptCheckpointError(f"{path.name}: {MANIFEST} is not what was written (its SHA-256 differs)")
        if value["format_version"] != FORMAT_VERSION:
            raise ForeignCheckpointError(
                f"{path.name}: written in format {value['format_version']}, this ttt reads {FORMAT_VERSION}; update ttt"
            )
        if value["kind"] != self.kind:
            raise ForeignCheckpointError(f"{path.name}: holds a state of {value['kind']!r}, wanted {self.kind!r}")
        return value


def _sealed(body: dict[str, Any]) -> bytes:
    """Return the canonical bytes of a manifest with its own digest."""

    def canonical(value: dict[str, Any]) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    return canonical({**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()})


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows has no such thing as syncing a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_file(path: Path, size: int | None) -> bytes:
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            raise CorruptCheckpointError(f"{path.parent.name}: {path.name} has {found} bytes, {size} were written")
        if size is None and found > MAX_MANIFEST:
            raise ForeignCheckpointError(f"{path.parent.name}: {path.name} has {found} bytes, too many for a manifest")
        return path.read_bytes()
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise CheckpointNotFoundError(f"{path.parent.parent}: {path.parent.name} is gone") from error
        raise CorruptCheckpointError(f"{path.parent.name}: {path.name} is missing") from error
    except OSError as error:
        raise CorruptCheckpointError(f"{path.parent.name}: {path.name}: {error.strerror}") from error


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.glob("*") if p.is_file())
