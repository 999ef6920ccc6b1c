"""Old import paths and old names of errors: they work for one release and warn with the new ones."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODULES = {
    "isolate.cli": "isolate._cli",
    "isolate.environments": "isolate._environments",
    "isolate.exports": "isolate._exports",
    "isolate.extension": "isolate._extension",
    "isolate.host": "isolate._host",
    "isolate.manifest": "isolate._manifest",
    "isolate.requirements": "isolate._requirements",
    "isolate.sandbox": "isolate._sandbox",
    "isolate.states": "isolate._states",
    "isolate.worker.buffers": "isolate._worker.outgoing",
    "isolate.worker.errors": "isolate._worker.errors",
}
"""Modules that held public names, and where these are now. Public names come from `isolate` and `isolate.errors`."""

ERRORS = {
    "CallCancelled": "CallCancelledError",
    "CallTimeout": "CallTimeoutError",
    "ContractMismatch": "ContractMismatchError",
    "DepthExceeded": "DepthExceededError",
    "ExtensionDisabled": "ExtensionDisabledError",
    "InvalidManifest": "InvalidManifestError",
    "InvalidRequirement": "InvalidRequirementError",
    "LinkClosed": "LinkClosedError",
    "LockOutOfDate": "LockOutOfDateError",
    "NotReady": "NotReadyError",
    "Overloaded": "OverloadedError",
    "RemoteTraceback": "RemoteTracebackError",
    "SandboxUnavailable": "SandboxUnavailableError",
    "ShareConflict": "ShareConflictError",
    "UnknownMethod": "UnknownMethodError",
    "UnsupportedType": "UnsupportedTypeError",
    "WorkerDied": "WorkerDiedError",
    "WouldDeadlock": "WouldDeadlockError",
}
"""Old names of errors, and the new ones."""


class _Loader:
    """Returns the module of the new path for an old one."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = MODULES[spec.name]
        place = "isolate.errors" if new.endswith("errors") else "isolate"
        warnings.warn(
            f"{spec.name} is now internal ({new}); import its public names from {place}",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old path's there


class _Finder:
    """Finds the old paths. It comes last in `sys.meta_path`, so that other imports do not pay for it."""

    def find_spec(
        self,
        name: str,
        _path: Sequence[str] | None = None,
        _target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "isolate.worker":  # an empty package: its path would load its modules a second time
            return importlib.machinery.ModuleSpec(name, None, is_package=True)
        if name not in MODULES:
            return None
        loader: Any = _Loader()
        return importlib.machinery.ModuleSpec(name, loader)


def install() -> None:
    """Let the old paths be found; idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        finder: Any = _Finder()
        sys.meta_path.append(finder)


def renamed_error(owner: str, name: str) -> Any:
    """Return an error by its old name, with a warning.

    Raises:
        AttributeError: No error was ever called that.
    """
    new = ERRORS.get(name)
    if new is None:
        raise AttributeError(f"module {owner!r} has no attribute {name!r}")
    warnings.warn(f"{owner}.{name} is now called {new}", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module("isolate.errors"), new)
