"""Checkpoints to model files: packed, sharded, master weights, GGUF; damage is refused, memory stays small."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ternary.errors import ExportError, ImportFormatError, ModelFileError
from ternary.llm import ModelConfig, convert, load, to_gguf
from ternary.llm._gguf import GGUFFile
from ternary.llm._modelfile import open_file

pytestmark = pytest.mark.timeout(300)  # transformers alone takes long to import on a busy machine


def beside(name):
    """A helper file of this folder: without packages it cannot be imported by name."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name(name))))


models, random_models = beside("llm_models.py"), beside("llm_random.py")
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}


def same_tensors(one, other, but=()) -> None:
    """Two model files hold the same numbers."""
    a, b = open_file(one).tensors, open_file(other).tensors
    assert a.keys() - but == b.keys() - but
    for name in a.keys() - but:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


class TestHuggingFace:
    """Folders as they are published."""

    @pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
    @pytest.mark.parametrize("shards", [1, 3])
    def test_packed_equals_float(self, linear_class, shards, tmp_path) -> None:
        """Packed uint8 weights with their scale, in shards, are the float weights that they stand for."""
        model = models.hugging_face_model("bitnet", tie_word_embeddings=True)
        model.save_pretrained(tmp_path / "float")
        models.save_packed(model, tmp_path / "packed", shards, linear_class)
        for folder in ("float", "packed"):
            convert(tmp_path / folder, tmp_path / f"{folder}.ternary")
        a, b = (open_file(tmp_path / f"{folder}.ternary").tensors for folder in ("float", "packed"))
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)

    def test_master_weights_are_quantized_as_transformers_does(self, tmp_path) -> None:
        """bfloat16 master weights of an online configuration: the values and scale of its WeightQuant."""
        from transformers import BitNetConfig, BitNetForCausalLM

        model = BitNetForCausalLM(BitNetConfig(**models.SHAPE, bos_token_id=1, eos_token_id=2)).to(torch.bfloat16)
        model.save_pretrained(tmp_path / "m")
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "quantization_config": online}))
        convert(tmp_path / "m", tmp_path / "m.ternary")
        file = open_file(tmp_path / "m.ternary")
        for layer, block in enumerate(model.model.layers):
            weight = block.mlp.up_proj.weight.detach().float()
            scale = 1.0 / weight.abs().mean().clamp_(min=1e-5)
            found = file.matrix(f"layers.{layer}.up")
            assert np.array_equal(found.values(), (weight * scale).round().clamp(-1, 1).to(torch.int8).numpy())
            assert found.scale == pytest.approx(float(1 / scale))

    def test_float_weights_that_are_not_ternary_are_refused_by_name(self, tmp_path) -> None:
        """A plain Llama is not rounded silently; asked for, it is."""
        from transformers import LlamaConfig, LlamaForCausalLM

        LlamaForCausalLM(LlamaConfig(**models.SHAPE)).save_pretrained(tmp_path / "m")
        with pytest.raises(ImportFormatError, match=r"layers\.0\.self_attn\.q_proj.*row 0 is not ternary"):
            convert(tmp_path / "m", tmp_path / "m.ternary")
        assert not (tmp_path / "m.ternary").exists()
        convert(tmp_path / "m", tmp_path / "m.ternary", weights="absmean")
        assert load(tmp_path / "m.ternary").logits([1, 2]).shape == (2, 300)

    @pytest.mark.parametrize(
        ("damage", "word"),
        [
            (lambda f: (f / "config.json").unlink(), "config.json is missing"),
            (lambda f: (f / "config.json").write_text("{"), "no JSON"),
            (lambda f: (f / "config.json").write_text("[" * 100000), "no JSON"),
            (lambda f: (f / "model-00001-of-00001.safetensors").unlink(), "no .safetensors"),
            (lambda f: os.truncate(f / "model-00001-of-00001.safetensors", 90000), "cut off"),
            (lambda f: (f / "model-00001-of-00001.safetensors").write_bytes(b"\xff" * 64), "damaged"),
        ],
    )
    def test_damage_is_refused(self, damage, word, tmp_path) -> None:
        """What is missing or broken is named, and no file appears."""
        folder, _ = models.folder_of(tmp_path)
        damage(folder)
        with pytest.raises(ImportFormatError, match=word):
            convert(folder, tmp_path / "m.ternary")
        assert not list(tmp_path.glob("*.ternary"))

    @pytest.mark.parametrize("change", ["code", "scale", "shape", "missing"])
    def test_wrong_tensors_are_refused_by_name(self, change, tmp_path) -> None:
        """A code without a value, a scale of 0, a wrong shape, a missing tensor."""
        from safetensors.torch import load_file, save_file

        folder, _ = models.folder_of(tmp_path)
        file = folder / "model-00001-of-00001.safetensors"
        state = load_file(file)
        name = "model.layers.1.mlp.down_proj.weight"
        if change == "code":
            state[name][3, 5] = 0b1100
        elif change == "scale":
            state[name + "_scale"][0] = 0
        elif change == "shape":
            state[name] = state[name][:, :-16].contiguous()
        else:
            del state[name]
        save_file(state, file)
        with pytest.raises(ImportFormatError, match=r"layers\.1\.(mlp\.down_proj|down)"):
            convert(folder, tmp_path / "m.ternary")


