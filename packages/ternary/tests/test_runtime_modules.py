"""Packed layers: built from values and scales, saved, compiled, exported, and refusing what does not fit."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import ternary
from ternary.errors import KernelUnavailableError, LayerShapeError, TernaryError, TernaryValueError
from ternary.nn import Int8Conv2d, Int8Linear, TernaryConv1d
from ternary.runtime import PackedConv2d, PackedEmbedding, PackedLinear, available_kernels, doctor
from ternary.runtime import _native as native

KERNELS = pytest.mark.parametrize("kernel", available_kernels())


def values(*shape: int) -> torch.Tensor:
    """Random ternary weights, the same at each call."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(7), dtype=torch.int8)


def linear(kernel: str = "auto") -> PackedLinear:
    """A layer of odd sizes."""
    return PackedLinear.from_ternary(values(37, 53), torch.linspace(0.5, 1.5, 37), torch.randn(37), kernel=kernel)


def network() -> nn.Sequential:
    """Every packed module that takes floats, in one network."""
    return nn.Sequential(
        PackedConv2d.from_ternary(values(16, 3, 3, 3), 0.1, torch.zeros(16), stride=2, padding=1),
        nn.ReLU(),
        PackedConv2d.from_ternary(values(16, 1, 3, 3), torch.rand(16), padding=1, groups=16),
        PackedConv2d.from_ternary(values(20, 4, 1, 1), torch.rand(20), groups=4),
        nn.Flatten(),
        PackedLinear.from_ternary(values(5, 20 * 16), 0.02),
    )


class TestPackedLinear:
    """The layer against float arithmetic, and its edges."""

    @KERNELS
    def test_close_to_the_float_layer(self, kernel) -> None:
        """Int8 activations cost at most half a step per column."""
        layer = linear(kernel)
        x = torch.randn(4, 6, 53)
        exact = nn.functional.linear(x, layer.values().float() * layer.scale[:, None], layer.bias)
        bound = x.abs().amax(-1, keepdim=True) / 127 * 0.51 * layer.values().abs().sum(1) * layer.scale
        assert ((layer(x) - exact).abs() <= bound + 1e-5).all()

    def test_every_kernel_gives_the_same_floats(self) -> None:
        """Bit for bit, threads or not."""
        x = torch.randn(70, 53)
        torch.manual_seed(0)
        first = linear("torch")
        for kernel in available_kernels():
            for threads in (0, 1, 3):
                layer = copy.deepcopy(first)
                layer.kernel, layer.threads = kernel, threads
                assert torch.equal(layer(x), first(x))

    @KERNELS
    @pytest.mark.parametrize("shape", [(53,), (0, 53), (1, 53), (2, 0, 53), (2, 3, 4, 53)])
    def test_any_leading_dimensions(self, kernel, shape) -> None:
        """Vectors, empty batches and many dimensions."""
        assert linear(kernel)(torch.randn(shape)).shape == (*shape[:-1], 37)

    @KERNELS
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtype_of_the_input_is_kept(self, kernel, dtype) -> None:
        """Other floating dtypes go through float32 and come back."""
        layer, x = linear(kernel), torch.randn(3, 53).to(dtype)
        assert torch.equal(layer(x), layer(x.float()).to(dtype))

    @KERNELS
    def test_strided_input(self, kernel) -> None:
        """A transposed view computes as its contiguous copy does."""
        layer, x = linear(kernel), torch.randn(53, 9)
        assert torch.equal(layer(x.T), layer(x.T.contiguous()))

    @KERNELS
    def test_one_wide_and_empty(self, kernel) -> None:
        """One row, one column, and none."""
        assert PackedLinear.from_ternary(torch.tensor([[-1]]), 2.0, kernel=kernel)(torch.tensor([[3.0]])).tolist() == [
            [-6]
        ]
        empty = PackedLinear.from_ternary(values(4, 0), 1.0, torch.arange(4.0), kernel=kernel)
        assert empty(torch.zeros(2, 0)).tolist() == [[0, 1, 2, 3]] * 2
        assert PackedLinear.from_ternary(values(0, 4), torch.ones(0), kernel=kernel)(torch.zeros(2, 4)).shape == (2, 0)

    def test_a_new_layer_is_zero(self) -> None:
        """A layer made for loading a state dict has zero weights, not damaged ones."""
        assert not PackedLinear(50, 3).values().any()
        assert PackedLinear(50, 3)(torch.randn(2, 50)).tolist() == [[0, 0, 0]] * 2

    def test_bytes(self) -> None:
        """Weights take a sixteenth of float32, scales and bias included less than a fifteenth."""
        layer = PackedLinear.from_ternary(values(1024, 1024), torch.ones(1024), torch.zeros(1024))
        assert layer.packed.nbytes * 16 == 1024 * 1024 * 4
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        assert buffer.tell() * 15 <= (1024 * 1024 + 1024) * 4


