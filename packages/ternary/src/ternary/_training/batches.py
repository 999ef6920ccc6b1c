"""Accuracy over tensors, and shuffled batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ternary.errors import TernaryError


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


def tensors_of(x: Any) -> list[Tensor]:
    """Return the tensors of a model's inputs: one tensor, a tuple, or a mapping of named inputs."""
    values = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else (x,)
    return [t for t in values if isinstance(t, Tensor)]


def cut_and_mixed(x: Any, fraction: float) -> tuple[Any, Tensor]:
    """Return inputs in which about `fraction` of the samples got a span from another sample, and a mask of the others.

    The span lies in the last dimension and has a random place and length, less than the whole. All tensors of a sample
    get the same span of the same other sample. Uses torch's default generator.

    Raises:
        TernaryError: The inputs differ in samples or last dimension, or the last dimension has one element.
    """
    tensors = tensors_of(x)
    sizes = {(t.shape[0], t.shape[-1]) if t.dim() > 1 else (t.numel(), 1) for t in tensors}
    samples, length = sizes.pop() if len(sizes) == 1 else (0, 0)
    if length < 2:
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise TernaryError(
            f"cutmix cannot take a span from inputs of shape {shapes}: it wants (N, ..., L) with one L of 2 or more; "
            "train with cutmix=0"
        )
    device = tensors[0].device
    count = torch.randint(1, length, (samples,), device=device)
    count = torch.where(torch.rand(samples, device=device) < fraction, count, 0)
    first = (torch.rand(samples, device=device) * (length + 1 - count)).long()
    other = torch.randperm(samples, device=device)
    place = torch.arange(length, device=device)
    within = (place >= first[:, None]) & (place < (first + count)[:, None])

    def mixed(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        return torch.where(within.reshape(samples, *[1] * (t.dim() - 2), length), t[other], t)

    if isinstance(x, Mapping):
        made: Any = {name: mixed(t) for name, t in x.items()}
    else:
        made = tuple(mixed(t) for t in x) if isinstance(x, tuple | list) else mixed(x)
    return made, count == 0
