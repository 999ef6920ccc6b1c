"""Input channels that are much larger than the others: what keeps a layer's error small, chosen on its own inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ternary._quantization.probe import Use
from ternary._quantization.recipe import Precision
from ternary.nn._layers import TernaryWeight
from ternary.nn._outliers import FloatChannels, without_channels
from ternary.runtime._pack import pack_layer

LARGE = 8.0
"""A channel so many times the median one takes 3 of the 8 bits from the others."""
MOST_CHANNELS = 1 / 8
"""At most this share of the channels may stay float: they are computed in float, and stored so."""
WORTH_IT = 0.9
"""Channels stay float if the layer's error falls to this share of what it was."""
TOO_LARGE, ALLOWED, USELESS = 2.0, 0.05, 0.75
"""A layer stays float if rounding its activations multiplies the error of its weights so much, and adds the second
number, or if its error is larger than the third one in any case."""

Convert = Callable[[nn.Module, Tensor | None], nn.Module]
"""From a float layer, and the mean square of its inputs, to the quantized layer."""


@torch.no_grad()
def treated(
    layer: nn.Module, precision: Precision, use: Use, power: Tensor | None, convert: Convert
) -> tuple[nn.Module, Precision, str] | None:
    """Choose what becomes of a layer whose inputs have outliers.

    Args:
        layer: The float layer.
        precision: What the recipe wants.
        use: What calibration has seen of it.
        power: Mean square of each of its inputs.
        convert: Makes the quantized layer.

    Returns:
        The new layer, its precision, and what the report says; None if the layer needs or takes no treatment.
    """
    sample = use.sample
    plain = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and not isinstance(layer, TernaryWeight)
    if sample is None or precision == "float" or not plain:
        return None
    wanted = layer(sample)
    before = convert(copy.deepcopy(layer), power)
    error = _error(as_run(before)(sample), wanted)
    of_weights = _error(_in_float(before, layer)(sample), wanted)
    channels = large_channels(use)
    tried, best = error, before
    if channels:
        best = _split(layer, channels, power, convert)
        tried = _error(as_run(best)(sample), wanted)
    much = f"one input channel is {use.outlier:.0f} times the median one"
    if channels and tried <= WORTH_IT * error and not _excessive(tried, of_weights):
        some = f"{len(channels)} input channel{'s' * (len(channels) > 1)}"
        return best, precision, f"{much}: {some} kept float, which lowers the error from {error:.2f} to {tried:.2f}"
    if _excessive(error, of_weights):
        return layer, "float", f"{much}: kept float, since its error would be {min(tried, error):.2f}"
    return before, precision, ""


def large_channels(use: Use) -> list[int]:
    """Return the channels that are much larger than the median one; none if they are too many to keep float."""
    largest = use.largest
    if largest is None or not largest.numel():
        return []
    found = (largest > LARGE * largest.median()).nonzero().flatten().tolist()
    return found if len(found) <= max(1, int(MOST_CHANNELS * largest.numel())) else []


def _excessive(error: float, of_weights: float) -> bool:
    return not error <= min(USELESS, TOO_LARGE * of_weights + ALLOWED)


def _split(layer: nn.Module, channels: list[int], power: Tensor | None, convert: Convert) -> nn.Module:
    """Return a layer that keeps these channels float."""
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    others = copy.deepcopy(layer)
    others.weight.copy_(without_channels(layer.weight, channels, getattr(layer, "groups", 1)))
    if power is not None:
        power = power.clone()
        power[channels] = 0.0
    return FloatChannels(convert(others, power), layer, channels)


def as_run(layer: nn.Module) -> nn.Module:
    """Return a quantized layer as it runs when packed, with 8-bit activations."""
    made = copy.deepcopy(layer)
    if isinstance(made, FloatChannels) and isinstance(made.layer, TernaryWeight):
        made.layer = pack_layer(made.layer)
    return pack_layer(made) if isinstance(made, TernaryWeight) else made


def _in_float(quantized: nn.Module, layer: nn.Module) -> nn.Module:
    """Return a layer with the rounded weight of another one, which does not round its activations."""
    made = copy.deepcopy(layer)
    rounded = quantized.ternary_weight() if isinstance(quantized, TernaryWeight) else quantized.weight
    assert isinstance(made.weight, Tensor)
    assert isinstance(rounded, Tensor)
    made.weight.data = rounded.detach().to(made.weight.dtype).clone()
    return made


def _error(got: Tensor, wanted: Tensor) -> float:
    size = float(wanted.double().norm())
    return float((got.double() - wanted.double()).norm()) / size if size else 0.0
