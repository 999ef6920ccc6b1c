"""Public names of the package, each imported from its module at its first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["importer"]


def importer(homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return the package's `__getattr__`.

    Args:
        homes: Names by the module that holds them.
    """
    package = __name__.partition(".")[0]
    home = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return __getattr__
