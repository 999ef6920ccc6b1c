"""Chains of thin convolutions as one layer: the same bits as plain torch, and only where a model has such chains."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ternary
from ternary.errors import LayerShapeError, NothingToFuseError, PackedDataError
from ternary.runtime import PackedConv2d, _fuse, available_kernels, fuse
from ternary.runtime._chain import Activation, FusedChain, Stage
from ternary.runtime._layout import Geometry, to_byte_tiles, to_tiles

ACTIVATIONS = [Activation(), Activation(0.0), Activation(0.0, 6.0), Activation(-1.0, 2.5), Activation(hardswish=True)]


def random_stage(draw: random.Random, channels: int) -> Stage:
    """A convolution of any kind that takes so many channels."""
    kind = draw.choice(["product", "bytes", "depthwise", "depthwise", "dense"])
    activation, outputs = draw.choice(ACTIVATIONS), draw.choice([1, 3, 16, 17, 32, 40, 49, 70])
    kernel = (draw.randint(1, 3), draw.randint(1, 3))
    moving = [(draw.randint(1, 2), draw.randint(1, 2)), (draw.randint(0, 2), draw.randint(0, 2))]
    geometry = Geometry(kernel, *moving, (draw.randint(1, 2), draw.randint(1, 2)))
    if kind == "dense" and channels * geometry.taps <= 64:
        taps = torch.randn(geometry.taps * channels, outputs)
        return Stage(taps, None, torch.randn(outputs), channels, geometry, activation, dense=True)
    if kind == "depthwise" and channels > 1:
        taps = torch.randn(geometry.taps, channels)
        return Stage(taps, None, torch.randn(channels), channels, geometry, activation)
    if kind == "bytes":
        tiles = to_byte_tiles(torch.randint(-127, 128, (outputs, channels), dtype=torch.int8))
    else:
        tiles = to_tiles(torch.randint(-1, 2, (outputs, channels), dtype=torch.int8))
    return Stage(tiles, torch.randn(outputs), torch.randn(outputs), channels, activation=activation)


def random_chain(seed: int) -> tuple[tuple[Stage, ...], Tensor]:
    """One to five stages and an input; some images hold zeros, NaN or infinity."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels = draw.choice([1, 3, 8, 16, 24, 33])
    size = [draw.randint(1, 3), channels, draw.choice([5, 9, 17, 20]), draw.choice([5, 6, 11, 23])]
    stages: list[Stage] = []
    for _ in range(draw.randint(1, 5)):
        stages.append(random_stage(draw, channels))
        channels = stages[-1].bias.shape[0]
    x = torch.randn(size) * 10 ** draw.randint(-3, 3)
    if draw.random() < 0.3:
        x[0, 0, 1, 2] = draw.choice([torch.nan, torch.inf])
    if draw.random() < 0.2:
        x[-1] = draw.choice([0.0, 1e-35])
    return tuple(stages), x


