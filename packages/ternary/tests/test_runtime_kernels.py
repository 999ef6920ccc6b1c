"""Every kernel gives the integers of an int64 reference and the floats of plain torch, bit for bit."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary.nn import TernaryLinear
from ternary.runtime import _fallback as fallback
from ternary.runtime import _gpu as gpu
from ternary.runtime import _native as native
from ternary.runtime import available_kernels, pack
from ternary.runtime._layout import Geometry, from_tiles, pack_conv_weight, tile_shape, to_tiles, unpack_conv_weight

NATIVE = native.core().paths
ALL_NATIVE = pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=pytest.mark.skipif(p not in NATIVE, reason=f"no {p} kernel here"))
        for p in ("portable", "avx2", "avxvnni", "avx512vnni", "amx", "neon")
    ],
)
SIZES = st.integers(0, 30)


def integers(m: int, k: int, seed: int) -> torch.Tensor:
    """Float activations that quantize to themselves: integers with 127 in every row."""
    q = torch.randint(-127, 128, (m, k), generator=torch.Generator().manual_seed(seed)).float()
    if k:
        q[:, 0] = 127
    return q


def ternary(*shape: int, seed: int) -> torch.Tensor:
    """Random ternary weights."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def native_sums(x: torch.Tensor, values: torch.Tensor, path: str, threads: int = 1) -> torch.Tensor:
    """Integer accumulators of a native path."""
    scale = torch.ones(values.shape[0])
    return native.linear(x, to_tiles(values), scale, None, native.path_number(path), threads, integers=True)


class TestLayout:
    """Tiles are the row format in another order."""

    @given(n=st.integers(0, 40), k=st.integers(0, 70), seed=st.integers(0, 99))
    def test_tiles_round_trip(self, n, k, seed) -> None:
        """Any matrix comes back from its tiles."""
        values = ternary(n, k, seed=seed)
        tiles = to_tiles(values)
        assert tuple(tiles.shape) == tile_shape(n, k)
        assert torch.equal(from_tiles(tiles, n, k), values)

    @given(
        groups=st.integers(1, 4),
        out=st.integers(1, 5),
        inner=st.integers(1, 5),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    )
    def test_convolution_weights_round_trip(self, groups, out, inner, kernel) -> None:
        """Dense, grouped and depthwise weights come back from their packed form."""
        values = ternary(out * groups, inner, *kernel, seed=3)
        packed = pack_conv_weight(values, groups)
        assert torch.equal(unpack_conv_weight(packed, tuple(values.shape), groups), values)

    def test_a_byte_of_a_tile_is_where_the_specification_says(self) -> None:
        """Row 17, column 37 of a matrix: strip 1, tile 2, row 1, byte 1, field 1."""
        values = torch.zeros(20, 40, dtype=torch.int8)
        values[17, 37] = 1
        changed = (to_tiles(values) != 0x55).nonzero().tolist()
        assert changed == [[1, 2, 1, 1]]
        assert int(to_tiles(values)[1, 2, 1, 1]) == 0x55 + (1 << 2)


