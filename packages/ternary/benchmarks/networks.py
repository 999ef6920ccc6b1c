"""ResNet18, MobileNetV2 and a small language model, each written once for torch, onnxruntime and packed layers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ternary.runtime import PackedConv2d, PackedLinear

Forward = Callable[["Builder", Any], Any]


class Builder:
    """The operations that the networks use, with batch normalization already folded into the convolutions.

    The first run makes a layer per name; later runs use it. Subclasses make the layers.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Any] = {}
        self.count = 0

    def start(self) -> None:
        """Begin a run."""
        self.count = 0

    def _layer(self, make: Callable[[], Any]) -> Any:
        name = str(self.count)
        self.count += 1
        if name not in self.layers:
            self.layers[name] = make()
        return self.layers[name]

    def conv(self, x: Any, i: int, o: int, k: int = 1, s: int = 1, g: int = 1) -> Any:
        """Convolution i -> o with padding that keeps the size."""
        return self._layer(lambda: float_conv(i, o, k, s, g))(x)

    def linear(self, x: Any, i: int, o: int) -> Any:
        """The classifier."""
        return self._layer(lambda: nn.Linear(i, o))(x)

    def relu(self, x: Any, most: float | None = None) -> Any:
        """ReLU, with an upper bound if `most` is given; in place, as torchvision does it."""
        return x.clamp_(0, most) if most else x.relu_()

    def add(self, x: Any, y: Any) -> Any:
        """Residual sum."""
        return x.add_(y)

    def pool(self, x: Any) -> Any:
        """3 x 3 maximum, stride 2."""
        return nn.functional.max_pool2d(x, 3, 2, 1)

    def mean(self, x: Any) -> Any:
        """Mean over height and width."""
        return x.mean((2, 3))


