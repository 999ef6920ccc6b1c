"""Write packed layers as ONNX nodes: INT2, MatMulNBits, or 2 bits unpacked by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ternary.errors import ExportError
from ternary.export._files import optional
from ternary.packing import pack_2bit
from ternary.runtime._fallback import SMALLEST
from ternary.runtime._modules import PackedConv2d
from ternary.runtime._pack import Parts

DOMAIN = "pentad.ternary"
FORMS = ("standard", "matmulnbits", "compatible")
GROUPED = "grouped_columns"
"""The name of the number of columns of a weight with scales per group of inputs."""
_EXACT_COLUMNS = (1 << 24) // 127


@dataclass(frozen=True, slots=True)
class Layer:
    """A packed layer to write: its values and scales, and the convolution it belongs to, if it is one."""

    parts: Parts
    conv: PackedConv2d | None


class Writer:
    """Replaces every marked node of a model by real ones.

    Args:
        model: The ONNX model, changed in place.
        layers: The packed layers by the names that the marks carry.
        form: One of `FORMS`.
        activations: 'float' or 'int8'.
        block: Weights per scale of MatMulNBits.
    """

    def __init__(self, model: Any, layers: dict[str, Layer], form: str, activations: str, block: int) -> None:
        self.model, self.layers, self.form, self.block = model, layers, form, block
        self.exact = activations == "int8"
        self.helper: Any = optional("onnx.helper", "onnx")
        self.onnx: Any = optional("onnx", "onnx")
        self.nodes: list[Any] = []
        self.known: set[str] = set()
        self.count = 0

    def rewrite(self) -> None:
        """Replace every marked node."""
        graph = self.model.graph
        for node in graph.node:
            if node.domain != DOMAIN:
                self.nodes.append(node)
                continue
            name = node.attribute[0].s.decode()
            made = self._layer(name, self.layers[name], node.input[0])
            self.nodes.append(self.helper.make_node("Identity", [made], [node.output[0]]))
        del graph.node[:]
        graph.node.extend(self.nodes)
        kept = [o for o in self.model.opset_import if o.domain != DOMAIN]
        del self.model.opset_import[:]
        self.model.opset_import.extend(kept)
        if self.form == "matmulnbits":
            self.model.opset_import.append(self.helper.make_opsetid("com.microsoft", 1))

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its result."""
        self.count += 1
        result = f"ternary_{self.count}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def _constant(self, name: str, value: Any) -> str:
        """Add an initializer unless there is one of this name."""
        if name not in self.known:
            self.known.add(name)
            array = np.ascontiguousarray(value)
            self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def _int2(self, name: str, values: torch.Tensor) -> str:
        """Add an INT2 initializer of -1, 0, +1, in two's complement, the first of a byte in its lowest bits."""
        if name not in self.known:
            self.known.add(name)
            # pack_2bit writes value + 1; two's complement of two bits is value & 3. Both fill with zeros.
            flat = pack_2bit(values.flatten()).numpy()
            codes = np.stack([flat >> s & 3 for s in (0, 2, 4, 6)], -1)
            codes = (codes - 1) & 3
            raw = (codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6).astype(np.uint8)
            tensor = self.helper.make_tensor(
                name, self.onnx.TensorProto.INT2, list(values.shape), raw.tobytes(), raw=True
            )
            self.model.graph.initializer.append(tensor)
        return name

    def _layer(self, name: str, layer: Layer, x: str) -> str:
        weights = int(layer.parts.values[0].numel()) if len(layer.parts.values) else 0
        if self.exact and weights > _EXACT_COLUMNS:
            raise ExportError(f"{name}: {weights} columns are too many for exact sums in float32 ({_EXACT_COLUMNS})")
        if not layer.parts.values.numel():
            raise ExportError(f"{name}: a layer without weights has no ONNX form; take it out of the model")
        scale = layer.parts.positive.numpy()
        if layer.parts.group:
            return self._bias(name, layer, self._grouped(name, layer.parts, x))
        if not self.exact:
            return self._bias(name, layer, self._product(name, layer, x, scale))
        q, step = self._rounded(layer, x)
        sums = self._product(name, layer, q, np.ones_like(scale))
        shape = (-1, 1, 1) if layer.conv is not None else (-1,)
        # The order of the packed kernels: sum times the scale of the input, times that of the weights.
        scaled = self._node("Mul", self._node("Mul", sums, step), self._constant(f"{name}.scale", scale.reshape(shape)))
        return self._bias(name, layer, scaled)

    def _bias(self, name: str, layer: Layer, x: str) -> str:
        if layer.parts.bias is None:
            return x
        shape = (-1, 1, 1) if layer.conv is not None else (-1,)
        return self._node("Add", x, self._constant(f"{name}.bias", layer.parts.bias.numpy().reshape(shape)))

    def _rounded(self, layer: Layer, x: str) -> tuple[str, str]:
        """Round an input to whole numbers of -127 … 127: one step a row, or an image."""
        axes = self._constant(
            "ternary.image" if layer.conv is not None else "ternary.row",
            np.array([1, 2, 3] if layer.conv is not None else [-1], np.int64),
        )
        limit = self._constant("ternary.127", np.array(127, np.float32))
        none = self._constant("ternary.0", np.array(0, np.float32))
        most = self._node("ReduceMax", self._node("Abs", x), axes)
        used = self._node("GreaterOrEqual", most, self._constant("ternary.smallest", np.array(SMALLEST, np.float32)))
        inverse = self._node("Where", used, self._node("Div", limit, most), none)
        return self._node("Round", self._node("Mul", x, inverse)), self._node("Div", most, limit)

    def _product(self, name: str, layer: Layer, x: str, scale: np.ndarray[Any, Any]) -> str:
        if layer.conv is not None:
            conv = layer.conv
            weight = self._weight(name, layer.parts.values, scale, layer.parts.values.shape)
            return self._node(
                *("Conv", x, weight),
                kernel_shape=list(conv.kernel_size),
                strides=list(conv.stride),
                pads=[*conv.padding, *conv.padding],
                dilations=list(conv.dilation),
                group=conv.groups,
            )
        n, k = layer.parts.values.shape
        if self.form == "matmulnbits":
            return self._matmulnbits(name, layer.parts.values, scale, x)
        if self.form == "compatible" or self.exact:
            # onnxruntime fuses no weight that is transposed, so the products of whole numbers stay exact.
            weight = self._weight(name, layer.parts.values, scale, (n, k))
            return self._node("MatMul", x, self._node("Transpose", weight, perm=[1, 0]))
        # onnxruntime 1.31 fuses INT2 weights whose rows end within a byte, and then reads them wrongly: fill rows up.
        values = torch.nn.functional.pad(layer.parts.values, (0, 0, 0, -n % 4)).T
        filled = np.concatenate([scale, np.ones(-n % 4, np.float32)])
        weight = self._node(
            *("DequantizeLinear", self._int2(f"{name}.weight", values), self._constant(f"{name}.scale", filled)), axis=1
        )
        product = self._node("MatMul", x, weight)
        if n % 4 == 0:
            return product
        start, end = self._constant("ternary.start", np.array([0])), self._constant(f"{name}.outputs", np.array([n]))
        return self._node("Slice", product, start, end, self._constant("ternary.last", np.array([-1])))

    def _grouped(self, name: str, found: Parts, x: str) -> str:
        """The product with a weight that has scales per group of inputs."""
        (n, k), (_, groups), group, block = found.values.shape, found.positive.shape, found.group, self.block
        if self.exact:
            raise ExportError(
                f"{name}: ONNX with activations='int8' multiplies by one scale an output after the sums, this layer "
                f"has one per group of {group} inputs; take activations='float' or per='channel'"
            )
        if self.form == "matmulnbits":
            if group % block:
                raise ExportError(
                    f"{name}: MatMulNBits has a scale for each block of {block} inputs, this layer one per group of "
                    f"{group}; give a block that divides the group, or use per='channel'"
                )
            of_blocks = torch.arange(-(-k // block)) * block // group
            return self._matmulnbits(name, found.values, found.positive[:, of_blocks].numpy(), x)
        rows = torch.nn.functional.pad(found.values, (0, groups * group - k)).reshape(n * groups, group)
        weight = self._weight(name, rows, found.positive.flatten().numpy(), (n, groups * group))
        if self.form != "compatible":
            weight = self._node("Reshape", weight, self._constant(f"{name}.shape", np.array([n, groups * group])))
        start, axis = self._constant("ternary.start", np.array([0])), self._constant("ternary.one", np.array([1]))
        cut = self._node("Slice", weight, start, self._constant(f"{name}.{GROUPED}", np.array([k])), axis)
        return self._node("MatMul", x, self._node("Transpose", cut, perm=[1, 0]))

    def _weight(self, name: str, values: torch.Tensor, scale: np.ndarray[Any, Any], shape: tuple[int, ...]) -> str:
        """The float weight, rows first, from 2 bits."""
        if self.form != "compatible":
            scales = self._constant(f"{name}.ones" if self.exact else f"{name}.scale", scale)
            return self._node("DequantizeLinear", self._int2(f"{name}.weight", values), scales, axis=0)
        rows = values.reshape(len(values), -1)
        packed = self._constant(f"{name}.packed", pack_2bit(rows).numpy())
        wide = self._node("Cast", packed, to=self.onnx.TensorProto.INT32)
        apart = self._node("Unsqueeze", wide, self._constant("ternary.new", np.array([-1])))
        places = self._node("Div", apart, self._constant("ternary.places", np.array([1, 4, 16, 64], np.int32)))
        codes = self._node("Mod", places, self._constant("ternary.4", np.array(4, np.int32)))
        size = pack_2bit(rows).shape[1] * 4
        flat = self._node("Reshape", codes, self._constant(f"{name}.rows", np.array([len(rows), size])))
        columns = self._constant(f"{name}.columns", np.array([rows.shape[1]]))
        start, one = self._constant("ternary.start", np.array([0])), self._constant("ternary.one", np.array([1]))
        cut = self._node("Slice", flat, start, columns, one)
        signed = self._node("Sub", cut, self._constant("ternary.1", np.array(1, np.int32)))
        whole = self._node("Cast", signed, to=self.onnx.TensorProto.FLOAT)
        scaled = self._node("Mul", whole, self._constant(f"{name}.row_scale", scale.reshape(-1, 1)))
        return self._node("Reshape", scaled, self._constant(f"{name}.shape", np.array(shape)))

    def _matmulnbits(self, name: str, values: torch.Tensor, scale: np.ndarray[Any, Any], x: str) -> str:
        """Onnxruntime's operator: blocks along K, codes value + 2 (its zero point for 2 bits)."""
        (n, k), block = values.shape, self.block
        blocks = -(-k // block)
        codes = torch.nn.functional.pad(values, (0, blocks * block - k)).numpy() + 2
        c = codes.astype(np.uint8).reshape(n, blocks, block // 4, 4)
        packed = (c[..., 0] | c[..., 1] << 2 | c[..., 2] << 4 | c[..., 3] << 6).astype(np.uint8)
        return self._node(
            *("MatMulNBits", x, self._constant(f"{name}.blocks", packed)),
            self._constant(f"{name}.scale", np.repeat(scale, blocks) if scale.ndim == 1 else scale.flatten()),
            domain="com.microsoft",
            K=k,
            N=n,
            bits=2,
            block_size=block,
            accuracy_level=4,
        )
