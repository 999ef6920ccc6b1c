"""What each layer costs when it alone is ternary, and rules that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ternary._quantization.calibration import batches_of, output_of, run
from ternary._quantization.convert import convert, require_groups
from ternary._quantization.modules import names_of, replaced, workable_copy
from ternary._quantization.recipe import Precision, Recipe, plan_precisions
from ternary.nn._layers import TernaryWeight
from ternary.nn._loaded import require_loaded


@torch.no_grad()
def sensitivity(model: nn.Module, batches: Iterable[Any], recipe: Recipe | None = None) -> dict[str, float]:
    """Measure what each layer costs when it alone is ternary: the relative error of the model's output.

    Layers that the recipe leaves in float are not measured.

    Args:
        model: The float model.
        batches: Inputs: tensors, tuples of inputs, or mappings of named inputs.
        recipe: Which ternary quantizer.

    Returns:
        The relative error (L2) by layer name, the most sensitive first.

    Raises:
        NoBatchesError: There is no batch, as from an iterator that was read before.
        WeightsNotLoadedError: A weight has no values yet.

    Example:
        >>> import torch, ternary
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
        >>> sorted(ternary.sensitivity(net, [torch.randn(8, 64)]))
        ['0', '1']
    """
    recipe = recipe or Recipe()
    require_loaded(model)
    given = batches_of(batches, "batches")
    found: dict[str, float] = {}
    plain = workable_copy(model).eval()
    names = names_of(plain)
    wanted = [output_of(run(plain, b)) for b in given]
    size = sum(float(a.norm() ** 2) for a in wanted) ** 0.5
    for name, precision in plan_precisions(plain, recipe).items():
        layer = plain.get_submodule(name) if name else plain
        if isinstance(layer, TernaryWeight) or precision == "float":
            continue
        require_groups(name, layer, "ternary", recipe)
        alone = replaced(plain, names[layer], convert(layer, "ternary", recipe).eval())
        try:
            got = [output_of(run(alone, b)) for b in given]
        finally:
            replaced(plain, names[layer], layer)
        error = sum(float((a - b).norm() ** 2) for a, b in zip(wanted, got, strict=True)) ** 0.5
        found[name] = error / max(1e-12, size)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def rules_by_sensitivity(
    measured: dict[str, float], *, keep: float = 0.1, precision: Precision = "int8"
) -> tuple[tuple[str, Precision], ...]:
    """Return rules that keep a fraction (0 to 1) of the layers, the most sensitive ones, at a higher precision.

    Example:
        >>> import ternary
        >>> ternary.rules_by_sensitivity({"head": 0.5, "body": 0.1}, keep=0.5)
        (('head', 'int8'),)

    Args:
        measured: The error of each layer by its name, largest first, as `sensitivity` returns it.
        keep: Fraction of the layers to keep, 0 to 1.
        precision: Precision of the kept layers.
    """
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep is a fraction of layers in [0, 1], got {keep}")
    names = list(measured)
    return tuple((glob_escape(n), precision) for n in names[: round(keep * len(names))])


def glob_escape(name: str) -> str:
    """Write a layer name as a pattern that matches only it."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
