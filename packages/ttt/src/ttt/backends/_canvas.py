"""A small vision transformer from the cells of one grid to those of another, on a square canvas.

The idea of treating ARC as images on a canvas, with a token for the rule of the pairs, follows "ARC Is a Vision
Problem" (Hu et al. 2025); size, losses and code are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ttt._tasks.batching import OUTSIDE

CLASSES = OUTSIDE + 1
"""Ten colours, and outside of the grid."""


@dataclass(frozen=True)
class CanvasShape:
    """Size of the network: `side` cells of canvas in patches of `patch`; features, heads and blocks."""

    side: int = 32
    patch: int = 2
    width: int = 128
    heads: int = 4
    depth: int = 4

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide evenly."""
        if self.side % self.patch or self.width % self.heads:
            raise ValueError(
                f"side {self.side} by patch {self.patch}, width {self.width} by heads {self.heads}: no fit"
            )


def rows_of(table: Tensor, numbers: Tensor) -> Tensor:
    """Return the rows of a table with these numbers, as a product, whose gradient a GPU always sums in one order."""
    chosen = functional.one_hot(numbers, len(table)).to(table.dtype)
    return chosen @ table


class Block(nn.Module):
    """Attention over all patches, then a two-layer network for each; both pre-normalised and residual."""

    def __init__(self, shape: CanvasShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.before_attention = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.before_mlp = nn.LayerNorm(shape.width)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width), nn.GELU(), nn.Linear(4 * shape.width, shape.width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        n, t, w = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(n, t, 3, self.heads, w // self.heads).unbind(2)
        seen = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + self.out(seen.transpose(1, 2).reshape(n, t, w))
        y: Tensor = x + self.mlp(self.before_mlp(x))
        return y


class CanvasViT(nn.Module):
    """Cells of the input canvas to logits of the output canvas."""

    def __init__(self, shape: CanvasShape) -> None:
        super().__init__()
        self.shape = shape
        patches = shape.side // shape.patch
        self.colours: nn.Embedding = nn.Embedding(CLASSES, shape.width // 4)
        self.into: nn.Linear = nn.Linear(shape.patch**2 * (shape.width // 4), shape.width)
        self.rows: nn.Parameter = nn.Parameter(0.02 * torch.randn(patches, 1, shape.width))
        self.columns: nn.Parameter = nn.Parameter(0.02 * torch.randn(1, patches, shape.width))
        self.rule: nn.Parameter = nn.Parameter(0.02 * torch.randn(1, 1, shape.width))
        self.blocks: nn.ModuleList = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm: nn.LayerNorm = nn.LayerNorm(shape.width)
        self.head: nn.Linear = nn.Linear(shape.width, shape.patch**2 * CLASSES)

    def forward(self, cells: Tensor, rules: Tensor | None = None) -> Tensor:
        """Cells (batch, side, side) int64, OUTSIDE where there is no grid, to logits (batch, side, side, CLASSES).

        Args:
            cells: The canvases.
            rules: The rule that each of them follows, (batch, 1, width); None for the network's own.
        """
        n, side, p = cells.shape[0], self.shape.side, self.shape.patch
        k = side // p
        x = rows_of(self.colours.weight, cells).view(n, k, p, k, p, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, k, k, -1)
        x = (self.into(x) + self.rows + self.columns).reshape(n, k * k, -1)
        x = torch.cat([(self.rule if rules is None else rules).expand(n, 1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x[:, 1:])).view(n, k, k, p, p, CLASSES)
        return y.permute(0, 1, 3, 2, 4, 5).reshape(n, side, side, CLASSES)