class TestLinearIntegers:
    """Accumulators against int64 arithmetic."""

    @ALL_NATIVE
    @settings(max_examples=60, deadline=None)
    @given(
        m=st.integers(0, 30),
        n=st.integers(0, 70),
        k=st.integers(0, 300),
        threads=st.integers(1, 3),
        seed=st.integers(0, 9),
    )
    def test_any_shape(self, path, m, n, k, threads, seed) -> None:
        """Every shape, empty ones and ones that fill no vector included, on any number of threads."""
        x, values = integers(m, k, seed), ternary(n, k, seed=seed)
        assert torch.equal(native_sums(x, values, path, threads).long(), x.long() @ values.long().T)

    @ALL_NATIVE
    @pytest.mark.parametrize("k", [1, 255, 256, 257, 4096, 132_104, 499_999])
    @pytest.mark.parametrize("rows", [1, 5])
    @pytest.mark.parametrize("weight", [1, -1])
    def test_extremes_do_not_overflow(self, path, k, rows, weight) -> None:
        """All activations at +-127 against all-equal weights reach the largest sums there are."""
        x = torch.full((rows, k), 127.0)
        x[rows // 2] = -127.0
        values = torch.full((17, k), weight, dtype=torch.int8)
        assert torch.equal(native_sums(x, values, path).long(), x.long() @ values.long().T)

    @ALL_NATIVE
    @pytest.mark.parametrize("threads", [1, 2, 3, 7])
    def test_large_and_threaded(self, path, threads) -> None:
        """Shapes that split over rows and over outputs give the same sums on every thread count."""
        for m, n in [(1, 1000), (40, 130), (300, 20)]:
            x, values = integers(m, 777, 5), ternary(n, 777, seed=5)
            assert torch.equal(native_sums(x, values, path, threads).long(), x.long() @ values.long().T)

    @ALL_NATIVE
    @settings(max_examples=30, deadline=None)
    @given(n=st.integers(1, 100), k=st.integers(1, 300), seed=st.integers(0, 9))
    def test_the_same_weights_again(self, path, n, k, seed) -> None:
        """Single rows, one after another, on memory that the test holds."""
        values = ternary(n, k, seed=seed)
        tiles, scale, number = to_tiles(values), torch.ones(n), native.path_number(path)
        for row in integers(4, k, seed).split(1):
            sums = native.linear(row, tiles, scale, None, number, 1, integers=True)
            assert torch.equal(sums.long(), row.long() @ values.long().T)

    @ALL_NATIVE
    def test_too_many_columns_are_refused(self, path) -> None:
        """Where 32 bits could overflow there is an error, not a number."""
        with pytest.raises(RuntimeError, match="500,000"):
            native_sums(torch.ones(1, 500_001), torch.ones(1, 500_001, dtype=torch.int8), path)

    @pytest.mark.parametrize("k", [1, 1000, 132_104, 132_105, 300_000])
    def test_fallback_is_exact_on_both_sides_of_float32(self, k) -> None:
        """Columns beyond what float32 adds exactly are summed in parts."""
        x = torch.full((2, k), 127.0)
        x[1] = integers(1, k, 3)
        values = torch.ones(3, k, dtype=torch.int8)
        values[1:] = ternary(2, k, seed=1)
        assert torch.equal(fallback.linear_sums(x.to(torch.int8), values).long(), x.long() @ values.long().T)

    @ALL_NATIVE
    def test_adversarial_signs(self, path) -> None:
        """Weights that follow the activations' signs, so that nothing cancels."""
        x = integers(9, 4096, 8)
        values = x[:7].sign().to(torch.int8)
        assert torch.equal(native_sums(x, values, path).long(), x.long() @ values.long().T)


class TestQuantization:
    """Activations become the same int8 everywhere."""

    def test_rounds_half_to_even(self) -> None:
        """0.5, 1.5 and 2.5 steps end at 0, 2 and 2."""
        q, scale = fallback.quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]))
        assert q.tolist() == [[127, 0, 2, 2, 0, -2]]
        assert scale.tolist() == [1.0]

    @ALL_NATIVE
    def test_native_rounds_half_to_even(self, path) -> None:
        """Every step between two integers ends at the even one; 127 makes the scale 1."""
        x = torch.cat([torch.tensor([127.0]), torch.arange(-126.5, 127.0)])
        got = native.linear(x[None], to_tiles(torch.eye(len(x))), torch.ones(len(x)), None, native.path_number(path), 1)
        assert torch.equal(got[0], x.round())

    @ALL_NATIVE
    @pytest.mark.parametrize("magnitude", [1e-38, 1e-31, 1e-29, 1e-6, 1.0, 1e6, 1e30, 3e38])
    def test_native_floats_equal_torch(self, path, magnitude) -> None:
        """Quantization, sums and scales end in the same floats bit for bit, over the range of float32."""
        x = torch.randn(40, 193, generator=torch.Generator().manual_seed(1)).clamp(-1, 1) * magnitude
        x[3] = 0
        values, scale, bias = ternary(50, 193, seed=2), torch.rand(50), torch.randn(50)
        tiles = to_tiles(values)
        expected = fallback.linear(x, tiles, scale, bias)
        for b in (bias, None):
            got = native.linear(x, tiles, scale, b, native.path_number(path), 2)
            assert torch.equal(got, expected if b is not None else fallback.linear(x, tiles, scale, None))

    @ALL_NATIVE
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_a_bad_row_is_nan_and_harms_no_other(self, path, bad) -> None:
        """NaN and infinity give NaN for their own row, never integers that look right."""
        x = torch.randn(20, 70, generator=torch.Generator().manual_seed(1))
        good = x.clone()
        x[13, 69] = bad
        tiles, scale = to_tiles(ternary(30, 70, seed=2)), torch.rand(30)
        expected = fallback.linear(good, tiles, scale, None)
        for y in (
            native.linear(x, tiles, scale, None, native.path_number(path), 1),
            fallback.linear(x, tiles, scale, None),
        ):
            assert torch.isnan(y[13]).all()
            rest = torch.arange(20) != 13
            assert torch.equal(y[rest], expected[rest])


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "batch": st.integers(0, 3),
        "size": st.tuples(st.integers(1, 12), st.integers(1, 12)),
        "groups": st.integers(1, 4),
        "inner": st.sampled_from([1, 2, 3, 16, 17, 32]),
        "outer": st.sampled_from([1, 2, 5, 16, 33]),
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "threads": st.integers(1, 3),
    }
)


