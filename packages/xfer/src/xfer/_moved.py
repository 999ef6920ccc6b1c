"""Import paths of the release before this one: each warns, names the new path, and returns the new module."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

# `xfer.move` is not here: that name is the function.
MOVED = {
    "xfer.allocators": "xfer._device.allocators",
    "xfer.channel": "xfer._channel.channel",
    "xfer.cli": "xfer._cli",
    "xfer.default": "xfer._shared.default",
    "xfer.descriptor": "xfer._shared.handle",
    "xfer.gpu": "xfer._device.manager",
    "xfer.holdings": "xfer._shared.holdings",
    "xfer.loan": "xfer._shared.loan",
    "xfer.memory_pool": "xfer._device.pool",
    "xfer.pool": "xfer._shared.pool",
    "xfer.reader": "xfer._shared.reader",
    "xfer.store": "xfer._shared.store",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Resolves the old paths; it is asked only for modules that are not found otherwise."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to load an old path, or None for any other name."""
        del path, target
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the new module."""
        new = MOVED[spec.name]
        advice = f"import its names from xfer (the module is {new} now)"
        warnings.warn(f"{spec.name} has moved: {advice}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Keep the new module as it is; only its own description has to be put back."""
        module.__spec__ = self._spec


def install() -> None:
    """Make the old paths work, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
