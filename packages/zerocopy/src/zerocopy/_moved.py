"""Keep the import paths of version 0.1's modules working for one release, with a DeprecationWarning.

`zerocopy.publish`, `zerocopy.report` and `zerocopy.flatten` are functions of the same names and have no old path.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence

MOVED = {
    "zerocopy.checkpoint": "zerocopy._checkpoint",
    "zerocopy.cli": "zerocopy._cli",
    "zerocopy.directory": "zerocopy._directory",
    "zerocopy.invoke": "zerocopy._invoke",
    "zerocopy.isolation": "zerocopy._writes",
    "zerocopy.live": "zerocopy._follow",
    "zerocopy.pipeline": "zerocopy._pipeline",
    "zerocopy.ref": "zerocopy._ref",
    "zerocopy.rewrite": "zerocopy._rewrite",
}


class _OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a moved module under its old path and returns the new one."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        new = MOVED[module.__name__]
        message = f"{module.__name__} has moved to {new} and is private now: import its public names from zerocopy"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


sys.meta_path.append(_OldPaths())
