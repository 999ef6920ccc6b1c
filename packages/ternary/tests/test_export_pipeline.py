"""Models out of the process and back: files, state dicts, torch's own forms, damage of every kind."""

import json
import struct
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ternary
from ternary import modelfile
from ternary.errors import ModelFileError


@pytest.fixture
def saved(compiled_simple_model: nn.Module, temp_dir: Path) -> Path:
    """A model file."""
    ternary.save(compiled_simple_model, temp_dir / "m.safetensors")
    return temp_dir / "m.safetensors"


def test_state_dict(compiled_simple_model: nn.Module, temp_dir: Path, utils: ModuleType, simple_source: str) -> None:
    """Plain PyTorch saving works on compiled models."""
    torch.save(compiled_simple_model.state_dict(), temp_dir / "s.pt")
    other = ternary.compile(simple_source)()
    other.load_state_dict(torch.load(temp_dir / "s.pt", weights_only=True))
    utils.compare_model_outputs(other, compiled_simple_model, torch.randn(3, 16), 0.0)


@pytest.mark.parametrize("encoding", ["2bit", "base3"])
@pytest.mark.parametrize("quantizer", ["twn", "ttq", "absmean", "fixed", "sparse"])
def test_model_file(temp_dir: Path, utils: ModuleType, encoding: str, quantizer: str) -> None:
    """The file alone gives back the model, bit for bit, and packing it again changes nothing."""
    arguments = {"quantizer": quantizer, "width": 33}
    model = ternary.zoo.load("mlp")(**arguments).eval()
    info = ternary.save(model, temp_dir / "a.safetensors", arguments=arguments, encoding=encoding)
    again = ternary.load(temp_dir / "a.safetensors")
    utils.compare_model_outputs(again, model, torch.randn(4, 64), 0.0)
    ternary.save(again, temp_dir / "b.safetensors", arguments=arguments, encoding=encoding)
    assert (temp_dir / "a.safetensors").read_bytes() == (temp_dir / "b.safetensors").read_bytes()
    assert info.layers["hidden.0.0"].shape == (33, 33)
    assert info.tensor_bytes["hidden.0.0.weight.packed"] == 33 * (9 if encoding == "2bit" else 7)


def test_file_is_plain_safetensors(saved: Path) -> None:
    """Any safetensors reader sees the tensors; the header is JSON under one key."""
    tensors = load_file(saved)
    assert tensors["hidden.weight.packed"].dtype == torch.uint8
    raw = saved.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    inside = json.loads(header["__metadata__"]["ternary"])
    assert (inside["format"], inside["version"], inside["model"]) == ("pentad-ternary", 1, "Simple")


def test_float_model_takes_the_ternary_state(saved: Path, simple_source: str) -> None:
    """The float form of the network computes the same from the file's values."""
    plain = ternary.compile(simple_source, quantized=False)()
    plain.load_state_dict(modelfile.read_state(saved))
    x = torch.randn(2, 16)
    assert torch.allclose(plain(x), ternary.load(saved)(x), atol=1e-6)


def test_other_models_need_to_be_given(temp_dir: Path, reference_pytorch_model: nn.Module) -> None:
    """A file without a program says so; a model that does not fit is refused."""
    made, _ = ternary.quantize(reference_pytorch_model)
    ternary.save(made, temp_dir / "m.safetensors")
    with pytest.raises(ModelFileError, match="no program"):
        ternary.load(temp_dir / "m.safetensors")
    with pytest.raises(ModelFileError, match="does not fit"):
        ternary.load(temp_dir / "m.safetensors", nn.Linear(2, 2))


def test_tied_weights(temp_dir: Path) -> None:
    """One weight under two names is stored twice and read back."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    ternary.save(model, temp_dir / "m.safetensors")
    assert torch.equal(load_file(temp_dir / "m.safetensors")["b.weight"], model["a"].weight)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_cut_files(saved: Path, keep: float) -> None:
    """A file that lacks its end is an error of ours."""
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ModelFileError):
        ternary.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"layers": {"hidden": {"shape": [31, 32], "encoding": "2bit", "zeros": 0}}},
        {"layers": {"hidden": {"shape": [32, 99], "encoding": "2bit", "zeros": 0}}},
        {"layers": {"hidden": {"shape": [32, 32], "encoding": "7bit", "zeros": 0}}},
        {"layers": {"gone": {"shape": [32, 32], "encoding": "2bit", "zeros": 0}}},
        {"layers": 3},
        {"model": "Other", "layers": {}},
    ],
)
def test_wrong_headers(saved: Path, change: dict[str, object]) -> None:
    """Versions, formats, shapes and names that do not fit are refused."""
    tensors = load_file(saved)
    raw = saved.read_bytes()
    table = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    header = {**json.loads(table["__metadata__"]["ternary"]), **change}
    save_file(tensors, saved, metadata={"ternary": json.dumps(header)})
    with pytest.raises((ModelFileError, ternary.TernaryError)):
        ternary.load(saved)


def test_damaged_codes(saved: Path) -> None:
    """A code that stands for no value is found, and foreign safetensors files are recognised."""
    raw = saved.read_bytes()
    length = 8 + struct.unpack("<Q", raw[:8])[0]
    metadata = json.loads(raw[8:length])["__metadata__"]
    tensors = load_file(saved)
    tensors["hidden.weight.packed"][0, 0] = 255
    save_file(tensors, saved, metadata=metadata)
    with pytest.raises(ModelFileError, match="layer 'hidden'"):
        ternary.load(saved)
    save_file(tensors, saved)
    with pytest.raises(ModelFileError, match="no ternary model file"):
        modelfile.info(saved)


def test_failed_save_leaves_nothing(temp_dir: Path, compiled_simple_model: nn.Module) -> None:
    """An unknown encoding or a directory that is not there leave no file behind."""
    with pytest.raises(ModelFileError, match="7bit"):
        ternary.save(compiled_simple_model, temp_dir / "m.safetensors", encoding="7bit")
    with pytest.raises(FileNotFoundError):
        ternary.save(compiled_simple_model, temp_dir / "none" / "m.safetensors")
    with pytest.raises(FileNotFoundError):
        ternary.load(temp_dir / "m.safetensors")
    assert list(temp_dir.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # still part of torch, and wanted
@pytest.mark.parametrize("name", ["mlp", "vit"])
@pytest.mark.parametrize("form", ["trace", "script", "export"])
def test_torch_forms(name: str, form: str, temp_dir: Path) -> None:
    """Traced, scripted and exported programs are saved, loaded and agree."""
    model = ternary.zoo.load(name)().eval()
    x = torch.randn(2, *((64,) if name == "mlp" else (3, 32, 32)))
    with torch.no_grad():
        if form == "export":
            torch.export.save(torch.export.export(model, (x,)), temp_dir / "m.pt2")
            other = torch.export.load(temp_dir / "m.pt2").module()
        else:
            made = torch.jit.trace(model, x) if form == "trace" else torch.jit.script(model)
            made.save(temp_dir / "m.ts")
            other = torch.jit.load(temp_dir / "m.ts")
        assert (other(x) - model(x)).abs().max() < 1e-5
