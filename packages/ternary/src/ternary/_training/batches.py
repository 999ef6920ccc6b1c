"""Accuracy over tensors, and shuffled batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, target: Tensor, *, batch: int = 512) -> float:
    """Return the fraction of samples whose largest output is the target, in evaluation mode."""
    was = model.training
    model.eval()
    right = sum(
        int((model(x[i : i + batch]).argmax(-1) == target[i : i + batch]).sum()) for i in range(0, len(x), batch)
    )
    model.train(was)
    return right / max(1, len(x))


def shuffled(x: Tensor, target: Tensor, batch: int, *, seed: int = 0) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Return batches over tensors in a new order each epoch; a last batch of one is left out (batch norm needs two).

    The orders begin anew with each call of this function, so a resumed training does not go on with those of the
    interrupted one.
    """
    generator = torch.Generator().manual_seed(seed)

    def epoch() -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=generator)
        parts = [order[i : i + batch] for i in range(0, len(x), batch)]
        return [(x[i], target[i]) for i in parts if len(i) > 1]

    return epoch
