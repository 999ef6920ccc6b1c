"""Models out of the process and back: files, state dicts, torch's own forms, damage of every kind."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ternary
from ternary import _modelfile as modelfile
from ternary._wholefile import whole_file
from ternary.errors import ExportError, ManifestError, MissingExtraError, ModelFileError, UnknownModelError
from ternary.export import FORMATS, export, read_gguf, read_onnx, to_pt2, to_torchscript, verify
from ternary.export._files import optional


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
        {"version": 4},
        {"format": "other"},
        {"layers": {"hidden": {"shape": [31, 32], "encoding": "2bit", "zeros": 0}}},
        {"layers": {"hidden": {"shape": [32, 99], "encoding": "2bit", "zeros": 0}}},
        {"layers": {"hidden": {"shape": [32, 32], "encoding": "7bit", "zeros": 0}}},
        {"layers": {"gone": {"shape": [32, 32], "encoding": "2bit", "zeros": 0}}},
        {"layers": {"hidden": {"shape": [], "encoding": "2bit", "zeros": 0}}},
        {"layers": {"hidden": {"shape": [32, "32"], "encoding": "2bit", "zeros": 0}}},
        {"layers": {"hidden": {"shape": [32, 32], "encoding": "2bit", "zeros": "many"}}},
        {"layers": 3},
        {"arguments": "ab"},
        {"arguments": {"depth": 3}},
        {"arguments": {"inputs": "x"}},
        {"arguments": {"inputs": -1}},
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
    with pytest.raises((ModelFileError, UnknownModelError)):
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


@pytest.mark.parametrize("form", ["pt2", "trace", "script"])
def test_packed_torch_files(temp_dir: Path, form: str, compiled_simple_model: nn.Module) -> None:
    """Exported programs and TorchScript hold packed weights and give the packed model's floats, any batch."""
    path, packed = temp_dir / "m", ternary.pack(compiled_simple_model)
    with torch.no_grad():
        if form == "pt2":
            to_pt2(compiled_simple_model, path, torch.randn(1, 16))
            other = torch.export.load(path).module()
        else:
            to_torchscript(compiled_simple_model, path, torch.randn(1, 16), form=form)
            other = torch.jit.load(path)
        for batch in (1, 2, 5):
            x = torch.randn(batch, 16)
            assert torch.equal(other(x), packed(x))
    assert any(b.dtype == torch.uint8 for b in other.buffers())


@pytest.mark.timeout(300)  # torch's ONNX exporter reads the sources of its operator library at every call
def test_every_format_in_one_call(temp_dir: Path, compiled_simple_model: nn.Module) -> None:
    """Nine files and a manifest that tells the truth, the same weights in each, progress on the way."""
    seen: list[tuple[str, int, int]] = []
    out = temp_dir / "deep" / "release"
    manifest = export(
        *(compiled_simple_model, out, FORMATS[::-1]),
        example=torch.randn(2, 16),
        name="net",
        progress=lambda *step: seen.append(step),
    )
    assert [f.format for f in manifest.files] == list(FORMATS)
    assert [step[0] for step in seen] == [*FORMATS, ""]
    assert seen[-1][1:] == (len(FORMATS), len(FORMATS))
    assert {p.name for p in out.iterdir()} == {f.name for f in manifest.files} | {"manifest.json"}
    assert verify(out) == manifest
    assert manifest.model == "Simple"
    assert {"torch", "onnx", "gguf", "pentad-ternary"} <= set(manifest.versions)
    values = compiled_simple_model.hidden.ternary_values()[0]
    files = {f.format: out / f.name for f in manifest.files}
    assert torch.equal(read_gguf(files["gguf"])["hidden.weight"].values, values)
    for kind in ("onnx", "onnx-exact", "onnx-matmulnbits", "onnx-compatible"):
        assert torch.equal(read_onnx(files[kind])["hidden.weight"].values, values)
    for kind in ("safetensors", "base3"):
        assert torch.equal(ternary.load(files[kind], packed=True).hidden.values(), values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.gguf").unlink(), "missing"),
        (lambda d: (d / "model.gguf").write_bytes(b"x" * (d / "model.gguf").stat().st_size), "SHA-256 differs"),
        (lambda d: (d / "manifest.json").unlink(), "not complete"),
        (lambda d: (d / "manifest.json").write_text("{}"), "damaged"),
        (lambda d: (d / "manifest.json").write_text("{"), "damaged"),
        (lambda d: (d / "manifest.json").write_text('{"version": 9}'), "version 9"),
        (
            lambda d: (d / "manifest.json").write_text(
                (d / "manifest.json").read_text().replace("model.gguf", "../model.gguf")
            ),
            "outside its folder",
        ),
    ],
)
def test_manifest_finds_damage(temp_dir: Path, compiled_simple_model: nn.Module, damage, message: str) -> None:
    """What is missing, changed, or points elsewhere."""
    export(compiled_simple_model, temp_dir / "r", ["gguf"])
    damage(temp_dir / "r")
    with pytest.raises(ManifestError, match=message):
        verify(temp_dir / "r")


