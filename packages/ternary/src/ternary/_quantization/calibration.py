"""Calibration: run real inputs through a model, fit scales to what its layers see, estimate running statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ternary.errors import NoBatchesError
from ternary.nn._layers import TernaryWeight


def batches_of(data: Iterable[Any], name: str) -> list[Any]:
    """Return the batches of any iterable; raise `NoBatchesError` if there is none."""
    batches = list(data)
    if not batches:
        raise NoBatchesError(f"{name} holds no batch; an iterator can be read only once: pass a list")
    return batches


def run(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch: a tensor, a tuple of inputs, or a mapping of named inputs."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def output_of(result: Any) -> Tensor:
    """Return the main tensor of a model's result: the result itself, its `logits`, or the first tensor in it.

    Raises:
        TypeError: There is no tensor in it.
    """
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Mapping):
        result = [result["logits"]] if "logits" in result else list(result.values())
    if isinstance(result, tuple | list):
        for item in result:
            if isinstance(item, Tensor):
                return item
    raise TypeError(f"the model returns {type(result).__name__}, in which there is no tensor to compare")


@torch.no_grad()
def fit_to_inputs(layer: TernaryWeight, power: Tensor) -> None:
    """Replace a layer's weight by the ternary one that is nearest on its real inputs.

    Among thresholds of 0.3 to 1.2 times the mean magnitude, takes per channel (or group of inputs) the one with the
    least weighted squared error, with the least-squares scale. The weight then holds these ternary values and the
    quantizer is 'exact'.
    """
    weight = layer.weight.detach()
    rows = weight.flatten(1).double()
    h = power.double().to(rows.device)
    h = (
        h.reshape(1, -1)
        if h.numel() == rows.shape[1]
        else h.repeat_interleave(rows.shape[1] // h.numel()).reshape(1, -1)
    )
    if layer.per == "tensor" or layer.quantizer not in ("twn", "absmean", "stochastic"):
        return
    step = layer.scale_group() or max(1, rows.shape[1])
    parts = [slice(at, at + step) for at in range(0, rows.shape[1], step)]
    layer.weight.copy_(torch.cat([_fitted(rows[:, p], h[:, p]) for p in parts], 1).reshape(weight.shape))
    layer.quantizer = "exact"


def _fitted(rows: Tensor, h: Tensor) -> Tensor:
    """Return the ternary rows that are nearest to these, each column weighted."""
    best_error = torch.full((rows.shape[0],), float("inf"), dtype=torch.double, device=rows.device)
    best = torch.zeros_like(rows)
    mean = rows.abs().mean(1, keepdim=True)
    for factor in torch.arange(0.3, 1.25, 0.1).tolist():
        values = torch.sign(rows) * (rows.abs() > factor * mean)
        weights = (h * values * values).sum(1)
        scale = (h * rows * values).sum(1) / torch.where(weights > 0, weights, torch.ones_like(weights))
        fitted = values * scale.clamp(min=0)[:, None]
        error = (h * (rows - fitted) ** 2).sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better[:, None], fitted, best)
    return best


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of batch normalization to the averages over the batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return
    before = [m.momentum for m in norms]
    with mode(model, training=False):
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
            m.train()
        for batch in batches:
            run(model, batch)
    for m, momentum in zip(norms, before, strict=True):
        m.momentum = momentum


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode for a while; each module gets its own mode back."""
    before = {m: m.training for m in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
