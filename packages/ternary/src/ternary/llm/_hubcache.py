"""Models that lie in the cache folder of the Hugging Face Hub, by their name. Nothing is downloaded here."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ternary.errors import ImportFormatError

__all__ = ["cache_home", "find_source", "model_name"]

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = (".ternary", ".gguf", ".safetensors")


def find_source(path: Path) -> Path:
    """Return where a source of a model is: the path itself, or the snapshot in the Hub's cache that it stands for.

    Args:
        path: A file, a folder, a folder of the Hub's cache (`models--owner--name`), or a name such as `owner/name`.

    Raises:
        FileNotFoundError: There is no such path, and no model of this name was downloaded.
        ImportFormatError: A folder of the Hub's cache has no whole snapshot.
    """
    if path.exists():
        return _snapshot(path) if (path / "snapshots").is_dir() else path
    name = path.as_posix()
    if not _NAME.fullmatch(name) or path.suffix in _FILES:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    folder = _cache() / ("models--" + name.replace("/", "--"))
    if not folder.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"no such file or folder, nor in {folder.parent}; download it with `hf download {name}`", name
        )
    return _snapshot(folder)


def model_name(path: Path) -> str:
    """Return what a model is called by its path: a version in a folder's name, such as `b1.58`, is no ending."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    return path.stem if path.suffix in _FILES else path.name


def cache_home() -> Path:
    """Return the folder for this user's caches.

    Raises:
        FileNotFoundError: `XDG_CACHE_HOME` is not set, and the user has no home.
    """
    found = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if found.startswith("~"):
        raise FileNotFoundError(
            errno.ENOENT, "this user has no home folder; set XDG_CACHE_HOME to one for caches", found
        )
    return Path(found)


def _cache() -> Path:
    given, home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME")
    return Path(given) if given else (Path(home) if home else cache_home() / "huggingface") / "hub"


def _snapshot(folder: Path) -> Path:
    """Return the snapshot of the branch main, or the only one that is there."""
    snapshots = [entry for entry in (folder / "snapshots").iterdir() if entry.is_dir()]
    main = folder / "refs" / "main"
    wanted = main.read_text(encoding="utf-8").strip() if main.is_file() else None
    named = [entry for entry in snapshots if entry.name == wanted] or (snapshots if len(snapshots) == 1 else [])
    if not named:
        names = ", ".join(sorted(entry.name for entry in snapshots)) or "none"
        raise ImportFormatError(f"{folder} does not say which of its snapshots to take ({names}); give the path of one")
    return named[0]
