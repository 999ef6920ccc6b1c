"""A file of a quantized model needs nothing but the float model to be read: it says what became of each layer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ternary
from ternary.errors import ModelFileError


class Mixed(nn.Module):
    """An embedding, convolutions of several kinds, a layer that is used twice, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.narrow = nn.Conv1d(16, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 32, 3, padding="same", padding_mode="reflect")
        self.twice = nn.Linear(32, 32)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 16))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits for each row of tokens."""
        x = self.narrow(self.words(tokens).mT)
        x = self.wide(self.deep(x.unsqueeze(-1).expand(*x.shape, 4))).mean((2, 3))
        logits: Tensor = self.head(self.computed(self.twice(self.twice(x).relu())))
        return logits


def made(seed: int) -> nn.Module:
    """Return a model with random weights."""
    torch.manual_seed(seed)
    return Mixed().eval()


def large(seed: int) -> nn.Module:
    """Likewise, of linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


TOKENS = torch.arange(12).reshape(2, 6)
X = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
X[:, 5] *= 1000  # a channel that calibration keeps float
CASES: dict[str, tuple[Any, Tensor, dict[str, Any]]] = {
    "calibrated": (large, X, {"calibration": [X]}),
    "ttq": (large, X[:, :], {"recipe": ternary.Recipe(quantizer="ttq")}),
    "all ternary": (made, TOKENS, {"recipe": ternary.Recipe(rules=(("*", "ternary"),))}),
    "mixed": (made, TOKENS, {"calibration": [TOKENS]}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("packed", [False, True])
def test_it_loads_into_the_float_model(tmp_path: Path, case: str, packed: bool) -> None:
    """Another process has the architecture with other weights, and no recipe and no calibration data."""
    make, x, options = CASES[case]
    small, _ = ternary.quantize(make(0), **options)
    saved = ternary.pack(small) if packed else small
    ternary.save(saved, tmp_path / "small.safetensors")
    other = make(1)
    before = copy.deepcopy(other.state_dict())
    loaded = ternary.load(tmp_path / "small.safetensors", other, packed=packed)
    assert torch.equal(loaded(x), saved(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    ternary.save(loaded, tmp_path / "again.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "again")]
    assert sizes[0] == sizes[1]
    if case == "calibrated":
        assert any(isinstance(layer, ternary.nn.FloatChannels) for layer in loaded.modules())


def test_a_program_with_int8_layers_needs_no_model(tmp_path: Path) -> None:
    """The program makes the float layers, and the description the others."""
    model = ternary.zoo.load("mlp")(width=32).eval()
    small, _ = ternary.quantize(model, ternary.Recipe(rules=(("*", "int8"),)))
    ternary.save(small, tmp_path / "small.safetensors", arguments={"width": 32})
    x = torch.randn(3, 64)
    assert torch.equal(ternary.load(tmp_path / "small.safetensors")(x), small(x))


def test_a_packed_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Its layers have no float weights to replace."""
    small, _ = ternary.quantize(large(0))
    ternary.save(small, tmp_path / "small.safetensors")
    with pytest.raises(ModelFileError, match="load into the float one, with packed=True"):
        ternary.load(tmp_path / "small.safetensors", ternary.pack(small))
    with pytest.raises(ModelFileError, match="does not fit Sequential, which has no layer '2'"):
        ternary.load(tmp_path / "small.safetensors", nn.Sequential(nn.Linear(64, 64)))
    with pytest.raises(ModelFileError, match="is int8, which a ReLU cannot become"):
        ternary.load(tmp_path / "small.safetensors", nn.Sequential(*[nn.ReLU() for _ in range(5)]))


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {"2": []},
        {"2": {"kind": "odd"}},
        {"2": {"kind": "ternary", "per": "row", "activations": "int8", "quantizer": "exact"}},
        {"2": {"kind": "float channels", "channels": [-1]}},
        {"2": {"kind": "float channels", "channels": [10**9]}, "2.layer": {"kind": "int8"}},
        {"2": {"kind": "float channels", "channels": [1]}},
        {"2": {"kind": "float channels", "channels": [1] * 100_000}, "2.layer": {"kind": "int8"}},
        {"x" * 10_000: {"kind": "int8"}},
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, damaged: Any) -> None:
    """What a file says is checked before a layer is made."""
    small, _ = ternary.quantize(large(0))
    path = tmp_path / "small.safetensors"
    ternary.save(small, path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["ternary"])
    header["quantized"] = damaged
    save_file(load_file(path), path, metadata={"ternary": json.dumps(header)})
    with pytest.raises(ModelFileError) as caught:
        ternary.load(path, large(0))
    assert len(str(caught.value)) < 1000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantized_and_a_packed_model_can_be_traced() -> None:
    """A trace is for inference: it holds no gradients, and its check finds the same graph twice."""
    small, _ = ternary.quantize(large(0), calibration=[X])
    for model in (small, ternary.pack(small)):
        assert torch.equal(torch.jit.trace(model, X)(X), model(X))