def test_a_failed_export_has_no_manifest(temp_dir: Path, compiled_simple_model: nn.Module) -> None:
    """An earlier manifest does not vouch for files that were being written anew; Ctrl-C leaves whole files."""
    export(compiled_simple_model, temp_dir, ["safetensors", "gguf"])

    def interrupt(kind: str, _done: int, _count: int) -> None:
        if kind == "gguf":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(compiled_simple_model, temp_dir, ["safetensors", "gguf"], progress=interrupt)
    assert {p.name for p in temp_dir.iterdir()} == {"model.safetensors", "model.gguf"}
    assert ternary.load(temp_dir / "model.safetensors")

    def half() -> None:
        with whole_file(temp_dir / "model.gguf") as path:
            path.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert len(list(temp_dir.iterdir())) == 2
    assert read_gguf(temp_dir / "model.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions as POSIX has them")
def test_files_are_readable_by_whom_the_umask_says(temp_dir: Path, compiled_simple_model: nn.Module) -> None:
    """A server under another user can read what was saved, exported or written as a checkpoint."""
    before = os.umask(0o027)
    try:
        ternary.save(compiled_simple_model, temp_dir / "m.safetensors")
        export(compiled_simple_model, temp_dir, ["gguf", "pt2", "torchscript"], example=torch.randn(2, 16))
        batch = (torch.randn(4, 16), torch.zeros(4, dtype=torch.long))
        ternary.fit(compiled_simple_model, lambda: [batch], ternary.TrainConfig(epochs=1), checkpoint=temp_dir / "c.pt")
    finally:
        os.umask(before)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in temp_dir.iterdir()}
    assert modes == dict.fromkeys(
        ("m.safetensors", "model.gguf", "model.pt2", "model.ts", "manifest.json", "c.pt"), oct(0o640)
    )


def test_a_file_that_cannot_be_written_is_named(temp_dir: Path, compiled_simple_model: nn.Module) -> None:
    """The message is on the file that was asked for, not on a temporary one."""
    path = temp_dir / "none" / "m.safetensors"
    with pytest.raises(FileNotFoundError, match=re.escape(repr(str(path)))):
        ternary.save(compiled_simple_model, path)


def test_refused_exports(temp_dir: Path, compiled_simple_model: nn.Module) -> None:
    """Unknown formats, no formats, names that are paths, missing examples, models without ternary layers."""
    for formats in (["tflite"], []):
        with pytest.raises(ExportError, match="choose from safetensors"):
            export(compiled_simple_model, temp_dir, formats)
    for name in ("../m", "", ".m"):
        with pytest.raises(ExportError, match="first part"):
            export(compiled_simple_model, temp_dir, ["gguf"], name=name)
    with pytest.raises(ExportError, match="onnx trace"):
        export(compiled_simple_model, temp_dir, ["gguf", "onnx"])
    with pytest.raises(ExportError, match="no ternary layer"):
        export(nn.Linear(2, 2), temp_dir, ["gguf"])
    with pytest.raises(ExportError, match="'trace' or 'script'"):
        to_torchscript(compiled_simple_model, temp_dir / "m.ts", torch.randn(2, 16), form="jit")
    with pytest.raises(MissingExtraError, match=r"pentad-ternary\[onnx\]"):
        optional("no_such_library", "onnx")
    assert list(temp_dir.iterdir()) == []


DYING = """
import os, resource, signal, sys, torch, ternary
from ternary.export import export
from ternary._wholefile import whole_file
folder, phase = sys.argv[1:]
torch.manual_seed(0)
model = ternary.nn.TernaryLinear(256, 256)
export(model, folder, ["gguf", "base3"])

def die(kind, done, count):
    if kind == "gguf":
        os.kill(os.getpid(), signal.SIGKILL)

if phase == "between":
    export(model, folder, ["base3", "gguf"], progress=die)
elif phase == "within":
    with whole_file(folder + "/model.gguf") as path:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
else:
    sys.dont_write_bytecode = True  # Python would keep what it wrote of a module
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    for kind in ("safetensors", "gguf"):
        try:
            export(model, folder, [kind])
        except OSError as error:
            print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills and limits as POSIX has them")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", ["between", "within", "full"])
def test_dying_in_the_middle(temp_dir: Path, phase: str) -> None:
    """After kill -9 or on a full disk the files are whole, and a manifest vouches for complete folders only."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(temp_dir), phase], capture_output=True, text=True, check=False
    )
    assert read_gguf(temp_dir / "model.gguf")["weight"].values.shape == (256, 256)
    if phase == "within":
        assert done.returncode == -signal.SIGKILL
        assert verify(temp_dir)
        return
    with pytest.raises(ManifestError, match="not complete"):
        verify(temp_dir)
    if phase == "full":
        assert done.stdout.split() == ["OSError"] * 2, done.stderr
        assert {p.name for p in temp_dir.iterdir()} == {"model.gguf", "model.base3.safetensors"}


def test_an_exported_program_has_scales_per_group(tmp_path: Path) -> None:
    """The operator is in the file, its batch size free."""
    model = ternary.nn.TernaryLinear(20, 12, per="group", group=6).eval()
    ternary.export.to_pt2(model, tmp_path / "m.pt2", torch.randn(2, 20))
    x = torch.randn(3, 20)
    assert torch.equal(torch.export.load(tmp_path / "m.pt2").module()(x), ternary.pack(model)(x))
