"""GGUF: ternary weights as TQ2_0 blocks, the format of llama.cpp, written and read with the `gguf` package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ternary._ggufread import F16, F32, TQ1, TQ2, Entry, read_directory, row_codes
from ternary._tensorheader import parse_json, read_exactly
from ternary._wholefile import whole_file
from ternary.errors import ExportError, ImportFormatError
from ternary.export._files import NO_GROUPS, optional, packed_form
from ternary.export._imported import TernaryTensor
from ternary.runtime._pack import packed_layers, parts

__all__ = ["read_gguf", "to_gguf"]

BLOCK = 256
_HEADER = "ternary.layers"
_PLAIN = {F32: "<f4", F16: "<f2", 24: "<i1", 25: "<i2", 26: "<i4", 27: "<i8", 28: "<f8"}
_HALF_MAX, _HALF_MIN = 65504.0, 6e-8


def to_gguf(model: nn.Module, path: str | Path) -> None:  # long because its documentation counts too
    """Write every tensor of a model as GGUF, ternary weights as TQ2_0 (2.06 bits a weight).

    A TQ2_0 block holds 256 weights of a row and their scale in half precision. Rows are filled up with zeros to whole
    blocks; a key of the file holds each weight's own shape. The full scales are stored as `NAME.weight_scale`
    (float32), so that `read_gguf` loses nothing. Other tensors are float32 (integers as they are).

    The architecture is named `ternary`: llama.cpp reads the tensors, but has no graph for arbitrary networks.

    Args:
        model: With ternary or packed layers.
        path: The file to write, usually ending in `.gguf`.

    Raises:
        ExportError: There is no ternary layer, it has scales per group or two a row (TTQ), or a scale does not fit half
            precision.
        MissingExtraError: gguf is not installed.

    Example:
        >>> import tempfile, ternary
        >>> from ternary.export import read_gguf, to_gguf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_gguf(ternary.nn.TernaryLinear(256, 4), f"{folder}/layer.gguf")
        ...     sorted(read_gguf(f"{folder}/layer.gguf"))
        ['bias', 'weight']
    """
    gguf = optional("gguf", "gguf")
    packed = packed_form(model)
    state = {k: v.detach().cpu() for k, v in packed.state_dict().items()}
    shapes: dict[str, list[int]] = {}
    rows: dict[str, Tensor] = {}
    for name, layer in packed_layers(packed).items():
        prefix = f"{name}." if name else ""
        found = parts(layer)
        if found.group:
            raise ExportError(f"{name}: {NO_GROUPS.format('GGUF', found.group)}")
        if found.positive is not found.negative:
            raise ExportError(f"{name}: TQ2_0 has one scale for both signs; TTQ layers have two")
        scale = found.positive
        bad = ((scale > _HALF_MAX) | (scale < _HALF_MIN)) & (found.values.flatten(1) != 0).any(1)
        if bool(bad.any()):
            raise ExportError(f"{name}: scale {float(scale[bad][0]):.3g} does not fit half precision, as TQ2_0 has it")
        state = {k: v for k, v in state.items() if not k.startswith(prefix)}
        if found.bias is not None:
            state[prefix + "bias"] = found.bias
        state[prefix + "weight_scale"] = scale
        matrix = found.values.reshape(len(scale), -1).float() * scale[:, None]
        rows[prefix + "weight"] = nn.functional.pad(matrix, (0, -matrix.shape[1] % BLOCK))
        shapes[prefix + "weight"] = list(found.values.shape)
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(str(temporary), "ternary")
        writer.add_string(_HEADER, json.dumps(shapes))
        writer.add_string("ternary.model", type(model).__name__)
        writer.add_string("ternary.source", str(getattr(model, "__source__", "")))
        writer.add_string("ternary.others", json.dumps({k: list(v.shape) for k, v in state.items()}))
        kind = gguf.GGMLQuantizationType.TQ2_0
        for name, matrix in rows.items():
            if matrix.numel():
                writer.add_tensor(name, gguf.quants.quantize(matrix.numpy(), kind), raw_dtype=kind)
        for name, tensor in state.items():
            if tensor.numel():
                array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
                writer.add_tensor(name, np.atleast_1d(np.ascontiguousarray(array)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_gguf(path: str | Path) -> dict[str, TernaryTensor | Tensor]:
    """Read a GGUF file: TQ1_0 and TQ2_0 tensors as ternary weights, others as float32 or integers.

    Args:
        path: A file of `to_gguf`, or of llama.cpp with ternary tensors.

    Returns:
        Every tensor by name, outputs first as torch has them.

    Raises:
        ImportFormatError: The file is damaged, or the blocks of a row have different scales.
        MissingExtraError: gguf is not installed.

    Example:
        >>> import tempfile, ternary
        >>> from ternary.export import read_gguf, to_gguf
        >>> layer = ternary.nn.TernaryLinear(256, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_gguf(layer, f"{folder}/layer.gguf")
        ...     weight = read_gguf(f"{folder}/layer.gguf")["weight"]
        >>> bool((weight.values == layer.ternary_values()[0]).all())
        True
    """
    path = Path(path)
    try:
        metadata, entries = read_directory(path)
        shapes, others = _shapes(metadata, _HEADER), _shapes(metadata, "ternary.others")
        made: dict[str, TernaryTensor | Tensor] = {}
        for name, entry in entries.items():
            if name.removesuffix("_scale") in shapes and name.endswith("_scale"):
                continue
            if entry.kind in (TQ1, TQ2):
                exact = entries.get(name + "_scale") if name in shapes else None
                made[name] = _ternary(path, name, entry, shapes.get(name), exact)
            else:
                made[name] = _dense(path, name, entry).reshape(others.get(name, list(entry.shape)))
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, NotImplementedError) as e:
        if isinstance(e, ImportFormatError):
            raise
        raise ImportFormatError(f"{path} is damaged or holds what the gguf package cannot read: {e}") from None
    return made


def _shapes(metadata: dict[str, Any], key: str) -> dict[str, list[int]]:
    found = parse_json(metadata[key]) if key in metadata else {}
    if not isinstance(found, dict):
        raise ImportFormatError(f"{key} is no JSON object")
    return found


def _dense(path: Path, name: str, entry: Entry) -> Tensor:
    """Return a tensor of floats or whole numbers, in the shape that the file gives it."""
    if entry.kind in _PLAIN:
        kind = np.dtype(_PLAIN[entry.kind])
        array = np.frombuffer(read_exactly(path, entry.offset, math.prod(entry.shape) * kind.itemsize), kind)
        return torch.from_numpy(array.astype(np.float32) if kind == np.float16 else array).reshape(entry.shape)
    gguf = optional("gguf", "gguf")
    number = gguf.GGMLQuantizationType(entry.kind)
    block, size = gguf.GGML_QUANT_SIZES[number]
    if not entry.shape or entry.shape[-1] % block:
        raise ImportFormatError(f"{name}: got shape {entry.shape}, wanted rows of whole blocks of {block}")
    raw = np.frombuffer(read_exactly(path, entry.offset, math.prod(entry.shape) // block * size), np.uint8)
    found = gguf.quants.dequantize(raw.reshape(-1, entry.shape[-1] // block * size), number)
    return torch.from_numpy(np.array(found)).reshape(entry.shape)


def _ternary(path: Path, name: str, entry: Entry, shape: list[int] | None, exact: Entry | None) -> TernaryTensor:
    if not entry.shape:
        raise ImportFormatError(f"{name}: got a single number of a ternary type")
    wanted = list(entry.shape) if shape is None else shape
    matrix = Entry(entry.kind, (math.prod(entry.shape[:-1]), entry.shape[-1]), entry.offset)
    codes, found = row_codes(path, name, matrix)
    scale = found if exact is None else _dense(path, name + "_scale", exact).float().flatten().numpy()
    half = found.astype(np.float16)
    if scale.shape != found.shape or not np.allclose(scale.astype(np.float16)[half != 0], half[half != 0]):
        raise ImportFormatError(f"{name}: its weight_scale does not belong to its blocks")
    values = torch.from_numpy(codes[:, : math.prod(wanted[1:])].astype(np.int8)).sub_(1)
    return TernaryTensor(values.reshape(wanted), torch.from_numpy(np.array(scale)))