class TestGGUF:
    """Files of llama.cpp and of the BitNet project."""

    @pytest.mark.parametrize("kind", ["llama", "bitnet"])
    def test_there_and_back(self, kind, tmp_path) -> None:
        """A model file to GGUF and back: the same ternary matrices, whose scale half precision holds."""
        model = models.hugging_face_model(kind, tie_word_embeddings=kind == "bitnet", **WIDE)
        for name, module in model.named_modules():
            if name.endswith(models.PROJECTIONS):
                module.weight.data = module.weight.sign() * 0.125
        model.save_pretrained(tmp_path / "m")
        models.small_tokenizer(tmp_path / "m")
        convert(tmp_path / "m", tmp_path / "a.ternary")
        to_gguf(tmp_path / "a.ternary", tmp_path / "m.gguf")
        convert(tmp_path / "m.gguf", tmp_path / "b.ternary")
        heads = {f"{n}{s}" for n in ("embedding", "head") for s in ("", ".scale")}
        same_tensors(tmp_path / "a.ternary", tmp_path / "b.ternary", heads | {"tokenizer"})
        a, b = (load(tmp_path / f"{n}.ternary") for n in "ab")
        for text in ("the quick brown", "Grüße 你好", "a1 b22  c\n\nd"):
            assert a.encode(text) == b.encode(text)
        messages = [{"role": "user", "content": "the fox"}]
        assert a.encode(messages) == b.encode(messages)
        ids = models.tokens(20)
        error = np.abs(a.logits(ids) - b.logits(ids))
        assert np.median(error) < 0.05 * a.logits(ids).std()

    @pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "F16"])
    def test_blocks_of_the_gguf_package(self, kind, tmp_path) -> None:
        """Tensors that the gguf package quantizes, rows of one scale each."""
        import gguf

        path, weight = tmp_path / "m.gguf", self._weight()
        self._write(path, lambda w: self._add(w, gguf, weight, kind))
        found = GGUFFile(path).matrix("layers.0.gate")
        np.testing.assert_array_equal(found.values() * found.scale[:, None], weight)

    def test_i2s_of_the_bitnet_project(self, tmp_path) -> None:
        """Blocks of 128 weights, the first 32 in the highest bits, one scale at the end."""
        import gguf

        path, weight = tmp_path / "m.gguf", np.sign(self._weight()).astype(np.int8)
        codes = (weight + 1).astype(np.uint8).reshape(-1, 4, 32)
        packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
        raw = packed.tobytes() + np.float32(0.375).tobytes() + bytes(28)
        # The package does not know the type: write the bytes under another one, and change its number.
        whole = np.frombuffer(raw + bytes(weight.size - len(raw)), np.int8).reshape(weight.shape)
        self._write(path, lambda w: w.add_tensor("blk.0.ffn_gate.weight", whole))
        data = bytearray(path.read_bytes())
        at = data.index(b"blk.0.ffn_gate.weight") + len(b"blk.0.ffn_gate.weight") + 4 + 2 * 8
        assert struct.unpack_from("<I", data, at)[0] == gguf.GGMLQuantizationType.I8
        struct.pack_into("<I", data, at, 36)
        path.write_bytes(data)
        found = GGUFFile(path).matrix("layers.0.gate")
        np.testing.assert_array_equal(found.values(), weight)
        assert (found.scale == np.float32(0.375)).all()

    def test_weights_of_several_scales_are_refused(self, tmp_path) -> None:
        """A row whose blocks differ in scale was quantized from floats, and is no ternary row."""
        import gguf

        weight = self._weight()
        weight[:, :256] *= 2
        path = tmp_path / "m.gguf"
        self._write(path, lambda w: self._add(w, gguf, weight, "TQ2_0"))
        with pytest.raises(ImportFormatError, match=r"blk\.0\.ffn_gate.*different scales"):
            GGUFFile(path).matrix("layers.0.gate")

    def test_other_types_are_refused_by_name(self, tmp_path) -> None:
        """Q8_0 projections are no ternary weights."""
        import gguf

        path = tmp_path / "m.gguf"
        self._write(path, lambda w: self._add(w, gguf, self._weight(), "Q8_0"))
        with pytest.raises(ImportFormatError, match=r"blk\.0\.ffn_gate.*not ternary"):
            GGUFFile(path).matrix("layers.0.gate")

    def test_one_of_several_parts_is_refused(self, tmp_path) -> None:
        """Not by the first tensor that another part holds."""
        self._write(tmp_path / "m.gguf", lambda writer: writer.add_uint16("split.count", 3))
        with pytest.raises(ImportFormatError, match="one of 3 parts"):
            GGUFFile(tmp_path / "m.gguf")

    def test_every_cut_and_flipped_byte_is_refused_or_harmless(self, tmp_path) -> None:
        """No damage to the header raises anything but the package's error."""
        import gguf

        path = tmp_path / "m.gguf"
        self._write(path, lambda w: self._add(w, gguf, self._weight(), "TQ2_0"))
        whole = path.read_bytes()
        random = np.random.default_rng(0)
        for _ in range(300):
            data = bytearray(whole)
            at = int(random.integers(0, 1200))
            data[at] = int(random.integers(0, 256))
            path.write_bytes(data[: int(random.integers(1, len(data)))] if random.random() < 0.3 else data)
            with contextlib.suppress(ImportFormatError, MemoryError):
                GGUFFile(path).matrix("layers.0.gate")

    @staticmethod
    def _weight():
        random = np.random.default_rng(0)
        values = random.integers(-1, 2, (512, 512)).astype(np.float32)
        values[:, ::256] = 1
        return values * (2.0 ** random.integers(-4, 3, (512, 1))).astype(np.float32)

    @staticmethod
    def _add(writer, gguf, weight, kind):
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor("blk.0.ffn_gate.weight", gguf.quants.quantize(weight, number), raw_dtype=number)

    @staticmethod
    def _write(path, add):
        import gguf

        writer = gguf.GGUFWriter(str(path), "bitnet-b1.58")
        for name, value in (("context_length", 64), ("embedding_length", 512), ("block_count", 1)):
            writer.add_uint32(f"bitnet-b1.58.{name}", value)
        for name, value in (("feed_forward_length", 512), ("attention.head_count", 8), ("attention.head_count_kv", 4)):
            writer.add_uint32(f"bitnet-b1.58.{name}", value)
        writer.add_float32("bitnet-b1.58.attention.layer_norm_rms_epsilon", 1e-5)
        add(writer)
        writer.add_tensor("token_embd.weight", np.zeros((16, 512), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


class TestModelFile:
    """The library's own file."""

    CONFIG = ModelConfig(500, hidden=64, inner=96, layers=2, heads=4, kv_heads=2, head_size=16, context=64)

    def test_opens_in_milliseconds(self, tmp_path) -> None:
        """Opening maps the file and reads its header, in little of the processor's time."""
        random_models.write_random(self.CONFIG, tmp_path / "m.ternary")
        times = []
        for _ in range(5):
            begin = time.process_time()
            open_file(tmp_path / "m.ternary")
            times.append(time.process_time() - begin)
        assert min(times) < 0.5

    def test_arrays_lie_on_cache_lines(self, tmp_path) -> None:
        """Tiles start at multiples of 64 bytes."""
        random_models.write_random(self.CONFIG, tmp_path / "m.ternary")
        for name, array in open_file(tmp_path / "m.ternary").tensors.items():
            assert array.ctypes.data % (64 if "tiles" in name else 4) == 0

    def test_safetensors_opens_it(self, tmp_path) -> None:
        """The file is a plain safetensors file."""
        from safetensors.numpy import load_file

        random_models.write_random(self.CONFIG, tmp_path / "m.ternary", tokenizer=b"{}")
        found = open_file(tmp_path / "m.ternary").tensors
        for name, array in load_file(tmp_path / "m.ternary").items():
            np.testing.assert_array_equal(array, found[name])

    def test_damage_is_refused(self, tmp_path) -> None:
        """Cut off, another version, another format, a changed shape: each is an error of the package."""
        path = tmp_path / "m.ternary"
        random_models.write_random(self.CONFIG, path)
        whole = path.read_bytes()
        damages = [
            whole[:-1],
            whole[:50],
            b"",
            whole + b"x",
            whole.replace(rb"\"version\": 1", rb"\"version\": 9", 1),
            whole.replace(rb"\"hidden\": 64", rb"\"hidden\": 48", 1),
            whole.replace(rb"\"hidden\": 64", rb"\"hidden\": -8", 1),
            whole.replace(b"pentad-ternary-llm", b"pentad-ternary-xyz", 1),
        ]
        for data in damages:
            assert data != whole
            path.write_bytes(data)
            with pytest.raises(ModelFileError):
                open_file(path)

    def test_a_full_disk_leaves_nothing(self, tmp_path) -> None:
        """A source that fails half-way leaves neither the file nor a temporary one."""
        source = random_models.RandomSource(self.CONFIG)
        source.rows = lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        from ternary.llm._source import write_model

        with pytest.raises(OSError, match="No space"):
            write_model(source, tmp_path / "m.ternary")
        assert not list(tmp_path.iterdir())


def test_load_converts_once(tmp_path, monkeypatch) -> None:
    """A folder is converted to the user's cache folder at the first use, and again when it has changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, _ = models.folder_of(tmp_path)
    one = load(folder).logits([1, 2, 3])
    (made,) = (tmp_path / "cache" / "pentad-ternary").iterdir()
    before = made.stat().st_mtime_ns
    np.testing.assert_array_equal(load(folder).logits([1, 2, 3]), one)
    assert made.stat().st_mtime_ns == before
    os.utime(folder / "config.json", ns=(1, 1))
    load(folder)
    assert len(list((tmp_path / "cache" / "pentad-ternary").iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners of files")
@pytest.mark.parametrize("how", ["writable", "link", "owner"])
def test_a_cache_folder_of_others_is_refused(how, tmp_path, monkeypatch) -> None:
    """Where another user can put files, a converted model is not believed, and none is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, _ = models.folder_of(tmp_path)
    made = tmp_path / "cache" / "pentad-ternary"
    made.parent.mkdir()
    if how == "link":
        (tmp_path / "elsewhere").mkdir()
        made.symlink_to(tmp_path / "elsewhere")
    else:
        made.mkdir()
        made.chmod(0o777 if how == "writable" else 0o755)
    if how == "owner":
        owner = made.stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ModelFileError, match="others can write"):
        load(folder)
    assert not list(made.iterdir())


def test_a_source_replaced_under_its_name_is_converted_again(tmp_path, monkeypatch) -> None:
    """Also where the new files have the size and the modification time of the old ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, _ = models.folder_of(tmp_path)
    one = load(folder).logits([1, 2, 3])
    file = folder / "model-00001-of-00001.safetensors"
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[-40000:-39000] = bytes(1000)
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not np.array_equal(load(folder).logits([1, 2, 3]), one)


def test_neither_folder_nor_file(tmp_path) -> None:
    """Another file is refused, a missing one is the system's error."""
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(ImportFormatError, match="neither"):
        load(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "y")


def test_export_refuses_odd_widths(tmp_path) -> None:
    """TQ2_0 holds blocks of 256 columns."""
    random_models.write_random(TestModelFile.CONFIG, tmp_path / "m.ternary")
    with pytest.raises(ExportError, match="blocks of 256"):
        to_gguf(tmp_path / "m.ternary", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


MEMORY = """
import sys
from pathlib import Path
import ternary.llm

def peak():
    # Of this program alone; getrusage would count what its parent had before it.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

before = peak()
if sys.argv[1] == "convert":
    ternary.llm.convert(sys.argv[2], sys.argv[3])
else:
    model = ternary.llm.load(sys.argv[2], context=64, threads=1)
    generation = model.generate([1, 2, 3], max_tokens=4)
    list(generation.iterate_tokens())
print((peak() - before) * 1024)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A packed folder and its model file, of some 60 MB."""
    folder = tmp_path_factory.mktemp("large")
    config = {"vocab_size": 16000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12}
    model = models.hugging_face_model("llama", **config, num_attention_heads=16, num_key_value_heads=4)
    models.save_packed(model, folder / "m", shards=2)
    del model
    convert(folder / "m", folder / "m.ternary")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize("step", ["convert", "generate"])
def test_peak_memory(step, large, tmp_path) -> None:
    """Converting a packed folder and generating need at most 1.15 times the model file above the imports."""
    size = (large / "m.ternary").stat().st_size
    given = [large / "m", tmp_path / "n.ternary"] if step == "convert" else [large / "m.ternary"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, step, *map(str, given)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 1.15 * size
