"""Finds named top-level packages of the host below the extension's own packages, and no others."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from typing import Any


class HostLayer:
    """A finder at the end of `sys.meta_path` for the given names only.

    Args:
        names: Importable top-level names, torch and what it needs.
        folders: The folders of the host's packages.
        distributions: Distribution names whose metadata can be found.
    """

    def __init__(self, names: Iterable[str], folders: list[str], distributions: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._folders = folders
        self._distributions = list(distributions)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """Find a top-level module; its submodules are found through the package itself."""
        if path is not None or name not in self._names:
            return None
        return importlib.machinery.PathFinder.find_spec(name, self._folders, target)

    def find_distributions(self, context: Any = None) -> Iterable[Any]:
        """Metadata of the shared distributions, for libraries that ask for a version."""
        from importlib.metadata import DistributionFinder, MetadataPathFinder

        wanted = [context.name] if context is not None and context.name else self._distributions
        known = {name.lower().replace("-", "_") for name in self._distributions}
        for name in wanted:
            if name.lower().replace("-", "_") in known:
                yield from MetadataPathFinder.find_distributions(
                    DistributionFinder.Context(name=name, path=self._folders)
                )


def install(config: dict[str, Any] | None) -> None:
    """Put the host's layer at the end of the import path."""
    if config:
        sys.meta_path.append(HostLayer(config["names"], config["folders"], config["distributions"]))
