"""Values beyond the wire's own types: each travels as a tag of a closed table and parts, and comes back equal.

`describe` and `build` are the whole interface. A tag selects a function of this package; it never names something to
import. A library's values are built only by the module for that library, and only where the library is installed.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from . import converters, declared
from . import kinds_standard as standard
from .errors import OverloadedError, UnsupportedTypeError, WireError

_LIBRARIES = {"numpy": "arrays", "pandas": "frames", "pyarrow": "tables", "PIL": "images", "torch": "tensors"}
"""For each library whose values travel, the module `kinds_…` that handles them."""
Described = tuple[str, Any]


def _module(library: str) -> Any:
    try:
        return importlib.import_module(f"{__package__}.kinds_{_LIBRARIES[library]}")
    except OSError as failure:  # no descriptor is left to read it
        raise OverloadedError(f"a value of {library} cannot be handled now: {failure}") from failure


def describe(value: Any) -> Described | None:
    """Return the tag and the parts of a value; None for a type that this package does not handle.

    Raises:
        UnsupportedTypeError: The type is handled and this value of it cannot travel unchanged.
    """
    kind = type(value)
    found: Described | None = converters.describe(value, kind) or standard.describe(value, kind)
    if found is not None:
        return found
    library = kind.__module__.partition(".")[0]
    if library in _LIBRARIES:
        found = _module(library).describe(value, kind)
        if found is not None:
            return found
    return declared.describe(value, kind)


def build(parts: Any, trusted: bool = False) -> Any:
    """Return the value for a tag and its parts, as they came from the other side.

    Args:
        parts: The tag and the parts.
        trusted: Whether the other side leaves alone what it has sent in shared memory.

    Raises:
        WireError: The tag is unknown or the parts are malformed.
        UnsupportedTypeError: The value cannot be built here.
    """
    if type(parts) is not list or len(parts) != 2 or type(parts[0]) is not str:
        raise WireError("a described value is not a tag and its parts")
    tag, content = parts
    family, _, rest = tag.partition(".")
    maker: Callable[[str, Any], Any]
    if family == "pyarrow" and rest:
        maker = functools.partial(_module(family).build, trusted=trusted)
    elif family in _LIBRARIES and rest:
        maker = _module(family).build
    elif family == "declared":
        maker = declared.build
    elif family == "converted":
        maker = converters.build
    else:
        maker = standard.build
    try:
        return maker(tag, content)
    except (WireError, OverloadedError, UnsupportedTypeError, MemoryError):
        raise
    except Exception as failure:
        why = f"{type(failure).__name__}: {failure}"[:500]
        if maker in (standard.build, declared.build):
            raise WireError(f"a {tag:.40} is malformed: {why}") from None
        # Another version of a library may be unable to build what is sound.
        raise UnsupportedTypeError(f"a {tag:.40} cannot be built here: {why}") from None


def handles(kind: type) -> bool:
    """Return whether values of a type may travel, as far as the type alone says."""
    library = kind.__module__.partition(".")[0]
    return converters.knows(kind) or standard.knows(kind) or library in _LIBRARIES or library == "cupy"


_BASES: tuple[type, ...] = (str, int, float, complex, bytes, bytearray, tuple, list, dict, set, frozenset)


def remedy(value: Any) -> str:
    """Return what to send in place of a value that does not travel."""
    own = f"isolate.converter({type(value).__name__}, to=…, back=…) on both sides"
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if isinstance(value, getattr(numpy, "ndarray", ())):  # another thread may be importing it
        return "send numpy.array(value)"
    if isinstance(value, getattr(torch, "Tensor", ())):
        return "send value.detach(), as a plain dense tensor"
    image = sys.modules.get("PIL.Image")
    if isinstance(value, getattr(image, "Image", ())):
        return "send value.copy()"
    for base in _BASES:
        if isinstance(value, base):
            return f"send {base.__name__}(value), or register {own}"
    if hasattr(value, "__next__"):
        return "send list(value), or make the method a generator"
    return f"send built-in values, dataclasses, enums, arrays or callables, or register {own}"
