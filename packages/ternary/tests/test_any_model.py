"""Models whose weights are not plain layers: fused experts, BitNet of transformers, computed weights, subclasses."""

from __future__ import annotations

import copy
import importlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ternary
from ternary.export import export
from ternary.nn import SeparateExperts, TernaryLinear

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(2, 26).reshape(2, 12)
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen": ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "head_dim": 16, "layer_types": ["full_attention"] * 2}),
}


def mixture(kind: str) -> nn.Module:
    """A small mixture with random weights."""
    name, more = MIXTURES[kind]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **more})
    made: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


def logits(model: nn.Module) -> torch.Tensor:
    """What a language model answers to the tokens."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("kind", MIXTURES)
class TestFusedExperts:
    """Most weights of a mixture are in its experts: they are layers like others."""

    def test_as_float_layers_they_compute_the_same(self, kind: str) -> None:
        """Separate experts without quantization return what the fused ones return, tokens by tokens and all at once."""
        model = mixture(kind)
        made, report = ternary.quantize(model, ternary.Recipe(rules=(("*", "float"),)))
        assert sum(isinstance(m, SeparateExperts) for m in made.modules()) == 2
        assert torch.allclose(logits(made), logits(model), atol=1e-4)
        assert report.bytes_before == sum(p.nbytes for p in model.parameters())
        experts = next(m for m in made.modules() if isinstance(m, SeparateExperts))
        x, index = torch.randn(6, 32), torch.tensor([[0, 1], [2, 3], [3, 0], [1, 4], [2, 2], [4, 4]])
        weights = torch.rand(6, 2) * (index < 4)  # 4 is the mark of no expert
        assert torch.allclose(experts(x, index, weights), experts._all_experts(x, index, weights), atol=1e-5)

    def test_they_are_quantized_packed_and_loaded(self, kind: str, tmp_path: Path) -> None:
        """The report counts them, packing makes the model small, and its file brings the same answers back."""
        model = mixture(kind)
        made, report = ternary.quantize(model, calibration=[{"input_ids": TOKENS}])
        ternary_rows = [r for r in report.layers if ".experts." in r.name and r.precision == "ternary"]
        assert len(ternary_rows) == 2 * 2 * 4
        assert not any("fused" in u.why for u in report.untouched)
        packed = ternary.pack(made)
        assert torch.nn.functional.cosine_similarity(logits(packed), logits(made), dim=-1).min() > 0.99
        ternary.save(made, tmp_path / "model.safetensors")
        again = ternary.load(tmp_path / "model.safetensors", copy.deepcopy(made))
        assert torch.allclose(logits(again), logits(made), atol=1e-4)
        assert torch.equal(logits(pickle.loads(pickle.dumps(packed))), logits(packed))


def test_other_experts_are_named_with_their_share() -> None:
    """Experts of another interface stay as they are; the report says which share of the model that is."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(16, 16)
            self.down_proj = nn.Parameter(torch.randn(8, 16, 64))

    _, report = ternary.quantize(Own())
    assert "down_proj: 32,768 bytes (97% of the model), 8 matrices fused in one parameter of Own" in str(report)


