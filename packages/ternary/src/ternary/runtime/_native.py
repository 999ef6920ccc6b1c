"""The compiled core through ctypes: find it, list its kernels, call them."""

from __future__ import annotations

import ctypes
import functools
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ternary.errors import KernelUnavailableError
from ternary.runtime._layout import Geometry

__all__ = [
    "CORE_FILE",
    "PATHS",
    "Core",
    "available_kernels",
    "bits_of",
    "conv2d",
    "core",
    "find_core",
    "linear",
    "multiply",
    "path_number",
]

CORE_FILE = Path(__file__).with_name("libternary_core.so")
"""Where the package's build puts the compiled core; the same name on every system."""

PATHS = ("amx", "avx512vnni", "neon", "avx2", "portable")
"""Names of the native kernels, fastest first; their numbers come from the core."""

_PROBLEM = struct.Struct("=23q")
_ONE_BY_ONE = (1, 1, 1, 1, 0, 0, 1, 1)  # kernel, stride, padding, dilation of a matrix product
_FAILURES = {1: "out of memory", 2: "no such path", 3: "more than 500,000 columns in one product (66,000 of 8 bits)"}


@dataclass(frozen=True, slots=True)
class Core:
    """A loaded core, and the number of each path that this machine can run, fastest first; None and {} without one."""

    library: ctypes.CDLL | None
    paths: dict[str, int]
    reason: str


def find_core(file: Path) -> Core:
    """Load the compiled core from `file` and list its paths; `reason` explains why it cannot be used."""
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return Core(None, {}, "not built (no C compiler at installation)" if not file.exists() else str(error))
    library.ternary_problem_size.restype = ctypes.c_int64
    if library.ternary_problem_size() != _PROBLEM.size:
        return Core(None, {}, f"{file.name} belongs to another version of this package or another word size")
    library.ternary_run.argtypes = [ctypes.c_char_p]
    library.ternary_has_path.argtypes = [ctypes.c_int64]
    library.ternary_path_name.restype = ctypes.c_char_p
    library.ternary_path_name.argtypes = [ctypes.c_int64]
    numbers: dict[str, int] = {}
    while (name := library.ternary_path_name(len(numbers))) is not None:
        numbers[name.decode()] = len(numbers)
    paths = {name: numbers[name] for name in PATHS if name in numbers and library.ternary_has_path(numbers[name])}
    return Core(library, paths, f"loaded from {file}")


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


def bits_of(weight: Tensor) -> int:
    """Return how many bits a weight of packed bytes has: signed bytes are themselves the weights."""
    return 8 if weight.dtype == torch.int8 else 2


def _run(problem: bytes) -> None:
    library = core().library
    assert library is not None  # path_number gave a path of it
    failure = library.ternary_run(problem)
    if failure == 1:
        raise MemoryError("ternary's core could not allocate its scratch memory")
    if failure:
        raise KernelUnavailableError(f"ternary's core refused the problem: {_FAILURES.get(failure, failure)}")


def multiply(
    path: int,
    threads: int,
    m: int,
    k: int,
    n: int,
    x: int,
    tiles: int,
    scale: int,
    bias: int,
    y: int,
    sums: int,
    bits: int = 2,
) -> None:
    """The (m, n) product of a matrix and tiles at these addresses, to `y` as float32 or to `sums` as int32."""
    _run(_PROBLEM.pack(path, threads, m, 1, 1, k, n, 1, *_ONE_BY_ONE, x, tiles, scale, bias, y, sums, bits))


def linear(
    x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None, path: int, threads: int, *, integers: bool = False
) -> Tensor:
    """(M, N) product of contiguous float32 (M, K) with tiles; int32 sums before any scale with `integers`."""
    m, k = x.shape
    n = scale.shape[0]
    y = torch.empty((m, n), dtype=torch.int32 if integers else torch.float32, device="cpu")
    at = y.data_ptr()
    outputs = (0, at) if integers else (at, 0)
    added = 0 if bias is None else bias.data_ptr()
    multiply(path, threads, m, k, n, x.data_ptr(), tiles.data_ptr(), scale.data_ptr(), added, *outputs, bits_of(tiles))
    return y


def conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    path: int,
    threads: int,
    *,
    integers: bool = False,
) -> Tensor:
    """(B, C_out, OH, OW) convolution of channels-last float32 (B, C_in, H, W), channels-last itself."""
    batch, channels, height, width = x.shape
    n = scale.shape[0]
    dtype = torch.int32 if integers else torch.float32
    y = torch.empty((batch, *geometry.out_size(height, width), n), dtype=dtype, device="cpu").permute(0, 3, 1, 2)
    at = y.data_ptr()
    _run(
        _PROBLEM.pack(
            *(path, threads, batch, height, width, channels, n, geometry.groups),
            *geometry.kernel_size,
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
            *(x.data_ptr(), weight.data_ptr(), scale.data_ptr(), 0 if bias is None else bias.data_ptr()),
            *(0 if integers else at, at if integers else 0, bits_of(weight)),
        )
    )
    return y
