"""The packed matrix product by Triton, on CUDA and in Triton's interpreter on a CPU: which kernel runs, and its launch.

One row takes one launch, which quantizes it as well. More rows take two: one quantizes them, one multiplies on the
tensor cores. A launch is prepared once for each shape: Triton's own way from arguments to a kernel takes longer than
the kernel does.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ternary._torch_private import current_stream
from ternary.errors import KernelUnavailableError
from ternary.runtime._layout import tile_shape

__all__ = ["DTYPES", "LOWEST", "is_available", "linear", "multiply", "refuse_capture", "why_not"]

LOWEST = (8, 0)
"""The compute capability from which on Triton compiles products of 8-bit integers; a T4 has 7.5, a V100 7.0."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Activations that the kernels read and write as they are."""


class Cut(NamedTuple):
    """How a kernel is cut into programs: the sizes that it takes as constants, and how Triton compiles it."""

    sizes: tuple[int, ...]
    warps: int
    stages: int


ROW = Cut((2, 256), 8, 3)
"""Strips of weights, tiles along K; measured on an H200, as those below."""

QUANTIZE = Cut((256,), 4, 3)
"""Bytes of weights along K."""

FEW = Cut((16, 64, 64), 4, 3)
SOME = Cut((64, 64, 64), 4, 3)
MANY = Cut((64, 128, 64), 4, 3)
"""Rows, rows of weights, bytes of weights along K. Each fits in 99 KiB of shared memory, which every device has."""


def is_available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _kernels() -> Any:
    """The module of the kernels, imported at first use: importing triton takes a while and may fail."""
    if not is_available():
        raise KernelUnavailableError('got kernel="triton" without triton; pip install triton')
    from ternary.runtime import _triton_kernels

    return _triton_kernels


def why_not(device: torch.device) -> str | None:
    """Return why the kernels cannot be used on a CUDA device, or None; found out by using each once."""
    if device not in _reasons:
        refuse_capture()
        _reasons[device] = _found_why_not(device)
    return _reasons[device]


_reasons: dict[torch.device, str | None] = {}


def _found_why_not(device: torch.device) -> str | None:
    if not is_available():
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST:
        found, wanted = (".".join(map(str, version)) for version in (capability, LOWEST))
        return f"Triton needs compute capability {wanted} for 8-bit products, and {device} has {found}"
    try:
        tiles = torch.full(tile_shape(2, 20, bits=2), 0xAA, dtype=torch.uint8, device=device)  # all weights are 1
        ones = torch.ones(2, device=device)
        for rows in (1, 2):
            x = torch.full((rows, 20), 127.0, device=device)
            for _ in range(2):  # the second launch is a prepared one
                got = linear(x, tiles, ones, None).tolist()
                if got != [[2540.0] * 2] * rows:
                    return f"wrong products on {device}: {got}"
    except Exception as error:
        return f"{type(error).__name__} on {device}: {(str(error).splitlines() or [''])[0]}"
    return None


def refuse_capture() -> None:
    """Raise `KernelUnavailableError` while a CUDA graph is captured: what follows waits for the device or compiles."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise KernelUnavailableError(
            "got a CUDA graph that captures the first call of a packed layer with an input of this shape; "
            "call the layer once before the capture"
        )


_Launch = Callable[[Tensor, int, int, int, int, int], None]
_prepared: dict[tuple[Any, ...], _Launch] = {}
_MOST_PREPARED = 4096


def linear(x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(..., N) product of contiguous (..., K) with tiled weights, in x's dtype, which is one of DTYPES."""
    held = 0 if bias is None else bias.data_ptr()
    return multiply(x, tiles, scale, bias, (tiles.data_ptr(), scale.data_ptr(), held))


def multiply(x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None, addresses: tuple[int, int, int]) -> Tensor:
    """`linear`, with the addresses of weights, scale and bias."""
    shape = x.shape
    n, k, device = scale.shape[0], shape[-1], x.get_device()
    out = x.new_empty((*shape[:-1], n))
    rows = x.numel() // k if k else 0
    if not rows or not n:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    at, to = x.data_ptr(), out.data_ptr()
    launch = _prepared.get((device, x.dtype, rows, n, k, bias is None))
    if launch is None or (at | addresses[0] | addresses[1] | addresses[2]) & 15:
        _prepare(out, x, tiles, scale, bias)
    elif device == torch.cuda.current_device():
        launch(x, at, *addresses, to)
    else:
        with torch.cuda.device(device):  # a launch goes to the current device
            launch(x, at, *addresses, to)
    return out


