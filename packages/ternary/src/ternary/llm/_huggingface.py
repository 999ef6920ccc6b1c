"""Hugging Face folders of BitNet and Llama models: packed uint8 weights, master weights, shards, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary._tensorheader import parse_json
from ternary.errors import ImportFormatError
from ternary.llm._config import ModelConfig
from ternary.llm._matrices import TernaryMatrix, exact_rows, from_codes
from ternary.llm._tensorfile import Tensor, safetensors_in

__all__ = ["HuggingFaceFolder"]

Floats = NDArray[np.float32]

_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "feed_norm": "post_attention_layernorm",
    "attention_sub_norm": "self_attn.attn_sub_norm",
    "feed_sub_norm": "mlp.ffn_sub_norm",
}
_MOST_JSON = 32 << 20
"""Longest file of settings that is read, in bytes."""
_LFS = b"version https://git-lfs"
_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample")


class HuggingFaceFolder:
    """A folder with `config.json`, `.safetensors` files, and as a rule `tokenizer.json`.

    Args:
        folder: Where it is.
        weights: "exact" to refuse weights that are not ternary, "absmean" to quantize float weights as BitNet b1.58
            does, None to go by `quantization_config`.

    Raises:
        ImportFormatError: A file is missing or damaged, or the architecture is not supported.
    """

    def __init__(self, folder: Path, weights: str | None = None):
        try:
            self._read(folder, weights)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as e:
            if isinstance(e, ImportFormatError):
                raise
            raise ImportFormatError(f"{folder}: a setting has a wrong type or value: {e!r}") from None

    def _read(self, folder: Path, weights: str | None) -> None:
        given = _json(folder / "config.json")
        self.config = ModelConfig.from_hugging_face(given)
        method = given.get("quantization_config") or {}
        if method and method.get("quant_method") != "bitnet":
            raise ImportFormatError(f"got weights quantized by {method.get('quant_method')!r}, wanted 'bitnet'")
        if method.get("use_rms_norm"):
            raise ImportFormatError("got use_rms_norm = true: a norm before each projection is not supported")
        self._divide = method.get("linear_class", "bitlinear") != "autobitlinear"
        online = method.get("quantization_mode", "offline") == "online" and not self._divide
        self._absmean = weights == "absmean" if weights else bool(method) and online
        self._tensors: dict[str, Tensor] = {}
        for file in _weight_files(folder):
            self._tensors |= safetensors_in(file)
        if not self._tensors:
            other = ", ".join(sorted(f.name for f in folder.glob("*.bin"))[:3])
            hint = f"; it has {other}, which this library does not read: save it as safetensors" if other else ""
            raise ImportFormatError(f"{folder} holds no .safetensors file with weights{hint}")
        if self.config.layers > len(self._tensors):
            raise ImportFormatError(
                f"{folder} has {len(self._tensors)} tensors, too few for the {self.config.layers} layers of config.json"
            )
        tokenizer = folder / "tokenizer.json"
        self.tokenizer = tokenizer.read_bytes() if tokenizer.exists() else b""
        self.metadata = _metadata(folder, self.config)

    def _find(self, name: str) -> Tensor:
        for prefix in ("model.", ""):
            if prefix + name in self._tensors:
                return self._tensors[prefix + name]
        raise ImportFormatError(f"there is no tensor model.{name}")

    def _name(self, name: str) -> str:
        _, layer, part = name.split(".", 2)
        part, _, rest = part.partition(".")
        return f"layers.{layer}.{_NAMES[part]}" + ("." + rest if rest else "")

    def vector(self, name: str) -> Floats:
        """Return a norm or a bias."""
        if name == "norm":
            found = self._find("norm.weight")
        elif name.endswith(".bias"):
            found = self._find(self._name(name))
        else:
            found = self._find(self._name(name) + ".weight")
        return found.read().astype(np.float32, copy=False)

    def rows(self, name: str) -> Iterator[Floats]:
        """Return the embedding or the head in blocks of rows."""
        if name == "embedding":
            return self._find("embed_tokens.weight").blocks()
        return self._find("lm_head.weight").blocks()

    def matrix(self, name: str) -> TernaryMatrix:
        """Return a ternary matrix."""
        full = self._name(name)
        weight = self._find(full + ".weight")
        if len(weight.shape) != 2 or weight.shape[1] % 16:
            raise ImportFormatError(f"{weight.name}: got shape {weight.shape}, wanted a matrix with 16 n columns")
        if weight.dtype == "U8":
            return self._packed(weight, full)
        rows = weight.read().astype(np.float32, copy=False)
        if self._absmean:
            return _absmean(rows, weight.name)
        codes, scale = exact_rows(rows, weight.name)
        if f"model.{full}.weight_scale" in self._tensors or f"{full}.weight_scale" in self._tensors:
            scale = scale * self._scale(full, len(scale))
        return TernaryMatrix(from_codes(codes), scale)

    def _scale(self, full: str, rows: int) -> Floats:
        tensor = self._find(full + ".weight_scale")
        given = tensor.read().astype(np.float32).reshape(-1)
        if given.size not in (1, rows) or not bool((np.isfinite(given) & (given != 0)).all()):
            raise ImportFormatError(
                f"{tensor.name}: got {given.size} scales for {rows} rows, or one that is 0 or not finite"
            )
        scale = np.float32(1) / given if self._divide else given
        return np.broadcast_to(scale, (rows,)).astype(np.float32)

    def _packed(self, weight: Tensor, full: str) -> TernaryMatrix:
        packed = weight.read()
        if bool((packed & packed >> 1 & 0x55).any()):
            raise ImportFormatError(f"{weight.name}: got a code that stands for no ternary value; the file is damaged")
        codes = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])
        return TernaryMatrix(from_codes(codes), self._scale(full, len(codes)))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that the index lists, or every .safetensors file where there is no index.

    Raises:
        ImportFormatError: A listed file is missing, or is only the pointer to one.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = _json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) and n == Path(n).name for n in names.values()):
            raise ImportFormatError(f"{index} lists no files of its folder")
        files = [folder / name for name in sorted(set(names.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    for file in files:
        if not file.exists():
            raise ImportFormatError(f"{file} is missing: {index.name} lists it. The download is not complete")
        with file.open("rb") as opened:
            if opened.read(len(_LFS)) == _LFS:
                raise ImportFormatError(
                    f"{file} is a pointer of Git LFS, not the weights; fetch them with `git lfs pull`"
                )
    return files


def _absmean(rows: Floats, name: str) -> TernaryMatrix:
    """Quantize master weights as BitNet b1.58 does: round(w / mean|w|), one scale a matrix."""
    import torch  # whose mean transformers takes, bit for bit

    weight = torch.from_numpy(np.ascontiguousarray(rows))
    inverse = 1.0 / weight.abs().mean().clamp_(min=1e-5)
    if not bool(torch.isfinite(inverse)):
        raise ImportFormatError(f"{name}: got a weight that is not finite")
    codes = (weight * inverse).round().clamp(-1, 1).to(torch.int8).numpy() + 1
    scale = np.full(len(rows), float(1.0 / inverse), np.float32)
    return TernaryMatrix(from_codes(codes.astype(np.uint8)), scale)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ImportFormatError(f"{path} has {path.stat().st_size} bytes; settings have at most {_MOST_JSON}")
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise ImportFormatError(f"{path} is missing") from None
    except ValueError as e:
        if isinstance(e, ImportFormatError):
            raise
        raise ImportFormatError(f"{path} is no JSON file: {e}") from None
    if not isinstance(found, dict):
        raise ImportFormatError(f"{path} holds no JSON object")
    return found


def _metadata(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Return the chat template, the special tokens' texts and the defaults for generation."""
    made: dict[str, Any] = {"source": folder.name}
    if (folder / "generation_config.json").exists():
        given = _json(folder / "generation_config.json")
        made["generation"] = {k: given[k] for k in _GENERATION if given.get(k) is not None}
        eos = given.get("eos_token_id")
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        made["stop_tokens"] = sorted({*config.eos, *(int(e) for e in ends)})
    special = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    template = special.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, str):
        made["chat_template"] = template
    for name in ("bos_token", "eos_token"):
        token = special.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            made[name] = text
    made["add_bos"] = bool(special.get("add_bos_token", False))
    return made
