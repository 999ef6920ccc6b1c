"""Models in one safetensors file: packed ternary weights, the rest as it is, and the program they belong to.

docs/model-file.md specifies the layout.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ternary import packing
from ternary._language.compiler import compile as compile_source
from ternary._language.compiler import count_layers
from ternary._language.diagnostics import SourceText
from ternary._quantization.described import Described, checked, describe, made_as_described
from ternary._tensorheader import parse_json, read_tensor_header
from ternary._wholefile import is_stream, whole_file
from ternary.errors import ModelFileError, PackedDataError
from ternary.nn._layers import ternary_layers
from ternary.nn._loaded import require_loaded
from ternary.nn._quantizers import spread
from ternary.runtime._pack import Parts, pack, packed_layers, parts

FORMAT, VERSION, VERSION_WITH_TIES, VERSION_WITH_GROUPS = "pentad-ternary", 1, 2, 3
SMALLEST_TIE = 4096
"""Tensors of fewer bytes are stored as often as they have names."""
ENCODINGS = ("2bit", "base3")
FREE_LAYERS = 10_000
"""Layers that a program in a file may have, or one for each byte of the file if that is more."""
FREE_WEIGHTS, MOST_WEIGHTS = 1_000_000, 8
"""Weights that it may have, or so many for each byte: five in base 3, and more where tensors are tied."""


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """One packed layer as the header describes it; `group` inputs share a scale, all of an output if it is 0."""

    shape: tuple[int, ...]
    encoding: str
    zeros: int
    group: int = 0

    @property
    def scales(self) -> tuple[int, int]:
        """Outputs, and how many scales each has, of a layer with groups."""
        return self.shape[0], -(-self.shape[1] // self.group)

    def described(self) -> dict[str, Any]:
        """Return the entry as a header holds it; without `group` earlier releases read it."""
        return {k: v for k, v in asdict(self).items() if k != "group" or v}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The header of a model file."""

    model: str
    arguments: dict[str, Any]
    source: str
    layers: dict[str, LayerEntry]
    file_bytes: int
    tensor_bytes: dict[str, int]


def save(  # long because its documentation counts too
    model: nn.Module,
    path: str | Path,
    *,
    arguments: dict[str, Any] | None = None,
    encoding: str = "2bit",
) -> ModelInfo:
    """Write a model to a file, its ternary layers packed; the file appears whole or not at all.

    Args:
        model: Any module, also what `ternary.pack` made (the same values and scales); one compiled from a program
            carries that program into the file.
        path: The file to write, usually ending in `.safetensors`.
        arguments: The arguments that the model was made with, so that `load` can make it again.
        encoding: '2bit' (4 weights a byte) or 'base3' (5 weights a byte, for storage).

    Returns:
        The header of the file.

    Raises:
        NonFiniteWeightError: A ternary layer's weight is NaN or infinite.
        ModelFileError: The encoding is unknown.
        WeightsNotLoadedError: A weight has no values yet.
        OSError: The file cannot be written, as on a full disk.

    Example:
        >>> import tempfile, ternary
        >>> model = ternary.zoo.load("mlp")(width=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     info = ternary.save(model, f"{folder}/mlp.safetensors", arguments={"width": 8})
        >>> info.model, info.arguments
        ('MLP', {'width': 8})
    """
    if encoding not in ENCODINGS:
        raise ModelFileError(f"unknown encoding {encoding!r}; it is one of {', '.join(ENCODINGS)}")
    if is_stream(Path(path)):
        raise ModelFileError(f"{path} is a device or a pipe; name a file, which is read again once it is written")
    require_loaded(model)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    # One storage may carry two names (tied weights); safetensors wants each tensor to own its memory.
    tensors = {k: v.clone() for k, v in tensors.items()}
    entries: dict[str, LayerEntry] = {}
    for name, found in _layers(model).items():
        prefix = f"{name}." if name else ""
        values, positive, negative = found.values.cpu(), found.positive.cpu(), found.negative.cpu()
        rows = values.reshape(values.shape[0], -1) if values.numel() else values.reshape(values.shape[0], 0)
        packed = packing.pack_2bit(rows) if encoding == "2bit" else packing.pack_base3(rows)
        # A packed layer keeps more under other names, all of it in its parts.
        tensors = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
        if found.bias is not None:
            tensors[prefix + "bias"] = found.bias.detach().cpu().contiguous().clone()
        tensors[prefix + "weight.packed"] = packed
        tensors[prefix + "weight.scale"] = positive.detach().contiguous().clone()
        if found.positive is not found.negative:
            tensors[prefix + "weight.scale_negative"] = negative.detach().contiguous().clone()
        entries[name] = LayerEntry(tuple(values.shape), encoding, int((values == 0).sum()), found.group)
    ties = _tied(tensors)
    tensors = {k: v for k, v in tensors.items() if k not in ties}
    grouped = any(entry.group for entry in entries.values())
    header = {
        "format": FORMAT,
        "version": VERSION_WITH_GROUPS if grouped else VERSION_WITH_TIES if ties else VERSION,
        **({"ties": ties} if ties else {}),
        "model": type(model).__name__,
        "arguments": arguments or {},
        "source": getattr(model, "__source__", ""),
        "layers": {k: v.described() for k, v in entries.items()},
        "quantized": describe(model),
    }
    _write_whole(tensors, {"ternary": json.dumps(header, sort_keys=True)}, Path(path))
    return info(path)


