"""Any model to ternary, int8 or fp16: by rule, by calibration, by measured sensitivity. Knows nothing of files."""

from __future__ import annotations

import copy
import fnmatch
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ternary.calibration import fit_to_inputs, input_power, output_of, reestimate_batch_norm, run
from ternary.errors import Fp16OverflowError
from ternary.nn.fastpath import call_inner_layers
from ternary.nn.int8 import Int8Conv2d, Int8Linear
from ternary.nn.layers import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear, TernaryWeight
from ternary.nn.quantizers import require_choice, require_finite

Precision = Literal["ternary", "int8", "float"]
PRECISIONS = ("ternary", "int8", "float")
FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to quantize a model.

    Args:
        quantizer: One of 'twn', 'ttq', 'absmean', 'fixed', 'stochastic', 'sparse'.
        per: 'channel' or 'tensor'.
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
    """

    quantizer: str = "twn"
    per: str = "channel"
    threshold: float = 0.7
    sparsity: float = 0.5
    activations: str = "float"
    rules: tuple[tuple[str, Precision], ...] = ()
    ends: Precision = "int8"
    depthwise: Precision = "int8"
    embeddings: Precision = "float"
    otherwise: Precision = "ternary"


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
    """What happened to a model, layer by layer."""

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


_TERNARY: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: TernaryLinear,
    nn.Conv1d: TernaryConv1d,
    nn.Conv2d: TernaryConv2d,
    nn.Embedding: TernaryEmbedding,
}


def quantize(
    model: nn.Module, recipe: Recipe | None = None, *, calibration: Iterable[Any] | None = None
) -> tuple[nn.Module, Report]:
    """Return a quantized copy of a model and a report; the model itself is left as it was.

    Layers that are ternary already keep their own settings, unless a rule names them: as int8 or float layers they have
    the float weight behind the ternary one. The copy can be trained further (its ternary layers keep
    float weights), saved packed, or exported. With calibration data the scales are fitted to the real inputs of each
    layer (least squares on the weights, weighted by the mean square of each input) and the running statistics of
    batch normalization are estimated anew.

    Args:
        model: Any module; its Linear, Conv1d, Conv2d and Embedding layers are considered, and the transposed linear
            layers of GPT-2 (Conv1D of transformers), which become Linear. A layer used in two places stays one layer.
            Of layers that share one weight, the later ones get the precision of the first, unless a rule names them.
        recipe: How; by default TWN per channel, int8 at both ends and for depthwise convolutions.
        calibration: Batches: tensors, tuples of inputs, or mappings of named inputs.

    Returns:
        The quantized copy, in evaluation mode if the model was, and the report.

    Raises:
        UnknownQuantizerError: The recipe names a quantizer or a precision that does not exist.
        NonFiniteWeightError: A weight is NaN or infinite.
        NonFiniteActivationError: Calibration met an activation that is NaN or infinite.
    """
    recipe = recipe or Recipe()
    plan = plan_precisions(model, recipe)
    made = _workable_copy(model)
    batches = list(calibration) if calibration is not None else []
    power = input_power(made, batches, plan) if batches else {}
    names = _names(made)
    reports: list[LayerReport] = []
    counted: set[int] = set()
    for name, precision in plan.items():
        layer = made.get_submodule(name) if name else made
        require_finite(_weight(layer), f"{name or type(layer).__name__}.weight")
        new = convert(layer, precision, recipe, power.get(name))
        shared = id(layer.weight) in counted
        counted.add(id(layer.weight))
        reports.append(_report(name, layer, new, precision, shared))
        if new is not layer:
            made = _replaced(made, names[layer], new)
    if batches:
        reestimate_batch_norm(made, batches)
    made.train(model.training)
    return made, Report(tuple(reports))


def plan_precisions(model: nn.Module, recipe: Recipe) -> dict[str, Precision]:
    """Return the precision that a recipe gives each layer, by name, in order."""
    kinds = (*_TERNARY, *_transposed_linear())
    layers = {name: m for name, m in model.named_modules() if type(m) in kinds or isinstance(m, TernaryWeight)}
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


def _transposed_linear() -> tuple[type[nn.Module], ...]:
    """The class of transformers that is a Linear with its weight transposed, if that library is in use."""
    library = sys.modules.get("transformers.pytorch_utils")
    return () if library is None else (library.Conv1D,)


def _has_int8_form(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros"
    return not isinstance(layer, nn.Conv1d | nn.Embedding)


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return all names of each layer: one that is used in two places has two."""
    found: dict[nn.Module, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        found.setdefault(layer, []).append(name)
    return found


def _workable_copy(model: nn.Module) -> nn.Module:
    """Return a copy in which every transposed linear layer is a Linear, and every layer is called."""
    made = copy.deepcopy(model)
    call_inner_layers(made)
    for layer, names in _names(made).items():
        if isinstance(layer, _transposed_linear()):
            weight, bias = _weight(layer), layer.bias
            assert isinstance(bias, nn.Parameter)
            inputs, outputs = weight.shape
            plain = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype).train(layer.training)
            plain.weight = nn.Parameter(weight.T.contiguous())
            plain.bias = bias
            made = _replaced(made, names, plain)
    return made


