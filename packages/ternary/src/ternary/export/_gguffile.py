"""GGUF: ternary weights as TQ2_0 blocks, the format of llama.cpp, written and read with the `gguf` package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ternary._wholefile import whole_file
from ternary.errors import ExportError, ImportFormatError
from ternary.export._files import optional, packed_form
from ternary.export._imported import TernaryTensor, split_rows
from ternary.runtime._pack import packed_layers, parts

__all__ = ["read_gguf", "to_gguf"]

BLOCK = 256
_HEADER = "ternary.layers"
_HALF_MAX, _HALF_MIN = 65504.0, 6e-8


def to_gguf(model: nn.Module, path: str | Path) -> None:
    """Write every tensor of a model as GGUF, ternary weights as TQ2_0 (2.06 bits a weight).

    A TQ2_0 block holds 256 weights of a row and their scale in half precision. Rows are filled up with zeros to whole
    blocks; a key of the file holds each weight's own shape. The full scales are stored as `NAME.weight_scale`
    (float32), so that `read_gguf` loses nothing. Other tensors are float32 (integers as they are).

    The architecture is named `ternary`: llama.cpp reads the tensors, but has no graph for arbitrary networks.

    Args:
        model: With ternary or packed layers.
        path: The file to write, usually ending in `.gguf`.

    Raises:
        ExportError: There is no ternary layer, it has two scales a row (TTQ), or a scale does not fit half precision.
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
    gguf = optional("gguf", "gguf")
    path = Path(path)
    if path.stat().st_size < 24:
        raise ImportFormatError(f"{path} is too short for a GGUF file")
    try:
        reader = gguf.GGUFReader(str(path))
        tensors = {str(t.name): t for t in reader.tensors}
        shapes = cast("dict[str, list[int]]", _json(reader, _HEADER))
        others = cast("dict[str, list[int]]", _json(reader, "ternary.others"))
        made: dict[str, TernaryTensor | Tensor] = {}
        for name, tensor in tensors.items():
            if name.removesuffix("_scale") in shapes and name.endswith("_scale"):
                continue
            if np.issubdtype(tensor.data.dtype, np.integer) and tensor.tensor_type.name.startswith("I"):
                data = torch.from_numpy(np.array(tensor.data))
            else:
                data = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
            if tensor.tensor_type.name in ("TQ1_0", "TQ2_0"):
                exact = tensors.get(name + "_scale") if name in shapes else None
                made[name] = _ternary(name, data, shapes.get(name), exact)
            else:
                made[name] = data.reshape(others.get(name, [int(d) for d in tensor.shape][::-1]))
    except (ValueError, KeyError, IndexError, OverflowError, RuntimeError, NotImplementedError) as e:
        if isinstance(e, ImportFormatError):
            raise
        raise ImportFormatError(f"{path} is damaged or holds what the gguf package cannot read: {e}") from None
    return made


def _json(reader: Any, key: str) -> dict[str, Any]:
    field = reader.get_field(key)
    return dict(json.loads(field.contents())) if field is not None else {}


def _ternary(name: str, data: Tensor, shape: list[int] | None, exact: Any) -> TernaryTensor:
    wanted = shape if shape is not None else list(data.shape)
    columns = math.prod(wanted[1:])
    matrix = data.reshape(wanted[0], -1)[:, :columns]
    found = split_rows(matrix, name)
    scale = found.scale if exact is None else torch.from_numpy(np.array(exact.data)).float().flatten()
    if scale.shape != found.scale.shape or not torch.allclose(
        scale.half()[found.scale != 0], found.scale[found.scale != 0].half()
    ):
        raise ImportFormatError(f"{name}: its weight_scale does not belong to its blocks")
    return TernaryTensor(found.values.reshape(wanted), scale)