@pytest.mark.skipif(available_kernels() == ("torch",), reason="no compiled core here")
class TestShortcut:
    """The dispatcher is skipped only where it would change nothing; the result is the operator's, bit for bit."""

    def short(self, layer: PackedLinear, x: torch.Tensor) -> torch.Tensor | None:
        """What the layer's shortcut gives."""
        return layer._shortcut.linear(x, layer._buffers, layer.kernel, layer.threads)

    def operator(self, layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        """What the dispatcher gives."""
        return torch.ops.ternary.linear(x, layer.packed, layer.scale, layer.bias, layer.kernel, layer.threads)

    @pytest.mark.parametrize("shape", [(53,), (0, 53), (1, 53), (2, 0, 53), (2, 3, 4, 53)])
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_usual_inputs_take_it(self, shape, mode) -> None:
        """Tensors that hold plain numbers, whatever the gradient mode."""
        with mode():
            x, layer = torch.randn(shape), linear()
            for _ in range(2):
                taken = self.short(layer, x)
                assert taken is not None
                assert torch.equal(taken, self.operator(layer, x))
            assert torch.equal(layer(x), taken)
            assert taken.is_inference() == torch.is_inference_mode_enabled()

    @pytest.mark.parametrize(
        "x",
        [
            torch.randn(2, 53, requires_grad=True),
            nn.Parameter(torch.randn(2, 53), requires_grad=False),
            torch.randn(2, 53, dtype=torch.float64),
            torch.randn(53, 2).T,
            torch._neg_view(torch.randn(2, 53)),
            torch.randn(2, 53).to_sparse(),
            torch.empty(2, 53, device="meta"),
            torch.tensor(1.0),
            torch.randn(2, 52),
        ],
        ids=["gradient", "parameter", "double", "strided", "negated", "sparse", "meta", "scalar", "other width"],
    )
    def test_unusual_inputs_do_not(self, x) -> None:
        """The dispatcher computes these, or refuses them."""
        layer = linear()
        assert layer(torch.zeros(1, 53)).shape == (1, 37)
        assert self.short(layer, x) is None

    def test_lazily_negated_numbers_are_negated(self) -> None:
        """A view whose sign is not in its memory."""
        layer, x = linear(), torch.randn(2, 53)
        lazy = torch._neg_view(x)
        assert lazy.is_neg()
        assert torch.equal(layer(lazy), layer(-x))

    def test_modes_and_profilers_see_the_operator(self) -> None:
        """Profilers, modes, tracers and transforms."""
        layer, x = linear(), torch.randn(2, 53)
        plain = layer(x)
        with torch.profiler.profile() as profile:
            layer(x)
        assert any(event.key == "ternary::linear" for event in profile.key_averages())
        seen = []

        class Watching(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                seen.append(str(function))
                return function(*args, **(kwargs or {}))

        with Watching():
            layer(x)
        assert "ternary.linear.default" in seen
        assert "ternary::linear" in str(torch.jit.trace(layer, x).graph)
        assert "ternary.linear" in make_fx(layer)(x).code
        assert torch.equal(torch.func.vmap(layer)(x[:, None]), plain[:, None])
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            assert isinstance(layer(fake.from_tensor(x)), FakeTensor)

    @pytest.mark.parametrize("dim", [0, 1])
    def test_vmap_over_inputs_and_over_weights(self, dim: int) -> None:
        """It returns what one call after the other does."""
        one, other = linear(), linear()
        x = torch.randn(2, 2, 53)
        mapped = torch.func.vmap(one, in_dims=dim, out_dims=dim)(x)
        assert torch.equal(mapped, one(x))
        parts = [torch.stack([getattr(m, name) for m in (one, other)]) for name in ("packed", "scale", "bias")]
        weights = torch.func.vmap(torch.ops.ternary.linear, in_dims=(None, 0, 0, 0))(x, *parts)
        assert torch.equal(weights, torch.stack([one(x), other(x)]))
        conv = PackedConv2d.from_ternary(torch.randint(-1, 2, (4, 16, 3, 3)), 0.5, padding=1)
        images = torch.randn(2, 3, 16, 5, 6)
        wanted = torch.stack([conv(batch) for batch in images])
        assert torch.equal(torch.func.vmap(conv, in_dims=dim)(images.movedim(0, dim)), wanted)

    def test_other_buffers_are_checked_anew(self) -> None:
        """Swapped, moved, loaded and copied layers give what their own buffers say, or refuse."""
        layer, x = linear(), torch.randn(2, 53)
        before = layer(x)
        copied = copy.deepcopy(layer)
        copied.scale.mul_(2)
        copied.bias = None
        assert torch.equal(copied(x), self.operator(copied, x))
        layer.load_state_dict({name: part.clone() for name, part in layer.state_dict().items()}, assign=True)
        assert torch.equal(layer(x), before)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), before)
        layer.kernel = "torch"
        assert self.short(layer, x) is None
        layer.kernel = "auto"
        layer.packed = layer.packed[:1].clone()
        with pytest.raises(LayerShapeError, match="weights of shape"):
            layer(x)

    def test_buffers_of_a_dropped_device_are_not_kept(self) -> None:
        """What is remembered of a buffer does not hold it."""
        layer = linear()
        layer(torch.randn(2, 53))
        held = weakref.ref(layer.packed)
        layer.to("meta")
        gc.collect()
        assert held() is None

    def test_a_torch_without_its_private_names(self) -> None:
        """Then the dispatcher is used, with the same results."""
        code = (
            "import torch; del torch._C._dispatch_keys; from ternary.runtime import PackedLinear as Layer\n"
            "layer = Layer.from_ternary(torch.ones(3, 5, dtype=torch.int8), 1.0); x = torch.ones(5)\n"
            "assert layer._shortcut.linear(x, layer._buffers, 'auto', 1) is None; print(layer(x).tolist())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[5.0, 5.0, 5.0]\n"

    def test_two_threads_on_one_layer_whose_buffers_change(self) -> None:
        """Each call computes with the buffers that it saw."""
        layer = linear()
        wide = PackedLinear.from_ternary(values(370, 53), 1.0)
        small, large = dict(layer._buffers), dict(wide._buffers)
        x = torch.randn(1, 53)
        wrong = []

        def compute(buffers: dict[str, torch.Tensor | None], columns: int) -> None:
            for _ in range(3000):
                y = layer._shortcut.linear(x, buffers, "auto", 1)
                if y is None or y.shape != (1, columns):
                    wrong.append(y)

        threads = [threading.Thread(target=compute, args=args) for args in [(small, 37), (large, 370)]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestState:
    """State dicts and copies."""

    def test_state_dict_round_trip(self) -> None:
        """A fresh network of the same shape gives the same floats after loading."""
        first, x = network(), torch.randn(2, 3, 8, 8)
        second = nn.Sequential(
            *(PackedConv2d(3, 16, 3, 2, 1), nn.ReLU(), PackedConv2d(16, 16, 3, padding=1, groups=16, bias=False)),
            *(PackedConv2d(16, 20, 1, groups=4, bias=False), nn.Flatten(), PackedLinear(320, 5, bias=False)),
        )
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))

    @pytest.mark.parametrize("module", [0, 2, 3, 5])
    def test_values_come_back(self, module) -> None:
        """`values` gives the weights that the layer was built from."""
        layer = network()[module]
        rebuilt = type(layer).from_ternary(
            layer.values(), layer.scale, layer.bias, **({"groups": layer.groups} if hasattr(layer, "groups") else {})
        )
        assert torch.equal(rebuilt.packed, layer.packed)
        assert "kernel=auto" in repr(layer)


