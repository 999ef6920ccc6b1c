"""The Triton kernels without a GPU: convolutions in Triton's interpreter, and every kernel compiled ahead of time."""

from __future__ import annotations

import itertools
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
from ternary.runtime._layout import Geometry, pack_conv_weight, to_tiles
from ternary.runtime._split import Meeting, split_of

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


# cuda: ternary.runtime._gpu:multiply by interpreter
# cuda: ternary.runtime._gpu:_prepare* by interpreter
# cuda: ternary.runtime._gpu:_split_for by interpreter
# cuda: ternary.runtime._split:processors_of by interpreter
# cuda: ternary.runtime._triton_kernels:split_row_products by interpreter
# cuda: ternary.runtime._triton_kernels:_row_sums by interpreter
# cuda: ternary.runtime._triton_kernels:_store_row by interpreter
@HAS_TRITON
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the device instead")
@pytest.mark.parametrize(("cases", "seed"), [(0, 0), pytest.param(10, 1, marks=pytest.mark.slow)])
def test_rows_that_programs_share_have_the_bits_of_plain_torch(cases: int, seed: int) -> None:
    """In any order of the programs, again in the same memory; the slow run draws shapes and dtypes."""
    run("triton_split.py", str(cases), str(seed), TRITON_INTERPRET="1")


@pytest.mark.parametrize("processors", [1, 20, 108, 132, 170])
def test_a_split_covers_each_tile_once_and_fits_in_one_wave(processors: int) -> None:
    """Parts are not empty, end with the last tile, begin at whole steps, and all programs run at once."""
    made = 0
    for n, tiles in itertools.product((1, 16, 33, 640, 2560, 6912, 32000), (0, 1, 32, 33, 160, 432, 1792, 8000)):
        found = split_of(n, tiles, processors, wanted=True)
        if found is None:
            continue
        made += 1
        blocks, parts, per_part, cut = found
        assert (parts - 1) * per_part < tiles <= parts * per_part
        assert parts > 1
        assert blocks * parts <= processors
        assert blocks * cut.sizes[0] * 16 >= n
        assert per_part % cut.sizes[1] == 0
        assert found.room <= processors * (cut.sizes[0] * 16 + 1)
    assert bool(made) == (processors > 1)


def test_without_a_wish_a_row_is_split_only_where_most_of_the_device_is_idle() -> None:
    """No shape of a model of 2e9 parameters on an H200; a long row with few outputs is."""
    for n, k in ((640, 2560), (2560, 2560), (6912, 2560), (2560, 6912), (32000, 2560), (1024, 8192)):
        assert split_of(n, k // 16, 132, wanted=False) is None
    assert split_of(1024, 28672 // 16, 132, wanted=False) == split_of(1024, 28672 // 16, 132, wanted=True)
    assert split_of(4096, 28672 // 16, 132, wanted=False) is None


# cuda: ternary.runtime._split:Meeting.* by stand-in
def test_each_stream_and_each_captured_launch_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream keeps its memory; a graph never gets what another launch has, and zeroed memory when none is left."""
    from ternary.runtime import _split as split

    state = {"stream": 1, "capturing": False}
    monkeypatch.setattr(split, "current_stream", lambda: state["stream"])
    monkeypatch.setattr(split, "_FOR_GRAPHS", 100)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["capturing"])
    meeting = Meeting(torch.device("cpu"), 132)
    first = meeting.take(33)
    state["stream"] = 2
    other = meeting.take(33)
    assert other.data_ptr() != first.data_ptr()
    assert meeting.take(132 * 33).data_ptr() == other.data_ptr()
    assert other.numel() == 132 * 33
    state["capturing"] = True
    captured = [meeting.take(33) for _ in range(4)]
    begins = [room.data_ptr() for room in captured]
    assert len({*begins, first.data_ptr(), other.data_ptr()}) == 6
    assert [begin - begins[0] for begin in begins[:2]] == [0, 144]
    assert all(room.numel() >= 33 and not room.any() and room.data_ptr() % 16 == 0 for room in captured)
    state.update(capturing=False, stream=1)
    assert meeting.take(33).data_ptr() == first.data_ptr()


@pytest.mark.parametrize("kernel", ["triton", "triton-split"])
def test_scales_per_group_refuse_the_gpu_kernels_by_name(kernel: str) -> None:
    """On a device that is not the CPU, where only plain torch computes them."""
    from ternary.runtime import _grouped as grouped

    layer = PackedLinear.from_ternary(torch.ones(4, 32), 1.0, kernel=kernel)
    with pytest.raises(KernelUnavailableError, match=f'kernel="{kernel}", which has no scales per group'):
        grouped._elsewhere(torch.ones(1, 32), layer.packed, torch.ones(4, 1), None, 4, 32, kernel)


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
        (PackedLinear.from_ternary(torch.ones(4, 1024), 1.0, kernel="triton-split"), torch.ones(1, 1024)),
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
    """Convolutions, and rows that programs share, on a device."""

    @pytest.mark.parametrize("dtype", gpu.DTYPES)
    def test_rows_that_programs_share_have_the_bits_of_plain_torch(self, dtype: torch.dtype) -> None:
        """Shapes that fill no block, rows without integers: the same bits, ten times in the same memory."""
        for n, k in [(1, 1100), (640, 2560), (1024, 28672), (33, 8000)]:
            values, scale, bias = torch.randint(-1, 2, (n, k), dtype=torch.int8), torch.rand(n), torch.randn(n)
            tiles, x = to_tiles(values), torch.randn(1, k).to(dtype)
            for held, row in ((bias, x), (None, x * 0), (bias, torch.where(x > 1, float("nan"), x))):
                wanted = fallback.linear(row.float(), tiles, scale, held).to(dtype)
                parts = (row.cuda(), tiles.cuda(), scale.cuda(), None if held is None else held.cuda())
                for _ in range(10):
                    got = torch.ops.ternary.linear(*parts, "triton-split").cpu()
                    assert torch.equal(got.nan_to_num(7e7), wanted.nan_to_num(7e7)), (n, k)
                    assert torch.equal(got.isnan(), wanted.isnan())

    def test_shared_rows_on_two_streams_and_in_two_graphs_at_once(self) -> None:
        """Launches that run at the same time share no sums: every result is that of a launch alone."""
        layers = [
            PackedLinear.from_ternary(torch.randint(-1, 2, (64, 8192), dtype=torch.int8), 1.0, kernel="triton-split")
            for _ in range(2)
        ]
        layers = [layer.cuda() for layer in layers]
        x = torch.randn(1, 8192, device="cuda")
        streams = [torch.cuda.Stream() for _ in layers]
        graphs = [torch.cuda.CUDAGraph() for _ in layers]
        with torch.inference_mode():
            wanted = [layer(x) for layer in layers]
            held = []
            for layer, graph in zip(layers, graphs, strict=True):
                with torch.cuda.graph(graph):
                    held.append([layer(x) for _ in range(20)])
            torch.cuda.synchronize()
            for _ in range(20):
                eager = []
                for layer, graph, stream in zip(layers, graphs, streams, strict=True):
                    with torch.cuda.stream(stream):
                        graph.replay()
                        eager.append([layer(x) for _ in range(20)])
                torch.cuda.synchronize()
                for right, ours, replayed in zip(wanted, eager, held, strict=True):
                    assert all(torch.equal(right, y) for y in (*ours, *replayed))

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