def same(a: Tensor, b: Tensor) -> bool:
    """Equal numbers, NaN in the same places."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


class TestSameBits:
    """Every kernel, number of threads and memory format: what plain torch computes, to the bit."""

    @pytest.mark.parametrize("kernel", [name for name in available_kernels() if name != "torch"])
    def test_random_chains(self, kernel: str) -> None:
        """Chains of any kinds, sizes and activations."""
        ran = 0
        for seed in range(150):
            stages, x = random_chain(seed)
            try:
                expected = FusedChain(stages, kernel="torch")(x)
            except LayerShapeError:
                continue
            ran += 1
            got = FusedChain(stages, kernel=kernel, threads=1 + seed % 3)(x)
            assert same(got, expected), (seed, kernel)
        assert ran > 75

    def test_a_large_image_on_threads(self) -> None:
        """Bands of rows on several threads, each with rows above and below of its own, also at the same time."""
        torch.manual_seed(0)
        wide = Stage(
            to_tiles(torch.randint(-1, 2, (96, 16))), torch.randn(96), torch.randn(96), 16, activation=ACTIVATIONS[2]
        )
        taps = Stage(torch.randn(9, 96), None, torch.randn(96), 96, Geometry((3, 3), (1, 1), (1, 1)), ACTIVATIONS[4])
        thin = Stage(to_tiles(torch.randint(-1, 2, (24, 96))), torch.randn(24), torch.randn(24), 96)
        x = torch.randn(1, 16, 61, 47).contiguous(memory_format=torch.channels_last)
        expected = FusedChain((wide, taps, thin), kernel="torch")(x)
        chains = [FusedChain((wide, taps, thin), threads=n) for n in (1, 2, 3, 4)]
        with ThreadPoolExecutor(4) as pool:
            for got in pool.map(lambda chain: chain(x), chains * 3):
                assert torch.equal(got, expected)

    def test_a_single_product_is_the_packed_layer(self) -> None:
        """A chain of one product and nothing else computes what the layer does."""
        values = torch.randint(-1, 2, (40, 24, 1, 1), dtype=torch.int8)
        layer = PackedConv2d.from_ternary(values, torch.rand(40), torch.randn(40))
        chain = FusedChain((Stage(layer.packed, layer.scale, layer.bias, 24),))
        x = torch.randn(2, 24, 7, 9)
        assert torch.equal(chain(x), layer(x))


class Residual(nn.Module):
    """An inverted residual block with names of its own, as many libraries write it."""

    def __init__(self, channels: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 48, 1, bias=False)
        self.first_norm, self.act = nn.BatchNorm2d(48), act()
        self.spread = nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False)
        self.second_norm = nn.BatchNorm2d(48)
        self.thin = nn.Conv2d(48, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, spread, thin out, add."""
        y = self.act(self.first_norm(self.expand(x)))
        return x + self.thin(functional.relu(self.second_norm(self.spread(y))))


class NormAndAct(nn.BatchNorm2d):
    """Normalization, dropout and activation in one class, as timm has it."""

    def __init__(self, channels: int, act: type[nn.Module] = nn.ReLU6, shift: float = 0.0) -> None:
        super().__init__(channels)
        self.act, self.drop, self.shift = act(), nn.Dropout(), shift

    def forward(self, x: Tensor) -> Tensor:
        """The three in a row."""
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y + self.shift


