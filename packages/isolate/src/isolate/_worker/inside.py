"""The module `isolate` as an extension sees it where its environment has no package of that name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .converters import converter
from .outgoing import share


class _Finder:
    """Finds `isolate` last, so that a package of that name in the environment is found first."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of `isolate`; None for anything else."""
        return ModuleSpec(name, _Finder) if name == "isolate" else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        """Return the module: what both sides have, and nothing of the host."""
        module: Any = ModuleType(spec.name, "What an extension can use of isolate.")
        module.converter, module.share, module.__all__ = converter, share, ["converter", "share"]
        made: ModuleType = module
        return made

    @staticmethod
    def exec_module(_module: ModuleType) -> None:
        """Do nothing more."""


def install() -> None:
    """Make `import isolate` work in this process."""
    sys.meta_path.append(_Finder)