def float_conv(i: int, o: int, k: int, s: int, g: int) -> nn.Conv2d:
    """A convolution with ternary values in float, so that every contender has the same weights' statistics."""
    layer = nn.Conv2d(i, o, k, s, k // 2, groups=g)
    layer.weight.data = torch.randint(-1, 2, layer.weight.shape).float() * (2 / (k * k * i / g)) ** 0.5
    layer.bias.data.zero_()
    return layer.to(memory_format=torch.channels_last)


class PackedBuilder(Builder):
    """Packed layers, except for the first convolution, the classifier and, unless asked, depthwise convolutions."""

    def __init__(self, kernel: str, threads: int, depthwise: bool) -> None:
        super().__init__()
        self.kernel, self.threads, self.depthwise = kernel, threads, depthwise

    def conv(self, x: Any, i: int, o: int, k: int = 1, s: int = 1, g: int = 1) -> Any:
        """Packed, or float as the class says."""

        def make() -> nn.Module:
            layer = float_conv(i, o, k, s, g)
            if i == 3 or (g > 1 and not self.depthwise):
                return layer
            scale = layer.weight.abs().amax()
            return PackedConv2d.from_ternary(
                *((layer.weight / scale).round().to(torch.int8), float(scale), layer.bias.detach()),
                stride=s,
                padding=k // 2,
                groups=g,
                kernel=self.kernel,
                threads=self.threads,
            )

        return self._layer(make)(x)


class OnnxBuilder(Builder):
    """Nodes of an ONNX graph instead of results."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(value, f"c{len(self.initializers)}"))
        return str(self.initializers[-1].name)

    def conv(self, x: Any, i: int, o: int, k: int = 1, s: int = 1, g: int = 1) -> Any:
        """A Conv node."""
        layer = float_conv(i, o, k, s, g)
        weight = self._constant(np.ascontiguousarray(layer.weight.detach().numpy()))
        bias = self._constant(layer.bias.detach().numpy())
        return self._node("Conv", [x, weight, bias], strides=[s, s], pads=[k // 2] * 4, group=g, kernel_shape=[k, k])

    def linear(self, x: Any, i: int, o: int) -> Any:
        """A Gemm node."""
        layer = nn.Linear(i, o)
        parts = [layer.weight.detach().numpy(), layer.bias.detach().numpy()]
        return self._node("Gemm", [x, *(self._constant(part) for part in parts)], transB=1)

    def relu(self, x: Any, most: float | None = None) -> Any:
        """Relu or Clip."""
        if not most:
            return self._node("Relu", [x])
        return self._node("Clip", [x, *(self._constant(np.array(v, np.float32)) for v in (0, most))])

    def add(self, x: Any, y: Any) -> Any:
        """Add."""
        return self._node("Add", [x, y])

    def pool(self, x: Any) -> Any:
        """MaxPool."""
        return self._node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def mean(self, x: Any) -> Any:
        """GlobalAveragePool and Flatten."""
        return self._node("Flatten", [self._node("GlobalAveragePool", [x])])

    def model(self, forward: Forward, classes: int) -> Any:
        """The finished ONNX model."""
        from onnx import TensorProto, helper

        self.nodes.append(helper.make_node("Identity", [forward(self, "x")], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def resnet18(b: Builder, x: Any) -> Any:
    """ResNet18 for 1000 classes."""
    b.start()
    x = b.pool(b.relu(b.conv(x, 3, 64, 7, 2)))
    before = 64
    for width, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
        y = b.conv(b.relu(b.conv(x, before, width, 3, stride)), width, width, 3)
        short = b.conv(x, before, width, 1, stride) if stride == 2 else x
        x, before = b.relu(b.add(y, short)), width
    return b.linear(b.mean(x), 512, 1000)


def mobilenet_v2(b: Builder, x: Any) -> Any:
    """MobileNetV2, width 1, for 1000 classes."""
    b.start()
    x = b.relu(b.conv(x, 3, 32, 3, 2), 6)
    before = 32
    settings = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for expand, width, repeat, first in settings:
        for index in range(repeat):
            stride, inner = first if index == 0 else 1, before * expand
            y = b.relu(b.conv(x, before, inner), 6) if expand > 1 else x
            y = b.conv(b.relu(b.conv(y, inner, inner, 3, stride, inner), 6), inner, width)
            x, before = (b.add(y, x) if stride == 1 and before == width else y), width
    return b.linear(b.mean(b.relu(b.conv(x, before, 1280), 6)), 1280, 1000)


def weight_bytes(builder: Builder, packed_only: bool = False) -> tuple[int, int]:
    """Bytes of the packed layers' weights, and of the same weights in float32."""
    packed = full = 0
    for layer in builder.layers.values():
        if isinstance(layer, PackedConv2d | PackedLinear):
            packed += layer.packed.nbytes
            full += layer.values().numel() * 4
        elif not packed_only:
            packed += layer.weight.nbytes
            full += layer.weight.nbytes
    return packed, full


class Block(nn.Module):
    """One decoder block with a key-value cache; `linear` makes its four products."""

    def __init__(self, width: int, heads: int, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        """One token, (1, width)."""
        q, k, v = self.qkv(self.norms[0](x)).reshape(3, self.heads, 1, -1)
        cache[0], cache[1] = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
        mixed = nn.functional.scaled_dot_product_attention(q, cache[0], cache[1])
        x = x + self.out(mixed.reshape(1, -1))
        return x + self.down(self.up(self.norms[1](x)).relu().square())


class LanguageModel(nn.Module):
    """A small decoder, random weights, for the speed of its token loop."""

    def __init__(self, linear: Callable[[int, int], nn.Module], width: int = 1024, depth: int = 8) -> None:
        super().__init__()
        self.width, self.heads = width, 16
        self.embed = nn.Embedding(4096, width)
        self.blocks = nn.ModuleList(Block(width, self.heads, linear) for _ in range(depth))
        self.head = linear(width, 4096)

    def tokens_per_second(self, count: int) -> float:
        """Greedy decoding of `count` tokens."""
        empty = torch.empty(self.heads, 0, self.width // self.heads)
        caches = [[empty, empty] for _ in self.blocks]
        token = torch.tensor([1])
        started = time.perf_counter()
        for _ in range(count):
            x = self.embed(token)
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache)
            token = self.head(x).argmax(-1)
        return count / (time.perf_counter() - started)
