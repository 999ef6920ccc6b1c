"""The same matrix product by other libraries; a builder returns None if its library is absent or lacks it."""

from __future__ import annotations

import ctypes
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Run = Callable[[], Any]


def torch_float(weight: torch.Tensor, x: torch.Tensor, dtype: torch.dtype) -> Run:
    """Torch's own linear in a floating dtype."""
    w, a = weight.to(dtype), x.to(dtype)
    return lambda: torch.nn.functional.linear(a, w)


def torch_dynamic_int8(weight: torch.Tensor, x: torch.Tensor) -> Run | None:
    """Torch's dynamically quantized linear: int8 weights, activations quantized at each call."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantized = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(layer), {torch.nn.Linear}, dtype=torch.qint8
            )
        except (AttributeError, RuntimeError):
            return None
    return lambda: quantized(x)


def torch_int4(weight: torch.Tensor, x: torch.Tensor) -> Run | None:
    """Torch's weight-only 4-bit kernel, groups of 128, bfloat16 activations."""
    n, k = weight.shape
    try:
        codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = torch.ones(k // 128, n, 2, dtype=torch.bfloat16)
        a = x.to(torch.bfloat16)
        torch.ops.aten._weight_int4pack_mm_for_cpu(a, packed, 128, scales)
    except (AttributeError, RuntimeError):
        return None
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(a, packed, 128, scales)


def torchao_int8(weight: torch.Tensor, x: torch.Tensor) -> Run | None:
    """Torchao's int8 dynamic activations with int8 weights, as it runs on a CPU in eager mode."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            layer = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
            layer[0].weight.data = weight.clone()
            quantize_(layer, Int8DynamicActivationInt8WeightConfig())
            layer(x)
    except Exception as error:  # an optional peer that fails in its own ways is an absent peer
        print(f"torchao: {type(error).__name__}: {str(error)[:100]}")
        return None
    return lambda: layer(x)


def session(model: Any, threads: int) -> Any:
    """An onnxruntime session with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def bound(runner: Any, x: torch.Tensor) -> Run:
    """A call with input and output bound, onnxruntime's quickest way."""
    binding = runner.io_binding()
    binding.bind_cpu_input(runner.get_inputs()[0].name, x.numpy())
    binding.bind_output(runner.get_outputs()[0].name, "cpu")
    return lambda: runner.run_with_iobinding(binding)


def _graph(nodes: list[Any], initializers: list[Any], k: int, n: int) -> Any:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        initializers,
    )
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=10)


def onnx_float(weight: torch.Tensor, x: torch.Tensor, threads: int = 1) -> Run | None:
    """Onnxruntime's float32 MatMul."""
    try:
        from onnx import helper, numpy_helper
    except ImportError:
        return None
    n, k = weight.shape
    initializer = numpy_helper.from_array(np.ascontiguousarray(weight.T.numpy()), "w")
    return bound(session(_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [initializer], k, n), threads), x)


def onnx_int8(weight: torch.Tensor, x: torch.Tensor, threads: int = 1) -> Run | None:
    """Onnxruntime's dynamic int8: its own quantizer's graph."""
    try:
        import onnx
        from onnx import helper, numpy_helper
        from onnxruntime.quantization import quantize_dynamic
    except ImportError:
        return None
    n, k = weight.shape
    initializer = numpy_helper.from_array(np.ascontiguousarray(weight.T.numpy()), "w")
    model = _graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [initializer], k, n)
    with tempfile.TemporaryDirectory() as folder:
        source, target = str(Path(folder, "a.onnx")), str(Path(folder, "b.onnx"))
        onnx.save(model, source)
        quantize_dynamic(source, target)
        return bound(session(target, threads), x)


