"""Register the operators `torch.ops.ternary` as soon as both this package and torch are imported.

Exported programs and TorchScript files name these operators. Their documents promise that `import ternary` is enough to
load such a file, in either order of the two imports, yet `import ternary` itself does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch as the other finders do, once, and registers the operators after its import."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: types.ModuleType) -> None:
            execute(module)
            if not _being_imported():
                importlib.import_module("ternary.runtime")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign] # of this one loader
        return spec


def _being_imported() -> bool:
    """Return whether a module of this package is importing torch: then that module imports the operators at its end."""
    modules = [module for name, module in sys.modules.items() if name.startswith("ternary.")]
    return any(getattr(module.__spec__, "_initializing", False) for module in modules)


if "torch" in sys.modules:
    importlib.import_module("ternary.runtime")
else:
    sys.meta_path.insert(0, _AfterTorch())
