"""The compiled part, where it could be built for this memory layout; otherwise why not."""

from __future__ import annotations

import importlib
from typing import Any

from xfer._channel.layout import LAYOUT

module: Any = None
why_not = ""
try:
    module = importlib.import_module("xfer._native")
except ImportError as error:
    why_not = str(error)
else:
    theirs: Any = getattr(module, "layout", dict)()
    if theirs != LAYOUT:
        module, why_not = None, "it was compiled for another memory layout: reinstall pentad-xfer"
