"""The compiled core: find it, list its kernels. Loads neither torch nor numpy."""

from __future__ import annotations

import ctypes
import functools
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

from ternary._sources import digest
from ternary.errors import KernelUnavailableError, StaleCoreError

__all__ = [
    "CHAIN",
    "CORE_FILE",
    "PATHS",
    "PROBLEM",
    "STAGE",
    "Core",
    "available_kernels",
    "core",
    "find_core",
    "path_number",
]

CORE_FILE = Path(__file__).with_name("runtime") / "libternary_core.so"
"""Where the package's build puts the compiled core; the same name on every system."""

PATHS = ("amx", "avx512vnni", "avxvnni", "neon", "avx2", "portable")
"""Names of the native kernels, fastest first; their numbers come from the core."""

PROBLEM = struct.Struct("=23q")
"""One product or convolution as the core reads it."""

CHAIN, STAGE = struct.Struct("=11q"), struct.Struct("=12q2d3q")
"""A chain of convolutions, and one of its stages, as the core reads them."""


@dataclass(frozen=True, slots=True)
class Core:
    """A loaded core, and the number of each path that this machine can run, fastest first; None and {} without one."""

    library: ctypes.CDLL | None
    paths: dict[str, int]
    reason: str


def find_core(file: Path) -> Core:
    """Load the compiled core from `file` and list its paths; `reason` explains why it cannot be used.

    Raises:
        StaleCoreError: It is ternary's core, but compiled from other sources than those beside this file.
    """
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return Core(None, {}, "not built (no C compiler at installation)" if not file.exists() else str(error))
    _require_same_sources(library, file)
    sizes = {"problem": PROBLEM.size, "chain": CHAIN.size, "stage": STAGE.size}
    if not all(_size_of(library, name) == size for name, size in sizes.items()):
        return Core(None, {}, f"{file.name} belongs to another version of this package or another word size")
    for name in ("ternary_run", "ternary_run_groups", "ternary_run_chain", "ternary_chain_bytes"):
        getattr(library, name).argtypes = [ctypes.c_char_p]
    library.ternary_chain_bytes.restype = ctypes.c_int64
    library.ternary_has_path.argtypes = [ctypes.c_int64]
    library.ternary_path_name.restype = ctypes.c_char_p
    library.ternary_path_name.argtypes = [ctypes.c_int64]
    numbers: dict[str, int] = {}
    while (name := library.ternary_path_name(len(numbers))) is not None:
        numbers[name.decode()] = len(numbers)
    paths = {name: numbers[name] for name in PATHS if name in numbers and library.ternary_has_path(numbers[name])}
    return Core(library, paths, f"loaded from {file}")


def _require_same_sources(library: ctypes.CDLL, file: Path) -> None:
    """Raise `StaleCoreError` if a core was compiled from other sources; without sources, sizes tell."""
    wanted = digest(Path(__file__).parent)
    if not wanted or not hasattr(library, "ternary_has_path"):
        return
    theirs = b""
    if hasattr(library, "ternary_sources"):
        library.ternary_sources.restype = ctypes.c_char_p
        theirs = library.ternary_sources()
    if theirs != wanted.encode():
        raise StaleCoreError(
            f"{file} was compiled from other sources than the ternary beside it: install pentad-ternary again (in a "
            "checkout: `uv sync --reinstall-package pentad-ternary`), or delete that file to run in plain torch"
        )


def _size_of(library: ctypes.CDLL, name: str) -> int:
    """Return how many bytes a structure has in the core; 0 if it does not know it."""
    ask = getattr(library, f"ternary_{name}_size", None)
    if ask is None:
        return 0
    ask.restype = ctypes.c_int64
    return int(ask())


@functools.cache
def core() -> Core:
    """Return the core of this installation, loaded at the first use; warn once if there is none."""
    found = find_core(CORE_FILE)
    if found.library is None:
        warnings.warn(
            f"ternary's compiled core is not in use: {found.reason}. Packed layers run in plain torch, with the same "
            "results but slower. Install a C compiler and reinstall pentad-ternary to get it",
            RuntimeWarning,
            stacklevel=3,
        )
    return found


def available_kernels() -> tuple[str, ...]:
    """Names that the `kernel` argument of packed layers takes on this machine, fastest first, plain torch last.

    Example:
        >>> from ternary.runtime import available_kernels
        >>> available_kernels()[-1]
        'torch'
    """
    return (*core().paths, "torch")


@functools.cache
def path_number(kernel: str) -> int:
    """The number of a named native path, for "auto" the fastest; -1 if that is plain torch.

    Raises:
        KernelUnavailableError: This machine or this build does not have it.
    """
    if kernel == "torch":
        return -1
    paths = core().paths
    if kernel == "auto":
        return next(iter(paths.values()), -1)
    if kernel not in paths:
        known = "auto, " + ", ".join(available_kernels())
        raise KernelUnavailableError(f"got kernel={kernel!r}; this machine and build have {known} ({core().reason})")
    return paths[kernel]
