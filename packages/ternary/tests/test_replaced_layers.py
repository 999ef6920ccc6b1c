"""What a user did to a layer goes on after another one takes its place: hooks, frozen weights, names, pruning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import ternary
from ternary.errors import LayerShapeError, NothingToFuseError
from ternary.export import TernaryTensor, put_into
from ternary.runtime import fuse

Made = Callable[[nn.Module], nn.Module]


def network() -> nn.Sequential:
    """Three linear layers; the middle one becomes ternary."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))


def ternarized(model: nn.Module) -> nn.Module:
    """The model with a ternary layer in the middle."""
    return ternary.quantize(model)[0]


def packed(model: nn.Module) -> nn.Module:
    """The model with a packed layer in the middle."""
    return ternary.pack(ternarized(model))


def two_scales(model: nn.Module) -> nn.Module:
    """The model with a packed layer in the middle that is made of two."""
    made = ternary.quantize(model, ternary.Recipe(quantizer="ttq"))[0]
    with torch.no_grad():
        made[1].scale_positive.mul_(2)
    return ternary.pack(made)


def with_outliers(model: nn.Module) -> nn.Module:
    """The model with float channels in the middle."""
    with torch.no_grad():
        model[0].weight[3] *= 3000
    made = ternary.quantize(model, ternary.Recipe(activations="int8"), calibration=[torch.randn(64, 16)])[0]
    assert type(made[1]).__name__ == "FloatChannels"
    return ternary.to_trainable(made)


KINDS: dict[str, Made] = {
    "ternary": ternarized,
    "int8": lambda model: ternary.to_int8(model)[0],
    "packed": packed,
    "packed in two": two_scales,
    "float channels": with_outliers,
    "float again": lambda model: ternary.quantize(ternarized(model), ternary.Recipe(rules=(("*", "float"),)))[0],
    "trainable": lambda model: ternary.to_trainable(ternarized(model)),
}


