"""Damages files of every kind that ternary reads, again and again from a seed, and watches what the readers do.

Run as a program: `python hostile_files.py KIND SEED SECONDS`. It prints one line of JSON; a signal or an error that is
not the library's ends it with a traceback. `tests/test_hostile.py` starts it, one process for each kind.
"""

from __future__ import annotations

import json
import random
import runpy
import struct
import sys
import tempfile
import time
from pathlib import Path

import torch

import ternary
from ternary import errors, llm

HERE = Path(__file__).parent
SOURCE = """model M(n: int = 3) {
  a = [repeat(n) [ternary Linear(16, 16), ReLU()]]
  b = Linear(16, 4)
  forward(x: float[N, 16]) -> float[N, 4] { return b(a(x)) }
}
"""
NUMBERS = (0, 1, -1, 3, 7, 16, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, 10**30)
TEXTS = ("", "null", "[]", "{}", '"x"', "-1", "1e999", "NaN", "[[[[", "true", "99999999", '"\\ud800"', "1.5")


def model_file(folder):
    """A model file of the language."""
    path = folder / "m.safetensors"
    ternary.save(ternary.compile(SOURCE)(2), path, arguments={"n": 2})
    return path, lambda: ternary.load(path)


def state_file(folder):
    """The same, read as tensors, in base 3, with scales per group."""
    path = folder / "m.safetensors"
    grouped = SOURCE.replace("ternary Linear", 'ternary(per="group", group=5) Linear')
    ternary.save(ternary.compile(grouped)(), path, encoding="base3")
    return path, lambda: ternary.load(path, ternary.compile(SOURCE)(), packed=True)


def language_model(folder):
    """A model file of a language model, opened and run."""
    path = folder / "m.ternary"
    config = llm.ModelConfig(48, hidden=32, inner=48, layers=2, heads=2, kv_heads=1, head_size=16, context=32)
    tokenizer = runpy.run_path(str(HERE.parent / "benchmarks" / "language_models.py"))["tokenizer"]
    random_models = runpy.run_path(str(HERE / "llm_random.py"))
    random_models["write_random"](config, path, tokenizer=tokenizer(300), chat_template="{{ messages }}")

    def read():
        with llm.load(path, threads=1) as model:
            list(model.generate([1, 2, 3], max_tokens=2, temperature=1.0, seed=0).iterate_tokens())
            model.encode("ab")

    return path, read


def gguf_file(folder):
    """A GGUF of a language model, converted."""
    import gguf

    path = folder / "m.gguf"
    config = llm.ModelConfig(48, hidden=256, inner=256, layers=1, heads=4, kv_heads=2, head_size=64, context=32)
    runpy.run_path(str(HERE / "llm_random.py"))["write_random"](config, folder / "m.ternary")
    llm.to_gguf(folder / "m.ternary", path)
    assert gguf.GGUFReader(path).tensors
    return path, lambda: llm.convert(path, folder / "n.ternary")


def gguf_export(folder):
    """A GGUF of plain layers."""
    path = folder / "m.gguf"
    ternary.export.to_gguf(ternary.compile(SOURCE)(), path)
    return path, lambda: ternary.export.read_gguf(path)


def hugging_face(folder):
    """A Hugging Face folder with packed weights, its settings and its tensors damaged in turn."""
    models = runpy.run_path(str(HERE / "llm_models.py"))
    made, _ = models["folder_of"](folder, "llama", num_hidden_layers=1)
    files = sorted(made.iterdir())
    return files, lambda: llm.convert(made, folder / "n.ternary")


def onnx_file(folder):
    """An ONNX file with ternary weights."""
    path = folder / "m.onnx"
    ternary.export.to_onnx(ternary.nn.TernaryLinear(16, 4), path, torch.randn(2, 16))
    return path, lambda: ternary.export.read_onnx(path)


def source(folder):
    """A program, checked and compiled."""
    path = folder / "m.tri"
    path.write_text(SOURCE + ternary.zoo.source("vit"))
    return path, lambda: ternary.compile(path, "M")


def manifest(folder):
    """The manifest of an export."""
    ternary.export.export(ternary.compile(SOURCE)(), folder / "out", ["safetensors"])
    return folder / "out" / "manifest.json", lambda: ternary.export.verify(folder / "out")


KINDS = {
    made.__name__: made
    for made in (
        model_file,
        state_file,
        language_model,
        gguf_file,
        gguf_export,
        hugging_face,
        onnx_file,
        source,
        manifest,
    )
}


def damage(data, chance):
    """Return damaged bytes: flipped, cut, doubled, or a number or word of the text replaced."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(max(1, min(len(data), chance.choice((64, 1000, 4000, len(data) + 1)))))
        kind = chance.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] = chance.randrange(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[at : at + chance.randrange(1, 200)] * chance.choice((1, 2, 50))
        elif kind == 3:
            data[at : at + 8] = struct.pack("<Q", chance.choice(NUMBERS) % (1 << 64))
        elif kind == 4:
            data[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) % (1 << 32))
        else:
            digits = [i for i in range(at, min(at + 400, len(data))) if chr(data[i]).isdigit()]
            if digits:
                end = digits[0]
                while end < len(data) and chr(data[end]).isdigit():
                    end += 1
                new = chance.choice(TEXTS) if kind == 5 else str(chance.choice(NUMBERS))
                data[digits[0] : end] = new.encode()
    return bytes(data)


def peak():
    """Return the most kilobytes that this program has had; getrusage would count what its parent had before it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def run(kind, seed, seconds):
    """Damage and read for so long; return what was seen."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, read = KINDS[kind](folder)
        read()
        files = files if isinstance(files, list) else [files]
        whole = {file: file.read_bytes() for file in files}
        before = peak()
        begin, rounds, refused, longest = time.process_time(), 0, 0, 0.0
        while time.process_time() - begin < seconds:
            file = chance.choice(files)
            file.unlink()  # a new file: the mapping of the one before keeps its bytes
            data = damage(whole[file], chance)
            file.write_bytes(data)
            start = time.process_time()
            try:
                read()
            except errors.TernaryError:
                refused += 1
            except Exception:
                sys.stderr.write(f"{kind}, seed {seed}, round {rounds}, {file.name}: {data[:3000]!r}\n")
                raise
            longest = max(longest, time.process_time() - start)
            file.unlink()
            file.write_bytes(whole[file])
            rounds += 1
        most = peak()
    size = max(map(len, whole.values()))
    grown = (most - before) * 1024
    return {"kind": kind, "rounds": rounds, "refused": refused, "longest": longest, "grown": grown, "bytes": size}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
