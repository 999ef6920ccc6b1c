"""The libraries whose values travel. A host does not import one because an extension sends its values."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .errors import UnsupportedTypeError


class _Importing:
    """Whether this process imports a library when a value of it comes: a worker does, since it trusts its host."""

    allowed = False


def allow_imports() -> None:
    """Import libraries when needed, in this process."""
    _Importing.allowed = True


def library(name: str, what: str) -> Any:
    """Return a module of a library.

    Args:
        name: The module, a constant of the caller.
        what: What came, for the message.

    Raises:
        UnsupportedTypeError: It is not imported here, or in a worker, not installed.
    """
    if not _Importing.allowed and name not in sys.modules:
        raise UnsupportedTypeError(f"{what} came and {name} is not imported here; import it before the call")
    try:
        return importlib.import_module(name)  # waits for another thread that imports it now
    except ImportError:
        raise UnsupportedTypeError(
            f"{what} came and {name} is not installed here; add it to the dependencies"
        ) from None
