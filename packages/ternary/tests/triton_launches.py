"""Run the prepared launches in Triton's interpreter: kernels on addresses, as they are launched again on a device.

On a device the first call compiles a kernel, and further ones launch what was compiled on numbers. Here each number is
looked up among the tensors that the launch may touch, and the kernel runs again on what is found there. A program of
its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ternary.runtime import _fallback as fallback
from ternary.runtime import _gpu as gpu
from ternary.runtime._layout import Geometry, pack_conv_weight, to_tiles

_first = gpu._first
_known: list[Tensor] = []


class Near(Tensor):
    """Where a launch takes its memory from: it is filled with what no kernel has written."""

    def new_empty(self, size: Any, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        """Memory that a kernel may be given an address in."""
        made = torch.full((size,), 0xA5, dtype=dtype)
        _known.append(made)
        return made


def _at(address: int, dtype: torch.dtype) -> Tensor:
    for tensor in _known:
        at = address - tensor.data_ptr()
        if 0 <= at < tensor.nbytes:
            held = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            return held[at + tensor.storage_offset() * tensor.element_size() :][: tensor.nbytes - at].view(dtype)
    assert address == 0, "an address in no tensor of the launch"
    return torch.empty(0, dtype=dtype)


def first(kernel: Any, grid: tuple[int, ...], cut: Any, *arguments: Any) -> Any:
    """`_gpu._first`, whose function takes addresses in the interpreter too."""
    _first(kernel, grid, cut, *arguments)
    dtypes = [argument.dtype if isinstance(argument, Tensor) else None for argument in arguments]

    def run(*given: Any) -> None:
        parts = [each if dtype is None else _at(each, dtype) for each, dtype in zip(given, dtypes, strict=True)]
        _first(kernel, grid, cut, *parts)

    return run


def again(launch: Any, out: Tensor, *inputs: Tensor | None) -> Tensor:
    """Launch again on these inputs, into memory that held something else."""
    _known[:] = [out, *(each for each in inputs if each is not None)]
    wanted = out.clone()
    out.fill_(-7)
    near = torch.empty(0).as_subclass(Near)
    launch(near, *(0 if each is None else each.data_ptr() for each in inputs), out.data_ptr())
    assert torch.equal(out, wanted), (out, wanted)
    return out


def main() -> None:
    """Products of one row and of several, and convolutions of each kind, with and without a bias."""
    gpu._first = first
    torch.manual_seed(0)
    for rows, n, k in ((1, 33, 70), (3, 20, 300), (17, 40, 50)):
        values, scale = torch.randint(-1, 2, (n, k)), torch.rand(n)
        tiles, x = to_tiles(values.float()), torch.randn(rows, k)
        for bias in (torch.randn(n), None):
            out = torch.empty(rows, n)
            held = scale if bias is None else bias
            if rows == 1:
                launch = gpu._prepare_row(out, x, tiles, scale, held, n, k, bias is not None)
            else:
                launch = gpu._prepare_rows(out, x, tiles, scale, held, rows, n, k, bias is not None)
            assert torch.equal(again(launch, out, x, tiles, scale, bias), fallback.linear(x, tiles, scale, bias))
    for channels, n, groups in ((3, 5, 1), (48, 33, 1), (8, 12, 4), (13, 13, 13)):
        geometry = Geometry((3, 2), (2, 1), (1, 2), (1, 2), groups=groups)
        kernels = torch.randint(-1, 2, (n, channels // groups, 3, 2), dtype=torch.int8)
        weight, scale = pack_conv_weight(kernels, groups), torch.rand(n)
        image = torch.randn(2, channels, 5, 6).contiguous(memory_format=torch.channels_last)
        for bias in (torch.randn(n), None):
            out = torch.empty(2, *geometry.out_size(5, 6), n)
            launch = gpu._prepare_conv(out, image, weight, scale, bias, geometry)
            got = again(launch, out, image, weight, scale, bias).permute(0, 3, 1, 2)
            assert torch.equal(got, fallback.conv2d(image, weight, scale, bias, geometry))


if __name__ == "__main__":
    main()
