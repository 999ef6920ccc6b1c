"""Measures the CUDA paths on this machine's GPU, or rehearses with small sizes on the emulator and the CPU.

    python tools/gpu/measure.py FILE [--rehearse]

Writes rows as `tools/bench.py` renders them. Each row is measured against its peer in turns, in one run.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
Timed = Callable[[], None]
Row = dict[str, Any]


def turns(measured: Timed, peer: Timed | None, wait: Timed, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both, measured in turns after one turn that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for work, into in zip((measured, peer), times, strict=True):
            if work is None:
                continue
            wait()
            start = time.perf_counter()
            work()
            wait()
            if turn:
                into.append(time.perf_counter() - start)
    return times


def row(package: str, metric: str, times: tuple[list[float], list[float]], peer: str | None) -> Row:
    """Return one row, in milliseconds."""
    value = statistics.median(times[0]) * 1e3
    other = statistics.median(times[1]) * 1e3 if times[1] else None
    return {
        "package": package, "metric": metric, "unit": "ms", "value": value, "peer": peer, "peer_value": other,
        "ratio": None if other is None else value / other, "target": None, "better": "lower", "holds": None,
        "samples": [one * 1e3 for one in times[0]],
    }  # fmt: skip


XFER_READER = """
import sys, xfer, cupy
while line := sys.stdin.readline().strip():
    array = xfer.get(bytes.fromhex(line)); value = float(array[-1]); del array
    print(value, flush=True)
"""
TORCH_READER = """
import sys, pickle, torch
from multiprocessing.reduction import ForkingPickler
while line := sys.stdin.readline().strip():
    function, arguments = pickle.loads(bytes.fromhex(line)); tensor = function(*arguments)
    value = float(tensor[-1]); del tensor
    print(value, flush=True)
