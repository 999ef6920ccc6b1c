"""What a user may rely on beside the numbers: modes of torch, dtypes, attributes, training, damaged weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ternary
from ternary.errors import FixedWeightError, PackedDataError
from ternary.nn import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear
from ternary.runtime import PackedConv2d, PackedEmbedding, PackedLinear, _ops, available_kernels, fuse
from ternary.runtime._face import check_codes

LAYERS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "linear": (lambda: TernaryLinear(48, 20), torch.randn(3, 48)),
    "convolution": (lambda: TernaryConv2d(6, 8, 3, padding=1, stride=2), torch.randn(2, 6, 9, 9)),
    "grouped": (lambda: TernaryConv2d(6, 9, 3, groups=3, padding="same"), torch.randn(2, 6, 9, 9)),
    "depthwise": (lambda: TernaryConv2d(8, 8, 3, groups=8), torch.randn(2, 8, 9, 9)),
    "uneven": (lambda: TernaryConv1d(6, 8, 4, padding="same"), torch.randn(2, 6, 9)),
    "reflecting": (lambda: TernaryConv2d(4, 4, 3, padding=1, padding_mode="reflect"), torch.randn(2, 4, 6, 6)),
    "two scales": (lambda: two_scales(TernaryLinear(16, 8, quantizer="ttq")), torch.randn(3, 16)),
    "embedding": (lambda: TernaryEmbedding(30, 10), torch.tensor([[1, 2], [3, 29]])),
}


def two_scales(layer: TernaryLinear) -> TernaryLinear:
    """A TTQ layer whose scales differ."""
    with torch.no_grad():
        layer.scale_negative.mul_(2.0)
    return layer


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Another default dtype for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms only, and new memory filled with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
}


class TestModes:
    """A packed layer computes the same under every mode of torch, with every kernel."""

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("kernel", available_kernels())
    @given(rows=st.integers(0, 5), k=st.integers(1, 70), n=st.integers(1, 40), seed=st.integers(0, 9))
    def test_linear(self, kernel: str, mode: str, rows: int, k: int, n: int, seed: int) -> None:
        """Matrices of any size, all modes."""
        source = torch.Generator().manual_seed(seed)
        values = torch.randint(-1, 2, (n, k), generator=source)
        layer = PackedLinear.from_ternary(values, torch.rand(n, generator=source), None, kernel=kernel)
        x = torch.randn(rows, k, generator=source)
        expected = layer(x)
        with MODES[mode]():
            got = layer(x)
        assert got.device == x.device
        assert torch.equal(got, expected)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("kernel", [available_kernels()[0], "torch"])
    @pytest.mark.parametrize("kind", [k for k in LAYERS if k not in ("embedding", "reflecting")])
    def test_every_kind(self, kind: str, kernel: str, mode: str) -> None:
        """Convolutions and layers made of others, all modes."""
        make, x = LAYERS[kind]
        layer = ternary.pack(make(), kernel=kernel)
        expected = layer(x)
        with MODES[mode]():
            got = layer(x)
        assert torch.equal(got.float(), expected)

    @pytest.mark.parametrize("mode", MODES)
    def test_made_under_a_mode(self, mode: str) -> None:
        """A layer that is built under a mode holds float32 scales and takes float32 inputs."""
        if mode == "default device meta":
            pytest.skip("weights without values")
        values = torch.randint(-1, 2, (8, 40), dtype=torch.int8)
        with MODES[mode]():
            layer = PackedLinear.from_ternary(values, 0.5, torch.zeros(8, dtype=torch.float32))
            empty = PackedLinear(40, 8)
        assert layer.scale.dtype == empty.scale.dtype == empty.bias.dtype == torch.float32
        assert layer(torch.randn(2, 40)).dtype == torch.float32


class TestDtypes:
    """Packed layers follow a model through dtypes and keep their integers and scales."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", LAYERS)
    def test_moves(self, kind: str, dtype: torch.dtype) -> None:
        """Results come in the model's dtype, and moving back changes no bit."""
        make, x = LAYERS[kind]
        packed = ternary.pack(make())
        expected = packed(x)
        moved = copy.deepcopy(packed).to(dtype)
        got = moved(x.to(dtype) if x.is_floating_point() else x)
        assert got.dtype == moved.weight.dtype == dtype
        assert torch.allclose(got.float(), expected, atol=0.1, rtol=0.05)
        assert torch.equal(moved.float()(x), expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("quantizer", ["twn", "absmean", "sparse", "fixed"])
    def test_scales_of_half_precision_weights_are_computed_in_float32(self, quantizer: str, dtype: torch.dtype) -> None:
        """A weight in 16 bits gets the values and scales of the same weight in 32 bits, bit for bit."""
        weight = torch.randn(8, 4096).mul(0.02).to(dtype)
        half, full = (
            TernaryLinear(4096, 8, bias=False, quantizer=quantizer, threshold=0.01, dtype=d)
            for d in (dtype, torch.float32)
        )
        with torch.no_grad():
            half.weight.copy_(weight)
            full.weight.copy_(weight.float())
        for got, wanted in zip(half.ternary_values(), full.ternary_values(), strict=True):
            assert torch.equal(got, wanted)


class TestAttributes:
    """A packed layer has the public attributes of the layer that it replaces."""

    @pytest.mark.parametrize("kind", LAYERS)
    def test_everything_public_stays(self, kind: str) -> None:
        """Every public attribute reads as before; the weight is the ternary one."""
        layer = LAYERS[kind][0]()
        layer.marked_by_its_owner = "yes"
        packed = ternary.pack(layer)
        for name in vars(layer):
            if not name.startswith("_") and name != "training" and getattr(layer, name) != "same":  # has numbers then
                assert getattr(packed, name) == getattr(layer, name), name
        assert packed.weight.shape == layer.weight.shape
        assert packed.weight.dtype == layer.weight.dtype
        assert torch.allclose(packed.weight.clone(), layer.ternary_weight().detach(), atol=1e-6)
        assert (getattr(packed, "bias", None) is None) == (getattr(layer, "bias", None) is None)

    def test_the_weight_computes(self) -> None:
        """A model that multiplies with the weight itself gets the ternary weight."""
        layer = TernaryLinear(32, 8, bias=False)
        packed = ternary.pack(layer)
        x = torch.randn(4, 32)
        assert torch.allclose(x @ packed.weight.T, x @ layer.ternary_weight().T, atol=1e-5)
        assert torch.allclose(nn.functional.linear(x, packed.weight), layer(x), atol=1e-5)
        assert "packed" in packed.state_dict()
        assert "weight" not in packed.state_dict()


class TestDamage:
    """The code 3 stands for no value; no kernel computes with it."""

    @pytest.mark.parametrize("kernel", available_kernels())
    def test_in_a_buffer(self, kernel: str) -> None:
        """Bytes changed in place, before the first call or after it."""
        layer = PackedLinear.from_ternary(torch.ones(8, 40), 1.0, kernel=kernel)
        x = torch.randn(2, 40)
        layer(x)
        layer.packed[0, 0, 0, 0] = 0xFF
        for _ in range(2):
            with pytest.raises(PackedDataError, match="code 3"):
                layer(x)

    def test_of_a_weight_made_in_inference_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its bytes are read once, not at each call, and those of another tensor in its place are read again."""
        read: list[torch.Tensor] = []
        monkeypatch.setattr(_ops, "check_codes", lambda weight: (read.append(weight), check_codes(weight))[1])
        with torch.inference_mode():
            layer, x = PackedConv2d.from_ternary(torch.ones(4, 16, 1, 1), 1.0), torch.randn(1, 16, 5, 5)
            chain = fuse(nn.Sequential(layer), x)
            for _ in range(3):
                assert torch.equal(chain(x), layer(x))
            assert len({id(weight) for weight in read}) == len(read) == 2
            layer.packed = torch.full_like(layer.packed, 0xFF)
            with pytest.raises(PackedDataError, match="code 3"):
                layer(x)

    @pytest.mark.parametrize("kind", LAYERS)
    def test_in_a_state_dict(self, kind: str) -> None:
        """Loading refuses damaged bytes by name and changes nothing."""
        packed = ternary.pack(LAYERS[kind][0]())
        expected = packed(LAYERS[kind][1])
        state = {k: v.clone() for k, v in packed.state_dict().items()}
        key = next(k for k in state if k.endswith("packed"))
        state[key].view(-1)[0] = 0b11
        with pytest.raises(PackedDataError, match="packed"):
            packed.load_state_dict(state)
        assert torch.equal(packed(LAYERS[kind][1]), expected)

    def test_in_an_operator_and_a_table(self) -> None:
        """The operators and the embedding check for themselves."""
        conv = ternary.pack(TernaryConv2d(16, 8, 3))
        conv.packed.fill_(0xFF)
        with pytest.raises(PackedDataError):
            conv(torch.randn(1, 16, 5, 5))
        table = PackedEmbedding.from_ternary(torch.ones(4, 8), 1.0)
        table.packed.fill_(0xFF)
        with pytest.raises(PackedDataError):
            table(torch.tensor([1]))

    def test_the_key_of_earlier_releases(self) -> None:
        """A state dict with the bytes under `weight` still loads."""
        layer = PackedLinear.from_ternary(torch.ones(8, 40), 1.0, torch.zeros(8))
        state = layer.state_dict()
        state["weight"] = state.pop("packed")
        again = PackedLinear(40, 8)
        again.load_state_dict(state)
        assert torch.equal(again.values(), layer.values())


class TestTrainingOn:
    """A layer that holds exactly ternary values says so, and can be made trainable where it stands."""

    @staticmethod
    def calibrated() -> nn.Module:
        """A small network after calibration, in training mode."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        recipe = ternary.Recipe(ends="ternary")
        return ternary.quantize(net, recipe, calibration=[torch.randn(64, 32)])[0].train()

    def test_a_gradient_is_refused_with_both_remedies(self) -> None:
        """Neither a loop nor `fit` trains such layers by accident; evaluation and frozen weights work."""
        model = self.calibrated()
        x, y = torch.randn(16, 32), torch.zeros(16, dtype=torch.int64)
        with pytest.raises(FixedWeightError, match="to_trainable"):
            nn.functional.cross_entropy(model(x), y).backward()
        with pytest.raises(FixedWeightError, match="requires_grad_"):
            ternary.fit(model, lambda: [(x, y)], ternary.TrainConfig(epochs=1))
        for layer in ternary.nn.ternary_layers(model).values():
            layer.weight.requires_grad_(False)
        nn.functional.cross_entropy(model(x), y).backward()
        assert model[0].bias.grad is not None

    def test_trainable_layers_start_where_calibration_ended(self) -> None:
        """The copy computes the same, and a small step changes little."""
        model = self.calibrated()
        further = ternary.to_trainable(model)
        x = torch.randn(64, 32)
        y = model.eval()(x).argmax(1)
        with torch.no_grad():
            assert torch.allclose(further.eval()(x), model(x), atol=1e-5)
        before = nn.functional.cross_entropy(further.train()(x), y)
        optimizer = torch.optim.SGD(further.parameters(), lr=1e-4)
        before.backward()
        optimizer.step()
        assert nn.functional.cross_entropy(further(x), y) <= before + 1e-3


class TestKeptWeights:
    """In evaluation the rounded weight is kept, and every kind of change is noticed."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: layer.weight.data.mul_(2.0),
            lambda layer: layer.weight.data.normal_(),
            lambda layer: layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()}),
            lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(8, 64))),
            lambda layer: setattr(layer, "quantizer", "absmean"),
            lambda layer: layer.double(),
            lambda layer: torch.optim.SGD([layer.weight], lr=1.0).step(),
        ],
        ids=["data", "data at random", "state dict", "parameter", "quantizer", "dtype", "step"],
    )
    def test_changes_are_noticed(self, change: Callable[[TernaryLinear], object]) -> None:
        """After a change the layer computes what a fresh copy computes."""
        layer = TernaryLinear(64, 8).eval()
        layer.weight.grad = torch.randn(8, 64)
        x = torch.randn(2, 64)
        with torch.no_grad():
            layer(x)
            change(layer)
            fresh = copy.deepcopy(layer).train().eval()
            x = x.to(layer.weight.dtype)
            assert torch.equal(layer(x), fresh(x))

    def test_it_is_computed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten evaluations round once; training rounds at each step."""
        calls: list[int] = []
        real = ternary.nn._layers.ternarize
        monkeypatch.setattr(ternary.nn._layers, "ternarize", lambda *a: calls.append(1) or real(*a))
        layer = TernaryLinear(64, 8)
        for _ in range(10):
            layer(torch.randn(2, 64))
        assert len(calls) == 10
        layer.eval()
        with torch.no_grad():
            for _ in range(10):
                layer(torch.randn(2, 64))
        assert len(calls) == 11
