"""Ternary weights out of ONNX files, this package's or others', without loss. Needs the extra `onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ternary.errors import ImportFormatError
from ternary.export._files import optional
from ternary.export._imported import TernaryTensor
from ternary.export._onnxlayers import GROUPED
from ternary.packing import unpack_2bit

__all__ = ["read_onnx"]


def read_onnx(path: str | Path) -> dict[str, TernaryTensor]:
    """Read the ternary weights of an ONNX file.

    Found are: INT2 weights under DequantizeLinear with a scale for the file or for each output, MatMulNBits with 2
    bits and one scale a row, and the packed rows of `to_onnx`'s compatible form.

    Args:
        path: An ONNX file; weights in external data are found beside it.

    Returns:
        The weights by the names of their initializers (`NAME.weight`), outputs first.

    Raises:
        ImportFormatError: The file is damaged, or a weight is not exactly ternary.
        MissingExtraError: onnx is not installed.

    Example:
        >>> import tempfile, torch, ternary
        >>> from ternary.export import read_onnx, to_onnx
        >>> layer = ternary.nn.TernaryLinear(16, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_onnx(layer, f"{folder}/layer.onnx", torch.randn(2, 16))
        ...     weight = read_onnx(f"{folder}/layer.onnx")["model.weight"]
        >>> bool((weight.values == layer.ternary_values()[0]).all())
        True
    """
    onnx = optional("onnx", "onnx")
    try:
        model = onnx.load(str(path))
    except Exception as e:
        if isinstance(e, OSError):
            raise
        raise ImportFormatError(f"{path} is damaged or no ONNX file: {e}") from None
    try:
        return _weights(model, onnx)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as e:
        if isinstance(e, ImportFormatError):
            raise
        raise ImportFormatError(f"{path} is damaged: {e!r}") from None


def _weights(model: Any, onnx: Any) -> dict[str, TernaryTensor]:
    """Return the ternary weights of a parsed file."""
    tensors = {i.name: i for i in model.graph.initializer}
    inputs = {name for n in model.graph.node for name in n.input}
    made: dict[str, TernaryTensor] = {}
    for node in model.graph.node:
        first = tensors.get(node.input[1 if node.op_type == "MatMulNBits" else 0]) if len(node.input) > 1 else None
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if first is None:
            continue
        if node.op_type == "DequantizeLinear" and first.data_type == onnx.TensorProto.INT2:
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
            if scale.ndim > 1 or len(node.input) > 2:
                raise ImportFormatError(f"{first.name}: scales by block or zero points are no ternary weight")
            values = torch.from_numpy(onnx.numpy_helper.to_array(first).astype(np.int8))
            columns = scale.ndim == 1 and attributes.get("axis", 1) == 1
            _refuse_groups(_base(first.name, ".weight", ""), tensors)
            made[first.name] = _weight(first.name, values.T if columns else values, scale, tensors)
        elif node.op_type == "MatMulNBits" and attributes["bits"] == 2:
            made[_base(first.name, ".blocks")] = _blocks(first.name, node, attributes, tensors, onnx)
    for name, tensor in tensors.items():
        rows = tensors.get(_base(name, ".packed", "") + ".columns")
        if name.endswith(".packed") and rows is not None and name in inputs:
            _refuse_groups(_base(name, ".packed", ""), tensors)
            made[_base(name, ".packed")] = _packed(_base(name, ".packed", ""), tensor, rows, tensors, onnx)
    return made


def _refuse_groups(base: str, tensors: dict[str, Any]) -> None:
    if f"{base}.{GROUPED}" in tensors:
        raise ImportFormatError(f"{base}: it has scales per group of inputs; a weight is read with one scale a row")


def _base(name: str, ending: str, instead: str = ".weight") -> str:
    return name.removesuffix(ending) + instead if name.endswith(ending) else name


def _weight(name: str, values: torch.Tensor, scale: Any, tensors: dict[str, Any]) -> TernaryTensor:
    """Return values rows first; `to_onnx` pads the rows of products to a multiple of four and stores their number."""
    onnx = optional("onnx", "onnx")
    base = _base(name, ".weight", "")
    if values.numel() and int(values.min()) < -1:
        raise ImportFormatError(f"{name}: got -2 among its 2-bit values; only -1, 0 and +1 are ternary")
    if f"{base}.outputs" in tensors:
        values = values[: int(onnx.numpy_helper.to_array(tensors[f"{base}.outputs"])[0])]
    if f"{base}.ones" in tensors:  # the exact form multiplies by the scale after the sums
        scale = onnx.numpy_helper.to_array(tensors[f"{base}.scale"])
    given = torch.from_numpy(np.array(scale, np.float32)).flatten()
    return TernaryTensor(
        values.contiguous(), (given.expand(len(values)) if given.numel() == 1 else given)[: len(values)].clone()
    )


def _blocks(name: str, node: Any, attributes: dict[str, Any], tensors: dict[str, Any], onnx: Any) -> TernaryTensor:
    n, k, block = attributes["N"], attributes["K"], attributes["block_size"]
    if len(node.input) > 3:
        raise ImportFormatError(f"{name}: zero points are no part of a ternary weight")
    packed = onnx.numpy_helper.to_array(tensors[node.input[1]]).reshape(n, -1)
    codes = np.stack([packed >> s & 3 for s in (0, 2, 4, 6)], -1).reshape(n, -1)[:, :k].astype(np.int8) - 2
    scale = onnx.numpy_helper.to_array(tensors[node.input[2]]).reshape(n, -(-k // block))
    if codes.min(initial=0) < -1 or (scale != scale[:, :1]).any():
        raise ImportFormatError(f"{name}: it has values of -2, or different scales within a row")
    return TernaryTensor(torch.from_numpy(codes), torch.from_numpy(np.array(scale[:, 0], np.float32)))


def _packed(base: str, tensor: Any, columns: Any, tensors: dict[str, Any], onnx: Any) -> TernaryTensor:
    array = onnx.numpy_helper.to_array
    values = unpack_2bit(torch.from_numpy(np.array(array(tensor))), int(array(columns)[0]))
    exact = f"{base}.scale" in tensors  # multiplied after the sums
    scale = array(tensors[f"{base}.scale" if exact else f"{base}.row_scale"]).flatten()
    shape = [int(s) for s in array(tensors[f"{base}.shape"])]
    return TernaryTensor(values.reshape(shape), torch.from_numpy(np.array(scale, np.float32)))
