"""Modules that moved: their old import paths work for one release, with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "ttt.augment": ("ttt._tasks.augment", "ttt"),
    "ttt.backend": ("ttt._backend", "ttt"),
    "ttt.budget": ("ttt._budget", "ttt"),
    "ttt.calibration": ("ttt.results", "ttt.results"),
    "ttt.data": ("ttt._tasks.sources", "ttt"),
    "ttt.evaluate": ("ttt.results", "ttt.results"),
    "ttt.events": ("ttt._events", "ttt"),
    "ttt.grid": ("ttt.backends.grid", "ttt.backends.grid"),
    "ttt.loader": ("ttt._tasks.loader", "ttt"),
    "ttt.orchestrator": ("ttt._runs.run", "ttt"),
    "ttt.scoring": ("ttt.results", "ttt.results"),
    "ttt.selection": ("ttt.results", "ttt.results"),
    "ttt.submission": ("ttt.results", "ttt.results"),
}
"""Old module: the module that now stands in for it, and the public one that users should import from."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(fullname, _MovedLoader()) if fullname in MOVED else None


class _MovedLoader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new, public = MOVED[old]
        text = f"{old} has moved; import its names from {public}. The old path will be removed in the next release"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


def keep_old_paths() -> None:
    """Let the old import paths work in this process; further calls change nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