"""


class Reader:
    """A process that reads arrays from lines of text, and answers each."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, text: str) -> float:
        """Send a line and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def hand_over(rehearse: bool) -> list[Row]:
    """A device array to another process and back the answer, against torch.multiprocessing and a device copy."""
    import xfer

    cupy = importlib.import_module("cupy")
    rows, device = [], "cpu" if rehearse else "cuda"
    ours, theirs = Reader(XFER_READER), Reader(TORCH_READER)
    for name, size in (("64 MB", 64 << 20), ("1 GiB", 1 << 30)):
        count = (size >> 12 if rehearse else size) // 4
        array, tensor = cupy.ones(count, np.float32), torch.ones(count, device=device)
        copy = torch.empty_like(tensor)

        def by_xfer(array: Any = array) -> None:
            handle = xfer.put(array)
            assert ours.ask(bytes(handle).hex()) == 1.0
            xfer.release(handle)

        def by_torch(tensor: Any = tensor) -> None:
            import pickle

            from torch.multiprocessing import reductions

            how = reductions.reduce_tensor(tensor)  # type: ignore[no-untyped-call]
            assert theirs.ask(pickle.dumps(how).hex()) == 1.0

        def by_copy(tensor: Any = tensor, copy: Any = copy) -> None:
            copy.copy_(tensor)

        times = turns(by_xfer, None if rehearse else by_torch, cupy.cuda.Device().synchronize, 3 if rehearse else 20)
        rows.append(row("xfer", f"{name} to another process and an answer", times, "torch.multiprocessing"))
        rows.append(row("xfer", f"{name} to another process and an answer", (times[0], turns(
            by_copy, None, cupy.cuda.Device().synchronize, 5)[0]), "copy on the device"))  # fmt: skip
        del array, tensor, copy
    ours.end()
    theirs.end()
    return rows


def captured(work: Timed, rehearse: bool) -> Timed:
    """Return a call that replays work as a CUDA graph."""
    if rehearse:
        return work
    work()  # a first call compiles and checks, which a capture refuses
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def products(rehearse: bool) -> list[Row]:
    """Packed layers against fp16 layers on cuBLAS, and the decoding of a stack of layers of a model of 2e9 parameters.

    Both sides are modules that are called as users call them. Each layer of a stack has weights of its own.
    """
    from ternary.runtime import PackedLinear
    from ternary.runtime import _gpu as gpu

    device = torch.device("cpu" if rehearse else "cuda")
    n, k = (64, 64) if rehearse else (6912, 2560)
    wait = (lambda: None) if rehearse else torch.cuda.synchronize
    half = torch.float32 if rehearse else torch.float16
    reason = "rehearsal" if rehearse else gpu.why_not(device)
    kernel, layers = "torch" if reason else "triton", 2 if rehearse else 30 * 7
    first = PackedLinear.from_ternary(torch.randint(-1, 2, (n, k), dtype=torch.int8), 1.0).to(device)
    packed = [first, *(copy.deepcopy(first) for _ in range(layers - 1))]
    floats = [torch.nn.Linear(k, n, device=device, dtype=half) for _ in range(layers)]

    def through(stack: list[Any], x: torch.Tensor) -> Timed:
        def run() -> None:
            for layer in stack:
                layer(x)

        return run

    rows: list[Row] = []
    with torch.inference_mode():
        for batch in (1, 16, 256):
            x = torch.randn(batch, k, device=device)
            times = turns(through(packed[:1], x), through(floats[:1], x.to(half)), wait, 3 if rehearse else 30)
            rows.append(row("ternary", f"{n} x {k} product, batch {batch}, {kernel}", times, "fp16 cuBLAS"))
        x = torch.randn(1, k, device=device)
        decode, half_decode = through(packed, x), through(floats, x.to(half))
        name = f"one token of {layers} layers, {kernel}"
        times = turns(decode, half_decode, wait, 5)
        rows.append(row("ternary", name, times, "fp16 cuBLAS"))
        replayed = captured(decode, rehearse)
        times = turns(replayed, captured(half_decode, rehearse), wait, 10)
        rows.append(row("ternary", f"{name}, CUDA graph", times, "fp16 cuBLAS"))
        # Reading alone: half of the bytes copied, which reads as many as it writes.
        count = first.packed.numel() * layers // 2
        source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))

        def copied() -> None:
            target.copy_(source)

        times = turns(replayed, copied, wait, 10)
        rows.append(row("ternary", f"{name}, CUDA graph", times, "a copy that moves as many bytes"))
    return rows


def shared_rows(rehearse: bool) -> list[Row]:
    """One row through narrow layers: its columns shared among programs, against each row of weights in one program.

    The shapes are those of a model of 2e9 parameters, and one where `auto` shares columns. Each of 32 layers has
    weights of its own, and both sides are replayed as CUDA graphs.
    """
    from ternary.runtime import PackedLinear
    from ternary.runtime import _gpu as gpu

    device = torch.device("cpu" if rehearse else "cuda")
    wait = (lambda: None) if rehearse else torch.cuda.synchronize
    usable = not rehearse and gpu.why_not(device) is None and gpu.why_not(device, "split") is None
    kernels = ("triton-split", "triton") if usable else ("torch", "torch")
    rows: list[Row] = []
    with torch.inference_mode():
        for n, k in ((64, 64),) if rehearse else ((640, 2560), (1536, 2560), (640, 6912), (1024, 8192), (1024, 28672)):
            first = PackedLinear.from_ternary(torch.randint(-1, 2, (n, k), dtype=torch.int8), 1.0).to(device)
            x = torch.randn(1, k, device=device)

            def through(kernel: str, first: Any = first, x: torch.Tensor = x) -> Timed:
                stack = [copy.deepcopy(first) for _ in range(2 if rehearse else 32)]
                for layer in stack:
                    layer.kernel = kernel

                def run() -> None:
                    for layer in stack:
                        layer(x)

                return captured(run, rehearse)

            times = turns(through(kernels[0]), through(kernels[1]), wait, 3 if rehearse else 30)
            name = f"32 products of {n} x {k}, batch 1, {kernels[0]}, CUDA graph"
            rows.append(row("ternary", name, times, f"{kernels[1]}, each row in one program"))
    return rows


def convolutions(rehearse: bool) -> list[Row]:
    """Packed convolutions against fp16 ones on cuDNN; both sides read channels-last images."""
    from ternary.runtime import PackedConv2d
    from ternary.runtime import _gpu as gpu

    device = torch.device("cpu" if rehearse else "cuda")
    wait = (lambda: None) if rehearse else torch.cuda.synchronize
    half = torch.float32 if rehearse else torch.float16
    kernel = "torch" if rehearse or gpu.why_not(device, "conv2d") else "triton"
    rows: list[Row] = []
    with torch.inference_mode():
        for channels, side, groups in ((64, 56, 1), (256, 14, 1), (384, 14, 384)):
            values = torch.randint(-1, 2, (channels, channels // groups, 3, 3), dtype=torch.int8)
            packed = PackedConv2d.from_ternary(values, 1.0, padding=1, groups=groups).to(device)
            plain = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=groups, device=device, dtype=half)
            plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for batch in (1,) if rehearse else (1, 32):
                x = torch.randn(batch, channels, side, side, device=device).to(memory_format=torch.channels_last)
                ours, theirs = partial(packed, x), partial(plain, x.to(half))
                times = turns(captured(ours, rehearse), captured(theirs, rehearse), wait, 3 if rehearse else 30)
                name = f"3 x 3 convolution, {channels} channels, groups: {groups}, {side} x {side}, batch {batch}"
                rows.append(row("ternary", f"{name}, {kernel}, CUDA graph", times, "fp16 cuDNN"))
    return rows


def steps(rehearse: bool) -> list[Row]:
    """Training steps of ttt's `vit` on the GPU against the CPU, and what of the GPU's peak they use."""
    from torch.utils.flop_counter import FlopCounterMode

    import ttt
    from ttt.backends._recipes import RECIPES
    from ttt.backends.vit import VitBackend, VitTraining

    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 3, (12, 12)).astype(np.uint8) for _ in range(5)]
    pairs = tuple(ttt.Pair(ttt.as_grid(grid), ttt.as_grid(grid.T.copy())) for grid in grids)
    task = ttt.Task("transpose", pairs[:4], pairs[4:])
    device, wait = ("cpu", lambda: None) if rehearse else ("cuda", torch.cuda.synchronize)

    def training(device: str, **settings: Any) -> VitTraining:
        return VitTraining(VitBackend(device=device, **settings), task, 0)

    here, there = training(device, batch=8), training("cpu", batch=8)
    times = turns(lambda: here.one_step(0.5), lambda: there.one_step(0.5), wait, 1 if rehearse else 5)
    rows = [row("ttt", "one step of vit, batch 8", times, "CPU")]
    recipe = {"shape": {"side": 16, "width": 32, "depth": 1}, "batch": 2} if rehearse else RECIPES["vit"][1]
    settings = {name: value for name, value in recipe.items() if name != "steps"}
    large = training(device, **settings)
    side = 64 if rehearse else 8192
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)

    def product() -> None:
        torch.mm(a, a)

    times = turns(lambda: large.one_step(0.5), product, wait, 1 if rehearse else 10)
    rows.append(row("ttt", "one step of the vit recipe", times, f"bf16 product of {side} x {side}"))
    shape = large.shape.side, large.shape.side
    with FlopCounterMode(display=False) as forward:
        large.learner.model(torch.zeros(large.settings.batch, *shape, dtype=torch.int64, device=device))
    rate = 3 * forward.get_total_flops() / statistics.median(times[0])  # backward is twice the work of forward
    peak = 2 * side**3 / statistics.median(times[1])
    share = rows[-1] | {"metric": "the vit recipe's share of what a large product reaches", "unit": "%"}
    share |= {"value": 100 * rate / peak, "peer": None, "peer_value": None, "ratio": None, "better": "higher"}
    return [*rows, share | {"samples": [100 * rate / peak]}]


def shared_load(rehearse: bool) -> list[Row]:
    """Zerocopy's load onto the device against a copy of the weights from this process's memory."""
    import zerocopy

    device, side = ("cpu", 64) if rehearse else ("cuda", 4096)
    layers = [torch.nn.Linear(side, side) for _ in range(8)]
    model = torch.nn.Sequential(*layers).eval()
    wait = (lambda: None) if rehearse else torch.cuda.synchronize
    refs = []
    for number in range(8):  # each a copy of its own on the device
        layers[0].bias.data.fill_(number)
        refs.append(zerocopy.publish(model, name=f"measured-{number}"))
    untouched = iter(refs)
    held: list[torch.nn.Module] = []

    def copied() -> None:
        _ = [weight.to(device, copy=True) for weight in model.state_dict().values()]

    def loaded() -> None:
        refs[0].load(device=device, cached=False)

    def first() -> None:
        held.append(next(untouched).load(device=device, share=True, cached=False))

    def first_for_others() -> None:
        ref = next(untouched)
        held.append(ref.load(device=device, share=True, cached=False))
        while not rehearse and f"{ref.name} {ref.version}" not in {copy.model for copy in zerocopy.report().devices}:
            time.sleep(0.001)

    def further() -> None:
        refs[0].load(device=device, share=True, cached=False)

    what, peer = f"of 8 layers of {side} x {side} onto {device}", "copy from pageable memory"
    try:
        rows = [row("zerocopy", f"load {what}", turns(loaded, copied, wait, 3), peer)]
        rows.append(row("zerocopy", f"first shared load {what}", turns(first, copied, wait, 3), peer))
        until = f"first shared load {what}, until others can map it"
        rows.append(row("zerocopy", until, turns(first_for_others, copied, wait, 3), peer))
        rows.append(row("zerocopy", f"further shared load {what}", turns(further, copied, wait, 3), peer))
    finally:
        held.clear()
        for ref in refs:
            zerocopy.unpublish(ref)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure and write the rows; a group that fails is named and the others are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on the emulator and the CPU")
    args = parser.parse_args(argv)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for group in (hand_over, products, shared_rows, convolutions, steps, shared_load):
        start = time.perf_counter()
        try:
            rows += group(args.rehearse)
            print(f"measured {group.__name__} in {time.perf_counter() - start:.0f} s", flush=True)
        except Exception as error:
            failed[group.__name__] = f"{type(error).__name__}: {error}"
            print(f"not measured: {group.__name__}: {failed[group.__name__]}", flush=True)
    device = "emulator" if args.rehearse else torch.cuda.get_device_name()
    machine = {
        "device": device,
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "day": time.strftime("%Y-%m-%d"),
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    result = {"machine": machine, "versions": versions, "rows": rows, "failed": failed}
    args.file.write_text(json.dumps(result, indent=1) + "\n")
    missing = {reason for reason in failed.values() if "ModuleNotFoundError" in reason}
    return 1 if len(missing) < len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
