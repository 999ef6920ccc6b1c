"""Stages: fp32 to fp16 to int8 or ternary, mixed precision, calibration, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ternary
from ternary._quantization import Recipe, quantize, rules_by_sensitivity, sensitivity
from ternary.errors import Fp16OverflowError, NonFiniteActivationError, NonFiniteWeightError, UnknownQuantizerError
from ternary.export import put_into, read_gguf, to_gguf
from ternary.nn import Int8Conv2d, Int8Linear, TernaryConv2d, TernaryLinear


@pytest.fixture
def model() -> nn.Module:
    """A convolutional network with all that matters: norm, depthwise, two linear layers, an odd channel count."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Conv2d(7, 7, 3, groups=7),
        nn.Conv2d(7, 13, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(13 * 36, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    ).eval()


def test_fp32_to_fp16(model: nn.Module) -> None:
    """Half the bytes, nearly the same outputs, the original untouched."""
    half = ternary.to_fp16(model)
    assert all(p.dtype == torch.float16 for p in half.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(half(x.half()).float(), model(x), atol=1e-2)


@pytest.mark.parametrize(("value", "error"), [(1e6, Fp16OverflowError), (float("nan"), NonFiniteWeightError)])
def test_fp16_refuses_what_it_cannot_hold(model: nn.Module, value: float, error: type[Exception]) -> None:
    """A weight beyond 65504, or none at all, is an error that names it."""
    with torch.no_grad():
        model[7].weight[0, 0] = value
    with pytest.raises(error, match=r"7\.weight"):
        ternary.to_fp16(model)


def test_fp16_to_int8(model: nn.Module) -> None:
    """A quarter of the bytes and outputs within two percent, in fp16 as in fp32."""
    made, report = ternary.to_int8(model)
    assert {r.precision for r in report.layers} == {"int8"}
    assert report.bytes_before > 3 * report.bytes_after
    x = torch.randn(4, 3, 8, 8)
    assert (made(x) - model(x)).norm() / model(x).norm() < 0.02
    from_half, _ = ternary.to_int8(ternary.to_fp16(model))
    y = from_half.float()(x)
    assert (y - model(x)).norm() / model(x).norm() < 0.03


@pytest.mark.parametrize("features", [1, 8, 1040, 3000])
def test_int8_linear_sums_exactly(features: int) -> None:
    """The layer equals integer arithmetic in 64 bits."""
    linear = nn.Linear(features, 6)
    layer = Int8Linear(linear)
    x = torch.randn(3, features)
    codes = (x * (127 / x.abs().amax(1, keepdim=True))).round().long()
    step = x.abs().amax(1, keepdim=True) / torch.full((3, 1), 127.0)
    wanted = (codes @ layer.values().long().T).float() * step * layer.scale + layer.bias
    assert torch.equal(layer(x), wanted)


def test_fp16_to_ternary(model: nn.Module) -> None:
    """Ternary layers keep the dtype that they had."""
    made, _ = quantize(ternary.to_fp16(model), Recipe(ends="float", depthwise="float"))
    assert made[7].weight.dtype == torch.float16
    assert made(torch.randn(1, 3, 8, 8).half()).dtype == torch.float16


def test_defaults_keep_ends_and_depthwise_at_8_bits(model: nn.Module) -> None:
    """The first convolution, the last layer and depthwise convolutions are not ternary unless asked."""
    made, report = quantize(model)
    assert [r.precision for r in report.layers] == ["int8", "int8", "ternary", "ternary", "int8"]
    assert isinstance(made[0], Int8Conv2d)
    assert isinstance(made[4], TernaryConv2d)
    assert isinstance(made[9], Int8Linear)
    assert not made.training
    text = str(report)
    assert "total" in text
    assert "ternary" in text


def test_rules_by_name(model: nn.Module) -> None:
    """The first matching pattern decides, over all defaults."""
    _, report = quantize(model, Recipe(rules=(("4", "float"), ("*", "ternary"))))
    assert [r.precision for r in report.layers] == ["ternary", "ternary", "float", "ternary", "ternary"]
    with pytest.raises(UnknownQuantizerError):
        quantize(model, Recipe(rules=(("*", "int7"),)))  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["ends", "depthwise", "otherwise"])
def test_unknown_precisions_are_refused_everywhere(model: nn.Module, place: str) -> None:
    """A precision that does not exist is an error also where no rule names it, and never taken for ternary."""
    with pytest.raises(UnknownQuantizerError, match="int4"):
        quantize(model, Recipe(**{place: "int4"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("quantizer", ["twn", "ttq"])
def test_ternary_layers_back_to_float(quantizer: str) -> None:
    """A rule makes torch's own layers of ternary ones, with the float weights behind them, and the report says so."""
    layers = [nn.Embedding(9, 4), nn.Conv1d(4, 4, 3), nn.Conv2d(4, 5, 1), nn.Linear(4, 2, bias=False)]
    made, _ = quantize(nn.ModuleList(layers), Recipe(quantizer=quantizer, rules=(("*", "ternary"),)))
    back, report = quantize(made, Recipe(rules=(("*", "float"),)))
    assert [type(m) for m in back] == [type(m) for m in layers]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(back, layers, strict=True))
    assert [(r.precision, r.error) for r in report.layers] == [("float", 0.0)] * 4
    assert report.bytes_after == report.bytes_before
    eight, report = quantize(made, Recipe(rules=(("*", "int8"),)))
    assert [r.precision for r in report.layers] == ["ternary", "ternary", "int8", "int8"]  # two have no int8 form
    assert [type(m).__name__ for m in eight] == ["TernaryEmbedding", "TernaryConv1d", "Int8Conv2d", "Int8Linear"]


def test_mixed_precision_by_sensitivity(model: nn.Module) -> None:
    """The most sensitive layers keep 8 bits, and that lowers the error."""
    x = torch.randn(16, 3, 8, 8)
    measured = sensitivity(model, [x])
    assert list(measured.values()) == sorted(measured.values(), reverse=True)
    rules = rules_by_sensitivity(measured, keep=0.4)
    assert [name for name, _ in rules] == list(measured)[:2]
    with pytest.raises(ValueError, match="fraction"):
        rules_by_sensitivity(measured, keep=-0.5)
    everything = Recipe(ends="ternary", depthwise="ternary")
    plain, _ = quantize(model, everything)
    mixed, _ = quantize(model, Recipe(rules=rules, ends="ternary", depthwise="ternary"))
    wanted = model(x)
    assert (mixed(x) - wanted).norm() < (plain(x) - wanted).norm()


def test_calibration_fits_scales_to_inputs() -> None:
    """With inputs of unlike size, fitting to them lowers the output error."""
    layer = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8)).eval()
    x = torch.randn(256, 64) * torch.logspace(-2, 1, 64)
    recipe = Recipe(ends="ternary")
    plain, _ = quantize(layer, recipe)
    fitted, report = quantize(layer, recipe, calibration=[x])
    first = layer[0](x)
    assert (fitted[0](x) - first).norm() < (plain[0](x) - first).norm()
    assert len(report.layers) == 3


def test_calibration_of_a_convolution_and_batch_norm(model: nn.Module) -> None:
    """Channels are weighted by their power, running statistics follow the data, momentum comes back."""
    x = 3 + 2 * torch.randn(8, 3, 8, 8)
    made, _ = quantize(model, calibration=[(x,), (x,)])
    assert made[1].momentum == 0.1
    assert not torch.equal(made[1].running_mean, model[1].running_mean)
    assert not made.training


def test_calibration_refuses_nan(model: nn.Module) -> None:
    """NaN in calibration data is an error, and leaves no hook behind."""
    x = torch.full((1, 3, 8, 8), float("nan"))
    with pytest.raises(NonFiniteActivationError):
        quantize(model, calibration=[x])
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_single_layer_and_existing_ternary_layers() -> None:
    """A bare layer works; a layer that is ternary keeps its own settings."""
    made, _ = quantize(nn.Linear(4, 4))
    assert isinstance(made, TernaryLinear)
    kept, _ = quantize(nn.Sequential(TernaryLinear(4, 4, quantizer="ttq"), nn.Linear(4, 4)))
    assert kept[0].quantizer == "ttq"


@pytest.mark.parametrize("quantizer", ["twn", "ttq", "absmean", "fixed", "stochastic", "sparse"])
def test_every_quantizer_on_every_layer_kind(quantizer: str) -> None:
    """Linear, both convolutions and embeddings, with a report that adds up."""
    model = nn.ModuleList([nn.Embedding(9, 4), nn.Conv1d(4, 4, 3), nn.Conv2d(4, 5, 1), nn.Linear(4, 2, bias=False)])
    _, report = quantize(model, Recipe(quantizer=quantizer, threshold=0.1, rules=(("*", "ternary"),)))
    assert [r.precision for r in report.layers] == ["ternary"] * 4
    assert all(0 <= r.error < 1.2 and 0 <= r.sparsity <= 1 for r in report.layers)


def test_memory_comparison(model: nn.Module, temp_dir: Path) -> None:
    """Files shrink from fp32 over int8 to ternary."""
    sizes = [
        ternary.save(m, temp_dir / f"{i}.safetensors").file_bytes
        for i, m in enumerate((model, ternary.to_int8(model)[0], quantize(model, Recipe(rules=(("*", "ternary"),)))[0]))
    ]
    assert sizes[0] > 2.5 * sizes[1] > 2.5 * sizes[2]


def test_int8_convolution_says_what_it_lacks() -> None:
    """Reflecting convolutions have no int8 form; in a model they stay float where int8 is asked for."""
    reflecting = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match="padding_mode"):
        Int8Conv2d(reflecting)
    made, report = quantize(nn.Sequential(reflecting, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)))
    assert [r.precision for r in report.layers] == ["float", "ternary", "int8"]
    assert made(torch.randn(1, 3, 5, 5)).shape == (1, 4, 5, 5)