def reference_convolution(q: torch.Tensor, values: torch.Tensor, **geometry) -> torch.Tensor:
    """Float64 convolution of small integers, which is exact."""
    return torch.nn.functional.conv2d(q.double(), values.double(), **geometry).long()


class TestConvolutionIntegers:
    """Strided, padded, dilated, grouped and depthwise, on every path."""

    @ALL_NATIVE
    @settings(max_examples=80, deadline=None)
    @given(case=CONVOLUTIONS, depthwise=st.booleans())
    def test_any_geometry(self, path, case, depthwise) -> None:
        """Native and fallback accumulators equal a float64 convolution, whatever the geometry."""
        inner, outer = (1, 1) if depthwise else (case["inner"], case["outer"])
        groups = case["groups"] * (9 if depthwise else 1)
        steps = {k: tuple(case[k]) for k in ("stride", "padding", "dilation")}
        geometry = Geometry(tuple(case["kernel"]), **steps, groups=groups)
        if min(geometry.out_size(*case["size"])) < 1:
            return
        shape = (case["batch"], inner * groups, *case["size"])
        x = integers(case["batch"], inner * groups * case["size"][0] * case["size"][1], 3).reshape(shape)
        values = ternary(outer * groups, inner, *geometry.kernel_size, seed=4)
        expected = reference_convolution(x, values, **steps, groups=groups)
        assert torch.equal(fallback.conv2d_sums(x.to(torch.int8), values, geometry).long(), expected)
        got = native.conv2d(
            *(x.contiguous(memory_format=torch.channels_last), pack_conv_weight(values, groups)),
            *(torch.ones(outer * groups), None, geometry, native.path_number(path), case["threads"]),
            integers=True,
        )
        assert torch.equal(got.long(), expected)

    @ALL_NATIVE
    @pytest.mark.parametrize(
        ("c", "k", "s", "p"), [(3, 7, 2, 3), (64, 3, 1, 1), (64, 3, 2, 1), (64, 1, 2, 0), (24, 1, 1, 0)]
    )
    def test_the_layers_of_the_zoo(self, path, c, k, s, p) -> None:
        """ResNet's and MobileNet's own geometries, in floats, equal the fallback's bit for bit."""
        x = torch.randn(2, c, 30, 31, generator=torch.Generator().manual_seed(1))
        values, scale, bias = ternary(40, c, k, k, seed=2), torch.rand(40), torch.randn(40)
        weight = pack_conv_weight(values, 1)
        expected = fallback.conv2d(x, weight, scale, bias, Geometry((k, k), (s, s), (p, p)))
        got = torch.ops.ternary.conv2d(x, weight, scale, bias, [k, k], [s, s], [p, p], [1, 1], 1, path, 2)
        assert torch.equal(got, expected)
        assert got.is_contiguous(memory_format=torch.channels_last)

    @ALL_NATIVE
    def test_depthwise_with_more_taps_than_16_bits_hold(self, path) -> None:
        """20 x 20 taps at the extremes: partial sums move to 32 bits in time."""
        x, values = torch.full((1, 70, 21, 21), -127.0), torch.ones(70, 1, 20, 20, dtype=torch.int8)
        got = native.conv2d(
            *(x.contiguous(memory_format=torch.channels_last), pack_conv_weight(values, 70), torch.ones(70), None),
            *(Geometry((20, 20), groups=70), native.path_number(path), 1),
            integers=True,
        )
        assert got.unique().tolist() == [-127 * 400]


