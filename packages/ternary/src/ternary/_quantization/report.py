"""The report: what quantization did to each layer and to the whole model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ternary._quantization.modules import weight_of
from ternary._quantization.recipe import Precision
from ternary.nn._int8 import Int8Conv2d, Int8Linear
from ternary.nn._layers import TernaryWeight


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What happened to one layer: precision, relative weight error (L2), fraction of zeros, bytes before and after.

    A weight that an earlier layer shares counts no bytes here.
    """

    name: str
    kind: str
    precision: Precision
    error: float
    sparsity: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to a model, layer by layer.

    Example:
        >>> import torch, ternary
        >>> _, report = ternary.quantize(torch.nn.Linear(64, 64))
        >>> report.bytes_before, report.bytes_after
        (16384, 1280)
    """

    layers: tuple[LayerReport, ...]

    @property
    def bytes_before(self) -> int:
        """Bytes of the layers' weights before."""
        return sum(r.bytes_before for r in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of the layers' weights after, as stored when packed."""
        return sum(r.bytes_after for r in self.layers)

    def __str__(self) -> str:
        rows = [f"{'layer':40} {'precision':9} {'error':>7} {'zeros':>6} {'before':>11} {'after':>11}"]
        rows += [
            f"{r.name:40} {r.precision:9} {r.error:7.4f} {r.sparsity:6.1%} {r.bytes_before:11,} {r.bytes_after:11,}"
            for r in self.layers
        ]
        ratio = self.bytes_before / max(1, self.bytes_after)
        rows.append(f"{'total':40} {'':9} {'':7} {'':6} {self.bytes_before:11,} {self.bytes_after:11,}  {ratio:.1f}x")
        return "\n".join(rows)


@torch.no_grad()
def report_of(name: str, before: nn.Module, after: nn.Module, precision: Precision, shared: bool) -> LayerReport:
    weight = weight_of(before).double()
    size = weight.numel()
    rows = weight.shape[0] if weight.dim() else 1
    if isinstance(after, TernaryWeight):
        values, positive, negative = (t.to(weight.device) for t in after.ternary_values())
        shape = [-1] + [1] * (weight.dim() - 1)
        got = values.double() * torch.where(values > 0, positive.reshape(shape), negative.reshape(shape)).double()
        stored = rows * -(-(size // max(1, rows)) // 4) + 4 * positive.numel()
        zeros = float((values == 0).double().mean()) if size else 0.0
    elif isinstance(after, Int8Linear | Int8Conv2d):
        got = after.values.double() * after.scale.double().reshape([-1] + [1] * (weight.dim() - 1))
        stored, zeros = size + 4 * rows, float((after.values == 0).double().mean()) if size else 0.0
    else:
        got, stored = weight, size * weight_of(before).element_size()
        zeros = float((weight == 0).double().mean()) if size else 0.0
    norm = float(weight.norm())
    error = float((weight - got).norm()) / norm if norm else 0.0
    held = 0 if shared else size * weight_of(before).element_size()
    stored = 0 if shared and after is before else stored
    return LayerReport(name, type(before).__name__, precision, error, zeros, held, stored)
