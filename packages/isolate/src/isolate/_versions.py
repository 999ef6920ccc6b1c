"""Notices that a source file of an extension has changed, and reloads the extension."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Protocol

from isolate._manifest import Manifest
from isolate._states import State
from isolate.errors import IsolateError

Versions = dict[str, tuple[int, int]]
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
_LIMIT = 10_000
"""Files that are looked at; an extension has fewer, unless its folder holds something else."""


def versions(folder: Path) -> Versions:
    """Return time of change and size of each Python file below a folder, hidden folders left out."""
    found: Versions = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        for name in names:
            if name.endswith(".py") and len(found) < _LIMIT:
                path = os.path.join(place, name)
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    found[path] = (status.st_mtime_ns, status.st_size)
    return found


class Reloadable(Protocol):
    """What can be watched."""

    manifest: Manifest
    name: str
    logger: logging.Logger
    state: State

    async def areload(self) -> None:
        """Replace the worker by a fresh one."""


async def reload_on_change(extension: Reloadable, before: Versions, seconds: float) -> None:
    """Reload an extension whenever one of its files has changed, until it is stopped.

    Args:
        extension: The extension. A version that cannot be loaded is logged, and the one before goes on.
        before: What `versions` returned when watching was asked for.
        seconds: Time between two looks at the folder.
    """
    while extension.state is not State.STOPPED:
        await asyncio.sleep(seconds)
        found = await asyncio.to_thread(versions, extension.manifest.directory)
        if found != before:
            before = found
            try:
                await extension.areload()
            except (IsolateError, OSError) as failure:
                extension.logger.error("%s was changed and cannot be loaded: %s", extension.name, failure)
