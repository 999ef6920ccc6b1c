"""The packed runtime against its peers: one matrix product hot and cold, threads, networks, a token loop, bytes."""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import peers
import torch
from measure import Run, Timings, interleaved, row

import ternary
from ternary.packing import pack_2bit, pack_base3
from ternary.runtime import PackedLinear, available_kernels, fuse

Row = dict[str, Any]
Clock = Callable[[], float]

# Peer, batch -> bound on the ratio to it.
FUSED = "MobileNetV2 (chains fused)"
TARGETS = {
    ("onnxruntime 2-bit", 1): 0.6,
    ("ggml TQ2_0", 1): 0.9,
    ("torch fp32", 1): 0.1,
    ("torch dynamic int8", 1): 0.35,
    ("best peer", 16): 0.95,
    ("torch dynamic int8", 256): 1.0,
}


def weights(n: int, k: int) -> torch.Tensor:
    """Random ternary values."""
    return torch.randint(-1, 2, (n, k), generator=torch.Generator().manual_seed(0), dtype=torch.int8)


def fast_kernels() -> list[str]:
    """The kernels worth timing: native ones with vector instructions; without a core, plain torch."""
    return [name for name in available_kernels() if name not in ("torch", "portable")] or ["torch"]


def packed(values: torch.Tensor, x: torch.Tensor, kernel: str, threads: int = 1) -> Run:
    """The packed layer itself: quantization of activations, scales and all Python calls included."""
    layer = PackedLinear.from_ternary(values, 0.5, kernel=kernel, threads=threads)
    return lambda: layer(x)


def linear_contenders(values: torch.Tensor, x: torch.Tensor, quick: bool) -> dict[str, Run | None]:
    """Our kernels and every peer on one product."""
    weight = values.float()
    contenders: dict[str, Run | None] = {
        f"ternary {kernel}": packed(values, x, kernel)
        for kernel in available_kernels()
        if kernel not in ("torch", "portable")
    }
    contenders["torch fp32"] = peers.torch_float(weight, x, torch.float32)
    contenders["torch dynamic int8"] = peers.torch_dynamic_int8(weight, x)
    contenders["onnxruntime 2-bit"] = peers.onnx_bits(weight, x, 2)
    contenders["ggml TQ2_0"] = peers.ggml(weight, x)
    if not quick:
        contenders["torch bf16"] = peers.torch_float(weight, x, torch.bfloat16)
        contenders["torch int4"] = peers.torch_int4(weight, x)
        contenders["torchao int8"] = peers.torchao_int8(weight, x)
        contenders["onnxruntime fp32"] = peers.onnx_float(weight, x)
        contenders["onnxruntime int8"] = peers.onnx_int8(weight, x)
        contenders["onnxruntime 4-bit"] = peers.onnx_bits(weight, x, 4)
    return contenders


def linear_rows(n: int, k: int, batch: int, quick: bool, clock: Clock) -> list[Row]:
    """One product, one thread, everything hot in cache."""
    values, x = weights(n, k), torch.randn(batch, k)
    contenders = linear_contenders(values, x, quick)
    timings = interleaved(contenders, 3 if quick else 7, 3 if quick else 5, clock)
    ours = [name for name in contenders if name.startswith("ternary")]
    rows = []
    others = {name: timings.median(name) for name in contenders if name not in ours}
    measured = {name: value for name, value in others.items() if value is not None}
    best = min(measured, key=lambda name: measured[name])
    for name in ours:
        kernel = name.split()[1]
        metric = f"linear {n}x{k} batch {batch} ({kernel})"
        for peer, value in others.items():
            # The targets are for the kernel that this machine uses; the others are reported beside it.
            target = TARGETS.get((peer, batch)) if name == ours[0] else None
            rows.append(row(metric, "ms", timings.median(name), peer, value, target, samples=timings.samples[name]))
        if batch == 16:
            target = TARGETS["best peer", 16] if name == ours[0] else None
            rows.append(row(metric, "ms", timings.median(name), f"best peer: {best}", measured[best], target))
    return rows


