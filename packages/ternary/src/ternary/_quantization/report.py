"""The report: what quantization did to each layer and to the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ternary._quantization.modules import weight_of
from ternary._quantization.recipe import Precision
from ternary.nn._layers import TernaryWeight
from ternary.nn._outliers import FloatChannels
from ternary.nn._quantizers import spread
from ternary.runtime._int8 import Int8Conv2d, Int8Linear


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What happened to one layer: precision, relative weight error (L2), fraction of zeros, bytes before and after.

    A weight that an earlier layer shares counts no bytes here. `outlier` is the largest input channel over the median
    one in calibration, 1 without calibration. `note` says what deserves attention.
    """

    name: str
    kind: str
    precision: Precision
    error: float
    sparsity: float
    bytes_before: int
    bytes_after: int
    outlier: float = 1.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Untouched:
    """A parameter outside the layers that were looked at: its name, its bytes, and why it stays as it is."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to a model, layer by layer, and which parameters stay as they are.

    Example:
        >>> import torch, ternary
        >>> _, report = ternary.quantize(torch.nn.Linear(64, 64))
        >>> report.bytes_before, report.bytes_after
        (16640, 1536)

    Attributes:
        layers: What became of each layer, in the order of the model.
        untouched: The parameters of no such layer, each with the reason why it stays.
    """

    layers: tuple[LayerReport, ...]
    untouched: tuple[Untouched, ...] = ()

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters before."""
        return sum(r.bytes_before for r in self.layers) + sum(u.bytes for u in self.untouched)

    @property
    def bytes_after(self) -> int:
        """Bytes of all parameters after, as stored when packed."""
        return sum(r.bytes_after for r in self.layers) + sum(u.bytes for u in self.untouched)

    def __str__(self) -> str:
        rows = [f"{'layer':40} {'precision':9} {'error':>7} {'zeros':>6} {'before':>11} {'after':>11}"]
        rows += [
            f"{r.name:40} {r.precision:9} {r.error:7.4f} {r.sparsity:6.1%} {r.bytes_before:11,} {r.bytes_after:11,}"
            for r in self.layers
        ]
        rows += [f"  {r.name}: {r.note}" for r in self.layers if r.note]
        if self.untouched:
            kept = sum(u.bytes for u in self.untouched)
            rows.append(f"{'other parameters':40} {'float':9} {'':7} {'':6} {kept:11,} {kept:11,}")
            biggest = sorted(self.untouched, key=lambda u: -u.bytes)[:5]
            rows += [
                f"  {u.name}: {u.bytes:,} bytes ({u.bytes / self.bytes_before:.0%} of the model), {u.why}"
                for u in biggest
                if u.bytes > self.bytes_before // 100
            ]
        ratio = self.bytes_before / max(1, self.bytes_after)
        rows.append(f"{'total':40} {'':9} {'':7} {'':6} {self.bytes_before:11,} {self.bytes_after:11,}  {ratio:.1f}x")
        return "\n".join(rows)


@torch.no_grad()
def report_of(name: str, before: nn.Module, after: nn.Module, precision: Precision, shared: bool) -> LayerReport:
    """Return the report of one layer."""
    weight = weight_of(before)
    weight = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
    size = weight.numel()
    got, stored, zeros = _rounded(after, weight)
    if got is None:
        got, stored = weight, size * weight_of(before).element_size()
        zeros = float((weight == 0).double().mean()) if size else 0.0
    norm = float(weight.norm())
    error = float((weight - got).norm()) / norm if norm else 0.0
    held = 0 if shared else size * weight_of(before).element_size()
    stored = 0 if shared and (after is before or isinstance(after, TernaryWeight)) else stored
    return LayerReport(name, type(before).__name__, precision, error, zeros, held, stored)


def _rounded(layer: nn.Module, weight: Tensor) -> tuple[Tensor | None, int, float]:
    """Return the weight of a quantized layer, its bytes and its fraction of zeros; no weight if it is not quantized."""
    size, rows = weight.numel(), weight.shape[0] if weight.dim() else 1
    shape = [-1] + [1] * (weight.dim() - 1)
    if isinstance(layer, FloatChannels):
        got, stored, zeros = _rounded(cast("nn.Module", layer.layer), weight)
        assert got is not None
        return layer.put_back(got).detach(), stored + layer.columns.nbytes, zeros
    if isinstance(layer, TernaryWeight):
        values, positive, negative = (t.to(weight.device) for t in layer.ternary_values())
        if (group := layer.scale_group()) > 0:
            positive_of = negative_of = spread(positive, weight.shape[1], group)
        else:
            positive_of, negative_of = positive.reshape(shape), negative.reshape(shape)
        got = values.double() * torch.where(values > 0, positive_of, negative_of).double()
        zeros = float((values == 0).double().mean()) if size else 0.0
        return got, rows * -(-(size // max(1, rows)) // 4) + 4 * positive.numel(), zeros
    if isinstance(layer, Int8Linear | Int8Conv2d):
        got = layer.values().double() * layer.scale.double().reshape(shape)
        return got, size + 4 * rows, float((layer.values() == 0).double().mean()) if size else 0.0
    return None, 0, 0.0


def untouched_parameters(model: nn.Module, looked_at: Mapping[str, object]) -> tuple[Untouched, ...]:
    """Return every parameter of a model that belongs to none of the layers that were looked at."""
    found: list[Untouched] = []
    seen: set[int] = set()
    for name in looked_at:
        layer = model.get_submodule(name) if name else model
        inner = [layer.columns, layer.layer.weight] if isinstance(layer, FloatChannels) else [layer.weight]
        seen |= {id(weight) for weight in inner}
    for name, parameter in model.named_parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        owner = model.get_submodule(name.rpartition(".")[0])
        found.append(Untouched(name, parameter.numel() * parameter.element_size(), _why_untouched(owner, parameter)))
    return tuple(found)


def _why_untouched(owner: nn.Module, parameter: Tensor) -> str:
    kind = type(owner).__name__
    if isinstance(owner, FloatChannels):
        return "input channels that stay float"
    if hasattr(owner, "parametrizations") or kind == "ParametrizationList":
        return "its layer has no ternary form, and is parametrized"
    if parameter.dim() < 2:
        return f"a vector of {kind}"
    if parameter.dim() == 3 and not isinstance(owner, nn.Conv1d):
        return f"{parameter.shape[0]} matrices fused in one parameter of {kind}"
    if isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding):
        return f"{kind} has a forward of its own"
    return f"{kind} has no ternary form"