def test_an_embedding_that_shortens_its_rows_stays_float() -> None:
    """Its norm is kept, whatever the recipe asks for."""
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Linear(4, 4), nn.Linear(4, 2))
    for recipe in (Recipe(embeddings="ternary"), Recipe(rules=(("0", "ternary"),)), Recipe(rules=(("0", "int8"),))):
        made, report = quantize(model, recipe)
        assert report.layers[0].precision == "float"
        assert made[0](torch.arange(9)).norm(dim=1).max() < 0.501


def test_a_layer_used_twice_stays_one(temp_dir: Path) -> None:
    """Both uses are quantized, packed, saved and exported, and the weight comes back as it was."""
    twice = nn.Linear(8, 8)
    model = nn.Sequential(twice, nn.ReLU(), twice, nn.Linear(8, 2)).eval()
    made, report = quantize(model)
    assert [r.name for r in report.layers] == ["0", "3"]
    assert isinstance(made[0], Int8Linear)
    assert made[0] is made[2]
    made, _ = quantize(model, Recipe(ends="ternary"))
    assert isinstance(made[0], TernaryLinear)
    assert made[0] is made[2]
    x = torch.randn(5, 8)
    ternary.save(made, temp_dir / "m.safetensors")
    again = ternary.load(temp_dir / "m.safetensors", quantize(model, Recipe(ends="ternary"))[0])
    assert torch.equal(again(x), made(x))
    packed = ternary.pack(made)
    assert packed[0] is packed[2]
    ternary.save(packed, temp_dir / "p.safetensors")
    again = ternary.load(temp_dir / "p.safetensors", quantize(model, Recipe(ends="ternary"))[0], packed=True)
    assert torch.equal(again(x), packed(x))
    to_gguf(packed, temp_dir / "m.gguf")
    found = read_gguf(temp_dir / "m.gguf")
    assert torch.equal(found["2.weight"].values, packed[2].values())
    assert torch.equal(put_into(model, found)(x), packed(x))
    assert set(sensitivity(model, [x])) == {"0", "3"}