class TestCompilers:
    """What torch makes of a network with packed layers."""

    def test_operator_is_registered_correctly(self) -> None:
        """Torch's own checks of the schema, the fake kernel and tracing pass."""
        layer = linear()
        torch.library.opcheck(
            torch.ops.ternary.linear.default, (torch.randn(3, 53), layer.packed, layer.scale, layer.bias)
        )
        conv = network()[2]
        torch.library.opcheck(
            torch.ops.ternary.conv2d.default,
            (torch.randn(2, 16, 5, 5), conv.packed, conv.scale, None, [3, 3], [1, 1], [1, 1], [1, 1], 16),
        )

    @KERNELS
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_planned_strides_are_the_real_ones(self, kernel, dtype) -> None:
        """Those of dimensions of size 1 too: a convolution after a layer of one channel goes by them."""
        for batch, channels, out, size in itertools.product((0, 1, 2), (1, 4), (1, 3), (1, 5)):
            layer = PackedConv2d.from_ternary(values(out, channels, 3, 3), 0.1, padding=1, kernel=kernel)
            x = torch.randn(batch, channels, size, 1, dtype=dtype)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                planned = layer(mode.from_tensor(x))
            assert planned.stride() == layer(x).stride()

    def test_export(self) -> None:
        """torch.export takes the network with a dynamic batch, and the program gives the same floats."""
        model, x = network().eval(), torch.randn(2, 3, 8, 8)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        other = torch.randn(5, 3, 8, 8)
        assert torch.equal(program.module()(other), model(other))

    def test_compile_without_graph_breaks(self) -> None:
        """torch.compile captures the network as one graph."""
        model, x = network().eval(), torch.randn(2, 3, 8, 8)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), model(x))

    def test_torchscript_trace_and_script(self) -> None:
        """Both forms of TorchScript give the same floats, after saving too."""
        model, x = network().eval(), torch.randn(2, 3, 8, 8)
        for scripted in (torch.jit.trace(model, x), torch.jit.script(model)):
            buffer = io.BytesIO()
            torch.jit.save(scripted, buffer)
            buffer.seek(0)
            assert torch.equal(torch.jit.load(buffer)(x), model(x))