class TestThreads:
    """The pool under callers that come at once, and after fork."""

    @pytest.mark.skipif(not NATIVE, reason="no compiled core in this installation")
    def test_callers_at_the_same_time(self) -> None:
        """Python threads that call at once each get their own right sums."""
        x, values = integers(64, 900, 1), ternary(300, 900, seed=1)
        tiles, scale, path = to_tiles(values), torch.ones(300), native.path_number("auto")
        expected = x.long() @ values.long().T
        wrong: list[int] = []

        def call(index: int) -> None:
            sums = (native.linear(x, tiles, scale, None, path, 2, integers=True) for _ in range(20))
            wrong.extend(index for y in sums if not torch.equal(y.long(), expected))

        callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert wrong == []

    @pytest.mark.skipif(not NATIVE or not hasattr(os, "fork"), reason="needs the compiled core and fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # forking is what is tested
    def test_a_forked_child_can_compute(self) -> None:
        """A child without the parent's threads starts its own instead of waiting for them."""
        x, values = integers(64, 900, 1), ternary(300, 900, seed=1)
        expected = x.long() @ values.long().T
        tiles, scale, path = to_tiles(values), torch.ones(300), native.path_number("auto")
        native.linear(x, tiles, scale, None, path, 2, integers=True)
        child = os.fork()
        if child == 0:
            before = psutil.Process().num_threads()
            y = native.linear(x, tiles, scale, None, path, 2, integers=True)
            started = psutil.Process().num_threads() - before
            os._exit(2 - started if (y.numpy() == expected.numpy()).all() else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1, "wanted the same integers, and one more thread"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or os.uname().machine != "x86_64", reason="Linux on x86-64 only")
def test_the_core_uses_what_the_processor_has() -> None:
    """The core's own look at the processor agrees with the system's, which also knows which registers it saves."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    vnni = {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
    expected = {name for name, needed in (("avx2", {"avx2"}), ("avx512vnni", vnni)) if needed <= flags}
    assert set(available_kernels()) & {"avx2", "avx512vnni"} == expected
    assert "avxvnni" not in available_kernels() or {"avx2", "avx_vnni"} <= flags  # compilers before gcc 11 lack it


def test_kernel_names_end_with_plain_torch() -> None:
    """Plain torch is always there, and last."""
    assert available_kernels()[-1] == "torch"


# cuda: ternary.runtime._gpu:is_available by interpreter
# cuda: ternary.runtime._gpu:_found_why_not by interpreter
# cuda: ternary.runtime._gpu:refuse_capture by interpreter
# cuda: ternary.runtime._gpu:multiply by interpreter
# cuda: ternary.runtime._gpu:_prepare by interpreter
# cuda: ternary.runtime._gpu:_prepare_row* by interpreter
# cuda: ternary.runtime._gpu:_first by interpreter
# cuda: ternary.runtime._triton_kernels:*_products by interpreter
# cuda: ternary.runtime._triton_kernels:quantize_rows by interpreter
# cuda: ternary.runtime._triton_kernels:_scales by interpreter
# cuda: ternary.runtime._triton_kernels:_row_scale by interpreter
# cuda: ternary.runtime._triton_kernels:_peak by interpreter
# cuda: ternary.runtime._triton_kernels:_rounded by interpreter
# cuda: ternary.runtime._triton_kernels:_codes by interpreter
# cuda: ternary.runtime._triton_kernels:_store by interpreter
# cuda: ternary.runtime._ops:_linear_cpu by interpreter
# cuda: ternary.runtime._ops:on_triton by stand-in
# cuda: ternary.runtime._shortcut:Shortcut.linear by interpreter
class TestTriton:
    """The GPU kernel in Triton's interpreter; in a process of its own, since the interpreter is chosen at import."""

    @pytest.mark.skipif(not gpu.is_available(), reason="triton is not installed")
    @pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel runs on the device instead")
    def test_interpreter_gives_the_same_integers(self) -> None:
        """Odd shapes, extremes and an empty batch equal int64 arithmetic; floats equal the fallback's."""
        import subprocess
        import sys

        code = """
import torch
from ternary.runtime import _fallback as fallback
from ternary.runtime import _gpu as gpu
from ternary.runtime._layout import to_tiles
def same(x, values, scale, bias):
    got = torch.ops.ternary.linear(x, to_tiles(values), scale, bias, "triton")
    wanted = fallback.linear(x.float(), to_tiles(values), scale, bias).to(x.dtype)
    assert got.dtype == x.dtype
    assert torch.equal(got.nan_to_num(7e7), wanted.nan_to_num(7e7)), (x.shape, x.dtype, values.shape)
    assert torch.equal(got.isnan(), wanted.isnan())
for m, n, k in [(1, 1, 1), (1, 40, 300), (5, 33, 270), (17, 20, 30), (2, 16, 0), (0, 5, 9), (4, 0, 9)]:
    values = torch.randint(-1, 2, (n, k), dtype=torch.int8)
    scale, bias = torch.rand(n), torch.randn(n)
    q = torch.randint(-127, 128, (m, k)).float()
    q[:, :1] = 127
    got = gpu.linear(q, to_tiles(values), torch.ones(n), None)
    assert torch.equal(got.long(), q.long() @ values.long().T), (m, n, k)
    x = torch.randn(m, k)
    same(x, values, scale, bias)
    if m > 2 and k:
        x[0], x[1], x[2, 0], x[-1] = x[0] * 1e3, 0, float("nan"), x[-1] * 1e-32
        same(x.half() if m > 5 else x, values, scale, None)
q = torch.full((2, 700), 127.0)
values = torch.ones(4, 700, dtype=torch.int8)
assert gpu.linear(q, to_tiles(values), torch.ones(4), None).unique().tolist() == [700 * 127]
halves = torch.cat([torch.tensor([127.0]), torch.arange(-126.5, 127.0)])[None]
for rows in (1, 2):
    got = gpu.linear(halves.expand(rows, -1).contiguous(), to_tiles(torch.eye(255)), torch.ones(255), None)
    assert torch.equal(got, halves.round().expand(rows, -1))
torch.cuda.get_device_capability = lambda _: (9, 0)
assert gpu.why_not(torch.device("cpu")) is None, gpu.why_not(torch.device("cpu"))
"""
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0)])
    def test_a_device_that_cannot_use_it_gets_plain_torch(
        self, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Old GPUs and a compiler or driver that fails: "auto" falls back, and "triton" raises a typed error."""
        from ternary.errors import KernelUnavailableError
        from ternary.runtime import _ops as ops

        def fails(*_: object, **__: object) -> None:
            raise RuntimeError("PassManager::run failed")

        device = torch.device("cuda", 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(gpu, "is_available", lambda: True)
        monkeypatch.setattr(torch, "full", fails)
        monkeypatch.setattr(gpu, "_reasons", {})
        assert not ops.on_triton("auto", torch.uint8, device)
        with pytest.raises(KernelUnavailableError, match=r"compute capability 8\.0|PassManager"):
            ops.on_triton("triton", torch.uint8, device)
        assert ops.on_triton("triton", torch.uint8, torch.device("cpu"))

    def test_a_first_call_inside_a_capture_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would wait for the device, which breaks a capture; the refusal is not kept as the device's reason."""
        from ternary.errors import KernelUnavailableError

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        monkeypatch.setattr(gpu, "_reasons", {})
        with pytest.raises(KernelUnavailableError, match="before the capture"):
            gpu.why_not(torch.device("cuda", 0))
        with pytest.raises(KernelUnavailableError, match="before the capture"):
            gpu.linear(torch.ones(1, 16), to_tiles(torch.ones(2, 16)), torch.ones(2), None)
        assert not gpu._reasons

    # cuda: ternary.runtime._doctor:* by stand-in
    def test_the_doctor_names_the_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The report has the device's name, and whether Triton is there."""
        from ternary.runtime import doctor

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
        monkeypatch.setattr(gpu, "is_available", lambda: False)
        report = doctor()
        assert "Test GPU, Triton not installed" in str(report)

    # cuda: ternary._training.loop:_Training.__init__ by stand-in
    def test_training_on_a_gpu_scales_gradients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With `amp`, a model on CUDA is trained with a gradient scaler that is on."""
        from ternary._training import loop

        made: list[tuple[str, bool]] = []
        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: made.append((device, enabled)))
        monkeypatch.setattr(loop, "make_optimizer", lambda *_: None)
        there = type("There", (torch.nn.Parameter,), {"device": torch.device("cuda")})
        model = torch.nn.Module()
        model.parameters = lambda *_: iter([there(torch.zeros(1))])  # type: ignore[method-assign]
        loop._Training(model, loop.TrainConfig(amp=True), torch.nn.MSELoss(), None)
        assert made == [("cuda", True)]


# cuda: ternary._torch_private:* by GPU
# cuda: ternary.runtime._ops:check_once by GPU
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGpu:
    """The kernels on a device."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_the_same_as_plain_torch(self, dtype: torch.dtype) -> None:
        """Every kernel, shapes that fill no block, rows without integers: the same floats bit for bit, twice."""
        for m, n, k in [(1, 1, 1), (1, 4096, 4096), (3, 70, 50), (16, 640, 2560), (17, 4096, 4096), (90, 33, 300)]:
            x = torch.randn(m, k)
            if m > 2:
                x[0], x[1], x[2, 0] = x[0] * 1e3, 0, float("nan")
            values, scale, bias = ternary(n, k, seed=1), torch.rand(n), torch.randn(n)
            tiles, x = to_tiles(values), x.to(dtype)
            for held in (bias, None):
                wanted = fallback.linear(x.float(), tiles, scale, held).to(dtype)
                parts = (x.cuda(), tiles.cuda(), scale.cuda(), None if held is None else held.cuda())
                for _ in range(2):
                    got = torch.ops.ternary.linear(*parts, "triton").cpu()
                    assert torch.equal(got.nan_to_num(7e7), wanted.nan_to_num(7e7)), (m, n, k)
                    assert torch.equal(got.isnan(), wanted.isnan())

    @pytest.mark.parametrize("rows", [1, 16, 40])
    def test_a_layer_in_a_graph(self, rows: int) -> None:
        """A captured layer computes from what its input holds at each replay; a first call is refused in a capture."""
        from ternary.errors import KernelUnavailableError
        from ternary.runtime import PackedLinear

        layer = PackedLinear.from_ternary(ternary(130, 300 + rows, seed=1), 0.5, torch.randn(130)).cuda()
        x = torch.randn(rows, 300 + rows, device="cuda")
        refused = pytest.raises(KernelUnavailableError, match="before the capture")
        with torch.inference_mode(), refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer(x + 1)
        with torch.inference_mode():
            layer(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = layer(layer(x)[:, :1] + x)
            for _ in range(3):
                x.copy_(torch.randn_like(x))
                graph.replay()
                assert torch.equal(y, layer(layer(x)[:, :1] + x))

    def test_every_way_to_a_layer(self) -> None:
        """With and without gradients, compiled, autocast, on another stream, unaligned, and after moves."""
        from ternary.runtime import PackedLinear

        layer = PackedLinear.from_ternary(ternary(64, 96, seed=1), 0.5).cuda()
        long = torch.randn(5, 97, device="cuda")
        x = long[:, 1:].contiguous()
        wanted = fallback.linear(x, layer.packed, layer.scale, None)
        assert torch.equal(layer(x), wanted)
        assert torch.equal(layer(long[:, 1:]), wanted)
        assert torch.equal(layer(torch.randn(481, device="cuda")[1:].view(5, 96).copy_(x)), wanted)
        assert torch.equal(layer(x.clone().requires_grad_()), wanted)
        assert torch.equal(layer(x.view(1, 5, 96)), wanted.view(1, 5, 64))
        with torch.autocast("cuda", dtype=torch.float16):
            assert torch.equal(layer(x), wanted)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            got = layer(x)
        stream.synchronize()
        assert torch.equal(got, wanted)
        assert torch.equal(layer.cpu()(x.cpu()), wanted.cpu())
        assert torch.equal(layer.cuda()(x), wanted)


# cuda: ternary.runtime._grouped:_elsewhere by GPU
def test_groups_of_inputs_on_every_device(device: torch.device) -> None:
    """A GPU gives the same bits as the processor."""
    packed, x = pack(TernaryLinear(53, 37, per="group", group=16)), torch.randn(3, 53)
    wanted = packed(x)
    assert torch.equal(packed.to(device)(x.to(device)).cpu(), wanted)