def _prepare(out: Tensor, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """Compute by Triton's own launch, which compiles, and keep the compiled kernels for further calls."""
    refuse_capture()
    n, k, on_device = scale.shape[0], x.shape[-1], x.is_cuda
    rows = x.numel() // k
    parts = [part if part.data_ptr() % 16 == 0 else part.clone() for part in (x, tiles, scale)]
    held = parts[2] if bias is None else bias if bias.data_ptr() % 16 == 0 else bias.clone()
    prepare = _prepare_row if rows == 1 else _prepare_rows
    if on_device:
        with torch.cuda.device(x.device):
            launch = prepare(out, parts[0], parts[1], parts[2], held, rows, n, k, bias is not None)
    else:
        launch = prepare(out, parts[0], parts[1], parts[2], held, rows, n, k, bias is not None)
    if on_device and launch is not None:
        while len(_prepared) >= _MOST_PREPARED:
            _prepared.pop(next(iter(_prepared)), None)
        _prepared[(x.get_device(), x.dtype, rows, n, k, bias is None)] = launch


def _prepare_row(
    out: Tensor, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor, rows: int, n: int, k: int, has_bias: bool
) -> _Launch | None:
    k16 = tiles.shape[1]
    numbers = (n, k, k16, has_bias, *ROW.sizes, x.is_cuda)
    words = tiles.view(-1).view(torch.int32)
    run = _first(
        _kernels().row_products, (-(-n // (16 * ROW.sizes[0])), rows), ROW, x, words, scale, bias, out, *numbers
    )

    def launch(_: Tensor, x: int, tiles: int, scale: int, bias: int, out: int) -> None:
        run(x, tiles, scale, bias, out, *numbers)

    return launch


def _prepare_rows(
    out: Tensor, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor, rows: int, n: int, k: int, has_bias: bool
) -> _Launch | None:
    kernels, k16 = _kernels(), tiles.shape[1]
    cut = FEW if rows <= FEW.sizes[0] else SOME if rows <= SOME.sizes[0] else MANY
    # One allocation: the bytes, the scales, the surpluses.
    scales_at = rows * k16 * 16
    surpluses_at = scales_at + -(-rows // 4) * 16
    room = surpluses_at + rows * 4
    work = torch.empty(room, dtype=torch.uint8, device=x.device)
    q, x_scales = work[:scales_at].view(torch.int8), work[scales_at:surpluses_at].view(torch.float32)
    surpluses = work[surpluses_at:].view(torch.int32)
    sizes = (k, k16, *QUANTIZE.sizes)
    numbers = (rows, n, k16, has_bias, *cut.sizes, x.is_cuda)
    quantize = _first(kernels.quantize_rows, (rows, 1), QUANTIZE, x, q, x_scales, surpluses, *sizes)
    grid = (-(-rows // cut.sizes[0]), -(-n // cut.sizes[1]))
    run = _first(kernels.many_products, grid, cut, q, x_scales, surpluses, tiles, scale, bias, out, *numbers)

    def launch(near: Tensor, x: int, tiles: int, scale: int, bias: int, out: int) -> None:
        work = near.new_empty(room, dtype=torch.uint8)
        q = work.data_ptr()
        quantize(x, q, q + scales_at, q + surpluses_at, *sizes)
        run(q, q + scales_at, q + surpluses_at, tiles, scale, bias, out, *numbers)

    return launch


_DIRECT = ((3, 3), (3, 8))
"""From the first of these releases of Triton on and before the second, a compiled kernel's `run` is called directly."""


def _first(kernel: Any, grid: tuple[int, int], cut: Cut, *arguments: Any) -> Callable[..., None]:
    """Launch a kernel and return a function that launches what was compiled, on pointers as numbers.

    Products and sums are not fused: x * inverse is rounded before it is rounded to an integer, as elsewhere.
    """
    grid3 = (*grid, 1)
    made = kernel[grid3](*arguments, num_warps=cut.warps, num_stages=cut.stages, enable_fp_fusion=False)
    if made is None:  # the interpreter compiles nothing
        return lambda *_: None
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not _DIRECT[0] <= version < _DIRECT[1]:
        return made[grid3]  # type: ignore[no-any-return]
    run, function, metadata, (blocks, others, _) = made.run, made.function, made.packed_metadata, grid3

    def launch(*arguments: Any) -> None:
        run(blocks, others, 1, current_stream(), function, metadata, None, None, None, *arguments)

    return launch