def settled(model: nn.Module) -> nn.Module:
    """Give every normalization statistics as training leaves them."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(-1.5, 1.5)
            m.bias.data.normal_(0, 0.1)
    return model.eval()


def network(act: type[nn.Module] = nn.ReLU6) -> nn.Module:
    """A stem, two blocks and a head."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), act())
    return settled(
        nn.Sequential(
            stem, Residual(16, act), Residual(16, act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
        )
    )


def far(a: Tensor, b: Tensor) -> float:
    """The distance of two results, as a part of the first."""
    return float((a - b).detach().norm() / a.detach().norm())


class TestFuse:
    """A model's chains become layers; everything else stays."""

    @pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Identity])
    @pytest.mark.parametrize("depthwise", ["int8", "ternary", "float"])
    def test_it_computes_the_same(self, act: type[nn.Module], depthwise: str) -> None:
        """Up to the rounding of activations, for any size and batch; the packed model stays as it was."""
        packed = ternary.pack(ternary.quantize(network(act), ternary.Recipe(depthwise=depthwise))[0])
        before = copy.deepcopy(packed.state_dict())
        made = fuse(packed, torch.randn(1, 3, 16, 16))
        x = torch.randn(3, 3, 33, 47)
        with torch.no_grad():
            assert far(packed(x), made(x)) < 0.03
        assert all(torch.equal(v, before[k]) for k, v in packed.state_dict().items())
        chains = [m for m in made.modules() if isinstance(m, FusedChain)]
        assert len(chains) == 3
        assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())

    @pytest.mark.parametrize(("act", "shift", "norms"), [(nn.ReLU6, 0, 0), (nn.SiLU, 0, 0), (nn.ReLU, 0.1, 1)])
    def test_normalization_with_an_activation_inside(self, act: type[nn.Module], shift: float, norms: int) -> None:
        """Both are folded; an activation that the core lacks follows the chain; a class that does more stays whole."""
        torch.manual_seed(0)
        norm = NormAndAct(48, act, shift)
        model = nn.Sequential(nn.Conv2d(16, 48, 1), norm, nn.Conv2d(48, 48, 3, groups=48), nn.Conv2d(48, 16, 1))
        packed = ternary.pack(ternary.quantize(settled(model), ternary.Recipe(ends="ternary"))[0])
        random = torch.get_rng_state()
        made = fuse(packed, torch.randn(1, 16, 8, 8, generator=torch.Generator()))
        assert torch.equal(torch.get_rng_state(), random)
        x = torch.randn(2, 16, 9, 7)
        with torch.no_grad():
            assert far(packed(x), made(x)) < 0.03
        assert sum(isinstance(m, nn.BatchNorm2d) for m in made.modules()) == norms
        assert sum(isinstance(m, FusedChain) for m in made.modules()) == (1 if act is nn.ReLU6 else 2)

    def test_normalization_of_several_processes(self) -> None:
        """In evaluation it is the usual one."""
        packed = ternary.pack(ternary.quantize(settled(nn.SyncBatchNorm.convert_sync_batchnorm(network())))[0])
        made = fuse(packed, torch.randn(1, 3, 16, 16))
        x = torch.randn(1, 3, 16, 16)
        with torch.no_grad():
            assert far(packed(x), made(x)) < 0.03
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in made.modules())

    @pytest.mark.parametrize("name", ["mobilenet_v2"])
    def test_the_zoo(self, name: str) -> None:
        """A compiled model, whose blocks call lists of layers."""
        packed = ternary.pack(settled(ternary.zoo.load(name)(width=0.25)))
        made = fuse(packed, torch.randn(1, 3, 32, 32))
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert far(packed(x), made(x)) < 0.1
        assert sum(isinstance(m, FusedChain) for m in made.modules()) == 18

    def test_what_two_layers_use_stays(self) -> None:
        """A result that is used twice ends a chain, and so does a normalization after an activation."""

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = ternary.nn.TernaryConv2d(16, 16, 1), ternary.nn.TernaryConv2d(16, 16, 1)
                self.norm = nn.BatchNorm2d(16)

            def forward(self, x: Tensor) -> Tensor:
                y = self.a(x)
                return y + self.norm(torch.relu(self.b(y)))

        packed = ternary.pack(settled(Twice()))
        made = fuse(packed, torch.randn(1, 16, 4, 4))
        x = torch.randn(2, 16, 5, 6)
        assert far(packed(x), made(x)) < 1e-6
        assert [len(m.stages) for m in made.modules() if isinstance(m, FusedChain)] == [1, 1]

    def test_a_way_that_depends_on_values_stays(self) -> None:
        """Such a part is not rewritten, what it contains is."""

        class Depends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block, self.other = Residual(16, nn.ReLU), Residual(16, nn.ReLU)

            def forward(self, x: Tensor) -> Tensor:
                return self.block(x) if x.mean() > 0 else self.other(x)

        packed = ternary.pack(ternary.quantize(settled(Depends()), ternary.Recipe(ends="ternary"))[0])
        made = fuse(packed, torch.rand(1, 16, 8, 8))
        assert type(made) is Depends
        for x in (torch.rand(1, 16, 8, 8), -torch.rand(1, 16, 8, 8)):
            assert far(packed(x), made(x)) < 0.03

    def test_a_part_that_tracing_gets_wrong_stays(self) -> None:
        """A tracer's placeholder is no tensor: code that asks takes another way, which the example shows."""

        class Asks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = ternary.nn.TernaryConv2d(16, 16, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.a(x) if isinstance(x, Tensor) else -self.a(x)

        packed = ternary.pack(nn.Sequential(Asks(), ternary.nn.TernaryConv2d(16, 16, 1)))
        with pytest.raises(NothingToFuseError):
            fuse(packed[0], torch.randn(1, 16, 4, 4))

    def test_hooks_are_kept(self) -> None:
        """A part that somebody watches is not rewritten."""
        packed = ternary.pack(ternary.quantize(network(), ternary.Recipe())[0])
        seen: list[int] = []
        packed[1].spread.register_forward_hook(lambda *_: seen.append(1))
        made = fuse(packed, torch.randn(1, 3, 16, 16))
        assert not seen or seen.clear() is None
        made(torch.randn(1, 3, 16, 16))
        assert seen == [1]

    def test_nothing_to_fuse(self) -> None:
        """A model of linear layers, and one without packed layers of this kind."""
        with pytest.raises(NothingToFuseError, match="Sequential"):
            fuse(nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 4))

    # cuda: ternary.runtime._fuse:_stage_of by stand-in
    @pytest.mark.parametrize("kernel", ["torch", "triton"])
    def test_layers_of_other_kernels_stay(self, kernel: str) -> None:
        """A chain computes in the core: a layer that is to compute elsewhere is none of its stages."""
        packed = ternary.pack(ternary.quantize(network())[0])
        layers = [m for m in packed.modules() if isinstance(m, PackedConv2d)]
        before = [_fuse._stage_of(m) for m in layers]
        for m in layers:
            m.kernel = kernel
        assert any(before)
        assert not any(_fuse._stage_of(m) for m in layers)


