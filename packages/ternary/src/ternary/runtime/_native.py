"""Products and convolutions of tensors in the compiled core."""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import Tensor

from ternary._core import CHAIN, CORE_FILE, PATHS, PROBLEM, available_kernels, core, find_core, path_number
from ternary.errors import KernelUnavailableError
from ternary.runtime._layout import Geometry

__all__ = [
    "CORE_FILE",
    "PATHS",
    "available_kernels",
    "bits_of",
    "conv2d",
    "core",
    "find_core",
    "grouped_linear",
    "linear",
    "multiply",
    "path_number",
    "run_chain",
]

_ONE_BY_ONE = (1, 1, 1, 1, 0, 0, 1, 1)  # kernel, stride, padding, dilation of a matrix product
_FAILURES = {1: "out of memory", 2: "no such path", 3: "more than 500,000 columns in one product (66,000 of 8 bits)"}


def bits_of(weight: Tensor) -> int:
    """Return how many bits a weight of packed bytes has: signed bytes are themselves the weights."""
    return 8 if weight.dtype == torch.int8 else 2


def _run(problem: bytes) -> None:
    library = core().library
    assert library is not None  # path_number gave a path of it
    _raise_for(library.ternary_run(problem))


def _raise_for(failure: int) -> None:
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
    _run(PROBLEM.pack(path, threads, m, 1, 1, k, n, 1, *_ONE_BY_ONE, x, tiles, scale, bias, y, sums, bits))


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


def grouped_linear(
    x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None, n: int, group: int, path: int, threads: int
) -> Tensor:
    """(M, N) product of contiguous float32 (M, groups * group) with tiles and scales of groups of columns."""
    m, k = x.shape
    y = torch.empty((m, n), device="cpu")
    parts = (x.data_ptr(), tiles.data_ptr(), scale.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr())
    library = core().library
    assert library is not None  # path_number gave a path of it
    packed = PROBLEM.pack(path, threads, m, 1, 1, k, n, k // group, *_ONE_BY_ONE, *parts, 0, 2)
    _raise_for(library.ternary_run_groups(packed))
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
        PROBLEM.pack(
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


def run_chain(path: int, threads: int, x: Tensor, program: ctypes.Array[ctypes.c_char], count: int, y: Tensor) -> None:
    """Run the `count` stages of a program from channels-last float32 (B, C, H, W) to contiguous (B, OH, OW, C_out)."""
    library = core().library
    assert library is not None  # path_number gave a path of it
    batch, channels, height, width = x.shape
    sizes = (path, threads, batch, height, width, channels, count)
    addresses = (ctypes.addressof(program), x.data_ptr(), y.data_ptr())
    needed = library.ternary_chain_bytes(CHAIN.pack(*sizes, *addresses, 0))
    _raise_for(library.ternary_run_chain(CHAIN.pack(*sizes, *addresses, _scratch(needed))))


_kept = threading.local()


def _scratch(needed: int) -> int:
    """Return the address of this thread's scratch memory: fresh memory would cost a page fault for every 4 KiB."""
    held: Tensor | None = getattr(_kept, "memory", None)
    if held is None or held.numel() < needed:
        held = _kept.memory = torch.empty(needed + 64, dtype=torch.uint8, device="cpu")
    return held.data_ptr()