class TestHooks:
    """What is called around the calls of a layer."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_they_are_called_in_their_order(self, kind: str) -> None:
        """Before and after, forwards and backwards, each once a call, with the layer that is there now."""
        model, seen = network(), []
        model[1].register_forward_pre_hook(lambda m, args: seen.append("first"))
        model[1].register_forward_pre_hook(lambda m, args, named: seen.append("second"), with_kwargs=True)
        model[1].register_forward_hook(lambda m, args, out: seen.append(m))
        model[1].register_full_backward_pre_hook(lambda m, got: seen.append("before backward"))
        model[1].register_full_backward_hook(lambda m, given, got: seen.append("after backward"))
        made = KINDS[kind](model)
        seen.clear()
        made(torch.randn(2, 16, requires_grad=True)).sum().backward()
        assert seen == ["first", "second", made[1], "before backward", "after backward"]

    @pytest.mark.parametrize("make", [ternarized, packed], ids=["ternary", "packed"])
    def test_what_they_return_counts(self, make: Made) -> None:
        """A hook may change the input and the output."""
        x = torch.randn(2, 16)
        plain = make(network())
        model = network()
        model[1].register_forward_pre_hook(lambda m, args: (args[0] * 0,))
        model[1].register_forward_hook(lambda m, args, out: out + 1)
        made = make(model)
        bias = plain[1].bias
        assert torch.equal(made(x), plain[2](bias.expand(2, 16) + 1))

    def test_a_hook_is_called_where_the_layer_fails(self) -> None:
        """One that is always to be called."""
        model, seen = network(), []
        model[1].register_forward_hook(lambda m, args, out: seen.append(out), always_call=True)
        made = packed(model)
        with pytest.raises(LayerShapeError):
            made[1](torch.randn(2, 15))
        assert seen == [None]

    @pytest.mark.parametrize(
        ("layer", "x"),
        [
            (nn.Conv1d(8, 8, 3), torch.randn(2, 8, 9)),
            (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), torch.randn(2, 8, 5, 5)),
            (nn.Embedding(9, 8), torch.arange(6).reshape(2, 3)),
        ],
        ids=["conv1d", "conv2d", "embedding"],
    )
    def test_other_layers(self, layer: nn.Module, x: Tensor) -> None:
        """Convolutions and embeddings, and a model that is one layer."""
        seen: list[nn.Module] = []
        layer.register_forward_hook(lambda m, args, out: seen.append(m))
        made = ternary.pack(ternary.quantize(layer, ternary.Recipe(rules=(("*", "ternary"),)))[0])
        seen.clear()
        made(x)
        assert seen == [made]

    def test_the_model_itself_is_left_as_it_was(self) -> None:
        """A handle removes the hook of the model, and no other."""
        model, seen = network(), []
        handle = model[1].register_forward_hook(lambda m, args, out: seen.append(m))
        made = packed(model)
        handle.remove()
        seen.clear()
        model(torch.randn(2, 16))
        made(torch.randn(2, 16))
        assert seen == [made[1]]

    def test_a_file_loads_into_a_model_with_hooks(self, tmp_path: Path) -> None:
        """Those of the model that is loaded into."""
        ternary.save(ternarized(network()), tmp_path / "m.safetensors")
        model, seen = network(), []
        model[1].register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
        made = ternary.load(tmp_path / "m.safetensors", model, packed=True)
        made(torch.randn(2, 16))
        assert seen == ["PackedLinear"]

    def test_tensors_put_into_a_model_with_hooks(self) -> None:
        """Those of the model that they are put into."""
        model, seen = network(), []
        model[1].register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
        tensor = TernaryTensor(torch.ones(16, 16, dtype=torch.int8), torch.ones(16))
        made = put_into(model, model.state_dict() | {"1.weight": tensor})
        made(torch.randn(2, 16))
        assert seen == ["PackedLinear"]

    def test_no_chain_is_fused_across_them(self) -> None:
        """A fused chain would call no layer."""
        block = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        model, x = nn.Sequential(block).eval(), torch.randn(1, 16, 6, 6)
        recipe = ternary.Recipe(ends="ternary")
        fuse(ternary.pack(ternary.quantize(model, recipe)[0]), x)
        seen: list[Any] = []
        block[0].register_forward_hook(lambda m, args, out: seen.append(1))
        made = ternary.pack(ternary.quantize(model, recipe)[0])
        with pytest.raises(NothingToFuseError):
            fuse(made, x)
        seen.clear()
        made(x)
        assert seen == [1]


class TestState:
    """What a layer held beside its values."""

    @pytest.mark.parametrize("kind", ["ternary", "float again", "trainable", "float channels", "int8"])
    def test_what_was_frozen_stays_frozen(self, kind: str) -> None:
        """And what was not, is not."""
        model = network()
        model[1].requires_grad_(False)
        made = KINDS[kind](model)
        assert not any(p.requires_grad for p in made[1].parameters())
        assert made[0].bias.requires_grad
        assert any(p.requires_grad for p in KINDS[kind](network())[1].parameters())

    @pytest.mark.parametrize("calibration", [None, [torch.randn(8, 16)]], ids=["by rule", "calibrated"])
    def test_every_layer_keeps_its_mode(self, calibration: list[Tensor] | None) -> None:
        """A part that was put into evaluation mode, as a frozen one is, stays there while the rest trains."""
        model = nn.Sequential(network(), nn.BatchNorm1d(4), network()[:1], nn.Linear(16, 4))
        model.insert(2, nn.Linear(4, 16))
        model.train()
        model[0].eval()
        model[1].eval()
        made, _ = ternary.quantize(model, calibration=calibration)
        wanted = {name: module.training for name, module in model.named_modules()}
        assert {name: made.get_submodule(name).training for name in wanted} == wanted
        assert len(set(wanted.values())) == 2

    @pytest.mark.parametrize("kind", ["ternary", "int8", "packed", "float channels"])
    def test_attributes(self, kind: str) -> None:
        """A mark that a user or a library has set."""
        model = network()
        model[1].adapter = "name"
        assert KINDS[kind](model)[1].adapter == "name"

    def test_pruned_layers(self) -> None:
        """The weight that a pruned layer computes is what is quantized; its model stays pruned."""
        model = network()
        prune.l1_unstructured(model[1], "weight", amount=0.9)
        prune.random_unstructured(model[1], "bias", amount=0.5)
        weight, bias = model[1].weight.detach().clone(), model[1].bias.detach().clone()
        made, report = ternary.quantize(model, ternary.Recipe(quantizer="absmean"))
        assert torch.equal(made[1].weight, weight)
        assert torch.equal(made[1].bias, bias)
        assert {layer.name: layer.note for layer in report.layers}["1"] != ""
        assert torch.equal(ternary.pack(made)[1].values() == 0, made[1].ternary_values()[0] == 0)
        assert prune.is_pruned(model[1])
        made(torch.randn(2, 16)).sum().backward()
        assert torch.equal(made[1].weight, weight)