class TestTheLayer:
    """What a module has to do besides computing."""

    @staticmethod
    def chain() -> FusedChain:
        """A product and a depthwise kernel."""
        torch.manual_seed(1)
        product = Stage(to_tiles(torch.randint(-1, 2, (20, 16))), torch.rand(20), torch.randn(20), 16)
        return FusedChain((product, Stage(torch.randn(9, 20), None, torch.randn(20), 20, Geometry((3, 3)))))

    def test_it_is_copied_pickled_and_moved(self) -> None:
        """With its own tensors, which keep their dtypes."""
        layer, x = self.chain(), torch.randn(1, 16, 6, 6)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).double().half()):
            assert torch.equal(other(x), layer(x))
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            assert torch.equal(layer(x), self.chain()(x))

    def test_it_computes_with_the_tensors_that_it_holds(self) -> None:
        """Changed in place, loaded or replaced, after calls with other ones; also in a copy."""
        layer, other, x = self.chain(), self.chain(), torch.randn(1, 16, 6, 6)
        layer(x)
        for buffer in other.buffers():
            buffer.copy_(buffer.flip(0))
        wanted = other(x)
        changed, assigned = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
        changed(x)
        changed.load_state_dict(other.state_dict())
        assigned(x)
        assigned.load_state_dict(other.state_dict(), assign=True)
        assert not torch.equal(layer(x), wanted)
        assert torch.equal(changed(x), wanted)
        assert torch.equal(assigned(x), wanted)
        assert torch.equal(copy.deepcopy(changed)(x), wanted)

    def test_tracing_records_it(self) -> None:
        """A traced layer computes; it does not replay the result of its example."""
        layer, x = self.chain(), torch.randn(1, 16, 6, 6)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit")
            traced = torch.jit.trace(layer, torch.randn(1, 16, 6, 6))
        assert torch.equal(traced(x), layer(x))

    @pytest.mark.slow
    def test_exporting_records_it(self) -> None:
        """The same for torch.export, whose import alone takes long."""
        layer, x = self.chain(), torch.randn(1, 16, 6, 6)
        exported = torch.export.export(layer, (torch.randn(1, 16, 6, 6),)).module()
        assert torch.equal(exported(x), layer(x))

    def test_wrong_inputs(self) -> None:
        """Channels, dimensions, dtypes and images that are too small; damaged bytes."""
        layer = self.chain()
        for x in (torch.randn(1, 15, 6, 6), torch.randn(16, 6, 6), torch.ones(1, 16, 6, 6, dtype=torch.int64)):
            with pytest.raises(LayerShapeError, match="wanted floats"):
                layer(x)
        with pytest.raises(LayerShapeError, match="too small"):
            layer(torch.randn(1, 16, 2, 6))
        assert layer(torch.randn(0, 16, 6, 6)).shape == (0, 20, 4, 4)
        layer.weight_0[0, 0, 0, 0] = 0xFF
        with pytest.raises(PackedDataError):
            layer(torch.randn(1, 16, 6, 6))