@pytest.fixture(scope="module")
def bitnet() -> Any:
    """BitNet of transformers without torch.compile, whose import would take most of the tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: function)
        return importlib.import_module("transformers.integrations.bitnet")


class TestBitNetOfTransformers:
    """Its layers are ternary by themselves: they keep their weights and gain the packed form."""

    @pytest.fixture
    def layer(self, bitnet: Any) -> Any:
        """Makes a trainable layer."""

        def make(**options: Any) -> Any:
            made = bitnet.AutoBitLinear(32, 16, **options)
            with torch.no_grad():
                made.bias.normal_()
            return made

        return make

    @pytest.mark.parametrize("norm", [False, True])
    def test_trained_online(self, layer: Any, norm: bool) -> None:
        """The absmean weight of the whole matrix, 8-bit activations, the normalization before it."""
        given = layer(online_quant=True, use_rms_norm=norm)
        made, report = ternary.quantize(nn.Sequential(given))
        assert [r.precision for r in report.layers] == ["ternary"]
        found = made[0][1] if norm else made[0]
        assert isinstance(found, TernaryLinear)
        weight = given.weight.detach()
        scale = weight.abs().mean()
        assert torch.allclose(found.ternary_weight(), (weight / scale).round().clamp(-1, 1) * scale, atol=1e-6)
        x = torch.randn(4, 32)
        assert torch.allclose(ternary.pack(made)(x), made(x), atol=1e-4)

    def test_stored_offline(self, layer: Any) -> None:
        """Ternary values times the stored scale, which also multiplies the bias; other values stay a float layer's."""
        given = layer()
        given.weight_scale.fill_(0.25)
        x = torch.randn(4, 32)
        made, _ = ternary.quantize(nn.Sequential(given), ternary.Recipe(rules=(("*", "float"),)))
        wanted = torch.nn.functional.linear(x, given.weight, given.bias) * 0.25
        assert torch.allclose(made(x), wanted, atol=1e-5)
        with torch.no_grad():
            given.weight.copy_(torch.randint(-1, 2, given.weight.shape))
        made, _ = ternary.quantize(nn.Sequential(given))
        assert made[0].quantizer == "exact"
        assert torch.equal(made[0].ternary_weight(), given.weight * 0.25)
        assert torch.equal(made[0].bias, given.bias * 0.25)

    def test_stored_packed(self, bitnet: Any) -> None:
        """Four rows in a byte, and a scale that divides."""
        values = torch.randint(-1, 2, (16, 32))
        layer = bitnet.BitLinear(32, 16, bias=False, dtype=torch.float32)
        layer.weight.copy_(bitnet.pack_weights(values.float()))
        layer.weight_scale.fill_(4.0)
        made, report = ternary.quantize(nn.Sequential(layer))
        assert [r.precision for r in report.layers] == ["ternary"]
        assert torch.equal(made[0].ternary_weight(), values * 0.25)


@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestComputedWeights:
    """A weight that is computed at each call becomes the weight that it is now."""

    @pytest.mark.parametrize(
        "wrap",
        [
            nn.utils.parametrizations.weight_norm,
            nn.utils.parametrizations.spectral_norm,
            nn.utils.parametrizations.orthogonal,
            nn.utils.weight_norm,
            nn.utils.spectral_norm,
        ],
    )
    def test_it_is_quantized(self, wrap: Any) -> None:
        """The ternary layer has the computed weight; the model itself stays as it was."""
        model = nn.Sequential(nn.Linear(16, 16), wrap(nn.Linear(16, 16)), nn.Linear(16, 4)).eval()
        before = sorted(model.state_dict())
        x = torch.randn(3, 16)
        answer = model(x)
        weight = model[1](torch.eye(16)) - model[1].bias
        made, report = ternary.quantize(model)
        assert {r.name: r.precision for r in report.layers}["1"] == "ternary"
        assert "1: the weight that it computed became its own" in str(report)
        assert torch.allclose(made[1].weight, weight.T, atol=1e-5)
        assert torch.allclose(ternary.pack(made)(x), made(x), atol=0.1)
        assert sorted(model.state_dict()) == before
        assert torch.equal(model(x), answer)


def test_a_subclass_that_computes_the_same_is_a_layer() -> None:
    """A Linear with its own start values is quantized; one with a buffer of its own is not."""

    class Zeros(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self.weight)

    class Counts(Zeros):
        def __init__(self) -> None:
            super().__init__(16, 16)
            self.register_buffer("calls", torch.zeros(1))

    _, report = ternary.quantize(nn.Sequential(Zeros(16, 16), Counts()))
    assert [r.name for r in report.layers] == ["0"]
    assert "1.weight" in {u.name for u in report.untouched}


@pytest.mark.parametrize("kind", [pytest.param("mixtral", marks=pytest.mark.slow), "bert"])
def test_models_that_answer_with_a_dictionary_are_written_for_torch(kind: str, tmp_path: Path) -> None:
    """An exported program and TorchScript return what the packed model does, experts and all."""
    if kind == "bert":
        sizes = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
        model: nn.Module = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=48)).eval()
    else:
        model = mixture(kind)
    made, _ = ternary.quantize(model)
    export(made, tmp_path, ["torchscript", "pt2"], example=TOKENS, name="model")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        wanted = next(iter(ternary.pack(made)(input_ids=TOKENS).values()))
        scripted = next(iter(torch.jit.load(tmp_path / "model.ts")(TOKENS).values()))
        program = next(iter(torch.export.load(tmp_path / "model.pt2").module()(TOKENS).values()))
    assert torch.allclose(scripted, wanted, atol=1e-4)
    assert torch.allclose(program, wanted, atol=1e-4)
