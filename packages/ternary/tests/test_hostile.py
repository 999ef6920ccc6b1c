"""What a file or a program says is compared with its own size before anything is built; damage is an error of ours."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ternary
from ternary._tensorheader import parse_json
from ternary.errors import CompileError, ImportFormatError, ModelFileError
from ternary.llm import ModelConfig, convert, load

HERE = Path(__file__).parent
KINDS = (
    *("model_file", "state_file", "language_model", "gguf_file", "gguf_export", "hugging_face", "onnx_file"),
    *("source", "manifest"),
)
SECONDS = float(os.environ.get("TERNARY_FUZZ_SECONDS", "20"))
"""Processor time of the long fuzz, shared by the kinds of files."""
SEED = int(os.environ.get("TERNARY_FUZZ_SEED", "1"))
FORWARD = "forward(x: float[N, 8]) -> float[N, 8] { return a(x) }"


def forged(path: Path, source: str, **arguments: object) -> Path:
    """A model file of some hundred bytes with any program and arguments."""
    header = {"format": "pentad-ternary", "version": 1, "model": "M", "source": source, "layers": {}}
    header["arguments"] = arguments
    save_file({"a.weight": torch.zeros(2)}, path, metadata={"ternary": json.dumps(header)})
    return path


def fuzz(kind: str, seconds: float, seed: int = 1) -> dict[str, object]:
    """Damage files of a kind for so long, in a process of its own: a signal is its exit status."""
    run = [sys.executable, "-W", "ignore", str(HERE / "hostile_files.py"), kind, str(seed), str(seconds)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


class TestBuildsNothingBeforeItCompares:
    """Small files with large claims are refused in milliseconds."""

    @pytest.mark.parametrize(
        ("source", "arguments"),
        [
            (
                "model M { a = Linear(20000, 20000); forward(x: float[N, 20000]) -> float[N, 20000] { return a(x) } }",
                {},
            ),
            ("model M { a = [repeat(900000) ReLU()]; " + FORWARD + " }", {}),
            ("model M { a = [repeat(900000) Linear(8, 8)]; " + FORWARD + " }", {}),
            ("model M { a = [repeat(1000) [repeat(1000) [repeat(1000) ReLU()]]]; " + FORWARD + " }", {}),
            ("model M(n: int = 1) { a = [repeat(n) Linear(8, 8)]; " + FORWARD + " }", {"n": 10**6}),
            ("model M(n: int = 1) { a = [repeat(n) Linear(8, 8)]; " + FORWARD + " }", {"n": "x"}),
            (
                "model M(n: int = 1) { a = Linear(n, 8); forward(x: float[N, n]) -> float[N, 8] { return a(x) } }",
                {"m": 1},
            ),
            ("model M(n: int = 8) { let k = n * 1000000; a = Linear(8, 8); " + FORWARD + " }", {"n": [0]}),
        ],
        ids=["width", "layers", "weights", "nested", "argument", "type", "unknown", "list"],
    )
    def test_model_files(self, source: str, arguments: dict[str, object], tmp_path: Path) -> None:
        """Time and memory of a file of 400 bytes do not follow the numbers in its program."""
        path = forged(tmp_path / "m.safetensors", source, **arguments)
        begin = time.process_time()
        with pytest.raises((ModelFileError, CompileError)):
            ternary.load(path)
        assert time.process_time() - begin < 1.5

    @pytest.mark.parametrize(
        "source",
        [
            "model M { a = [repeat(1000000) Conv2d(3, 3, 3, padding=2)]; forward(x: float[N, 3, H, W]) -> "
            "float[N, 3, _, _] { return a(x) } }",
            "model M { a = [repeat(1000) [repeat(1000) Conv2d(3, 3, 3, padding=2)]]; forward(x: float[N, 3, 8, 8]) -> "
            "float[N, 3, _, _] { return a(x) } }",
            "layer S { forward(x: float[N, H]) -> float[N, H * H] { return x } }\n"
            "model M { a = [repeat(100) S]; forward(x: float[N, H]) -> float[N, _] { return a(x) } }",
            "model M(n: int, m: int) { let c0 = n + m + 1; "
            + "; ".join(f"let c{i + 1} = c{i} * c{i}" for i in range(20))
            + "; a = Linear(8, 8); "
            + FORWARD
            + " }",
        ],
        ids=["growing", "nested", "squares", "terms"],
    )
    def test_sources(self, source: str) -> None:
        """A line of a program cannot keep the checker busy: it says what is too large."""
        begin = time.process_time()
        assert ternary.check(source)
        assert time.process_time() - begin < 3

    def test_language_models(self, tmp_path: Path) -> None:
        """A header that claims a billion layers, and heads as wide as memory."""
        shape = ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32).as_dict()
        for name, number in (("layers", 10**9), ("head_size", 2**31 - 16), ("hidden", 2**31 - 16), ("eos", [[1]])):
            text = json.dumps({"format": "pentad-ternary-llm", "version": 1, "config": {**shape, name: number}})
            header = json.dumps({"__metadata__": {"ternary": text}}).encode()
            (tmp_path / "m.ternary").write_bytes(struct.pack("<Q", len(header)) + header)
            with pytest.raises(ModelFileError):
                load(tmp_path / "m.ternary")

    def test_hugging_face_folders(self, tmp_path: Path) -> None:
        """A config.json that claims a billion layers, or numbers that are none."""
        good = {
            "model_type": "llama",
            "num_attention_heads": 2,
            "hidden_size": 32,
            "vocab_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 10**9,
        }
        save_file({"model.embed_tokens.weight": torch.zeros(64, 32)}, tmp_path / "m.safetensors")
        for change in ({}, {"hidden_size": float("inf")}, {"rope_scaling": 5}, {"quantization_config": [1]}):
            (tmp_path / "config.json").write_text(json.dumps({**good, **change}))
            with pytest.raises(ImportFormatError):
                convert(tmp_path, tmp_path / "m.ternary")

    def test_gguf(self, tmp_path: Path) -> None:
        """A tensor that is larger than its file is refused by name, before a byte of it is asked for."""
        name = b"blk.0.ffn_gate.weight"
        tensor = struct.pack("<Q", len(name)) + name + struct.pack("<I2QIQ", 2, 1 << 40, 1 << 20, 35, 0)
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor)
        for read in (
            lambda: convert(tmp_path / "m.gguf", tmp_path / "n"),
            lambda: ternary.export.read_gguf(tmp_path / "m.gguf"),
        ):
            with pytest.raises(ImportFormatError, match=r"blk\.0\.ffn_gate"):
                read()

    def test_ties_do_not_multiply_a_tensor(self, tmp_path: Path) -> None:
        """Ten thousand names for one tensor are not ten thousand tensors."""
        source = (
            "model M { a = [repeat(9000) Linear(300, 300, bias=false)]; forward(x: float[N, 300]) -> float[N, 300] "
        )
        source += "{ return a(x) } }"
        ties = {f"a.{i}.weight": "a.0.weight" for i in range(1, 9000)}
        header = {"format": "pentad-ternary", "version": 2, "model": "M", "source": source, "layers": {}, "ties": ties}
        header["arguments"] = {}
        save_file({"a.0.weight": torch.zeros(300, 300)}, tmp_path / "m", metadata={"ternary": json.dumps(header)})
        with pytest.raises(ModelFileError, match="weights, in a file of"):
            ternary.load(tmp_path / "m")

    def test_json_of_nothing_but_brackets(self, tmp_path: Path) -> None:
        """A header of empty lists takes no more memory than the file."""
        header = b"[" + b"[]," * 300_000 + b"[]]"
        (tmp_path / "m").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ImportFormatError):
            load(tmp_path / "m")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """The comparison refuses no file of the library's own: ties, both encodings, many layers, empty ones."""
    programs = {
        "model M { a = [repeat(300) [ternary Linear(8, 8), ReLU()]]; " + FORWARD + " }": {},
        'model M(n: int) { a = [ternary(quantizer="ttq") Linear(8, n), Linear(n, 8)]; ' + FORWARD + " }": {"n": 5},
    }
    for source, arguments in programs.items():
        for encoding in ("2bit", "base3"):
            model = ternary.compile(source)(**arguments)
            ternary.save(model, tmp_path / "m", arguments=arguments, encoding=encoding)
            again = ternary.load(tmp_path / "m")
            x = torch.randn(3, 8)
            assert torch.equal(again(x), model.eval()(x))
    assert np.isfinite(again(x).detach().numpy()).all()


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_for_longer(kind: str) -> None:
    """No signal, no error but the library's, no step over five seconds, memory within 10 times the file and 64 MB."""
    found = fuzz(kind, SECONDS / len(KINDS), SEED)
    assert found["rounds"] > 5
    assert found["longest"] < 5
    assert found["grown"] < 10 * found["bytes"] + (64 << 20)


class TestJson:
    """JSON that would take many times its own size in memory is refused before it is parsed."""

    @pytest.mark.parametrize("empty", ["[]", "{}"])
    @pytest.mark.parametrize("kind", [str, str.encode])
    def test_lists_and_objects_are_counted(self, empty, kind) -> None:
        """A few are parsed, also all in a short text; a text that consists of them is refused, each kind of bracket."""
        few = "[" + f"{empty}," * 900 + "0]"
        assert len(parse_json(kind(few))) == 901
        spaced = "[" + f"{empty}{' ' * 20}," * 5000 + "0]"
        assert len(parse_json(kind(spaced))) == 5001
        many = "[" + f"{empty}," * 5000 + "0]"
        with pytest.raises(ValueError, match=f"^5001 lists and objects in {len(many)} bytes of JSON"):
            parse_json(kind(many))

    def test_deep_nesting_is_refused(self) -> None:
        """Lists within lists, few enough to pass the count, are an error of the text and not of Python's stack."""
        deep = "[" * 100_000 + " " * 1_200_000 + "]" * 100_000
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(deep)
