"""A model's layers in other precisions: `quantize`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ternary._options import QuantizerOptions
from ternary._quantization.calibration import batches_of, fit_to_inputs, reestimate_batch_norm
from ternary._quantization.modules import TERNARY_FORMS, computes_weight, names_of, replaced, weight_of, workable_copy
from ternary._quantization.outliers import treated
from ternary._quantization.probe import Use, probe
from ternary._quantization.recipe import Precision, Recipe, plan_precisions
from ternary._quantization.report import LayerReport, Report, report_of, untouched_parameters
from ternary._quantization.source_reads import read_in_source
from ternary.errors import UnsupportedGroupError
from ternary.nn._layers import TernaryWeight
from ternary.nn._loaded import require_loaded
from ternary.nn._quantizers import require_finite
from ternary.runtime._face import keep_attributes
from ternary.runtime._int8 import Int8Conv2d, Int8Linear

OUTLIER = 32.0
"""An input channel so many times the median one leaves the others at most 2 bits of 8."""


def quantize(  # long because its documentation counts too
    model: nn.Module, recipe: Recipe | None = None, *, calibration: Iterable[Any] | None = None
) -> tuple[nn.Module, Report]:
    """Return a quantized copy of a model and a report; the model itself is left as it was.

    Layers that are ternary already keep their own settings, unless a rule names them: as int8 or float layers they have
    the float weight behind the ternary one. The copy can be trained further (its ternary layers keep
    float weights), saved packed, or exported. With calibration data the scales are fitted to the real inputs of each
    layer (least squares on the weights, weighted by the mean square of each input) and the running statistics of
    batch normalization are estimated anew. A layer some of whose input channels are much larger than the others keeps
    these channels float (`ternary.nn.FloatChannels`), or stays float, where its own inputs show that it has to.

    Args:
        model: Any module; its Linear, Conv1d, Conv2d and Embedding layers are considered, and the transposed linear
            layers of GPT-2 (Conv1D of transformers), which become Linear. Experts of transformers that are fused in one
            parameter become a Linear each (`ternary.nn.SeparateExperts`), its BitNet layers become ternary layers with
            the same weight, and a parametrized weight becomes the weight that it is now. A layer used in two places
            stays one layer. Of layers that share one weight, the later ones get the precision of the first, unless a
            rule names them.
        recipe: How; by default TWN per channel, int8 at both ends and for depthwise convolutions.
        calibration: Batches: tensors, tuples of inputs, or mappings of named inputs.

    Returns:
        The quantized copy and the report. What replaces a layer has its mode, its hooks, its attributes, and what was
        frozen stays frozen.

    Raises:
        UnknownQuantizerError: The recipe names a quantizer or a precision that does not exist.
        UnsupportedGroupError: The recipe has `per='group'`, and a layer that is not linear would become ternary.
        NonFiniteWeightError: A weight is NaN or infinite.
        NonFiniteActivationError: Calibration met an activation that is NaN or infinite.
        NoBatchesError: Calibration holds no batch, as an iterator that was read before.
        WeightsNotLoadedError: A weight has no values yet.

    Example:
        >>> import torch, ternary
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
        >>> small, report = ternary.quantize(net, calibration=[torch.randn(8, 64)])
        >>> [layer.precision for layer in report.layers]
        ['int8', 'ternary', 'int8']
    """
    recipe = recipe or Recipe()
    require_loaded(model)
    made = workable_copy(model)
    plan = plan_precisions(made, recipe)
    folded = {name for name, layer in model.named_modules() if computes_weight(layer)}
    batches = batches_of(calibration, "calibration") if calibration is not None else []
    uses = probe(made, batches, plan) if batches else {}
    in_source = set() if batches else read_in_source(made)
    names = names_of(made)
    reports: list[LayerReport] = []
    counted: dict[int, nn.Module] = {}
    shared = Counter(id(made.get_submodule(name).weight) for name in plan)
    for name, wanted in plan.items():
        layer = made.get_submodule(name) if name else made
        require_groups(name, layer, wanted, recipe)
        require_finite(weight_of(layer), f"{name or type(layer).__name__}.weight")
        use, weight = uses.get(name), layer.weight
        precision, note = checked_precision(wanted, use, name in in_source, batches != [])
        if weight_of(layer).is_complex():
            precision, note = "float", "kept float: its weight is complex"
        earlier = counted.get(id(weight))
        power = None if earlier is not None else _power(layer, use)
        chosen = None
        if recipe.outliers == "auto" and use is not None and not note and shared[id(weight)] == 1:
            chosen = treated(layer, precision, use, power, partial(_converted, precision, recipe))
        if chosen is not None:
            new, precision, note = chosen
        else:
            new = convert(layer, precision, recipe, power)
            note = note or _outlier_note(precision, use)
        if isinstance(new, TernaryWeight) and isinstance(earlier, TernaryWeight):
            _tie(new, earlier)
        note = note or ("the weight that it computed became its own" if name in folded else "")
        report = report_of(name, layer, new, precision, earlier is not None)
        reports.append(replace(report, note=note, outlier=1.0 if use is None else use.outlier))
        counted.setdefault(id(weight), new)
        if new is not layer:
            made = replaced(made, names[layer], new)
    if batches:
        reestimate_batch_norm(made, batches)
    return made, Report(tuple(reports), untouched_parameters(made, {n: plan[n] for n in plan}))


def require_groups(name: str, layer: nn.Module, wanted: Precision, recipe: Recipe) -> None:
    """Raise `UnsupportedGroupError` if a layer would get scales per group of inputs, and its kind has none."""
    made = wanted == "ternary" and not isinstance(layer, nn.Linear | TernaryWeight)
    if made and recipe.per == "group":
        raise UnsupportedGroupError(
            f"{name or 'the model'} is a {type(layer).__name__}, and only linear layers have scales per group of "
            f"inputs: take per='channel', or give it another precision by rules=(({name!r}, 'int8'),)"
        )


def _tie(new: TernaryWeight, earlier: TernaryWeight) -> None:
    """Let two layers share a weight. What calibration fitted holds for both, so both must read it as fitted."""
    new.weight = earlier.weight
    if earlier.quantizer == "exact":
        new.quantizer = "exact"


def _power(layer: nn.Module, use: Use | None) -> Tensor | None:
    """Return the mean square of each input of a layer without groups, if calibration has seen it called."""
    return use.power if use is not None and getattr(layer, "groups", 1) == 1 else None


def checked_precision(wanted: Precision, use: Use | None, read_by_source: bool, probed: bool) -> tuple[Precision, str]:
    """Return the precision that a layer can really have, and what the report should say of it."""
    if wanted == "float":
        return wanted, ""
    if use is not None and use.bypassed:
        return "float", "kept float: the model reads this weight itself and never calls the layer"
    if not probed and read_by_source:
        return "float", "kept float: the code around it reads this weight itself; calibration data would tell for sure"
    if use is not None and use.calls and use.reads:
        return wanted, f"the model also reads this weight itself ({use.reads} times), in float until it is packed"
    if use is not None and not use.calls:
        return wanted, "not reached by the calibration data"
    return wanted, ""


def _outlier_note(precision: Precision, use: Use | None) -> str:
    """Return what the report says of a layer with outliers that keeps its 8-bit activations."""
    if precision == "float" or use is None or use.outlier < OUTLIER:
        return ""
    return (
        f"one input channel is {use.outlier:.0f} times the median one: 8-bit activations lose the others; "
        "keep this layer float by a rule, or smooth its input"
    )


def _converted(precision: Precision, recipe: Recipe, layer: nn.Module, power: Tensor | None) -> nn.Module:
    return convert(layer, precision, recipe, power)


def convert(
    layer: nn.Module, precision: Precision, recipe: Recipe | None = None, power: Tensor | None = None
) -> nn.Module:
    """Return a layer in another precision; with `power` (mean square of each input) its ternary weights are fitted."""
    if precision == "int8":
        return Int8Linear(layer) if isinstance(layer, nn.Linear) else Int8Conv2d(layer)  # type: ignore[arg-type]
    if precision == "float":
        return rebuilt(layer, ternary=False) if isinstance(layer, TernaryWeight) else layer
    made = (
        layer
        if isinstance(layer, TernaryWeight)
        else rebuilt(layer, ternary=True, options=(recipe or Recipe()).options())
    )
    assert isinstance(made, TernaryWeight)
    if power is not None and not made.empty and made.scale_positive is None and not isinstance(made, nn.Embedding):
        fit_to_inputs(made, power)
    return made


def rebuilt(layer: nn.Module, *, ternary: bool, options: QuantizerOptions | None = None) -> nn.Module:
    """Return a layer with the float weight of another one, as a ternary layer or as torch's own.

    What was frozen stays frozen. A ternary layer has the public attributes of the float one.
    """
    plain = next(kind for kind in TERNARY_FORMS if isinstance(layer, kind))
    kind = TERNARY_FORMS[plain] if ternary else plain
    keywords: dict[str, Any] = {} if options is None else asdict(options)
    keywords |= {"device": weight_of(layer).device, "dtype": weight_of(layer).dtype}
    made: nn.Module
    if isinstance(layer, nn.Linear):
        made = kind(layer.in_features, layer.out_features, layer.bias is not None, **keywords)
    elif isinstance(layer, nn.Embedding):
        made = kind(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, **keywords)
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
            **keywords,
        )
    made.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("scale_")})
    for name, parameter in layer.named_parameters(recurse=False):
        if not name.startswith("scale_"):
            getattr(made, name).requires_grad_(parameter.requires_grad)
    return keep_attributes(made, layer) if ternary else made


def to_int8(model: nn.Module) -> tuple[nn.Module, Report]:
    """Return a copy with int8 weights in every Linear and Conv2d, inputs of Linear rounded on the fly, and a report.

    Example:
        >>> import torch, ternary
        >>> small, report = ternary.to_int8(torch.nn.Linear(64, 10))
        >>> report.layers[0].precision
        'int8'

    Args:
        model: The model to copy; it stays as it is.
    """
    return quantize(model, Recipe(rules=(("*", "int8"),)))