def cold_copies(size: int) -> int:
    """How many matrices of so many bytes no cache holds: ten, and more than the last-level cache by a quarter."""
    levels = [int(file.read_text()[:-2]) for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(10, -(-max(levels, default=0) * 1024 * 5 // (4 * size)))


def cold_rows(n: int, k: int, quick: bool, clock: Clock) -> list[Row]:
    """Batch 1, rotating over matrices that no cache holds, against onnxruntime's 2 bits and reading the bytes."""
    copies, x, values = cold_copies(n * k // 4), torch.randn(1, k), weights(n, k)

    def rotating(runs: list[Run | None]) -> Run | None:
        if any(run is None for run in runs):
            return None
        turn = itertools.cycle([run for run in runs if run is not None])
        return lambda: next(turn)()

    kernel, weight = available_kernels()[0], values.float()
    layer = PackedLinear.from_ternary(values, 0.5, kernel=kernel, threads=1)
    contenders: dict[str, Run | None] = {
        "ternary": rotating([functools.partial(copy.deepcopy(layer), x) for _ in range(copies)]),
        "onnxruntime 2-bit": rotating([peers.onnx_bits(weight, x, 2) for _ in range(copies)]),
    }
    # What reading as many bytes takes, the quickest of three readers, rotating likewise over such buffers.
    buffers = [torch.ones(n * k // 16) for _ in range(copies)]
    contenders["read: sum"] = rotating([buffer.sum for buffer in buffers])
    contenders["read: max"] = rotating([buffer.view(torch.int64).max for buffer in buffers])
    contenders["read: dot"] = rotating([lambda buffer=buffer: torch.dot(buffer, buffer) for buffer in buffers])
    timings = interleaved(contenders, 2 if quick else 6, 3 if quick else 7, clock)
    reads = [timings.median(name) for name in contenders if name.startswith("read")]
    floor = min(value for value in reads if value is not None)
    metric = f"linear {n}x{k} batch 1 cold ({kernel})"
    ours, samples = timings.median("ternary"), timings.samples["ternary"]
    return [
        row(metric, "ms", ours, "onnxruntime 2-bit", timings.median("onnxruntime 2-bit"), 1.0, samples=samples),
        row(metric, "ms", ours, "reading as many bytes from DRAM", floor, 1.25, samples=samples),
    ]


def thread_rows(quick: bool) -> list[Row]:
    """Two threads against one."""
    values, rows = weights(4096, 4096), []
    for batch, target in [(1, None), (16, None), (256, 1.7)]:
        x = torch.randn(batch, 4096)
        runs: dict[str, Run | None] = {str(count): packed(values, x, "auto", count) for count in (1, 2)}
        timings = interleaved(runs, 2 if quick else 4, 3 if quick else 7)
        one, two = timings.median("1"), timings.median("2")
        speed = one / two if one and two else None
        rows.append(row(f"two threads, batch {batch}: speed over one", "x", speed, target=target, better="higher"))
    return rows


def network_rows(quick: bool, clock: Clock) -> list[Row]:
    """ResNet18 and MobileNetV2 at 224, batch 1, one thread."""
    rows = []
    x = torch.randn(1, 3, 224, 224)
    last = x.contiguous(memory_format=torch.channels_last)
    for name, forward in [("ResNet18", networks.resnet18), ("MobileNetV2", networks.mobilenet_v2)]:
        plain, channels_last = networks.Builder(), networks.Builder()
        contenders: dict[str, Run | None] = {}
        builders = {}
        for kernel in fast_kernels():
            for depthwise in (False, True) if name == "MobileNetV2" else (False,):
                label = f"{name} ({kernel}{', depthwise too' if depthwise else ''})"
                builders[label] = networks.PackedBuilder(kernel, 1, depthwise)
                contenders[label] = lambda b=builders[label], f=forward: f(b, last)
        if name == "MobileNetV2":
            packed_zoo = ternary.pack(ternary.zoo.load("mobilenet_v2")().eval())
            fused = fuse(packed_zoo, torch.randn(1, 3, 64, 64))
            contenders[FUSED] = lambda f=fused: f(last)
        contenders["torch fp32"] = lambda b=plain, f=forward: f(b, x)
        contenders["torch fp32, channels last"] = lambda b=channels_last, f=forward: f(b, last)
        try:
            contenders["onnxruntime fp32"] = peers.bound(
                peers.session(networks.OnnxBuilder().model(forward, 1000), 1), x
            )
        except ImportError:
            contenders["onnxruntime fp32"] = None
        timings = interleaved(contenders, 5 if quick else 12, 3 if quick else 5, clock)
        first = next(iter(builders))
        for label in [*builders, *(n for n in contenders if n == FUSED)]:
            for peer, target in [("torch fp32", 0.7), ("torch fp32, channels last", None), ("onnxruntime fp32", 0.9)]:
                judged = target if (name == "ResNet18" and label == first) or label == FUSED else None
                rows.append(
                    row(
                        f"{label} 224 batch 1",
                        "ms",
                        timings.median(label),
                        peer,
                        timings.median(peer),
                        judged,
                        samples=timings.samples[label],
                    )
                )
        took, full = networks.weight_bytes(builders[list(builders)[-1]], packed_only=True)
        rows.append(row(f"{name}, packed layers' weights in memory", "bytes", took, "fp32", full, 1 / 15))
    return rows


def token_rows(quick: bool) -> list[Row]:
    """A small language model (width 1024, 8 blocks), greedy token loop, one thread."""
    count = 20 if quick else 60

    def make(linear: Any) -> networks.LanguageModel:
        torch.manual_seed(0)
        return networks.LanguageModel(linear).eval()

    def plain(i: int, o: int) -> torch.nn.Module:
        return torch.nn.Linear(i, o, bias=False)

    def ternary(i: int, o: int) -> torch.nn.Module:
        return PackedLinear.from_ternary(weights(o, i), i**-0.5, threads=1)

    models = {"ternary": make(ternary), "torch fp32": make(plain)}
    models["torch dynamic int8"] = torch.ao.quantization.quantize_dynamic(make(plain), {torch.nn.Linear}, torch.qint8)
    speed: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(3):
        for name, model in models.items():
            speed[name].append(model.tokens_per_second(count))
    timings = Timings(speed)
    metric = "token loop, 8 blocks of width 1024"
    return [
        row(
            metric,
            "tokens/s",
            timings.median("ternary"),
            peer,
            timings.median(peer),
            better="higher",
            samples=speed["ternary"],
        )
        for peer in ("torch fp32", "torch dynamic int8")
    ]


def size_rows() -> list[Row]:
    """Bytes in memory and on disk."""
    n = k = 4096
    values = weights(n, k)
    layer = PackedLinear.from_ternary(values, 0.5, torch.zeros(n))
    full = (n * k + n) * 4
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "layer.pt")
        torch.save(layer.state_dict(), file)
        on_disk = file.stat().st_size
    in_memory = sum(buffer.nbytes for buffer in layer.buffers())
    return [
        row("packed 4096x4096 in memory, scales and bias included", "bytes", in_memory, "fp32", full, 1 / 15),
        row("packed 4096x4096 on disk, scales and bias included", "bytes", on_disk, "fp32", full, 1 / 15),
        row("2-bit rows of 4096x4096", "bytes", pack_2bit(values).nbytes, "fp32", n * k * 4, 1 / 15),
        row("base-3 rows of 4096x4096", "bytes", pack_base3(values).nbytes, "fp32", n * k * 4, 1 / 15),
    ]


def rows(quick: bool, clock: Clock = time.perf_counter) -> list[Row]:
    """All rows of the runtime; `quick` leaves out the larger matrix and the slower peers.

    `clock` times the work on one thread; with time.thread_time the machine's other work does not count.
    """
    return [row for section in sections(quick, clock).values() for row in section()]


def sections(quick: bool, clock: Clock = time.perf_counter) -> dict[str, Callable[[], list[Row]]]:
    """The rows in parts that can be run alone."""

    def linear() -> list[Row]:
        found: list[Row] = []
        for n, k in [(4096, 4096)] if quick else [(4096, 4096), (11008, 4096)]:
            for batch in (1, 16, 256):
                found += linear_rows(n, k, batch, quick, clock)
        return found

    def cold() -> list[Row]:
        return [
            r
            for n, k in ([(4096, 4096)] if quick else [(4096, 4096), (11008, 4096)])
            for r in cold_rows(n, k, quick, clock)
        ]

    def quietly(run: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
        def section() -> list[Row]:
            torch.set_num_threads(1)
            with torch.inference_mode():
                return run()

        return section

    parts: dict[str, Callable[[], list[Row]]] = {
        "linear": linear,
        "cold": cold,
        "threads": lambda: thread_rows(quick),
        "networks": lambda: network_rows(quick, clock),
        "tokens": lambda: token_rows(quick),
        "sizes": size_rows,
    }
    return {name: quietly(run) for name, run in parts.items()}
