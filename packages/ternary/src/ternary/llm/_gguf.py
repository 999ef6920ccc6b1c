"""GGUF files of BitNet and Llama models: TQ1_0, TQ2_0 and the I2_S of the BitNet project, metadata and tokenizer."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary._ggufread import BF16, F16, F32, I2S, TQ1, TQ2, Entry, read_directory, refuse_code_3, row_codes
from ternary._tensorheader import read_exactly
from ternary.errors import ImportFormatError, MissingExtraError
from ternary.llm._config import ModelConfig
from ternary.llm._gguf_tokenizer import tokenizer_json
from ternary.llm._matrices import TernaryMatrix, exact_rows, from_codes
from ternary.llm._tensorfile import widen_bfloat16

__all__ = ["NAMES", "GGUFFile"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ROWS = 32 << 20
_ARCHITECTURES = ("llama", "bitnet", "bitnet-b1.58", "bitnet-25")
NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attention_norm": "attn_norm",
    "feed_norm": "ffn_norm",
    "attention_sub_norm": "attn_sub_norm",
    "feed_sub_norm": "ffn_sub_norm",
}


class GGUFFile:
    """A GGUF file as a source of a model.

    Args:
        path: Where it is.
        weights: "exact", the only way for GGUF; float weights must be exactly ternary.

    Raises:
        ImportFormatError: It is damaged, of another architecture, or holds what this library does not read.
    """

    def __init__(self, path: Path, weights: str | None = None):
        if weights == "absmean":
            raise ImportFormatError("weights='absmean' is for float checkpoints in Hugging Face folders")
        self._path = path
        self._values, self._tensors = read_directory(path)
        self._architecture = self._values.get("general.architecture")
        if self._architecture not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise ImportFormatError(f"got a GGUF of architecture {self._architecture!r}; this library runs {known}")
        if (count := self._values.get("split.count")) not in (None, 0, 1):
            raise ImportFormatError(
                f"{path} is one of {count} parts; merge them first with `llama-gguf-split --merge FIRST-PART MERGED`"
            )
        try:
            self.config = self._read_config()
            self.tokenizer, texts = tokenizer_json(self._values)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            if isinstance(e, ImportFormatError):
                raise
            raise ImportFormatError(f"{path} lacks a metadata value or has a wrong one: {e!r}") from None
        if self.config.layers > len(self._tensors):
            raise ImportFormatError(
                f"{path} has {len(self._tensors)} tensors, too few for the {self.config.layers} layers of its metadata"
            )
        self.metadata: dict[str, Any] = {"source": path.stem, **texts}

    def _read_config(self) -> ModelConfig:
        values, prefix = self._values, f"{self._architecture}."

        def get(name: str, default: Any = None) -> Any:
            found = values.get(prefix + name, default)
            if found is None:
                raise KeyError(prefix + name)
            return found

        if "token_embd.weight" not in self._tensors:
            raise ImportFormatError(f"{self._path} has no tensor token_embd.weight")
        heads, hidden = int(get("attention.head_count")), int(get("embedding_length"))
        size = int(get("attention.key_length", hidden // heads))
        if int(get("attention.value_length", size)) != size or int(get("rope.dimension_count", size)) != size:
            raise ImportFormatError("got heads whose keys, values and rotated dimensions differ in width")
        if get("expert_count", 0):
            raise ImportFormatError("got a mixture of experts; this library runs dense models")
        eos = values.get("tokenizer.ggml.eos_token_id")
        ends = {int(e) for e in (eos, values.get("tokenizer.ggml.eot_token_id")) if e is not None}
        bos = values.get("tokenizer.ggml.bos_token_id")
        return ModelConfig(
            vocabulary=self._tensors["token_embd.weight"].shape[0],
            hidden=hidden,
            inner=int(get("feed_forward_length")),
            layers=int(get("block_count")),
            heads=heads,
            kv_heads=int(get("attention.head_count_kv", heads)),
            head_size=size,
            context=int(get("context_length")),
            epsilon=float(get("attention.layer_norm_rms_epsilon")),
            activation="relu2" if self._architecture in ("bitnet-b1.58", "bitnet-25") else "silu",
            sub_norms=self._architecture != "llama",
            tied="output.weight" not in self._tensors,
            bias="blk.0.attn_q.bias" in self._tensors,
            rope=self._rope(prefix),
            eos=tuple(sorted(ends)),
            bos=None if bos is None else int(bos),
        )

    def _rope(self, prefix: str) -> dict[str, Any]:
        values = self._values
        theta = float(values.get(prefix + "rope.freq_base", 10000.0))
        if "rope_freqs.weight" in self._tensors:
            factors = self._read("rope_freqs.weight", 0, 1)
            return {"rope_type": "factors", "rope_theta": theta, "factors": [float(f) for f in factors.reshape(-1)]}
        kind = values.get(prefix + "rope.scaling.type", "none")
        if kind == "none":
            return {"rope_type": "default", "rope_theta": theta}
        rope = {"rope_type": str(kind), "rope_theta": theta, "factor": float(values[prefix + "rope.scaling.factor"])}
        before = values.get(prefix + "rope.scaling.original_context_length")
        return rope if before is None else {**rope, "original_max_position_embeddings": int(before)}

    def _entry(self, name: str) -> Entry:
        if name not in self._tensors:
            raise ImportFormatError(f"{self._path} has no tensor {name}")
        return self._tensors[name]

    def _name(self, name: str) -> str:
        _, layer, part = name.split(".", 2)
        part, _, rest = part.partition(".")
        return f"blk.{layer}.{NAMES[part]}.{rest or 'weight'}"

    def _read(self, name: str, first: int, count: int) -> Floats:
        """Return rows of a tensor as float32; a vector is one row."""
        entry = self._entry(name)
        width = entry.shape[-1]
        if entry.kind in (F32, F16, BF16):
            size = 4 if entry.kind == F32 else 2
            raw = read_exactly(self._path, entry.offset + first * width * size, count * width * size)
            if entry.kind == BF16:
                return widen_bfloat16(np.frombuffer(raw, "<u2")).reshape(count, width)
            return np.frombuffer(raw, "<f4" if size == 4 else "<f2").reshape(count, width).astype(np.float32)
        gguf = _gguf()
        try:
            kind = gguf.GGMLQuantizationType(entry.kind)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            row = width // block * size
            raw = read_exactly(self._path, entry.offset + first * row, count * row)
            found = gguf.quants.dequantize(np.frombuffer(raw, np.uint8).reshape(count, row), kind)
        except (ValueError, KeyError, NotImplementedError) as e:
            if isinstance(e, ImportFormatError):
                raise
            raise ImportFormatError(f"{name}: the gguf package cannot read type {entry.kind}: {e}") from None
        return np.asarray(found, np.float32).reshape(count, width)

    def vector(self, name: str) -> Floats:
        """Return a norm or a bias."""
        found = self._read("output_norm.weight" if name == "norm" else self._name(name), 0, 1)[0]
        part = name.split(".")[2] if "." in name else ""
        return self._turn_back(found[:, None], part)[:, 0] if name.endswith(".bias") else found

    def rows(self, name: str) -> Iterator[Floats]:
        """Return the embedding or the head in blocks of rows."""
        full = "token_embd.weight" if name == "embedding" else "output.weight"
        entry = self._entry(full)
        step = max(1, _ROWS // (entry.shape[-1] * 4))
        for first in range(0, entry.shape[0], step):
            yield self._read(full, first, min(step, entry.shape[0] - first))

    def _turn_back(self, rows: NDArray[Any], part: str) -> NDArray[Any]:
        """Undo the order of query and key rows in Llama files, where rotated pairs lie side by side."""
        if self._architecture != "llama" or part not in ("q", "k"):
            return rows
        heads = self.config.heads if part == "q" else self.config.kv_heads
        return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    def matrix(self, name: str) -> TernaryMatrix:
        """Return a ternary matrix."""
        full, part = self._name(name), name.split(".")[-1]
        entry = self._entry(full)
        if len(entry.shape) != 2 or entry.shape[1] % 16:
            raise ImportFormatError(f"{full}: got shape {entry.shape}, wanted a matrix with 16 n columns")
        readers: dict[int, Callable[[str, Entry], tuple[Bytes, Floats]]] = {
            TQ1: partial(row_codes, self._path),
            TQ2: partial(row_codes, self._path),
            I2S: self._i2s,
        }
        if entry.kind in readers:
            codes, scale = readers[entry.kind](full, entry)
        elif entry.kind in (F32, F16, BF16):
            codes, scale = exact_rows(self._read(full, 0, entry.shape[0]), full)
        else:
            raise ImportFormatError(f"{full}: its type {entry.kind} is not ternary; wanted TQ1_0, TQ2_0 or I2_S")
        # I2_S has one scale, of the tensor's end; BitNet's own norm weights may scale each row besides.
        extra = full.removesuffix("weight") + "scale"
        if extra in self._tensors:
            scale = scale * self._read(extra, 0, 1).reshape(-1)
        codes, scale = self._turn_back(codes, part), self._turn_back(scale[:, None], part)[:, 0]
        return TernaryMatrix(from_codes(codes), scale)

    def _i2s(self, name: str, entry: Entry) -> tuple[Bytes, Floats]:
        """Blocks of 128 weights in 32 bytes, the first 32 weights in the highest bits; one scale at the end."""
        count = math.prod(entry.shape)
        if count % 128:
            raise ImportFormatError(f"{name}: got {count} weights; I2_S holds blocks of 128")
        raw = np.frombuffer(read_exactly(self._path, entry.offset, count // 4 + 4), np.uint8)
        packed = raw[:-4].reshape(-1, 1, 32)
        codes = (packed >> np.array([6, 4, 2, 0], np.uint8)[None, :, None] & 3).reshape(entry.shape)
        refuse_code_3(codes, name)
        return codes.astype(np.uint8), np.full(entry.shape[0], raw[-4:].view("<f4")[0], np.float32)


def _gguf() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as e:
        raise MissingExtraError(
            "an embedding of this type is read by the gguf package; pip install 'pentad-ternary[gguf]'"
        ) from e