class TestPackedEmbedding:
    """The table against a float one."""

    def test_equals_a_float_table(self) -> None:
        """Looking up is exact: there are no activations."""
        table = PackedEmbedding.from_ternary(values(11, 7), torch.linspace(1, 2, 11))
        index = torch.tensor([[0, 10, 3], [3, 3, 1]])
        assert torch.equal(table(index), table.values()[index].float() * table.scale[index][..., None])
        assert table(index).shape == (2, 3, 7)
        assert torch.equal(table.values(), values(11, 7))
        assert repr(table) == "PackedEmbedding(11, 7)"

    def test_index_out_of_range(self) -> None:
        """An index past the table is an error, not memory of another row."""
        with pytest.raises(IndexError):
            PackedEmbedding(4, 4)(torch.tensor([4]))


class TestRefusals:
    """Errors by condition, each a TernaryError."""

    @pytest.mark.parametrize(
        ("build", "error"),
        [
            (lambda: PackedLinear.from_ternary(torch.full((2, 2), 7), 1.0), TernaryValueError),
            (lambda: PackedLinear.from_ternary(torch.full((2, 2), float("nan")), 1.0), TernaryValueError),
            (lambda: PackedLinear.from_ternary(values(4), 1.0), TernaryValueError),
            (lambda: PackedLinear.from_ternary(values(4, 4), torch.ones(3)), LayerShapeError),
            (lambda: PackedLinear.from_ternary(values(4, 4), float("nan")), LayerShapeError),
            (lambda: PackedLinear.from_ternary(values(4, 4), 1.0, torch.ones(1)), LayerShapeError),
            (lambda: PackedLinear(4, 4, kernel="fastest"), LayerShapeError),
            (lambda: PackedConv2d.from_ternary(values(4, 4), 1.0), TernaryValueError),
            (lambda: PackedConv2d(4, 6, 3, groups=4), LayerShapeError),
            (lambda: PackedEmbedding.from_ternary(values(2, 2, 2), 1.0), LayerShapeError),
        ],
    )
    def test_building(self, build, error) -> None:
        """Values, scales, biases and names that do not fit are refused when the layer is built."""
        with pytest.raises(error) as caught:
            build()
        assert isinstance(caught.value, TernaryError)

    @KERNELS
    @pytest.mark.parametrize(
        "x", [torch.randn(2, 80), torch.randn(2, 3), torch.tensor(1.0), torch.ones(2, 53, dtype=torch.int64)]
    )
    def test_wrong_linear_input(self, kernel, x) -> None:
        """An input of the wrong width or dtype never reaches a kernel."""
        with pytest.raises(LayerShapeError, match="got an input"):
            linear(kernel)(x)

    @KERNELS
    @pytest.mark.parametrize("shape", [(2, 17, 8, 8), (16, 8, 8), (1, 16, 2, 2)])
    def test_wrong_convolution_input(self, kernel, shape) -> None:
        """Channels, dimensions and sizes are checked."""
        layer = PackedConv2d.from_ternary(values(4, 16, 3, 3), 1.0, kernel=kernel)
        with pytest.raises(LayerShapeError, match="got an input"):
            layer(torch.randn(shape))

    def test_wrong_buffers(self) -> None:
        """A weight of another dtype or device, or a scale that is too short, never reaches a kernel."""
        layer, x = linear(), torch.randn(2, 53)
        for change in ({"packed": layer.packed.int()}, {"scale": layer.scale[:5]}, {"bias": torch.zeros(5)}):
            broken = copy.deepcopy(layer)
            for name, tensor in change.items():
                setattr(broken, name, tensor)
            with pytest.raises(LayerShapeError):
                broken(x)
        conv = network()[2]
        with pytest.raises(LayerShapeError, match="groups"):
            torch.ops.ternary.conv2d(
                torch.randn(1, 16, 4, 4), conv.packed, conv.scale, None, [3, 3], [1, 1], [1, 1], [1, 1], 3
            )

    def test_a_kernel_of_another_machine(self) -> None:
        """Asking for what this machine lacks names what it has."""
        missing = next(name for name in ("neon", "avx512vnni") if name not in available_kernels())
        with pytest.raises(KernelUnavailableError, match="torch"):
            linear(missing)(torch.randn(1, 53))


