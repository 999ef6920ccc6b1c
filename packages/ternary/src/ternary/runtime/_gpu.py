"""The packed matrix product as a Triton kernel, for CUDA and for Triton's interpreter on a CPU.

The tests run it through the interpreter and compile it for five generations of GPUs; it has not run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ternary.errors import KernelUnavailableError
from ternary.runtime._fallback import quantize
from ternary.runtime._layout import tile_shape

__all__ = ["LOWEST", "is_available", "linear", "linear_sums", "why_not"]

_BLOCK_M, _BLOCK_N, _BLOCK_BYTES = 16, 64, 32


LOWEST = (8, 0)
"""The compute capability from which on Triton compiles products of 8-bit integers; a T4 has 7.5, a V100 7.0."""


def is_available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _kernel() -> Any:
    """The Triton function; made at first use, since importing triton takes a while and may fail."""
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        raise KernelUnavailableError('got kernel="triton" without triton; pip install triton') from error

    @triton.jit  # type: ignore[untyped-decorator]
    def multiply(  # type: ignore[no-untyped-def]
        q, tiles, out, rows, n, k16, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_BYTES: tl.constexpr
    ):
        """out[rows, n] = q[rows, 16 * k16] times tiled weights; a byte holds columns 4 i … 4 i + 3 of one row."""
        row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        strip = (column // 16).to(tl.int64) * k16 * 64 + column % 16 * 4
        for start in range(0, k16 * 4, BLOCK_BYTES):
            i = start + tl.arange(0, BLOCK_BYTES)
            inside = i < k16 * 4
            at = strip[None, :] + (i // 4 * 64 + i % 4)[:, None]
            packed = tl.load(tiles + at, mask=inside[:, None] & (column < n)[None, :], other=0x55).to(tl.int32)
            x = q + row.to(tl.int64)[:, None] * k16 * 16 + i[None, :] * 4
            mask = (row < rows)[:, None] & inside[None, :]
            for j in tl.static_range(4):
                values = ((packed >> 2 * j & 3) - 1).to(tl.int8)
                total += tl.dot(tl.load(x + j, mask=mask, other=0), values, out_dtype=tl.int32)
        at = row.to(tl.int64)[:, None] * n + column[None, :]
        tl.store(out + at, total, mask=(row < rows)[:, None] & (column < n)[None, :])

    return multiply


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Return why the kernel cannot be used on a CUDA device, or None; found out by using it once."""
    if not is_available():
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST:
        found, wanted = (".".join(map(str, version)) for version in (capability, LOWEST))
        return f"Triton needs compute capability {wanted} for 8-bit products, and {device} has {found}"
    try:
        q = torch.full((1, 20), 3, dtype=torch.int8, device=device)
        tiles = torch.full(tile_shape(2, 20, bits=2), 0xAA, dtype=torch.uint8, device=device)  # all weights are 1
        sums = linear_sums(q, tiles, 2).tolist()
    except Exception as error:
        return f"{type(error).__name__} on {device}: {(str(error).splitlines() or [''])[0]}"
    return None if sums == [[60, 60]] else f"wrong sums on {device}: {sums}"


def linear_sums(q: Tensor, tiles: Tensor, n: int) -> Tensor:
    """int32 (M, n) products of int8 (M, K) activations with tiled weights."""
    rows, k = q.shape
    k16 = tiles.shape[1]
    out = torch.zeros((rows, n), dtype=torch.int32, device=q.device)
    if rows and n and k:
        padded = torch.nn.functional.pad(q, (0, k16 * 16 - k)).contiguous()
        grid = (-(-rows // _BLOCK_M), -(-n // _BLOCK_N))
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
            _kernel()[grid](padded, tiles, out, rows, n, k16, _BLOCK_M, _BLOCK_N, _BLOCK_BYTES)
    return out


def linear(x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """float32 (M, N) product of float32 (M, K) with tiled weights."""
    q, x_scale = quantize(x)
    y = linear_sums(q, tiles, scale.shape[0]).float() * x_scale.unsqueeze(1) * scale
    return y if bias is None else y + bias
