"""ONNX: torch's exporter for the graph, and here three ways to write a packed layer in it. Needs the extra `onnx`."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ternary._torch_private import keep_hooks
from ternary._wholefile import whole_file
from ternary.errors import ExportError
from ternary.export._files import as_inputs, first_cause, optional, traceable_form
from ternary.export._onnxlayers import DOMAIN, FORMS, Layer, Writer
from ternary.runtime._grouped import PackedGroupedLinear
from ternary.runtime._int8 import Int8Conv2d, Int8Linear
from ternary.runtime._layout import Geometry
from ternary.runtime._modules import PackedConv2d, PackedLinear
from ternary.runtime._pack import parts

__all__ = ["to_onnx"]

ACTIVATIONS = ("float", "int8")
OPSETS = {"standard": (25, 13), "matmulnbits": (25, 13), "compatible": (18, 8)}
"""Operator set and IR version by form: two-bit integers exist from opset 25 and IR 13 on."""


def to_onnx(
    model: nn.Module,
    path: str | Path,
    example: Any,
    *,
    form: str = "standard",
    activations: str = "float",
    block: int = 128,
) -> None:
    """Write an ONNX file with 2-bit weights, its batch size free.

    Args:
        model: With ternary or packed layers.
        path: The file to write, usually ending in `.onnx`.
        example: An input of the model, or a tuple of them.
        form: 'standard' uses standard operators only, with INT2 weights (opset 25). 'matmulnbits' writes linear layers
            as onnxruntime's own MatMulNBits. 'compatible' (opset 18) unpacks the 2 bits with arithmetic, for runtimes
            that know no INT2; they hold the weights as float once loaded.
        activations: 'float' leaves the inputs of ternary layers as they are; onnxruntime may round them to 8 bits where
            it fuses. 'int8' rounds them in the graph as packed layers do, with results equal to theirs bit for bit.
        block: Weights per scale of MatMulNBits: 32, 64 or 128.

    Raises:
        ExportError: The model has no ternary layer, an argument is unknown, the form does not support it (scales per
            group of inputs have no 'int8' activations), or torch cannot write the rest of the model.
        MissingExtraError: onnx or onnxscript is not installed.

    Example:
        >>> import tempfile, torch, ternary
        >>> from ternary.export import read_onnx, to_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_onnx(ternary.nn.TernaryLinear(16, 4), f"{folder}/layer.onnx", torch.randn(2, 16))
        ...     sorted(read_onnx(f"{folder}/layer.onnx"))
        ['model.weight']
    """
    if form not in FORMS or activations not in ACTIVATIONS or block not in (32, 64, 128):
        raise ExportError(
            f"got form={form!r}, activations={activations!r}, block={block}; forms are {', '.join(FORMS)}, "
            f"activations {', '.join(ACTIVATIONS)}, blocks 32, 64, 128"
        )
    if form == "matmulnbits" and activations == "int8":
        raise ExportError("MatMulNBits rounds activations by itself; take form='standard' for activations='int8'")
    onnx = optional("onnx", "onnx")
    optional("onnxscript", "onnx")
    packed, inputs = traceable_form(model), as_inputs(example)
    marked, layers = _mark(packed)
    opset, ir_version = OPSETS[form]
    made = _graph(marked, inputs, opset)
    Writer(made, layers, form, activations, block).rewrite()
    made.ir_version = ir_version
    header = {"form": form, "activations": activations, "model": type(model).__name__, "layers": list(layers)}
    onnx.helper.set_model_props(made, {"ternary": json.dumps(header)})
    made.producer_name = "pentad-ternary"
    onnx.checker.check_model(made)
    with whole_file(path) as temporary:
        temporary.write_bytes(made.SerializeToString())


class _Mark(nn.Module):
    """The place of a packed layer while torch writes the graph: one node with the layer's name."""

    def __init__(self, name: str, layer: PackedLinear | PackedGroupedLinear | PackedConv2d) -> None:
        super().__init__()
        self.name = name
        self.conv = isinstance(layer, PackedConv2d)
        self.outputs = layer.out_features if isinstance(layer, PackedGroupedLinear) else layer.scale.shape[0]
        if isinstance(layer, PackedConv2d):
            self.geometry = Geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv:
            shape = (x.shape[0], self.outputs, *self.geometry.out_size(x.shape[2], x.shape[3]))
        else:
            shape = (*x.shape[:-1], self.outputs)
        made: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::Layer", (x,), {"layer": self.name}, dtype=x.dtype, shape=shape, version=1
        )
        return made


class _PlainInt8(nn.Module):
    """An 8-bit layer in torch's own operators, which every ONNX runtime has."""

    def __init__(self, layer: Int8Linear | Int8Conv2d) -> None:
        super().__init__()
        self.conv = layer if isinstance(layer, Int8Conv2d) else None
        self.bias = layer.bias
        self.register_buffer("values", layer.values())
        self.register_buffer("scale", layer.scale)

    if TYPE_CHECKING:
        values: Tensor
        scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if self.conv is not None:
            conv = self.conv
            x = nn.functional.pad(input, conv.edges) if len(conv.edges) == 4 else input
            weight = self.values.float() * self.scale[:, None, None, None]
            return nn.functional.conv2d(x, weight, self.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        step = input.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127.0
        codes = (input / step).round().clamp(-127, 127)
        # Products of integers below 2^24 are exact in fp32; past 1040 inputs fp64 takes over.
        wide = torch.float32 if self.values.shape[1] * 127 * 127 < 2**24 else torch.float64
        sums = nn.functional.linear(codes.to(wide), self.values.to(wide)).float()
        out = sums * step * self.scale
        return out if self.bias is None else out + self.bias


def _mark(packed: nn.Module) -> tuple[nn.Module, dict[str, Layer]]:
    """Put a mark in the place of each packed product; embeddings are standard operators already."""
    layers: dict[str, Layer] = {}
    marks: dict[nn.Module, nn.Module] = {}
    for name, layer in [*packed.named_modules(remove_duplicate=False)]:
        if not isinstance(layer, PackedLinear | PackedGroupedLinear | PackedConv2d | Int8Linear | Int8Conv2d):
            continue
        if isinstance(layer, Int8Linear | Int8Conv2d):
            marks[layer] = _PlainInt8(layer)
        elif layer not in marks:
            marks[layer] = _Mark(name or "model", layer)
            conv = layer if isinstance(layer, PackedConv2d) else None
            layers[name or "model"] = Layer(parts(layer), conv)
        keep_hooks(marks[layer], layer)
        if not name:
            return marks[layer], layers
        parent, _, last = name.rpartition(".")
        setattr(packed.get_submodule(parent), last, marks[layer])
    return packed, layers


def _graph(model: nn.Module, inputs: tuple[Tensor, ...], opset: int) -> Any:
    """Let torch write the graph; its notes on where in the source a node comes from are taken out again."""
    free = tuple({0: torch.export.Dim.AUTO} if t.dim() else None for t in inputs)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # a warning for every operator of libraries that are not installed
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates parts of itself
            program = torch.onnx.export(
                model, inputs, dynamo=True, opset_version=opset, dynamic_shapes=free, verbose=False
            )
    except Exception as e:  # the exporter has many classes of errors, none of them public
        raise ExportError(f"torch cannot write this model as ONNX: {first_cause(e)}") from e
    finally:
        log.setLevel(level)
    assert program is not None  # None is for dynamo=False
    made = program.model_proto
    for item in [made.graph, *made.graph.node, *made.graph.input, *made.graph.output, *made.graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    del made.graph.value_info[:]
    return made
