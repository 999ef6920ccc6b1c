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
    return imported(name, what)


def imported(name: str, what: str, remedy: str = "add it to the dependencies") -> Any:
    """Import a library that a value needs.

    Args:
        name: The module, a constant of the caller.
        what: What came, for the message.
        remedy: What to do if it is not installed.

    Raises:
        UnsupportedTypeError: It is not installed, or its import fails in whatever way.
    """
    try:
        return importlib.import_module(name)  # waits for another thread that imports it now
    except ModuleNotFoundError as failure:
        if failure.name == name:
            raise UnsupportedTypeError(f"{what} came and {name} is not installed here; {remedy}") from None
        raise _broken(name, what, failure) from failure
    except Exception as failure:  # a shared library that it needs is missing, for one
        raise _broken(name, what, failure) from failure


def _broken(name: str, what: str, failure: Exception) -> UnsupportedTypeError:
    return UnsupportedTypeError(f"{what} came and {name} cannot be imported here: {type(failure).__name__}: {failure}")
