"""What was made of a model's layers, as a file describes it: written down, and made again in a float model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ternary._options import CHOICES, QuantizerOptions
from ternary._quantization.convert import convert, rebuilt
from ternary._quantization.modules import names_of, replaced, workable_copy
from ternary.errors import ModelFileError, UnsupportedGroupError
from ternary.nn._layers import TernaryWeight
from ternary.nn._outliers import FloatChannels
from ternary.runtime._grouped import PackedGroupedLinear
from ternary.runtime._int8 import Int8Conv2d, Int8Linear
from ternary.runtime._pack import packed_layers

Described = dict[str, dict[str, Any]]
"""By the layer's name: `kind`, and what else it takes to make the layer from a float one."""


def describe(model: nn.Module) -> Described:
    """Describe each layer of a model that is quantized."""
    found: Described = {}
    packed = packed_layers(model)
    for name, layer in model.named_modules():
        if isinstance(layer, FloatChannels):
            found[name] = {"kind": "float channels", "channels": layer.channels.tolist()}
        elif isinstance(layer, Int8Linear | Int8Conv2d):
            found[name] = {"kind": "int8"}
        elif isinstance(layer, TernaryWeight):
            quantizer = "exact" if layer.scale_positive is None else "ttq"
            found[name] = {
                "kind": "ternary", "quantizer": quantizer, "per": layer.per, "activations": layer.activations
            }  # fmt: skip
            if layer.per == "group":
                found[name]["group"] = layer.group
        elif name in packed:  # which rounds activations to 8 bits
            found[name] = {"kind": "ternary", "quantizer": "exact", "per": "channel", "activations": "int8"}
            if isinstance(layer, PackedGroupedLinear):
                found[name] |= {"per": "group", "group": layer.group}
    return found


def checked(value: object, where: str) -> Described:
    """Return a description that came from a file.

    Raises:
        ModelFileError: It is damaged.
    """
    if not isinstance(value, dict):
        raise ModelFileError(f"{where}: its description of quantized layers is no table")
    for name, entry in value.items():
        kind = entry.get("kind") if isinstance(entry, dict) else None
        words = [entry.get(option) in CHOICES[option] for option in CHOICES] if kind == "ternary" else []
        numbers = entry.get("channels") if kind == "float channels" else []
        if kind == "ternary" and entry.get("per") == "group":
            words.append(type(entry.get("group")) is int and entry["group"] >= 1)
        if kind not in ("ternary", "int8", "float channels") or not all(words) or not _are_numbers(numbers):
            raise ModelFileError(f"{where}: its description of the layer {name[:100]!r} is damaged")
    return value


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def made_as_described(model: nn.Module, described: Described, where: str) -> nn.Module:
    """Return a copy of a model with the described layers; the model itself if it has them.

    Raises:
        ModelFileError: It has no such layer, or one that is packed or of another kind.
    """
    if described and packed_layers(model):
        raise ModelFileError(f"{where}: the model to load into is packed: load into the float one, with packed=True")
    have = describe(model)
    if all(have.get(name, {}).get("kind") == entry["kind"] for name, entry in described.items()):
        return model
    made = workable_copy(model)
    names, layers = names_of(made), dict(made.named_modules())
    earlier: dict[int, TernaryWeight] = {}
    for name in described:
        inner = name == "layer" or name.endswith(".layer")
        if inner and described.get(name[:-6], {}).get("kind") == "float channels":
            continue  # made with the layer that is around it
        if name not in layers:
            raise ModelFileError(f"{where} does not fit {type(model).__name__}, which has no layer {name[:100]!r}")
        layer = layers[name]
        new = _made(layer, name, described, where)
        if isinstance(new, TernaryWeight) and isinstance(new.weight, nn.Parameter):
            new.weight = earlier.setdefault(id(layer.weight), new).weight  # layers that share a weight go on doing so
        made = replaced(made, names[layer], new)
    return made


def _made(layer: nn.Module, name: str, described: Described, where: str) -> nn.Module:
    entry = described.get(name, {})
    kind = entry.get("kind", "float")
    try:
        if kind == "float channels":
            if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                raise TypeError("no input channels")
            channels, inputs = entry["channels"], layer.weight.shape[1] * getattr(layer, "groups", 1)
            if len(set(channels)) != len(channels) or max(channels, default=0) >= inputs:
                raise IndexError("channels twice or out of range")  # with them a small file would make a large layer
            inner = _made(layer, f"{name}.layer".removeprefix("."), described, where)
            return FloatChannels(inner, layer, channels)
        if kind == "int8":
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                raise TypeError("no int8 form")
            return convert(layer, "int8")
        group = {"group": entry["group"]} if entry["per"] == "group" else {}
        options = QuantizerOptions(
            quantizer=entry["quantizer"], per=entry["per"], activations=entry["activations"], **group
        )
        return layer if isinstance(layer, TernaryWeight) else rebuilt(layer, ternary=True, options=options)
    except (KeyError, IndexError, StopIteration, TypeError, RuntimeError, UnsupportedGroupError) as error:
        have = type(layer).__name__
        raise ModelFileError(f"{where}: the layer {name[:100]!r} is {kind}, which a {have} cannot become") from error