class TestWidths:
    """Tiles are filled up to 16 columns, so their shape does not tell 37 features from 40."""

    @pytest.mark.parametrize("off", [-2, -1, 1, 3])
    @pytest.mark.parametrize("first", [False, True], ids=["after a right call", "at the first call"])
    def test_another_number_of_features(self, off: int, first: bool) -> None:
        """Linear layers of 2 and of 8 bits refuse a wider or narrower input, also with gradients."""
        for layer in (PackedLinear.from_ternary(values(5, 37), 0.5), Int8Linear(nn.Linear(37, 5))):
            if not first:
                layer(torch.randn(2, 37))
            for x in (torch.randn(2, 37 + off), torch.randn(37 + off), torch.randn(2, 37 + off, requires_grad=True)):
                with pytest.raises(LayerShapeError, match=f"{37 + off} features; wanted 37"):
                    layer(x)

    def test_another_number_of_channels(self) -> None:
        """Convolutions of both, in one dimension too."""
        x = torch.randn(2, 5, 6, 6)
        layer = PackedConv2d.from_ternary(values(4, 6, 1, 1), 0.5)
        with pytest.raises(LayerShapeError, match="5 channels; wanted 6"):
            layer(x)
        with pytest.raises(LayerShapeError, match="15 channels; wanted 16"):
            Int8Conv2d(nn.Conv2d(16, 4, 1))(torch.randn(2, 15, 6, 6))
        with pytest.raises(LayerShapeError, match="5 channels; wanted 6"):
            ternary.pack(TernaryConv1d(6, 4, 1))(x[:, :, 0])


class TestDoctor:
    """What is active, and why."""

    def test_report(self) -> None:
        """The active kernel is the first available one, and every other name has a reason."""
        report = doctor()
        assert report.active == report.available[0]
        assert report.as_dict()["active"] in str(report)
        assert set(report.available) | set(report.missing) >= {"amx", "avx512vnni", "avx2", "neon", "portable", "torch"}

    def test_without_a_core_it_says_so_once_and_works(self, tmp_path) -> None:
        """An installation without a compiler warns once, computes the same, and the doctor gives the reason."""
        code = """
import warnings, torch
from pathlib import Path
from ternary.runtime import doctor, PackedLinear, PackedConv2d
from ternary import _core
_core.CORE_FILE = Path({0!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = PackedLinear.from_ternary(torch.eye(4), 2.0)(127 * torch.arange(2.0).repeat(2))
    PackedConv2d.from_ternary(torch.ones(1, 1, 1, 1), 2.0)(torch.ones(1, 1, 2, 2))
assert [str(w.message)[:30] for w in caught] == ["ternary's compiled core is not"], caught
assert y.tolist() == [0, 254, 0, 254], y
report = doctor()
assert report.active == "torch" and {1!r} in report.missing["portable"], report
"""
        garbage = tmp_path / "garbage.so"
        garbage.write_bytes(b"not a library")
        for file, why in [(tmp_path / "absent.so", "not built"), (garbage, "garbage.so")]:
            done = subprocess.run([sys.executable, "-c", code.format(str(file), why)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

    def test_a_core_of_another_version_is_not_used(self) -> None:
        """A library that is not ours, or has another layout, is refused with a reason."""
        core = native.find_core(native.CORE_FILE)
        if core.library is None:
            pytest.skip("no compiled core in this installation")
        assert core.reason.startswith("loaded from")