def convert(layer: nn.Module, precision: Precision, recipe: Recipe, power: Tensor | None = None) -> nn.Module:
    """Return a layer in another precision; with `power` (mean square of each input) its ternary weights are fitted."""
    if precision == "int8":
        return Int8Linear(layer) if isinstance(layer, nn.Linear) else Int8Conv2d(layer)  # type: ignore[arg-type]
    if precision == "float":
        return _build(layer, ternary=False) if isinstance(layer, TernaryWeight) else layer
    options = {
        "quantizer": recipe.quantizer,
        "per": recipe.per,
        "threshold": recipe.threshold,
        "sparsity": recipe.sparsity,
        "activations": recipe.activations,
    }
    made = layer if isinstance(layer, TernaryWeight) else _build(layer, ternary=True, **options)
    assert isinstance(made, TernaryWeight)
    if power is not None and not made.empty and made.scale_positive is None and not isinstance(made, nn.Embedding):
        fit_to_inputs(made, power)
    return made


def _build(layer: nn.Module, *, ternary: bool, **options: Any) -> nn.Module:
    """Return a layer with the float weight of another one, as a ternary layer or as torch's own."""
    plain = next(kind for kind in _TERNARY if isinstance(layer, kind))
    kind = _TERNARY[plain] if ternary else plain
    options |= {"device": _weight(layer).device, "dtype": _weight(layer).dtype}
    made: nn.Module
    if isinstance(layer, nn.Linear):
        made = kind(layer.in_features, layer.out_features, layer.bias is not None, **options)
    elif isinstance(layer, nn.Embedding):
        made = kind(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, **options)
    else:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        made = kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            **options,
        )
    made.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("scale_")})
    return made


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
    """
    recipe = recipe or Recipe()
    given = list(batches)
    found: dict[str, float] = {}
    plain = _workable_copy(model).eval()
    names = _names(plain)
    wanted = [output_of(run(plain, b)) for b in given]
    size = sum(float(a.norm() ** 2) for a in wanted) ** 0.5
    for name, precision in plan_precisions(plain, recipe).items():
        layer = plain.get_submodule(name) if name else plain
        if isinstance(layer, TernaryWeight) or precision == "float":
            continue
        alone = _replaced(plain, names[layer], convert(layer, "ternary", recipe).eval())
        try:
            got = [output_of(run(alone, b)) for b in given]
        finally:
            _replaced(plain, names[layer], layer)
        error = sum(float((a - b).norm() ** 2) for a, b in zip(wanted, got, strict=True)) ** 0.5
        found[name] = error / max(1e-12, size)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def rules_by_sensitivity(
    measured: dict[str, float], *, keep: float = 0.1, precision: Precision = "int8"
) -> tuple[tuple[str, Precision], ...]:
    """Return rules that keep a fraction (0 to 1) of the layers, the most sensitive ones, at a higher precision."""
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep is a fraction of layers in [0, 1], got {keep}")
    names = list(measured)
    return tuple((glob_escape(n), precision) for n in names[: round(keep * len(names))])


def glob_escape(name: str) -> str:
    """Write a layer name as a pattern that matches only it."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def to_fp16(model: nn.Module) -> nn.Module:
    """Return a copy of a model in 16-bit floating point.

    Raises:
        Fp16OverflowError: A value is finite but larger than 65504.
        NonFiniteWeightError: A value is NaN or infinite.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.numel():
            require_finite(tensor, name)
            largest = float(tensor.detach().abs().max())
            if largest > FP16_MAX:
                raise Fp16OverflowError(f"{name} holds {largest:.4g}; fp16 ends at {FP16_MAX:.0f}")
    return copy.deepcopy(model).half()


def to_int8(model: nn.Module) -> tuple[nn.Module, Report]:
    """Return a copy with int8 weights in every Linear and Conv2d, inputs of Linear rounded on the fly, and a report."""
    return quantize(model, Recipe(rules=(("*", "int8"),)))


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _replaced(model: nn.Module, names: list[str], new: nn.Module) -> nn.Module:
    """Put a layer in the place of the one of these names; return the model, which is the layer itself for no name."""
    for name in names:
        if not name:
            return new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


@torch.no_grad()
def _report(name: str, before: nn.Module, after: nn.Module, precision: Precision, shared: bool) -> LayerReport:
    weight = _weight(before).double()
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
        got, stored = weight, size * _weight(before).element_size()
        zeros = float((weight == 0).double().mean()) if size else 0.0
    norm = float(weight.norm())
    error = float((weight - got).norm()) / norm if norm else 0.0
    held = 0 if shared else size * _weight(before).element_size()
    stored = 0 if shared and after is before else stored
    return LayerReport(name, type(before).__name__, precision, error, zeros, held, stored)
