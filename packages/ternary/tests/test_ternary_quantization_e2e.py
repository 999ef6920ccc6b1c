"""From one tensor to a whole packed model: quantizers, thresholds, packing, sparsity."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ternary
from ternary import packing
from ternary._options import QUANTIZERS
from ternary.errors import NonFiniteWeightError, UnknownQuantizerError
from ternary.nn import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear
from ternary.nn import _quantizers as quantizers
from ternary.nn._quantizers import fake_int8, ternarize

ALL = [q for q in QUANTIZERS if q != "exact"]


class TestSingleTensor:
    """Quantizers on one tensor."""

    @pytest.mark.parametrize("quantizer", ALL)
    @pytest.mark.parametrize("per_channel", [True, False])
    @pytest.mark.parametrize("shape", [(8, 16), (1, 1), (3, 5, 3), (7, 3, 3, 3)])
    def test_values_and_scales(self, quantizer: str, per_channel: bool, shape: tuple[int, ...]) -> None:
        """Values are -1, 0, +1, scales broadcast and are not negative."""
        weight = torch.randn(shape)
        values, scale = ternarize(weight, quantizer, per_channel, 0.5)
        assert set(values.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert scale.shape == ((shape[0] if per_channel else 1), *[1] * (len(shape) - 1))
        assert (scale >= 0).all()
        assert (values * weight >= 0).all()

    def test_twn_by_hand(self) -> None:
        """Threshold 0.7 x mean|w|, strictly greater; the scale is the mean of the kept."""
        weight = torch.tensor([[1.0, -2.0, 0.1, -0.1]])
        values, scale = quantizers.twn(weight)
        assert values.tolist() == [[1.0, -1.0, 0.0, 0.0]]
        assert scale.item() == pytest.approx(1.5)
        assert quantizers.twn(torch.ones(1, 4), threshold=1.0)[0].tolist() == [[0.0] * 4]

    def test_absmean_rounds_half_to_even(self) -> None:
        """A weight at exactly half the scale becomes zero, one at one and a half becomes one."""
        weight = torch.tensor([[0.5, -0.5, 1.5, -1.5]])
        values, scale = quantizers.absmean(weight)
        assert scale.item() == 1.0
        assert values.tolist() == [[0.0, 0.0, 1.0, -1.0]]

    def test_stochastic_is_right_on_average(self) -> None:
        """The mean of many roundings is the clipped weight."""
        weight = torch.tensor([[0.2, -0.6, 1.0, -0.9]])
        mean = torch.stack([torch.mul(*quantizers.stochastic(weight)) for _ in range(4000)]).mean(0)
        assert torch.allclose(mean, weight.clamp(-0.675, 0.675), atol=0.03)

    @pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9])
    def test_sparsity_target(self, sparsity: float) -> None:
        """Each row has the wanted fraction of zeros."""
        values, _ = quantizers.sparse(torch.randn(4, 200), sparsity=sparsity)
        assert ((values == 0).float().mean(1) == sparsity).all()

    @pytest.mark.parametrize("quantizer", ALL)
    def test_zero_rows(self, quantizer: str) -> None:
        """All-zero channels give zeros and finite scales, with gradients that are finite."""
        layer = TernaryLinear(6, 3, quantizer=quantizer)
        with torch.no_grad():
            layer.weight[1] = 0.0
        layer.reset_scales()
        y = layer(torch.ones(2, 6))
        assert torch.isfinite(y).all()
        y.sum().backward()
        assert torch.isfinite(layer.weight.grad).all()
        assert (layer.ternary_weight()[1] == 0).all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_not_finite_weights_are_refused(self, bad: float, temp_dir: Path) -> None:
        """NaN and infinity never become a ternary value; the message gives the place."""
        layer = TernaryLinear(4, 4)
        with torch.no_grad():
            layer.weight[2, 1] = bad
        with pytest.raises(NonFiniteWeightError, match=r"first at \(2, 1\)"):
            layer.ternary_values()
        with pytest.raises(NonFiniteWeightError):
            ternary.save(layer, temp_dir / "m.safetensors")
        assert list(temp_dir.iterdir()) == []

    @given(st.integers(1, 9), st.integers(1, 23), st.sampled_from(ALL), st.booleans(), st.integers(0, 2**31))
    def test_layer_pack_unpack(self, rows: int, columns: int, quantizer: str, per_channel: bool, seed: int) -> None:
        """For every shape, packed values and scales give exactly the weight that the layer acts with."""
        torch.manual_seed(seed)
        layer = TernaryLinear(columns, rows, quantizer=quantizer, per="channel" if per_channel else "tensor").eval()
        values, positive, negative = layer.ternary_values()
        assert torch.equal(packing.unpack_2bit(packing.pack_2bit(values), columns), values)
        assert torch.equal(packing.unpack_base3(packing.pack_base3(values), columns), values)
        weight = values * torch.where(values > 0, positive[:, None], negative[:, None])
        assert torch.equal(weight, layer.ternary_weight().detach())


class TestLayers:
    """Layers that act ternary."""

    @pytest.mark.parametrize("quantizer", [*ALL, "exact"])
    def test_gradients_reach_the_weight(self, quantizer: str, utils: ModuleType, device: torch.device) -> None:
        """The straight-through estimator gives every parameter a gradient."""
        layer = TernaryLinear(16, 8, quantizer=quantizer).to(device)
        layer(torch.randn(4, 16, device=device)).square().sum().backward()
        utils.validate_gradients(layer)

    def test_clipped_straight_through(self) -> None:
        """A weight far outside gets no gradient, the others the one of the ternary weight."""
        layer = TernaryLinear(20, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(0.1)
            layer.weight[0, 3] = 50.0
        layer(torch.ones(1, 20)).sum().backward()
        assert layer.weight.grad[0, 3] == 0
        assert layer.weight.grad[0, 0] == 1

    def test_ttq_learns_two_scales(self) -> None:
        """The gradients of the two scales are the sums over their weights (Zhu et al., equation 7)."""
        layer = TernaryLinear(30, 2, bias=False, quantizer="ttq")
        upstream = torch.randn(2, 30)
        (layer.ternary_weight() * upstream).sum().backward()
        values = layer.ternary_values()[0]
        assert torch.allclose(layer.scale_positive.grad.flatten(), (upstream * (values > 0)).sum(1), atol=1e-5)
        assert torch.allclose(layer.scale_negative.grad.flatten(), -(upstream * (values < 0)).sum(1), atol=1e-5)

    @pytest.mark.parametrize(
        ("made", "plain", "x"),
        [
            (TernaryLinear(5, 3), nn.Linear(5, 3), torch.ones(2, 5)),
            (TernaryConv1d(4, 6, 3, groups=2), nn.Conv1d(4, 6, 3, groups=2), torch.ones(1, 4, 9)),
            (TernaryConv2d(5, 5, 3, 2, 1, groups=5), nn.Conv2d(5, 5, 3, 2, 1, groups=5), torch.ones(1, 5, 7, 7)),
            (TernaryEmbedding(7, 3, 0), nn.Embedding(7, 3, 0), torch.tensor([[1, 0, 6]])),
            (TernaryLinear(5, 3, quantizer="ttq"), nn.Linear(5, 3), torch.ones(2, 5)),
        ],
    )
    def test_state_of_the_float_layer_loads(self, made: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
        """State dicts interchange with torch's layers, and shapes are theirs."""
        made.load_state_dict(plain.state_dict())
        assert torch.equal(made.weight, plain.weight)
        assert made(x).shape == plain(x).shape
        if made.scale_positive is None:
            plain.load_state_dict(made.state_dict())

    def test_float_layer_takes_a_ttq_state_into_twn(self) -> None:
        """A TTQ checkpoint loads into another quantizer: its extra scales are dropped."""
        other = TernaryLinear(5, 3)
        other.load_state_dict(TernaryLinear(5, 3, quantizer="ttq").state_dict())

    @pytest.mark.filterwarnings("ignore:Initializing zero-element")  # torch says so for its own layers too
    @pytest.mark.parametrize("quantizer", ALL)
    def test_empty_layers(self, quantizer: str) -> None:
        """A layer without inputs gives its bias, one without outputs nothing, an empty batch nothing."""
        layer = TernaryLinear(0, 3, quantizer=quantizer, activations="int8")
        assert torch.equal(layer(torch.empty(2, 0)), layer.bias.expand(2, 3))
        assert TernaryLinear(3, 0, quantizer=quantizer)(torch.ones(2, 3)).shape == (2, 0)
        assert TernaryLinear(3, 2, quantizer=quantizer, activations="int8")(torch.empty(0, 3)).shape == (0, 2)
        assert layer.ternary_values()[0].shape == (3, 0)

    def test_int8_activations(self) -> None:
        """Activations take 255 levels per token, -127 to 127, and pass the gradient."""
        x = (torch.randn(3, 50) * torch.tensor([[1.0], [100.0], [0.0]])).requires_grad_()
        y = fake_int8(x)
        step = x.detach().abs().amax(1, keepdim=True) / 127
        codes = y.detach() / step.clamp(min=1e-12)
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert (codes.abs() <= 127.001).all()
        y.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))

    @pytest.mark.parametrize("options", [{"quantizer": "twm"}, {"per": "row"}, {"activations": "int4"}])
    def test_unknown_choices(self, options: dict[str, str]) -> None:
        """An unknown word names the known ones."""
        with pytest.raises(UnknownQuantizerError, match="it is one of"):
            TernaryLinear(2, 2, **options)

    @pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"threshold": -0.1}, {"threshold": float("nan")}])
    def test_bad_numbers(self, options: dict[str, float]) -> None:
        """Numbers out of range are refused."""
        with pytest.raises(ValueError, match=r"fraction|threshold"):
            TernaryLinear(2, 2, **options)

    def test_repr_says_how(self) -> None:
        """Printing a layer shows its quantizer."""
        assert "quantizer=twn, per=channel" in repr(TernaryLinear(2, 2))


class TestModels:
    """Whole models."""

    def test_model_level(self, reference_pytorch_model: nn.Module, utils: ModuleType, temp_dir: Path) -> None:
        """Quantize, save, load into the same architecture, and get the same outputs."""
        made, report = ternary.quantize(reference_pytorch_model.eval())
        utils.validate_ternary_weights(made)
        assert [r.precision for r in report.layers] == ["int8", "ternary", "int8"]
        ternary.save(made, temp_dir / "m.safetensors")
        again, _ = ternary.quantize(reference_pytorch_model.eval())
        utils.compare_model_outputs(ternary.load(temp_dir / "m.safetensors", again), made, torch.randn(5, 16), 0.0)
        assert all(type(m) in (nn.Linear, nn.ReLU, nn.Sequential) for m in reference_pytorch_model.modules())
