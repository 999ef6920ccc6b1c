"""A decoder for onnxruntime in its 2-bit format, of a given shape: random codes, since only its time counts.

Each layer has the products of the Llama-like model (MatMulNBits with 2 bits and int8 activations), its attention is
onnxruntime's own GroupQueryAttention with rotary positions over a cache in place, and the head has 8 bits. The input is
an embedding's row: a row that is looked up costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BLOCK, CONTEXT = 128, 1024


class _Graph:
    """Collects the nodes and the weights of a model."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(0)

    def add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        from onnx import helper

        contributed = kind in ("MatMulNBits", "GroupQueryAttention", "SkipSimplifiedLayerNormalization")
        domain = "com.microsoft" if contributed else ""
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Add a weight and return its name."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def product(self, x: str, name: str, k: int, n: int, bits: int = 2) -> str:
        """Add a packed product, with random codes whose zero is the middle."""
        codes = self._random.integers(0, 256, (n, k // BLOCK, BLOCK * bits // 8), dtype=np.uint8)
        scales = np.full((n, k // BLOCK), 0.02, np.float32)
        inputs = [x, self.constant(f"{name}.codes", codes), self.constant(f"{name}.scales", scales)]
        return self.add("MatMulNBits", inputs, [f"{name}.y"], K=k, N=n, bits=bits, block_size=BLOCK, accuracy_level=4)


def write(shape: dict[str, int], vocabulary: int, file: Path) -> Path:
    """Write the model of a shape, unless it is there.

    Args:
        shape: hidden, inner, layers, heads, kv_heads and head_size.
        vocabulary: Number of tokens.
        file: The ONNX file.
    """
    if file.exists():
        return file
    from onnx import TensorProto, helper, save

    graph, hidden, size = _Graph(), shape["hidden"], shape["head_size"]
    wide, narrow = shape["heads"] * size, shape["kv_heads"] * size
    angles = np.outer(np.arange(CONTEXT), 10000.0 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    graph.constant("cos", np.cos(angles))
    graph.constant("sin", np.sin(angles))
    graph.constant("one", np.ones(hidden, np.float32))
    given = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "length", hidden]),
        helper.make_tensor_value_info("known", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, [1]),
    ]
    made = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, vocabulary])]
    cache = [1, shape["kv_heads"], CONTEXT, size]
    residual = "x"
    normed = graph.add("SimplifiedLayerNormalization", ["x", "one"], ["norm"], epsilon=1e-5, axis=-1)
    for layer in range(shape["layers"]):
        at = f"layer{layer}"
        query = graph.product(normed, f"{at}.q", hidden, wide)
        key, value = (graph.product(normed, f"{at}.{name}", hidden, narrow) for name in "kv")
        past, present = ([f"{at}.{when}.{name}" for name in "kv"] for when in ("past", "present"))
        given += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in past]
        made += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in present]
        inputs = [query, key, value, *past, "known", "total", "cos", "sin"]
        attended = graph.add(
            *("GroupQueryAttention", inputs, [f"{at}.attended", *present]),
            num_heads=shape["heads"],
            kv_num_heads=shape["kv_heads"],
            do_rotary=1,
        )
        normed, residual = _added(graph, graph.product(attended, f"{at}.o", wide, hidden), residual, f"{at}.middle")
        gate = graph.product(normed, f"{at}.gate", hidden, shape["inner"])
        gate = graph.add("Mul", [gate, graph.add("Sigmoid", [gate], [f"{at}.sigmoid"])], [f"{at}.swish"])
        gated = graph.add("Mul", [gate, graph.product(normed, f"{at}.up", hidden, shape["inner"])], [f"{at}.gated"])
        normed, residual = _added(
            graph, graph.product(gated, f"{at}.down", shape["inner"], hidden), residual, f"{at}.end"
        )
    graph.constant("last", np.array([-1], np.int64))
    graph.add("Gather", [normed, "last"], ["last.row"], axis=1)
    graph.add("Identity", [graph.product("last.row", "head", hidden, vocabulary, bits=8)], ["logits"])
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "decoder", given, made, graph.weights), opset_imports=sets, ir_version=10
    )
    save(model, str(file))
    return file


def _added(graph: _Graph, x: str, residual: str, name: str) -> tuple[str, str]:
    """Add to the residual stream and normalize; return the names of both."""
    outputs = [f"{name}.norm", "", "", f"{name}.sum"]
    graph.add("SkipSimplifiedLayerNormalization", [x, residual, "one"], outputs, epsilon=1e-5)
    return outputs[0], outputs[3]


class Decoder:
    """A session whose cache is bound in place, onnxruntime's quickest way.

    Args:
        file: What `write` wrote.
        threads: onnxruntime's threads.
    """

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        shapes = {one.name: one.shape for one in self._session.get_inputs()}
        self.hidden: int = shapes["x"][2]
        self._binding.bind_output("logits", "cpu")
        for name in [name for name in shapes if ".past." in name]:
            cache = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shapes[name], np.float32))
            self._binding.bind_ortvalue_input(name, cache)
            self._binding.bind_ortvalue_output(name.replace(".past.", ".present."), cache)

    def step(self, x: np.ndarray[Any, Any], before: int) -> np.ndarray[Any, Any]:
        """Return the last position's logits, of shape (vocabulary,).

        Args:
            x: float32 (positions, hidden), the embeddings' rows.
            before: Positions that the cache has.
        """
        total = before + len(x)
        self._binding.bind_cpu_input("x", x[None])
        self._binding.bind_cpu_input("known", np.array([total - 1], np.int32))
        self._binding.bind_cpu_input("total", np.array([total], np.int32))
        self._session.run_with_iobinding(self._binding)
        logits: np.ndarray[Any, Any] = self._binding.copy_outputs_to_cpu()[0][0, 0]
        return logits


def run(file: Path, threads: int, length: int, decoded: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return tokens a second of prefill and of decoding.

    Args:
        file: What `write` wrote.
        threads: onnxruntime's threads.
        length: Tokens of the prompt.
        decoded: Tokens that are decoded after it.
        clock: What tells the time, in seconds.
    """
    decoder = Decoder(file, threads)
    rows = np.random.default_rng(1).standard_normal((length, decoder.hidden)).astype(np.float32)
    decoder.step(rows[:4], 0)
    begin = clock()
    decoder.step(rows, 0)
    prefill = clock() - begin
    decoder.step(rows[:1], length)
    begin = clock()
    for at in range(decoded):
        decoder.step(rows[:1], length + 1 + at)
    return {"prefill": length / prefill, "decode": decoded / (clock() - begin)}
