"""GGUF and BitNet checkpoints: written, checked with the format's own library, and read without loss."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ternary
from ternary.errors import ExportError, ImportFormatError
from ternary.export import TernaryTensor, put_into, read_bitnet, read_gguf, to_gguf
from ternary.nn import TernaryConv2d, TernaryEmbedding, TernaryLinear
from ternary.runtime import PackedLinear, packed_layers, parts


def network() -> nn.Sequential:
    """Rows of whole blocks, of less, and of more than one; a table; a float layer; integers."""
    layers = (TernaryEmbedding(9, 512), TernaryLinear(512, 6), TernaryLinear(6, 300, bias=False), nn.LayerNorm(300))
    model = nn.Sequential(*layers, TernaryLinear(300, 4, per="tensor", quantizer="absmean")).eval()
    model.register_buffer("steps", torch.arange(5))
    return model


class TestGguf:
    """TQ2_0."""

    def test_the_gguf_package_gives_back_the_weights(self, temp_dir: Path) -> None:
        """Its dequantizer gives value times scale in half precision, exactly, zeros after the row's end."""
        model = network()
        to_gguf(model, temp_dir / "m.gguf")
        tensors = {t.name: t for t in gguf.GGUFReader(temp_dir / "m.gguf").tensors}
        for name, layer in packed_layers(ternary.pack(model)).items():
            wanted, tensor = parts(layer), tensors[f"{name}.weight"]
            assert tensor.tensor_type == gguf.GGMLQuantizationType.TQ2_0
            got = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            columns = wanted.values.shape[1]
            assert torch.equal(got[:, :columns], wanted.values * wanted.positive.half().float()[:, None])
            assert not got[:, columns:].any()
            assert tensor.n_bytes == len(got) * -(-columns // 256) * 66

    def test_reading_back_loses_nothing(self, temp_dir: Path) -> None:
        """Values, full scales, and every other tensor as it was."""
        model = network()
        to_gguf(model, temp_dir / "m.gguf")
        found = read_gguf(temp_dir / "m.gguf")
        packed = ternary.pack(model)
        for name, layer in packed_layers(packed).items():
            wanted = parts(layer)
            assert torch.equal(found[f"{name}.weight"].values, wanted.values)
            assert torch.equal(found[f"{name}.weight"].scale, wanted.positive)
        for name in ("1.bias", "3.weight", "3.bias", "4.bias", "steps"):
            assert torch.equal(found[name], model.state_dict()[name]), name
        floats = nn.Sequential(
            nn.Embedding(9, 512), nn.Linear(512, 6), nn.Linear(6, 300, bias=False), nn.LayerNorm(300)
        )
        floats.append(nn.Linear(300, 4)).register_buffer("steps", torch.zeros(5, dtype=torch.int64))
        again = put_into(floats, found)
        index = torch.tensor([[0, 8, 3]])
        assert torch.equal(again(index), packed(index))

    def test_convolutions(self, temp_dir: Path) -> None:
        """Weights of four dimensions are rows in the file and come back in their shape."""
        conv = TernaryConv2d(5, 7, 3, padding=1)
        to_gguf(nn.Sequential(conv), temp_dir / "m.gguf")
        found = read_gguf(temp_dir / "m.gguf")
        assert torch.equal(found["0.weight"].values, conv.ternary_values()[0])
        again = put_into(nn.Sequential(nn.Conv2d(5, 7, 3, padding=1)), found)
        x = torch.randn(2, 5, 6, 6)
        assert torch.equal(again(x), ternary.pack(conv)(x))

    def test_zero_rows_and_scales(self, temp_dir: Path) -> None:
        """A row of zeros keeps its scale; a scale that half precision lacks is refused, one of no use is not."""
        values = torch.tensor([[1, -1], [0, 0]])
        to_gguf(PackedLinear.from_ternary(values, torch.tensor([2.0, 1e-12])), temp_dir / "m.gguf")
        assert read_gguf(temp_dir / "m.gguf")["weight"].scale.tolist() == pytest.approx([2.0, 1e-12])
        for scale in (1e-9, 1e6):
            with pytest.raises(ExportError, match="half precision"):
                to_gguf(PackedLinear.from_ternary(values, scale), temp_dir / "n.gguf")
        assert [p.name for p in temp_dir.iterdir()] == ["m.gguf"]

    def test_two_scales_are_refused(self, temp_dir: Path) -> None:
        """TQ2_0 has one scale for both signs."""
        layer = TernaryLinear(4, 4, quantizer="ttq")
        with torch.no_grad():
            layer.scale_negative.mul_(2)
        with pytest.raises(ExportError, match="both signs"):
            to_gguf(layer, temp_dir / "m.gguf")
        with pytest.raises(ExportError, match="no ternary layer"):
            to_gguf(nn.Linear(2, 2), temp_dir / "m.gguf")

    @pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
    def test_foreign_files(self, temp_dir: Path, kind: str) -> None:
        """Tensors that others quantized, one scale a tensor, are read; scales by block are refused."""
        quantization = gguf.GGMLQuantizationType[kind]

        def write(rows: np.ndarray) -> dict[str, object]:
            writer = gguf.GGUFWriter(str(temp_dir / "f.gguf"), "llama")
            writer.add_tensor("w", gguf.quants.quantize(rows, quantization), raw_dtype=quantization)
            writer.add_tensor("norm", np.ones(3, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return read_gguf(temp_dir / "f.gguf")

        values = np.random.default_rng(0).integers(-1, 2, (3, 512)).astype(np.float32)
        found = write(values * 0.25)
        assert torch.equal(found["w"].values, torch.from_numpy(values).to(torch.int8))
        assert found["w"].scale.tolist() == [0.25] * 3
        assert found["norm"].tolist() == [1, 1, 1]
        values[1, 256:] *= 2
        with pytest.raises(ImportFormatError, match="row 1"):
            write(values)

    @pytest.mark.parametrize("keep", [0, 10, 40, 200])
    def test_damage(self, temp_dir: Path, keep: int) -> None:
        """A file that lacks its end is an error of ours; one that is not there is the usual one."""
        to_gguf(network(), temp_dir / "m.gguf")
        data = (temp_dir / "m.gguf").read_bytes()
        (temp_dir / "m.gguf").write_bytes(data[:keep])
        with pytest.raises(ImportFormatError):
            read_gguf(temp_dir / "m.gguf")
        with pytest.raises(FileNotFoundError):
            read_gguf(temp_dir / "none.gguf")


def bitnet_bytes(values: torch.Tensor) -> torch.Tensor:
    """Pack as the documented layout of transformers says: a quarter of the rows in each two bits, from the lowest."""
    quarter = len(values) // 4
    parts_of = [(values[i * quarter : (i + 1) * quarter] + 1).to(torch.uint8) << 2 * i for i in range(4)]
    return parts_of[0] | parts_of[1] | parts_of[2] | parts_of[3]


def checkpoint(folder: Path, linear_class: str | None, scale: torch.Tensor | None = None) -> torch.Tensor:
    """A tiny checkpoint in a folder; gives its ternary values."""
    values = torch.randint(-1, 2, (8, 5))
    tensors = {"up.weight": bitnet_bytes(values), "norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
    tensors["up.weight_scale"] = torch.tensor([0.5]) if scale is None else scale
    save_file(tensors, folder / "model.safetensors")
    quantization = {"quant_method": "bitnet"} | ({} if linear_class is None else {"linear_class": linear_class})
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}), encoding="utf-8")
    return values


class TestBitnet:
    """Hugging Face's packed checkpoints."""

    def test_the_documented_layout(self, temp_dir: Path) -> None:
        """The example in transformers' documentation of the layout."""
        packed = torch.tensor([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], dtype=torch.uint8)
        save_file({"w.weight": packed, "w.weight_scale": torch.ones(1)}, temp_dir / "m.safetensors")
        found = read_bitnet(temp_dir / "m.safetensors", inverse_scale=False)["w.weight"].values
        assert found.tolist() == [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]

    @pytest.mark.parametrize(("linear_class", "scale"), [("autobitlinear", 0.5), ("bitlinear", 2.0), (None, 2.0)])
    def test_into_a_model(self, temp_dir: Path, linear_class: str | None, scale: float) -> None:
        """Values are the same bits, the scale multiplies or divides as the configuration says, and the model runs."""
        values = checkpoint(temp_dir, linear_class)
        found = read_bitnet(temp_dir)
        assert torch.equal(found["up.weight"].values, values.to(torch.int8))
        assert found["up.weight"].scale.tolist() == [scale] * 8
        model = nn.Sequential()
        model.add_module("up", nn.Linear(5, 8, bias=False))
        model.add_module("norm", nn.LayerNorm(8))
        packed, x = put_into(model, found), torch.randn(3, 5)
        assert isinstance(packed.up, PackedLinear)
        x = (x / x.abs().amax(1, keepdim=True) * 127).round() / 127  # 8 bits hold this exactly
        wanted = nn.functional.linear(x, values.float() * scale)
        assert torch.allclose(packed.up(x), wanted, atol=1e-5)
        assert packed(x).shape == (3, 8)

    @pytest.mark.slow
    def test_transformers_unpacks_the_same(self, temp_dir: Path) -> None:
        """The library that defines the format packs what we read; skipped where it is not installed."""
        bitnet = pytest.importorskip("transformers.integrations.bitnet")
        values = torch.randint(-1, 2, (12, 7))
        packed = bitnet.pack_weights(values.clone())
        assert torch.equal(packed, bitnet_bytes(values))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("up.weight_scale"), "there is no up.weight_scale"),
            (lambda t: t["up.weight"].fill_(255), "no ternary matrix"),
            (lambda t: t.update({"up.weight_scale": torch.zeros(1)}), "finite, not 0"),
            (lambda t: t.update({"up.weight_scale": torch.ones(3)}), "3 scales for 8 rows"),
            (lambda t: t.update({"up.weight_scale": torch.tensor([float("nan")])}), "finite"),
        ],
    )
    def test_refusals(self, temp_dir: Path, change, message: str) -> None:
        """Codes, scales and names that do not fit."""
        tensors = {"up.weight": bitnet_bytes(torch.zeros(8, 5)), "up.weight_scale": torch.ones(1)}
        change(tensors)
        save_file(tensors, temp_dir / "m.safetensors")
        with pytest.raises(ImportFormatError, match=message):
            read_bitnet(temp_dir / "m.safetensors", inverse_scale=False)

    def test_what_is_missing(self, temp_dir: Path) -> None:
        """No file, no configuration, damage, and a model of another shape."""
        with pytest.raises(ImportFormatError, match=r"no \.safetensors"):
            read_bitnet(temp_dir)
        checkpoint(temp_dir, "bitlinear")
        found = read_bitnet(temp_dir)
        with pytest.raises(ImportFormatError, match="do not fit"):
            put_into(nn.Sequential(nn.Linear(5, 8)), found)
        values = {"weight": found["up.weight"]}
        assert isinstance(put_into(nn.Linear(5, 8, bias=False), values), PackedLinear)
        odd = {"0.weight": TernaryTensor(torch.zeros(3, dtype=torch.int8), torch.ones(3))}
        with pytest.raises(ImportFormatError, match="RMSNorm has no packed form"):
            put_into(nn.Sequential(nn.RMSNorm(3)), odd)
        (temp_dir / "config.json").unlink()
        with pytest.raises(ImportFormatError, match="inverse_scale"):
            read_bitnet(temp_dir)
        (temp_dir / "model.safetensors").write_bytes(b"damage")
        with pytest.raises(ImportFormatError, match="damaged"):
            read_bitnet(temp_dir, inverse_scale=True)
