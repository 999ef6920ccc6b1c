"""The host's torch as a lower layer of an extension: which packages belong to it, and whether versions agree."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from isolate._environments import Environment
from isolate._manifest import Manifest
from isolate.errors import ShareConflictError

SHARED = "torch"


def _closure() -> dict[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    waiting = [SHARED]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name == SHARED:
                raise
            continue
        found[name] = distribution
        waiting += [requirement.name for requirement in _requirements(distribution)]
    return found


def _requirements(distribution: metadata.Distribution) -> Iterator[Requirement]:
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _top_names(distribution: metadata.Distribution) -> set[str]:
    names = set()
    for file in distribution.files or []:
        first = file.parts[0]
        if first.endswith((".dist-info", ".data")) or first in ("..", "__pycache__"):
            continue
        names.add(first.split(".")[0] if len(file.parts) == 1 else first)
    return {name for name in names if name.isidentifier()}


def check_before(manifest: Manifest, requirements: list[Requirement]) -> None:
    """Refuse an extension that needs another version of torch or of Python than the host has.

    Raises:
        ShareConflictError: They do not agree, or the host has no torch.
    """
    try:
        version = metadata.version(SHARED)
    except metadata.PackageNotFoundError:
        raise ShareConflictError(
            f"{manifest.name}: share_torch is true and the host has no torch; install it in the host"
        ) from None
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if manifest.python is not None and ".".join(manifest.python.split(".")[:2]) != own:
        raise ShareConflictError(
            f"{manifest.name}: share_torch needs the host's Python {own}, the manifest asks for {manifest.python}"
        )
    for requirement in requirements:
        if requirement.name == SHARED and not requirement.specifier.contains(version, prereleases=True):
            raise ShareConflictError(
                f"{manifest.name}: asks for {requirement}, and share_torch would give it the host's torch {version}"
            )


def check_after(manifest: Manifest, environment: Environment) -> None:
    """Refuse an environment whose own packages contradict what the host's torch needs.

    Raises:
        ShareConflictError: With every contradiction.
    """
    installed = dict(package.split("==", 1) for package in environment.packages)
    conflicts = [
        f"{name} {installed[name]} is installed, the host's {owner} needs {requirement}"
        for owner, distribution in _closure().items()
        for requirement in _requirements(distribution)
        if (name := canonicalize_name(requirement.name)) in installed
        and not requirement.specifier.contains(installed[name], prereleases=True)
    ]
    if conflicts:
        raise ShareConflictError(f"{manifest.name}: share_torch: " + "; ".join(conflicts))


def layer_config() -> dict[str, Any]:
    """Return what lets the worker import the host's torch and its dependencies, and nothing else of the host."""
    names: set[str] = set()
    folders: list[str] = []
    closure = _closure()
    for distribution in closure.values():
        names |= _top_names(distribution)
        folder = str(Path(str(distribution.locate_file(""))).resolve())
        if folder not in folders:
            folders.append(folder)
    return {"names": sorted(names), "folders": folders, "distributions": sorted(closure)}
