"""The Triton kernels without a GPU: convolutions in Triton's interpreter, and every kernel compiled ahead of time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from ternary.errors import KernelUnavailableError
from ternary.runtime import PackedConv2d, PackedLinear
from ternary.runtime import _fallback as fallback
from ternary.runtime import _gpu as gpu
from ternary.runtime._layout import Geometry, pack_conv_weight

HERE = Path(__file__).parent
HAS_TRITON = pytest.mark.skipif(not gpu.is_available(), reason="triton is not installed")


def run(program: str, *arguments: str, **environment: str) -> str:
    """Run a program beside this file and return what it printed."""
    command = [sys.executable, HERE / program, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# cuda: ternary.runtime._gpu:conv2d by interpreter
# cuda: ternary.runtime._gpu:_refuse_cpu by interpreter
# cuda: ternary.runtime._gpu:_first by interpreter
# cuda: ternary.runtime._gpu:_found_why_not by interpreter
# cuda: ternary.runtime._ops:_conv2d by interpreter
# cuda: ternary.runtime._triton_kernels:convolve* by interpreter
# cuda: ternary.runtime._triton_kernels:image_peaks by interpreter
# cuda: ternary.runtime._triton_kernels:quantize_images by interpreter
# cuda: ternary.runtime._triton_kernels:_corner by interpreter
# cuda: ternary.runtime._triton_kernels:_peak by interpreter
# cuda: ternary.runtime._triton_kernels:_scales by interpreter
# cuda: ternary.runtime._triton_kernels:_rounded by interpreter
# cuda: ternary.runtime._triton_kernels:_store by interpreter
@HAS_TRITON
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the device instead")
@pytest.mark.parametrize(("cases", "seed"), [(0, 0), pytest.param(60, 1, marks=pytest.mark.slow)])
def test_convolutions_have_the_bits_of_plain_torch(cases: int, seed: int) -> None:
    """Every branch in odd sizes; the slow run draws geometries, channels, groups and dtypes."""
    run("triton_convolutions.py", str(cases), str(seed), TRITON_INTERPRET="1")


# cuda: ternary.runtime._gpu:_prepare_row* by interpreter
@HAS_TRITON
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the device instead")
def test_prepared_launches_have_the_bits_of_plain_torch() -> None:
    """Further calls on a device launch compiled kernels on addresses, which are computed by hand."""
    run("triton_launches.py", TRITON_INTERPRET="1")


@HAS_TRITON
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a device")
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (PackedLinear.from_ternary(torch.ones(4, 16), 1.0, kernel="triton"), torch.ones(1, 16)),
        (PackedConv2d.from_ternary(torch.ones(4, 1, 3, 3), 1.0, kernel="triton"), torch.ones(1, 1, 8, 8)),
    ],
)
def test_an_input_on_the_cpu_is_refused_by_name(layer: torch.nn.Module, x: torch.Tensor) -> None:
    """A layer that was told to use Triton says what it got, in place of Triton's own error about drivers."""
    with pytest.raises(KernelUnavailableError, match="an input on cpu, wanted one on a CUDA device"):
        layer(x)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGpu:
    """Convolutions on a device."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_convolutions_have_the_bits_of_plain_torch(self, dtype: torch.dtype) -> None:
        """Dense, grouped and depthwise, small and large, images without integers, twice: the same bits."""
        for channels, n, groups, side, images in [
            (3, 64, 1, 33, 2), (64, 64, 1, 14, 3), (256, 512, 1, 7, 1), (48, 40, 1, 28, 9), (64, 96, 4, 9, 2),
            (130, 130, 130, 15, 3),
        ]:  # fmt: skip
            geometry = Geometry((3, 3), (2, 1), (1, 1), (1, 2), groups)
            values = torch.randint(-1, 2, (n, channels // groups, 3, 3), dtype=torch.int8)
            weight, scale, bias = pack_conv_weight(values, groups), torch.rand(n), torch.randn(n)
            x = torch.randn(images, channels, side, side)
            if images > 2:
                x[0], x[1], x[2, 0, 0, 0] = x[0] * 1e3, 0, float("nan")
            x = x.to(dtype)
            sizes = [
                list(pair) for pair in (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation)
            ]
            for held in (bias, None):
                wanted = fallback.conv2d(x.float(), weight, scale, held, geometry).to(dtype)
                parts = (x.cuda(), weight.cuda(), scale.cuda(), None if held is None else held.cuda())
                for _ in range(2):
                    got = torch.ops.ternary.conv2d(*parts, *sizes, groups, "triton").cpu()
                    assert torch.equal(got.nan_to_num(7e7), wanted.nan_to_num(7e7)), (channels, n, groups)
                    assert torch.equal(got.isnan(), wanted.isnan())

    def test_a_convolution_in_a_graph(self) -> None:
        """A captured layer computes from what its input holds at each replay; a first call is refused in a capture."""
        values = torch.randint(-1, 2, (40, 24, 3, 3), dtype=torch.int8)
        layer = PackedConv2d.from_ternary(values, 0.5, torch.randn(40), padding=1).cuda()
        x = torch.randn(2, 24, 17, 11, device="cuda")
        refused = pytest.raises(KernelUnavailableError, match="before the capture")
        with torch.inference_mode(), refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer(x)
        with torch.inference_mode():
            layer(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = layer(layer(x)[:, :24] + x)
            for _ in range(3):
                x.copy_(torch.randn_like(x))
                graph.replay()
                assert torch.equal(y, layer(layer(x)[:, :24] + x))


# cuda: ternary.runtime._triton_kernels:*_products by compiled
# cuda: ternary.runtime._triton_kernels:quantize_* by compiled
# cuda: ternary.runtime._triton_kernels:convolve* by compiled
# cuda: ternary.runtime._triton_kernels:image_peaks by compiled
# cuda: ternary.runtime._triton_kernels:_codes by compiled
# cuda: ternary.runtime._triton_kernels:_add_products by compiled
@pytest.mark.slow
@HAS_TRITON
def test_every_kernel_compiles_from_the_lowest_capability_on(tmp_path: Path) -> None:
    """For 8.0, 9.0 and 12.0, in 99 KiB, with loads of 16 bytes where the memory of a layer allows; not for 7.0, 7.5."""
    found = defaultdict(list)
    for line in run("triton_compile.py", TRITON_CACHE_DIR=str(tmp_path)).splitlines():
        capability, name, *numbers = line.split()
        found[capability].append((name, *map(int, numbers)))
    assert found["80"]
    assert [line[0] for line in found["80"]] == [line[0] for line in found["90"]] == [line[0] for line in found["120"]]
    for capability in ("80", "90", "120"):
        assert all(len(line) == 3 and line[1] <= 99 << 10 for line in found[capability]), found[capability]
        widest = defaultdict(int)
        for name, _, load in found[capability]:
            widest[name] = max(widest[name], load)
        assert set(widest.values()) == {16}, widest
    for capability in ("70", "75"):
        assert len(found[capability][-1]) == 1, found[capability]