def _tied(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return the tensors that are equal to an earlier one, bit for bit, with its name: they are stored once."""
    ties: dict[str, str] = {}
    known: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.nbytes < SMALLEST_TIE:
            continue
        same = known.setdefault((tensor.dtype, tensor.shape), [])
        first = next((n for n in same if torch.equal(tensors[n], tensor)), None)
        if first is None:
            same.append(name)
        else:
            ties[name] = first
    return ties


def _layers(model: nn.Module) -> dict[str, Parts]:
    """What is stored packed: the ternary layers and the packed ones, in the model's order."""
    found = {name: parts(layer) for name, layer in packed_layers(model).items()}
    for name, layer in ternary_layers(model).items():
        values, positive, negative = layer.ternary_values()
        negative = positive if layer.scale_negative is None else negative
        found[name] = Parts(values, positive, negative, getattr(layer, "bias", None), layer.scale_group())
    return found


def _write_whole(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    with whole_file(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as e:
            number = re.search(r"(?:os error|code:) (\d+)", str(e))  # a full disk comes as text
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from e


def info(path: str | Path) -> ModelInfo:
    """Read a file's header only.

    Raises:
        ModelFileError: It is no model file, damaged, or of another version.
        FileNotFoundError: There is no such file.
    """
    return _info(Path(path))[0]


def _info(path: Path) -> tuple[ModelInfo, dict[str, Any]]:
    size = path.stat().st_size
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; name the file that ternary.save wrote in it")
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
        table, _ = read_tensor_header(path)
        header = parse_json(metadata["ternary"])
        if header["format"] != FORMAT:
            raise ModelFileError(f"{path} is of format {header['format']!r}, not {FORMAT!r}")
        if header["version"] not in (VERSION, VERSION_WITH_TIES, VERSION_WITH_GROUPS):
            wanted = f"this library reads versions {VERSION} to {VERSION_WITH_GROUPS}"
            raise ModelFileError(f"{path} has version {header['version']}; {wanted}")
        layers = {
            k: LayerEntry(tuple(v["shape"]), v["encoding"], v["zeros"], v.get("group", 0))
            for k, v in header["layers"].items()
        }
        if any(e.encoding not in ENCODINGS for e in layers.values()):
            raise ModelFileError(f"{path} has layers of an unknown encoding")
        if any(not e.shape or not all(type(size) is int for size in (*e.shape, e.zeros)) for e in layers.values()):
            raise ModelFileError(f"{path} has a layer without a valid shape or number of zeros")
        _check_groups(layers, table, header, path)
        spans = {k: v["data_offsets"] for k, v in table.items() if k != "__metadata__"}
        tensor_bytes = {k: end - start for k, (start, end) in spans.items()}
        arguments = dict(header["arguments"])
        found = ModelInfo(str(header["model"]), arguments, str(header["source"]), layers, size, tensor_bytes)
    except KeyError as e:
        raise ModelFileError(f"{path} is no ternary model file: its header lacks {e}") from None
    except ModelFileError:
        raise
    except (SafetensorError, ValueError, TypeError, AttributeError) as e:
        raise ModelFileError(f"{path} is damaged or no safetensors file: {e}") from None
    return found, header


def _check_groups(layers: dict[str, LayerEntry], table: dict[str, Any], header: dict[str, Any], path: Path) -> None:
    """Raise `ModelFileError` unless each layer with groups of inputs has as many scales as its shape asks for."""
    for name, entry in layers.items():
        if entry.group == 0 and type(entry.group) is int:
            continue
        where = f"{path}: the layer {name[:100]!r}"
        if header["version"] < VERSION_WITH_GROUPS or type(entry.group) is not int or len(entry.shape) != 2:
            raise ModelFileError(f"{where} has groups of {str(entry.group)[:20]} inputs, which it cannot have")
        if not 1 <= entry.group < entry.shape[1] or entry.shape[0] < 0:
            raise ModelFileError(f"{where} has groups of {entry.group} of its {entry.shape[1]} inputs")
        key = f"{name}.weight.scale".removeprefix(".")
        stored = table[dict(header.get("ties") or {}).get(key, key)]
        if tuple(stored["shape"]) != entry.scales or stored["dtype"] != "F32":
            wanted = f"float32 scales of shape {entry.scales}"
            raise ModelFileError(f"{where} has {stored['dtype']} scales of shape {stored['shape']}; wanted {wanted}")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a file as a state dict: each packed weight becomes a float weight with exactly those ternary values.

    Args:
        path: A file written by `save`.

    Returns:
        Tensors by name; they load into the ternary model, or into its float form.

    Raises:
        ModelFileError: The file is damaged, or tensors do not fit its header.
    """
    found, header = _info(Path(path))
    try:
        with safe_open(Path(path), framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a dict: it has no iterator
        for name, first in dict(header.get("ties", {})).items():
            tensors[name] = tensors[first]
    except (SafetensorError, KeyError, TypeError, ValueError) as e:
        raise ModelFileError(f"{path} is damaged: {e}") from None
    for name, entry in found.layers.items():
        prefix = f"{name}." if name else ""
        try:
            values = unpack_layer(tensors, prefix, entry)
            positive = tensors.pop(prefix + "weight.scale")
            negative = tensors.pop(prefix + "weight.scale_negative", None)
            tensors.pop(prefix + "weight.packed")
            shape = [-1] + [1] * (len(entry.shape) - 1)
            if entry.group:
                if negative is not None or tuple(positive.shape) != entry.scales:
                    raise PackedDataError(f"got scales of shape {tuple(positive.shape)}, wanted {entry.scales}")
                positive = spread(positive, entry.shape[1], entry.group)
                shape = list(entry.shape)
            plus = positive.reshape(shape)
            minus = plus if negative is None else negative.reshape(shape)
            kind = positive.dtype
            tensors[prefix + "weight"] = values.to(kind) * torch.where(values > 0, plus, minus)
            if negative is not None:
                tensors[prefix + "scale_positive"], tensors[prefix + "scale_negative"] = plus, minus
        except KeyError as e:
            raise ModelFileError(f"{path}: layer '{name}' lacks the tensor {e}") from None
        except (PackedDataError, RuntimeError) as e:
            raise ModelFileError(f"{path}: layer '{name}' does not fit its header: {e}") from None
    return tensors


def unpack_layer(tensors: dict[str, Tensor], prefix: str, entry: LayerEntry) -> Tensor:
    """Return the int8 values of a packed layer, in the shape of its weight."""
    rows = entry.shape[0]
    size = 1
    for d in entry.shape[1:]:
        size *= d
    unpack = packing.unpack_2bit if entry.encoding == "2bit" else packing.unpack_base3
    packed = tensors[prefix + "weight.packed"]
    if packed.dim() != 2 or packed.shape[0] != rows:
        raise PackedDataError(f"got packed data of shape {tuple(packed.shape)} for {rows} rows")
    return unpack(packed, size).reshape(entry.shape)


def load(path: str | Path, model: nn.Module | None = None, *, packed: bool = False) -> nn.Module:
    """Read a model from a file.

    Args:
        path: A file written by `save`.
        model: Where to load to; by default the model is compiled from the program in the file. The ternary layers
            then get their stored values and scales exactly (quantizer 'exact', TTQ kept). A float model stays as it
            is: a copy of it gets the quantized layers that the file describes.
        packed: Return the packed form for inference, as `ternary.pack` makes it.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelFileError: The file is damaged, has no program, or does not fit the model.

    Example:
        >>> import tempfile, ternary
        >>> model = ternary.zoo.load("mlp")(width=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ternary.save(model, f"{folder}/mlp.safetensors", arguments={"width": 8})
        ...     again = ternary.load(f"{folder}/mlp.safetensors")
        >>> type(again).__name__
        'MLP'
    """
    found, header = _info(Path(path))
    if model is None:
        if not found.source:
            raise ModelFileError(f"{path} carries no program; pass the model to load into")
        model = _make(found, header, path)
    model = made_as_described(model, _quantized(header, path), str(path))
    state = read_state(path)
    _fit_scales(state, model)
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ModelFileError(f"{path} does not fit {type(model).__name__}: {e}") from None
    described = _quantized(header, path)
    for name, layer in ternary_layers(model).items():
        if layer.scale_positive is None:
            layer.quantizer = "exact"
            if name in found.layers and name in described:  # the scales are the file's, whatever the program says
                layer.per, layer.group = described[name]["per"], described[name].get("group", layer.group)
                if found.layers[name].group:
                    layer.per, layer.group = "group", found.layers[name].group
    return pack(model) if packed else model.eval()


def _quantized(header: dict[str, Any], path: str | Path) -> Described:
    return checked(header.get("quantized", {}), str(path))  # files of the first releases have none


def _make(found: ModelInfo, header: dict[str, Any], path: str | Path) -> nn.Module:
    """Make the model that a file describes, once its own tables have shown that it is as large as the file says."""
    made = compile_source(found.source, found.model, name=str(path))
    try:
        count = count_layers(SourceText(found.source, str(path)), found.model, found.arguments)
        if count > max(FREE_LAYERS, found.file_bytes):
            raise ModelFileError(f"{path}: its program has {count:,} layers, in a file of {found.file_bytes:,} bytes")
        with torch.device("meta"):
            sketch = made(**found.arguments)
        _compare(sketch, found, header, path)
        model: nn.Module = made(**found.arguments)
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as e:
        if isinstance(e, ModelFileError):
            raise
        raise ModelFileError(f"{path}: {found.model} cannot be made with {str(found.arguments)[:200]}: {e}") from None
    return model


def _compare(sketch: nn.Module, found: ModelInfo, header: dict[str, Any], path: str | Path) -> None:
    """Compare the sizes of a model without memory with those of the file's tensors."""
    ties = header.get("ties") or {}
    ternary = ternary_layers(sketch)
    total = sum(tensor.numel() for tensor in sketch.state_dict().values())
    if total > max(FREE_WEIGHTS, MOST_WEIGHTS * found.file_bytes):
        raise ModelFileError(f"{path}: {found.model} has {total:,} weights, in a file of {found.file_bytes:,} bytes")
    quantized = _quantized(header, path)
    for name, tensor in sketch.state_dict().items():
        layer, _, last = name.rpartition(".")
        if quantized.get(layer, {}).get("kind") == "float channels":
            layer = f"{layer}.layer".removeprefix(".")
        if layer in ternary and last in ("scale_positive", "scale_negative"):
            continue  # one for each row of the weight at most
        entry = found.layers.get(layer) if last == "weight" else None
        if entry is not None:
            stored = f"{layer}.weight.packed"
        elif last == "weight" and quantized.get(layer, {}).get("kind") == "int8":
            stored = f"{layer}.packed"
        else:
            stored = f"{layer}.{last}"
        stored = str(ties.get(stored.removeprefix("."), stored.removeprefix(".")))
        if stored not in found.tensor_bytes:
            raise ModelFileError(f"{path}: {found.model} has the tensor {name}, which the file lacks")
        per_byte = 5 if entry is not None and entry.encoding == "base3" else 4
        room = found.tensor_bytes[stored] * per_byte if entry is not None else found.tensor_bytes[stored]
        if tensor.numel() > room:
            raise ModelFileError(
                f"{path}: {found.model} has {name} of shape {tuple(tensor.shape)}; the file's is smaller"
            )


def _fit_scales(state: dict[str, Tensor], model: nn.Module) -> None:
    """Bring the scales of packed layers to the form in which TTQ layers learn them."""
    for name, layer in ternary_layers(model).items():
        prefix = f"{name}." if name else ""
        weight = state.get(prefix + "weight")
        for key in ("scale_positive", "scale_negative"):
            own = getattr(layer, key)
            if own is None or weight is None or not weight.numel():
                continue
            # A file of a packed layer has one scale for both signs where they were equal, and one a row in any case.
            given = state.get(prefix + key, weight.flatten(1).abs().amax(1)).flatten()
            if own.numel() == given.numel() or own.numel() == 1:
                state[prefix + key] = (given if own.numel() > 1 else given.max()).reshape(own.shape)
