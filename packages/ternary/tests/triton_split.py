"""Multiply single rows whose columns programs share, in Triton's interpreter: arguments CASES and SEED.

The interpreter is chosen when the kernels are imported, so this is a program of its own, with TRITON_INTERPRET=1. It
runs programs one after another; here it takes them in a drawn order, so that any part of a block is the last one.
"""

from __future__ import annotations

import itertools
import random
import sys

import torch
from triton.runtime.interpreter import interpreter_builder

from ternary.runtime import _fallback as fallback
from ternary.runtime import _gpu as gpu
from ternary.runtime import _triton_kernels as kernels
from ternary.runtime._layout import to_tiles
from ternary.runtime._split import split_of

SHAPES = [(1, 513), (33, 1100)]


class DrawnOrder:
    """The programs of each launch in a drawn order, and which part of each block came last."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._left: list[tuple[int, int, int]] = []
        self._keep_size, self._go_to = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
        self.last: dict[int, int] = {}
        self.parts = 1
        interpreter_builder.set_grid_dim = self.begin
        interpreter_builder.set_grid_idx = self.go_on

    def begin(self, *grid: int) -> None:
        """Draw the order of a launch's programs."""
        self._left = list(itertools.product(*map(range, grid)))
        self._dice.shuffle(self._left)
        self.parts = grid[1]
        self._keep_size(*grid)

    def go_on(self, *_: int) -> None:
        """Let the next program run."""
        block, part, other = self._left.pop()
        self.last[block] = part
        self._go_to(block, part, other)


def compare(n: int, k: int, dtype: torch.dtype, order: DrawnOrder) -> int:
    """Fail unless the products of a random row have plain torch's bits; return in how many parts they were made."""
    values = torch.randint(-1, 2, (n, k), dtype=torch.int8)
    tiles, scale, bias = to_tiles(values), torch.rand(n), torch.randn(n)
    x = torch.randn(1, k).to(dtype)
    most = 1
    for held, scaled in ((bias, x), (None, x * 1e-4), (bias, x * 0), (None, torch.where(x > 2, float("nan"), x))):
        got = gpu.linear(scaled.contiguous(), tiles, scale, held, split=True)
        most = max(most, order.parts)
        wanted = fallback.linear(scaled.float(), tiles, scale, held).to(dtype)
        assert got.dtype == dtype
        assert torch.equal(got.nan_to_num(7e7), wanted.nan_to_num(7e7)), (n, k, dtype)
        assert torch.equal(got.isnan(), wanted.isnan())
    q = torch.randint(-127, 128, (1, k)).float()
    q[0, 0] = 127
    got = gpu.linear(q, tiles, torch.ones(n), None, split=True)
    assert torch.equal(got.long(), q.long() @ values.long().T), (n, k)
    return most


def meet_again(n: int, k: int, launches: int, order: DrawnOrder) -> int:
    """Launch again and again with the memory that the launch before left; return how many parts came last once."""
    values = torch.randint(-1, 2, (n, k), dtype=torch.int8)
    tiles, scale = to_tiles(values), torch.rand(n)
    shared = split_of(n, tiles.shape[1], 132, wanted=True)
    assert shared is not None, (n, k)
    meeting, lasts = torch.zeros(shared.room, dtype=torch.int32), set()
    words = tiles.view(-1).view(torch.int32)
    for _ in range(launches):
        x, out = torch.randn(1, k), torch.full((1, n), float("nan"))
        kernels.split_row_products[shared.blocks, shared.parts](
            x, words, scale, scale, out, meeting, n, k, tiles.shape[1], shared.per_part, False, *shared.cut.sizes, False
        )
        assert torch.equal(out, fallback.linear(x, tiles, scale, None)), (n, k)
        assert not meeting.any(), "a launch left sums behind"
        lasts |= set(order.last.values())
    return len(lasts)


def main() -> None:
    """Compare fixed and drawn shapes, reuse one memory in drawn orders, then try what `why_not` tries."""
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(seed)
    dice = random.Random(seed)
    order = DrawnOrder(dice)
    parts = [compare(n, k, gpu.DTYPES[at % 2], order) for at, (n, k) in enumerate(SHAPES)]
    assert min(parts) > 1, parts
    for _ in range(cases):
        compare(dice.randint(1, 150), dice.randint(1, 3000), dice.choice(gpu.DTYPES[:2]), order)
    found = meet_again(20, 1100, 6, order)
    assert found > 1, "the same part came last each time"
    torch.cuda.get_device_capability = lambda _: (9, 0)  # type: ignore[assignment,misc]
    why_not = gpu.why_not(torch.device("cpu"), "split")
    assert why_not is None, why_not


if __name__ == "__main__":
    main()