def onnx_bits(weight: torch.Tensor, x: torch.Tensor, bits: int, threads: int = 1, block: int = 128) -> Run | None:
    """Onnxruntime's MatMulNBits with int8 activations (accuracy level 4)."""
    try:
        from onnx import helper, numpy_helper
    except ImportError:
        return None
    n, k = weight.shape
    if k % block:
        return None
    codes = np.random.default_rng(0).integers(0, 256, (n, k // block, block * bits // 8), dtype=np.uint8)
    scales = np.ones((n, k // block), dtype=np.float32)
    node = helper.make_node(
        *("MatMulNBits", ["x", "w", "s"], ["y"]),
        domain="com.microsoft",
        K=k,
        N=n,
        bits=bits,
        block_size=block,
        accuracy_level=4,
    )
    initializers = [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scales, "s")]
    try:
        return bound(session(_graph([node], initializers, k, n), threads), x)
    except Exception as error:  # onnxruntime raises its own classes for a width that it lacks
        print(f"onnxruntime {bits} bits: {str(error)[:100]}")
        return None


class _Plan(ctypes.Structure):
    """ggml_cplan, with room for fields of later versions."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("rest", ctypes.c_byte * 92),
    )


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


TQ2_0 = 35


def ggml(weight: torch.Tensor, x: torch.Tensor, threads: int = 1) -> Run | None:
    """Ggml's TQ2_0 product, from the libraries that llama-cpp-python builds."""
    import importlib.util

    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    found = {name: sorted(folder.glob(f"libggml-{name}.*")) for name in ("base", "cpu")}
    if not all(found.values()):
        return None
    base = ctypes.CDLL(str(found["base"][0]), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(found["cpu"][0]))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    base.ggml_init.argtypes, base.ggml_init.restype = [_Init], pointer
    base.ggml_new_tensor_2d.argtypes, base.ggml_new_tensor_2d.restype = [pointer, ctypes.c_int, size, size], pointer
    base.ggml_mul_mat.argtypes, base.ggml_mul_mat.restype = [pointer] * 3, pointer
    base.ggml_new_graph.argtypes, base.ggml_new_graph.restype = [pointer], pointer
    base.ggml_build_forward_expand.argtypes = [pointer] * 2
    base.ggml_get_data.argtypes, base.ggml_get_data.restype = [pointer], pointer
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    cpu.ggml_graph_plan.argtypes, cpu.ggml_graph_plan.restype = [pointer, ctypes.c_int, pointer], _Plan
    cpu.ggml_graph_compute.argtypes, cpu.ggml_graph_compute.restype = [pointer, pointer], ctypes.c_int
    cpu.ggml_cpu_init()
    (n, k), m = weight.shape, x.shape[0]
    context = base.ggml_init(_Init(n * k // 2 + m * (n + k) * 4 + (16 << 20), None, False))
    w, a = base.ggml_new_tensor_2d(context, TQ2_0, k, n), base.ggml_new_tensor_2d(context, 0, k, m)
    source = weight.float().contiguous()
    base.ggml_quantize_chunk(TQ2_0, source.data_ptr(), base.ggml_get_data(w), 0, n, k, None)
    ctypes.memmove(base.ggml_get_data(a), x.contiguous().data_ptr(), x.numel() * 4)
    product, graph = base.ggml_mul_mat(context, w, a), base.ggml_new_graph(context)
    base.ggml_build_forward_expand(graph, product)
    plan = cpu.ggml_graph_plan(graph, threads, None)
    work = ctypes.create_string_buffer(plan.work_size + 64)
    plan.work_data = ctypes.addressof(work)

    def run() -> None:
        assert work is not None  # kept alive with the plan
        cpu.ggml_graph_compute(graph, ctypes.addressof(plan))

    run()
    got = torch.frombuffer((ctypes.c_float * (m * n)).from_address(base.ggml_get_data(product)), dtype=torch.float32)
    expected = x @ weight.float().T
    error = (got.reshape(m, n) - expected).abs().max() / expected.abs().max()
    assert error < 0.05, f"ggml computes something else: relative error {error:.3f}"
    return run
