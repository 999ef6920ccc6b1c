"""Convolve by the Triton kernels in Triton's interpreter and compare with plain torch: arguments CASES and SEED.

The interpreter is chosen when the kernels are imported, so this is a program of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import random
import sys

import torch

from ternary.runtime import _fallback as fallback
from ternary.runtime import _gpu as gpu
from ternary.runtime._layout import Geometry, pack_conv_weight

EACH_WAY = [
    # Input and output channels, height, width, geometry: each branch of the kernels, in sizes that fill no block.
    (3, 5, 5, 6, Geometry((3, 2), (2, 1), (1, 2), (1, 2))),
    (48, 33, 3, 4, Geometry((1, 3), padding=(0, 1))),
    (34, 6, 2, 3, Geometry((2, 1))),
    (8, 12, 4, 3, Geometry((3, 2), (1, 2), (2, 0), (2, 1), groups=4)),
    (66, 3, 2, 2, Geometry((2, 2), padding=(1, 0), groups=3)),
    (13, 13, 5, 4, Geometry((3, 1), (2, 2), (2, 1), groups=13)),
]


def compare(
    channels: int, n: int, height: int, width: int, geometry: Geometry, dtype: torch.dtype, images: int
) -> None:
    """Fail unless the kernels' convolution of random images has plain torch's bits, rows without integers too."""
    groups = geometry.groups
    values = torch.randint(-1, 2, (n, channels // groups, *geometry.kernel_size), dtype=torch.int8)
    weight, scale, bias = pack_conv_weight(values, groups), torch.rand(n), torch.randn(n)
    x = torch.randn(images, channels, height, width)
    if images > 2:
        x[0], x[1, 0, 0, 0], x[2] = 0, float("nan"), x[2] * 1e-32
    sizes = (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation)
    for held in (bias, None):
        got = torch.ops.ternary.conv2d(x.to(dtype), weight, scale, held, *map(list, sizes), groups, "triton")
        wanted = fallback.conv2d(x.to(dtype).float(), weight, scale, held, geometry).to(dtype)
        if dtype == torch.float16:
            assert torch.equal(gpu.conv2d(x.half(), weight, scale, held, geometry).nan_to_num(7e7), got.nan_to_num(7e7))
        assert got.dtype == dtype, got.dtype
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got.nan_to_num(7e7), wanted.nan_to_num(7e7)), (x.shape, n, geometry, dtype)
        assert torch.equal(got.isnan(), wanted.isnan())


def drawn(random: random.Random) -> tuple[int, int, int, int, Geometry]:
    """Draw a convolution whose output has at least one place."""
    groups = random.choice([1, 1, 1, 2, 5])
    channels = groups * random.choice([1, 2, 7, 16, 31, 32, 33, 64, 80])
    n = channels if random.random() < 0.2 else groups * random.randint(1, 40)
    groups = channels if n == channels and random.random() < 0.5 else groups
    pairs = [tuple(random.randint(*bounds) for _ in range(2)) for bounds in ((1, 4), (1, 3), (0, 3), (1, 2))]
    geometry = Geometry(*pairs, groups=groups)
    height, width = random.randint(1, 9), random.randint(1, 9)
    return (channels, n, height, width, geometry) if min(geometry.out_size(height, width)) > 0 else drawn(random)


def main() -> None:
    """Compare each way once, then CASES drawn convolutions, then what `why_not` tries and what has no elements."""
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(seed)
    for index, (channels, n, height, width, geometry) in enumerate(EACH_WAY):
        compare(channels, n, height, width, geometry, gpu.DTYPES[index % 3], 3 - index % 2)
    dice = random.Random(seed)
    for _ in range(cases):
        compare(*drawn(dice), dice.choice(gpu.DTYPES), dice.randint(1, 3))
    weight = pack_conv_weight(torch.ones(2, 1, 3, 3), 1)
    none = gpu.conv2d(torch.ones(0, 1, 3, 3), weight, torch.ones(2), None, Geometry((3, 3)))
    assert none.shape == (0, 2, 1, 1), none.shape
    torch.cuda.get_device_capability = lambda _: (9, 0)  # type: ignore[assignment,misc]
    why_not = gpu.why_not(torch.device("cpu"), "conv2d")
    assert why_not is None, why_not


if __name__ == "__main__":
    main()
