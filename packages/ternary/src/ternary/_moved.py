"""Keep the import paths of version 0.1's modules working for one release, with a DeprecationWarning.

`ternary.quantize` is a function of the same name and has no old path; the module's names are those of `ternary`.
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

_NN = ("fastpath", "int8", "layers", "quantizers")
_RUNTIME = ("composed", "fallback", "gpu", "layout", "modules", "native", "ops", "shortcut")
_EXPORT = ("bitnet", "bundle", "files", "gguffile", "imported", "onnxfile", "onnxlayers", "onnxread", "publish")
_LANGUAGE = (
    *("arguments", "codegen", "compiler", "constants", "cursor", "diagnostics", "dims", "expressions", "formatter"),
    *("instances", "layout", "lexer", "library", "names", "parser", "reserved", "shapes", "syntax"),
)
MOVED = {
    "ternary.calibration": "ternary._quantization.calibration",
    "ternary.cli": "ternary._cli",
    "ternary.data": "ternary._training.data",
    "ternary.experiment": "ternary._training.experiment",
    "ternary.language": "ternary._language",
    "ternary.modelfile": "ternary._modelfile",
    "ternary.nn.divisible": "ternary._language.divisible",
    "ternary.plot": "ternary._plot",
    "ternary.train": "ternary._training",
    "ternary.wholefile": "ternary._wholefile",
    "ternary.export.torchforms": "ternary.export._torchforms",
    **{f"ternary.export.{name}": f"ternary.export._{name}" for name in _EXPORT},
    **{f"ternary.language.{name}": f"ternary._language.{name}" for name in _LANGUAGE},
    **{f"ternary.nn.{name}": f"ternary.nn._{name}" for name in _NN},
    **{f"ternary.runtime.{name}": f"ternary.runtime._{name}" for name in _RUNTIME},
}
"""New module by old module. `ternary.runtime.pack` and `ternary.runtime.doctor` are functions and have no old path."""


class _OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a moved module under its old path and returns the new one."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MOVED:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname == "ternary.language")

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        new = MOVED[module.__name__]
        message = f"{module.__name__} has moved to {new}; import public names from ternary and its public modules"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


# First: where an old folder's name leads to the new folder, the path finder would load its files a second time.
sys.meta_path.insert(0, _OldPaths())
