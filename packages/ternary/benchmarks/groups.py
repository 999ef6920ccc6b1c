"""Packed linear layers with scales per channel and per group of inputs: python benchmarks/groups.py [--size N]."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ternary.runtime import PackedGroupedLinear, PackedLinear, available_kernels

GROUPS, BATCHES = (64, 256), {1: 200, 64: 15}


def milliseconds(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, times: int) -> float:
    """The median of so many calls, after two that warm up."""
    taken = []
    for _ in range(times + 2):
        began = time.perf_counter()
        run(x)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:]) * 1e3


def main() -> None:
    """Print a row for each kernel, group and batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (default %(default)s)")
    size = parser.parse_args().size
    torch.set_num_threads(1)
    values = torch.randint(-1, 2, (size, size), dtype=torch.int8)
    with torch.no_grad():
        for kernel in [name for name in available_kernels() if name not in ("portable", "torch")]:
            plain = PackedLinear.from_ternary(values, torch.rand(size), kernel=kernel)
            for group in GROUPS:
                scale = torch.rand(size, -(-size // group))
                grouped = PackedGroupedLinear.from_ternary(values, scale, group, kernel=kernel)
                for batch, times in BATCHES.items():
                    x = torch.randn(batch, size)
                    a, b = (milliseconds(layer, x, times) for layer in (plain, grouped))
                    print(
                        f"{kernel}, batch {batch}: per channel {a:.3f} ms, groups of {group} {b:.3f} ms, {b / a:.2f}x"
                    )


if __name__ == "__main__":
    main()