@pytest.mark.parametrize("ends", ["ternary", "int8"])
@pytest.mark.parametrize("masked", [False, True])
def test_torchs_encoder_calls_its_quantized_layers(ends: str, masked: bool) -> None:
    """In evaluation without gradients torch's fused kernel would read the float weights behind ternary ones."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    made, _ = quantize(model, Recipe(ends=ends))  # type: ignore[arg-type]
    x = torch.randn(2, 5, 32)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if masked else None
    wanted, plain = made(x, src_key_padding_mask=mask), model(x, src_key_padding_mask=mask)
    with torch.no_grad():
        got, packed = (m(x, src_key_padding_mask=mask) for m in (made, ternary.pack(made)))
    assert torch.allclose(got, wanted, atol=1e-5)
    assert (packed - wanted).norm() / wanted.norm() < 0.02
    assert (got - plain).norm() / plain.norm() > 0.02
    assert max(sensitivity(model, [(x,)], Recipe(ends=ends)).values()) > 0.02  # type: ignore[arg-type]


def language_model(kind: str) -> nn.Module:
    """A tiny model of Hugging Face, built from its configuration; GPT-2 has transposed linear layers and tied ends."""
    import transformers as tf

    small = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        return tf.GPT2LMHeadModel(tf.GPT2Config(**small, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**small, **sizes, max_position_embeddings=32)).eval()
    return tf.BertForSequenceClassification(tf.BertConfig(**small, **sizes, max_position_embeddings=32)).eval()


IDS = torch.arange(24).reshape(2, 12) % 97


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
class TestHuggingFaceModels:
    """`quantize` on models that are not ours."""

    def test_every_weight_matrix_is_found(self, kind: str) -> None:
        """All matrices between the ends are ternary, the head is not, and the model itself is left as it was."""
        model = language_model(kind)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        made, report = quantize(model)
        inside = [r for r in report.layers if r.kind in ("Linear", "Conv1D")][:-1]
        assert len(inside) == {"gpt2": 8, "llama": 14, "bert": 13}[kind]
        assert {r.precision for r in inside} == {"ternary"}
        assert report.layers[-1].precision == ("float" if kind == "gpt2" else "int8")
        assert report.bytes_before > 3 * report.bytes_after
        assert report.bytes_before <= sum(v.numel() * 4 for v in model.parameters())  # a tied weight counts once
        assert torch.isfinite(made(IDS).logits).all()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_transposing_changes_nothing(self, kind: str) -> None:
        """With everything left in float the copy computes the same."""
        model = language_model(kind)
        made, _ = quantize(model, Recipe(rules=(("*", "float"),)))
        assert (made(IDS).logits - model(IDS).logits).abs().max() < 1e-5

    def test_rules_by_name(self, kind: str) -> None:
        """Patterns over the names of the library choose layers."""
        pattern = "*.intermediate.*" if kind == "bert" else "*.mlp.*"
        _, report = quantize(language_model(kind), Recipe(rules=((pattern, "int8"), ("*", "float"))))
        chosen = [r for r in report.layers if r.precision == "int8"]
        assert len(chosen) == {"gpt2": 4, "llama": 6, "bert": 2}[kind]
        assert all(0 < r.error < 0.02 for r in chosen)

    def test_mixed_precision_by_sensitivity(self, kind: str) -> None:
        """Keeping the most sensitive layers at 8 bits lowers the error; batches may be named inputs."""
        model = language_model(kind)
        measured = sensitivity(model, [{"input_ids": IDS}], Recipe(ends="ternary"))
        rules = rules_by_sensitivity(measured, keep=0.5)
        assert [n for n, _ in rules] == list(measured)[: len(rules)]
        wanted = model(IDS).logits
        plain, _ = quantize(model, Recipe(ends="ternary"))
        mixed, report = quantize(model, Recipe(rules=rules, ends="ternary"))
        assert {r.name for r in report.layers if r.precision == "int8"} == {n for n, _ in rules}
        assert (mixed(IDS).logits - wanted).norm() < (plain(IDS).logits - wanted).norm()

    @pytest.mark.parametrize("encoding", ["2bit", "base3"])
    def test_packed_and_calibrated(self, kind: str, encoding: str, temp_dir: Path) -> None:
        """A calibrated model goes through a packed file unchanged."""
        model = language_model(kind)
        made, _ = quantize(model, calibration=[IDS])
        ternary.save(made, temp_dir / "m.safetensors", encoding=encoding)
        again = ternary.load(temp_dir / "m.safetensors", quantize(language_model(kind))[0])
        assert torch.equal(again(IDS).logits, made(IDS).logits)


def test_results_without_a_tensor_are_refused() -> None:
    """Sensitivity needs something to compare."""

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> dict[str, str]:
            return {"text": str(self.a(x))}

    with pytest.raises(TypeError, match="no tensor"):
        sensitivity(Silent(), [torch.ones(1, 2)])
