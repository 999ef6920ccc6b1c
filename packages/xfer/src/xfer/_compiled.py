"""The compiled part, where it could be built; otherwise why not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from xfer._channel.layout import LAYOUT
from xfer._sources import digest
from xfer.errors import StaleCoreError

module: Any = None
why_not = ""


def check(core: Any, folder: Path) -> None:
    """Check that a core was compiled from the sources beside this file, and for this memory layout.

    Args:
        core: The compiled module.
        folder: The sources; where they are not installed, the memory layout alone is compared.

    Raises:
        StaleCoreError: It was compiled from other sources.
    """
    wanted = digest(folder)
    theirs = getattr(core, "sources", str)()
    if getattr(core, "layout", dict)() != LAYOUT or (wanted and theirs != wanted):
        raise StaleCoreError(
            f"{core.__file__} was compiled from other sources than the xfer beside it: install pentad-xfer again "
            f"(in a checkout: `uv sync --reinstall-package pentad-xfer`), or delete that file to run in plain Python"
        )


try:
    module = importlib.import_module("xfer._native")
except ImportError as error:
    why_not = str(error)
else:
    check(module, Path(__file__).with_name("_csrc"))
