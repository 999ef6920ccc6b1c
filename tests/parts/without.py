"""Takes away from a package what another system lacks, so that its imports and its first use can be tried here.

Only the package under test loses these things: numpy, torch and the standard library keep them.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

# What Python on each system has no module for, and what its `os` has no name for.
MODULES = {"macos": set[str](), "windows": {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"}}
NAMES = {
    "macos": {
        "memfd_create",
        "MFD_CLOEXEC",
        "MFD_ALLOW_SEALING",
        "sched_getaffinity",
        "pidfd_open",
        "O_PATH",
        "O_TMPFILE",
    },
    "windows": {
        "fork",
        "getuid",
        "geteuid",
        "killpg",
        "setsid",
        "getpgid",
        "statvfs",
        "mkfifo",
        "O_CLOEXEC",
        "O_NOFOLLOW",
    },
}
NAMES["windows"] |= NAMES["macos"]
LINUX_ONLY = ("/proc", "/dev/shm")
PLATFORM = {"macos": "darwin", "windows": "win32"}


class Missing:
    """A stand-in for `os` or `sys` that lacks names or has other values."""

    def __init__(self, module: ModuleType, lacks: set[str], values: dict[str, Any]) -> None:
        self._module, self._lacks, self._values = module, lacks, values

    def __getattr__(self, name: str) -> Any:
        """Return the module's own attribute, unless the system lacks it."""
        if name in self._lacks:
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}", name=name, obj=self)
        return self._values.get(name, getattr(self._module, name))


def take(package: str, system: str) -> None:
    """Take away what a system lacks, before the package is imported."""
    # What the package builds on is loaded whole first; it keeps everything.
    heavy = () if package in ("xfer", "isolate") else ("torch",)
    for name in ("numpy", "psutil", "multiprocessing.shared_memory", "rich.console", "yaml", "uv", "msgspec", *heavy):
        with suppress(ImportError):
            __import__(name)
    stands = {
        "os": Missing(os, NAMES[system], {}),
        "sys": Missing(sys, set(), {"platform": PLATFORM[system]}),
    }

    def of_package(depth: int) -> bool:
        frame = sys._getframe(depth)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
            ("importlib", "pathlib", "os")
        ):
            frame = frame.f_back
        return str(frame.f_globals.get("__name__", "")).split(".")[0] == package

    def hidden(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(LINUX_ONLY) and of_package(3)

    def hide(event: str, arguments: Sequence[Any]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and arguments and hidden(arguments[0]):
            raise FileNotFoundError(2, "No such file or directory", arguments[0])

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if hidden(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return real_stat(path, *arguments, **options)

    real_stat, os.stat = os.stat, stat
    sys.addaudithook(hide)
    real = __import__

    def importing(name: str, space: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        caller = str((space or {}).get("__name__", "")).split(".")[0]
        if caller == package and level == 0:
            if name in MODULES[system]:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in stands:
                return stands[name]
        return real(name, space, local, wanted, level)

    builtins.__import__ = importing  # type: ignore[assignment]
