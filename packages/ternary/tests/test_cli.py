"""The command line, run as people run it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ternary
from ternary._cli import main
from ternary._training import data

EXAMPLES = Path(__file__).parent.parent / "examples"
BAD = "model M {\n  a = Linaer(3, 3)\n  forward(x: float[N, 3]) -> float[N, 3] { return a(x) }\n}\n"


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Good sources exit 0, bad ones 1 with a caret; JSON is for editors."""
    assert main(["check", "resnet18", str(EXAMPLES / "digits.tri")]) == 0
    path = tmp_path / "bad.tri"
    path.write_text(BAD, encoding="utf-8")
    capsys.readouterr()
    assert main(["check", str(path)]) == 1
    assert "^^^^^^" in capsys.readouterr().out
    assert main(["check", "--json", str(path)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(d["line"], d["column"], d["end_column"], d["code"]) for d in found] == [(2, 7, 13, "unknown-name")]
    path.write_bytes(b"\xff")
    assert main(["check", str(path)]) == 1


def test_fmt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Formatting in place, and only asking."""
    path = tmp_path / "m.tri"
    path.write_text("model M{forward(x:float[N])->float[N]{return x}}", encoding="utf-8")
    assert main(["fmt", "--check", str(path)]) == 1
    assert main(["fmt", str(path)]) == 0
    assert path.read_text(encoding="utf-8").startswith("model M {\n  forward(x: float[N]) -> float[N] {\n")
    assert main(["fmt", "--check", str(path)]) == 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's names of descriptors")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Code goes into a pipe, or to a descriptor, which may be that of a file with text in it."""
    source, pipe, file = tmp_path / "m.tri", tmp_path / "pipe", tmp_path / "file"
    source.write_text("model M {\n  forward(x: float[N]) -> float[N] { return x }\n}\n", encoding="utf-8")
    assert main(["compile", str(source)]) == 0
    code = capsys.readouterr().out
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main(["compile", str(source), "-o", str(pipe)]) == 0
    assert os.read(reader, 1 << 16).decode().strip() == code.strip()
    with pytest.raises(ternary.errors.ModelFileError, match="a device or a pipe; name a file"):
        ternary.save(ternary.nn.TernaryLinear(4, 4), pipe)
    os.close(reader)
    assert pipe.is_fifo()
    with file.open("w+b") as named:
        named.write(b"# before\n")
        named.flush()
        assert main(["compile", str(source), "-o", f"/proc/self/fd/{named.fileno()}"]) == 0
    assert file.read_text(encoding="utf-8").strip() == "# before\n" + code.strip()


def test_fmt_goes_on_behind_errors_and_keeps_files_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source with errors is said and left; the next one is formatted, under its own name, link and permissions."""
    broken, good, link = tmp_path / "broken.tri", tmp_path / "good.tri", tmp_path / "link.tri"
    broken.write_text("model", encoding="utf-8")
    good.write_text("model M{forward(x:float[N])->float[N]{return x}}", encoding="utf-8")
    good.chmod(0o640)
    link.symlink_to(good)
    assert main(["fmt", str(broken), str(link)]) == 1
    said = capsys.readouterr()
    assert "error" in said.err
    assert "reformatted" in said.out
    assert good.read_text(encoding="utf-8").startswith("model M {\n")
    assert link.is_symlink()
    assert good.stat().st_mode & 0o777 == 0o640
    assert broken.read_text(encoding="utf-8") == "model"
    assert sorted(tmp_path.iterdir()) == [broken, good, link]


def test_standard_input() -> None:
    """A dash stands for standard input; the module runs as a program."""
    command = [sys.executable, "-m", "ternary"]
    checked = subprocess.run([*command, "check", "-"], input=BAD, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "<stdin>:2:7" in checked.stdout
    text = "model M {forward(x: float[N]) -> float[N] {return x}}"
    out = subprocess.run([*command, "fmt", "-"], input=text, capture_output=True, text=True, check=True).stdout
    assert out.endswith("  }\n}\n")


def test_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch source to a file or to the terminal, ternary or float."""
    assert main(["compile", "mlp", "-o", str(tmp_path / "m.py")]) == 0
    assert "TernaryLinear" in (tmp_path / "m.py").read_text(encoding="utf-8")
    assert main(["compile", "mlp", "--float"]) == 0
    assert "TernaryLinear" not in capsys.readouterr().out
    assert main(["compile", "nothing"]) == 2
    assert "neither a file nor in the zoo" in capsys.readouterr().err


def test_train_inspect_pack_quantize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command from source to packed file, table and pictures; the others take that file."""
    runs = tmp_path / "runs"
    split = data.digits()
    np.savez(tmp_path / "few.npz", x=split.train_x[:200], y=split.train_y[:200])
    command = ["train", str(EXAMPLES / "digits.tri"), "--compare", "float,twn", "--epochs", "1"]
    command += ["--data", str(tmp_path / "few.npz")]
    assert main([*command, "--set", "width=8", "--out", str(runs)]) == 0
    assert "twn" in capsys.readouterr().out
    file = str(runs / "digits-twn.safetensors")
    names = {p.name for p in runs.iterdir()}
    assert {"results.json", "curves.png", "accuracy.png", "digits-twn.safetensors"} <= names
    assert main(["inspect", file, "--picture", str(tmp_path / "p.png")]) == 0
    assert "quantizer='twn'" in capsys.readouterr().out
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert main(["inspect", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arguments"] == {"width": 8, "quantizer": "twn"}
    assert main(["pack", file, str(tmp_path / "b.safetensors")]) == 0
    assert main(["quantize", file, "--json"]) == 0
    capsys.readouterr()
    assert main(["quantize", "mlp", "-o", str(tmp_path / "q.safetensors")]) == 0
    assert "total" in capsys.readouterr().out
    assert main([*command, "--set", "width=8", "--out", str(runs), "--json"]) == 0
    assert {r["method"] for r in json.loads(capsys.readouterr().out)} == {"float", "twn"}


def test_train_mixes_samples_of_distilled_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The float network trains on any samples; its student needs some from which a span can be taken."""
    monkeypatch.chdir(tmp_path)
    np.savez("one.npz", x=np.arange(20.0).reshape(20, 1), y=np.arange(20) % 2)
    source = "model M {\n a = Linear(1, 2)\n forward(x: float[N, 1]) -> float[N, 2] { return a(x) }\n}\n"
    Path("m.tri").write_text(source, encoding="utf-8")
    command = ["train", "m.tri", "--data", "one.npz", "--epochs", "1", "--student-cutmix", "0.5"]
    assert main([*command, "--compare", "float,distilled"]) == 2
    assert "cutmix cannot take a span from inputs of shape [16, 1]" in capsys.readouterr().err


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    """Compile and forward times of a network."""
    assert main(["bench", "mlp", "--shape", "2,64", "--repeat", "2", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["parameters"] == 151_562
    assert row["threads"] == torch.get_num_threads()
    assert main(["bench", "mlp", "--shape", "2,64"]) == 0


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors are one line on standard error and exit 2, as wrong usage does, and help teaches by example."""
    (tmp_path / "m.safetensors").write_bytes(b"123456789")
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 2
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    assert main(["train", "mlp", "--data", "imagenet"]) == 2
    assert all(line.startswith("ternary: ") for line in capsys.readouterr().err.splitlines())
    ternary.save(ternary.zoo.load("mlp")(width=8), tmp_path / "m.safetensors")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "m.safetensors"), "--picture", str(tmp_path / "p.xyz")]) == 2
    assert "wanted an ending such as .png" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "ternary train net.tri --data digits" in capsys.readouterr().out


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with one line and 130."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ternary._language.compiler.read_source", interrupt)
    monkeypatch.setattr("ternary._cli.commands.check.locate", interrupt)
    assert main(["check", "resnet18"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Formats by name, from the zoo and from a file, as text and as JSON; wrong ones are named with the right ones."""
    out = tmp_path / "release"
    command = ["export", "mlp", "--shape", "2,64", "--out", str(out)]
    assert main([*command, "--to", "gguf", "--to", "pt2", "--to", "safetensors"]) == 0
    assert "mlp.gguf" in capsys.readouterr().out
    assert (
        main(["export", str(out / "mlp.safetensors"), "--to", "base3", "--out", str(out), "--json", "--name", "n"]) == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in shown["files"]] == ["n.base3.safetensors"]
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8")) == shown
    assert main([*command, "--to", "tflite"]) == 2
    assert "choose from safetensors" in capsys.readouterr().err
    assert main(["export", "mlp", "--to", "pt2", "--out", str(out)]) == 2
    assert "--shape" in capsys.readouterr().err
    assert main(["export", str(EXAMPLES / "digits.tri"), "--to", "torchscript", "--out", str(out)]) == 0


def test_export_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal each format is named while it is written."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["export", "mlp", "--to", "gguf", "--to", "base3", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().err
    assert "1/2 gguf" in shown
    assert "2/2" in shown


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    """The active kernel, the compiler and the optional packages; JSON says the same."""
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("active kernel")
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["active"] in shown
    assert report["packages"]["onnxruntime"]
    assert report["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("name", ["export", "doctor"])
def test_help_of_export_and_doctor(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Help says what a command is for; that of export lists the formats."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert "kernel" in shown or all(kind in shown for kind in ("onnx-compatible", "gguf", "pt2", "example"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "mlp", "--shape", "2,x"], "'2,x' is no shape"),
        (["bench", "mlp", "--shape", "0,3"], "no shape"),
        (["bench", "mlp", "--shape", "2,64", "--repeat", "0"], "no whole number above 0"),
        (["train", "mlp", "--data", "digits", "--set", "width"], "lacks a name or a value"),
        (["train", "mlp", "--data", "digits", "--threads", "0"], "no whole number above 0"),
        (["train", "mlp", "--data", "digits", "--learning-rate", "-1"], "no number above 0"),
        (["train", "mlp", "--data", "digits", "--learning-rate", "fast"], "no number above 0"),
        (["train", "mlp", "--data", "digits", "--student-cutmix", "2"], "no fraction from 0 to 1"),
        (["train", "mlp", "--data", "digits", "--student-cutmix", "some"], "no fraction from 0 to 1"),
        (["export", "mlp", "--to", "pt2", "--out", "o", "--shape", "2,x"], "'2,x' is no shape"),
        (["quantize", "mlp", "--rule", "=int8"], "lacks a name or a value"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An option that cannot be read is explained; the exit status is 2."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "mlp", "--shape", "2,63"], "does not take one input of shape [2, 63]"),
        (["bench", "bitnet", "--shape", "2,8"], "does not take one input"),
        (["train", "mlp", "--data", "digits", "--set", "widht=8"], "did you mean 'width'?"),
        (["train", "mlp", "--data", "digits", "--student-set", "widht=8"], "did you mean 'width'?"),
        (["bench", "mlp", "--shape", "99999999999999999999,64"], "does not take one input"),
        (["train", "mlp", "--data", "digits", "--set", "width=wide"], "MLP cannot be made with {'width': 'wide'}"),
        (["train", "mlp", "--data", "digits", "--set", "width=-3"], "cannot be made"),
        (["train", "mlp", "--data", "digits", "--set", "classes=3"], "the data have 10 classes"),
        (["train", "mlp", "--data", "mnist1d"], "MLP does not take samples of shape [40]"),
        (["train", "resnet18", "--data", "digits"], "does not take samples of shape [64]"),
        (["train", str(EXAMPLES / "mnist1d.tri"), "--data", "digits"], "shape [64], which cannot become [1, 40]"),
        (["export", "mlp", "--to", "pt2", "--shape", "2,63", "--out", "o"], "torch cannot write MLP"),
        (["export", "mlp", "--to", "torchscript", "--shape", "2,63", "--out", "o"], "inputs of shape [2, 63]"),
        (["export", "bitnet", "--to", "pt2", "--shape", "2,8", "--out", "o"], "torch cannot write"),
        (["quantize", "mlp", "--rule", "*=int7"], "int7"),
    ],
)
def test_wrong_values(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that does not fit the network is an error of ours, never a traceback."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_mixed_precision_by_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Patterns of layer names choose precisions."""
    assert main(["quantize", "mlp", "--rule", "head=float", "--rule", "hidden.*=int8", "--json"]) == 0
    found = {r["name"]: r["precision"] for r in json.loads(capsys.readouterr().out)}
    assert found["head"] == "float"
    assert {v for k, v in found.items() if k.startswith("hidden.")} == {"int8"}


@pytest.mark.parametrize("command", ["check", "fmt", "compile", "train", "quantize", "pack", "inspect", "bench"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains every one of its arguments."""
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    shown = [i for i, line in enumerate(lines) if line.startswith("  ") and not line.startswith("   ")]
    assert shown
    assert all(len(lines[i].split()) > 2 or lines[i + 1].startswith("       ") for i in shown)


def test_closed_streams_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program starts with closed streams, their numbers must not go to files that it opens."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["check", "nowhere"]) == 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()  # that there is one


def test_a_failure_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts that read standard output find the error's name there; people find it on standard error."""
    for arguments in (["check", "nowhere", "--json"], ["--json", "quantize", "nowhere"]):
        assert main(arguments) == 2
        said = capsys.readouterr()
        failed = json.loads(said.out)
        assert (failed["error"], failed["message"] in said.err) == ("UnknownModelError", True)


def test_a_terminal_without_the_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an ASCII terminal cannot show is escaped; it was a traceback."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    (tmp_path / "a\u00e9.tri").write_text("model M = [Linear(2, 2)]")
    assert main(["check", str(tmp_path / "a\u00e9.tri")]) == 0
    assert b"a\\xe9.tri: no errors" in written.getvalue()
