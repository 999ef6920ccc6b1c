"""Which layer of a model gets which precision."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from torch import nn

from ternary._options import QuantizerOptions, require_choice
from ternary._quantization.modules import has_ternary_form
from ternary.nn._layers import TernaryWeight

Precision = Literal["ternary", "int8", "float"]
PRECISIONS = ("ternary", "int8", "float")


@dataclass(frozen=True, slots=True)
class Recipe(QuantizerOptions):
    """How to quantize a model: the options of its ternary layers, and which layers become ternary.

    Args:
        quantizer: One of 'twn', 'ttq', 'absmean', 'fixed', 'stochastic', 'sparse'.
        per: 'channel', 'tensor', or 'group' for linear layers.
        group: Inputs that share a scale with `per='group'`.
        threshold: For 'twn' the factor of the mean magnitude, for 'fixed' the magnitude.
        sparsity: For 'sparse', the fraction of zeros.
        activations: 'int8' rounds the inputs of ternary layers to 8 bits.
        rules: Pairs of a name pattern (`layer4.*`) and a precision ('ternary', 'int8' or 'float'); the first match
            decides.
        ends: Precision of the first convolution or, without convolutions and embeddings, the first layer, and of the
            last layer.
        depthwise: Precision of depthwise convolutions.
        embeddings: Precision of embeddings.
        otherwise: Precision of all other layers.
        outliers: What happens to a layer some of whose input channels are much larger than the others, if there is
            calibration data. 'auto' keeps these channels float, or the layer, where that lowers its error enough; the
            report says so. 'keep' only reports them.

    Example:
        >>> import ternary
        >>> ternary.Recipe(quantizer="absmean", rules=(("head", "float"),)).ends
        'int8'
    """

    rules: tuple[tuple[str, Precision], ...] = ()
    ends: Precision = "int8"
    depthwise: Precision = "int8"
    embeddings: Precision = "float"
    otherwise: Precision = "ternary"
    outliers: Literal["auto", "keep"] = "auto"

    def __post_init__(self) -> None:
        """Check every option."""
        QuantizerOptions.__post_init__(self)
        require_choice("outliers", self.outliers, ("auto", "keep"))
        if not isinstance(self.rules, str | Mapping):
            object.__setattr__(self, "rules", tuple(self.rules))  # an iterator can be read only once
        wrong = [rule for rule in self.rules if isinstance(rule, str) or len(rule) != 2]
        if isinstance(self.rules, str | Mapping) or wrong:
            raise ValueError(f'rules are pairs, as in rules=(("head", "float"),); got {str(self.rules)[:100]}')
        wanted = [
            self.ends,
            self.depthwise,
            self.embeddings,
            self.otherwise,
            *(precision for _, precision in self.rules),
        ]
        for precision in wanted:
            require_choice("precision", precision, PRECISIONS)

    def options(self) -> QuantizerOptions:
        """Return the options of the ternary layers."""
        return QuantizerOptions(**{f.name: getattr(self, f.name) for f in fields(QuantizerOptions)})


def plan_precisions(model: nn.Module, recipe: Recipe) -> dict[str, Precision]:
    """Return the precision of each layer of a `workable_copy` under a recipe, by name, in the order of the model."""
    layers = {n: m for n, m in model.named_modules() if has_ternary_form(m) or isinstance(m, TernaryWeight)}
    plain = {n: m for n, m in layers.items() if not isinstance(m, nn.Embedding)}
    convolutions = [n for n, m in plain.items() if isinstance(m, nn.Conv1d | nn.Conv2d)]
    first = convolutions or (list(plain) if len(plain) == len(layers) else [])
    ends = {*first[:1], *list(plain)[-1:]} if len(plain) > 1 else set()
    plan: dict[str, Precision] = {}
    by_weight: dict[int, Precision] = {}
    for name, module in layers.items():
        matched = next((p for pattern, p in recipe.rules if fnmatch.fnmatchcase(name, pattern)), None)
        groups = getattr(module, "groups", 1)
        if matched is not None:
            plan[name] = matched
        elif isinstance(module, TernaryWeight):
            plan[name] = "ternary"
        elif id(module.weight) in by_weight:
            plan[name] = by_weight[id(module.weight)]
        elif isinstance(module, nn.Embedding):
            plan[name] = recipe.embeddings
        elif groups > 1 and groups == getattr(module, "in_channels", 0):
            plan[name] = recipe.depthwise
        else:
            plan[name] = recipe.ends if name in ends else recipe.otherwise
        require_choice("precision", plan[name], PRECISIONS)
        if plan[name] == "int8" and not _has_int8_form(module):
            plan[name] = "ternary" if isinstance(module, TernaryWeight) else "float"
        if getattr(module, "max_norm", None) is not None:
            plan[name] = "float"  # such an embedding shortens the rows that it looks up, which are those of its weight
        by_weight.setdefault(id(module.weight), plan[name])
    return plan


def _has_int8_form(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros"
    return not isinstance(layer, nn.Conv1d | nn.Embedding)
