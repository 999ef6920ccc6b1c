"""The compiled part, where it could be built; knows whether it is there and why not, and nothing of what it does."""

import importlib
from typing import Any

module: Any = None
why_not = ""
try:
    module = importlib.import_module("xfer._native")
except ImportError as error:
    why_not = str(error)
