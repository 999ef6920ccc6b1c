"""Which layers a model really calls with example inputs, what they see, and which weights it reads itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ternary._quantization.calibration import mode, run
from ternary.errors import NonFiniteActivationError
from ternary.runtime._face import TernaryView

SAMPLED = 8.0
"""Inputs are kept of a layer one of whose channels is so many times the median one, and so many rows of them."""
ROWS = 64


@dataclass(slots=True)
class Use:
    """How a model uses one layer.

    Attributes:
        calls: How often the model called the layer.
        reads: How often it read the weight outside of such a call.
        power: Mean square of each input feature or channel, summed over the calls.
        largest: Largest magnitude of each input feature or channel.
        sample: Some of the inputs of the call with the largest outliers, where there are any.
    """

    calls: int = 0
    reads: int = 0
    power: Tensor | None = None
    largest: Tensor | None = None
    sample: Tensor | None = None
    outlier_of_sample: float = SAMPLED

    @property
    def bypassed(self) -> bool:
        """Whether the model computes with the weight and never calls the layer."""
        return self.reads > 0 and self.calls == 0

    @property
    def outlier(self) -> float:
        """The largest input channel over the median one, 1 where nothing is known."""
        return 1.0 if self.largest is None else outlier_of(self.largest)


def outlier_of(largest: Tensor) -> float:
    """Return the largest channel over the median one, 1 where there are too few to tell."""
    if largest.numel() < 4:
        return 1.0
    typical = float(largest.median())
    return float(largest.max()) / typical if typical > 0 else 1.0


@torch.no_grad()
def probe(model: nn.Module, batches: Iterable[Any], names: Iterable[str]) -> dict[str, Use]:
    """Run batches through a model and return how it uses each of the named layers.

    Raises:
        NonFiniteActivationError: An input of a layer is NaN or infinite.
    """
    uses = {name: Use() for name in names}
    layers = {name: model.get_submodule(name) if name else model for name in uses}
    with _watched(layers, uses), mode(model, training=False):
        for batch in batches:
            run(model, batch)
    return uses


@contextmanager
def _watched(layers: dict[str, nn.Module], uses: dict[str, Use]) -> Iterator[None]:
    """Count calls and reads of layers for a while: each gets a class of its own, whose `weight` notes who reads it."""
    handles = []
    before = {name: type(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        inside: list[int] = []
        handles.append(layer.register_forward_pre_hook(_entering(name, uses[name], inside)))
        handles.append(layer.register_forward_hook(_leaving(inside), always_call=True))
        layer.__class__ = type(before[name].__name__, (before[name],), {"weight": _reading(uses[name], inside)})
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.__class__ = before[name]
        for handle in handles:
            handle.remove()


def _reading(use: Use, inside: list[int]) -> property:
    """A `weight` that counts how often something else than its layer computes with it."""

    def weight(layer: nn.Module) -> Any:
        found: Tensor = nn.Module.__getattr__(layer, "weight")  # type: ignore[assignment]
        if inside:
            return found

        def read() -> Tensor:
            use.reads += 1
            return found.detach()

        return TernaryView.of(tuple(found.shape), found.dtype, found.device, read)

    return property(weight)


def _entering(name: str, use: Use, inside: list[int]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def enter(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        inside.append(1)
        use.calls += 1
        x = inputs[0] if inputs else None
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
            return
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteActivationError(f"the input of {name or 'the model'} is NaN or infinite in calibration")
        directions = len(layer.kernel_size) if isinstance(layer, nn.Conv1d | nn.Conv2d) else 0
        feature = x.dim() - 1 - directions
        others = [i for i in range(x.dim()) if i != feature]
        power, largest = x.double().pow(2).mean(others), x.abs().amax(others).float()
        use.power = power if use.power is None else use.power + power
        use.largest = largest if use.largest is None else torch.maximum(use.largest, largest)
        if (here := outlier_of(largest)) > use.outlier_of_sample:
            use.outlier_of_sample = here
            one = x.reshape(-1, *x.shape[feature:])[: 1 if directions else ROWS]
            use.sample = one.clone()

    return enter


def _leaving(inside: list[int]) -> Callable[..., None]:
    def leave(*_: Any) -> None:
        if inside:
            inside.pop()

    return leave
