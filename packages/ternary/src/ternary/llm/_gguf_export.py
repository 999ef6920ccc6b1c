"""A model file as GGUF, ternary matrices as TQ2_0, for llama.cpp and other readers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary._wholefile import whole_file
from ternary.errors import ExportError, MissingExtraError
from ternary.llm._config import ModelConfig
from ternary.llm._gguf import NAMES
from ternary.llm._matrices import TernaryMatrix
from ternary.llm._modelfile import MATRICES, ModelFile, open_file

__all__ = ["to_gguf"]

Bytes = NDArray[np.uint8]

_BLOCK = 256
_HALF_MOST, _HALF_LEAST = 65504.0, 6e-8


def to_gguf(source: str | Path, path: str | Path) -> None:
    """Write a model file as GGUF: ternary matrices as TQ2_0, embedding and head as Q8_0, the tokenizer with its merges.

    llama.cpp runs the architectures `llama` and `bitnet` (SiLU); squared ReLU becomes `bitnet-b1.58`, which the
    BitNet project's fork runs. The matrices are kept without loss where their scales fit half precision exactly;
    the embedding is rounded to blocks of 32.

    Args:
        source: A model file of `convert`.
        path: Where to write, by custom ending in `.gguf`.

    Raises:
        ExportError: A matrix has rows of other than 256 n columns, a scale does not fit half precision, or the rotary
            positions have no form in GGUF.
        MissingExtraError: gguf is not installed.

    Example:
        >>> import tempfile
        >>> from ternary import llm
        >>> sizes = {"hidden": 256, "inner": 256, "heads": 16, "kv_heads": 1, "head_size": 16}
        >>> config = llm.ModelConfig(64, layers=1, context=32, **sizes)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> llm.to_gguf(path, path.replace(".ternary", ".gguf"))
    """
    try:
        gguf: Any = importlib.import_module("gguf")
    except ImportError as e:
        raise MissingExtraError("gguf is needed here; pip install 'pentad-ternary[gguf]'") from e
    file = open_file(source)
    config = file.config
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(str(temporary), _architecture(config))
        _add_shape(writer, config)
        _add_tokenizer(writer, file)
        kinds = gguf.GGMLQuantizationType
        for name in ("embedding",) if config.tied else ("embedding", "head"):
            rows = file.tensors[name].astype(np.float32) * file.tensors[name + ".scale"][:, None]
            full = "token_embd.weight" if name == "embedding" else "output.weight"
            writer.add_tensor(full, gguf.quants.quantize(rows, kinds.Q8_0), raw_dtype=kinds.Q8_0)
        writer.add_tensor("output_norm.weight", np.array(file.tensors["norm"]))
        for layer in range(config.layers):
            for name, full in NAMES.items():
                if name in MATRICES:
                    matrix = file.matrix(f"layers.{layer}.{name}")
                    blocks = _tq2(_turned(matrix, name, config), f"blk.{layer}.{full}")
                    writer.add_tensor(f"blk.{layer}.{full}.weight", blocks, raw_dtype=kinds.TQ2_0)
                    if matrix.bias is not None:
                        bias = _order(np.array(matrix.bias)[:, None], name, config)[:, 0]
                        writer.add_tensor(f"blk.{layer}.{full}.bias", np.ascontiguousarray(bias))
                elif f"layers.{layer}.{name}" in file.tensors:
                    writer.add_tensor(f"blk.{layer}.{full}.weight", np.array(file.tensors[f"layers.{layer}.{name}"]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _architecture(config: ModelConfig) -> str:
    if config.sub_norms:
        return "bitnet" if config.activation == "silu" else "bitnet-b1.58"
    if config.activation != "silu":
        raise ExportError(f"GGUF has no architecture with {config.activation} and without sub-norms")
    return "llama"


def _order(rows: NDArray[Any], name: str, config: ModelConfig) -> NDArray[Any]:
    """Lay rotated pairs side by side in query and key rows, as Llama files have them."""
    if config.sub_norms or name not in ("q", "k"):
        return rows
    heads = config.heads if name == "q" else config.kv_heads
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _turned(matrix: TernaryMatrix, name: str, config: ModelConfig) -> tuple[Bytes, NDArray[np.float32]]:
    codes = (matrix.values() + 1).astype(np.uint8)
    return _order(codes, name, config), _order(np.array(matrix.scale)[:, None], name, config)[:, 0]


def _tq2(matrix: tuple[Bytes, NDArray[np.float32]], name: str) -> Bytes:
    codes, scale = matrix
    if codes.shape[1] % _BLOCK:
        raise ExportError(f"{name}: got {codes.shape[1]} columns; TQ2_0 holds blocks of {_BLOCK}")
    bad = (scale != 0) & ~((np.abs(scale) <= _HALF_MOST) & (np.abs(scale) >= _HALF_LEAST))
    if bool(bad.any()):
        raise ExportError(f"{name}: scale {scale[bad][0]:.3g} does not fit half precision, as TQ2_0 has it")
    parts = codes.reshape(len(codes), -1, 2, 4, 32)
    packed = parts[..., 0, :] | parts[..., 1, :] << 2 | parts[..., 2, :] << 4 | parts[..., 3, :] << 6
    packed = packed.reshape(len(codes), -1, 64)
    half = np.broadcast_to(scale.astype(np.float16)[:, None, None], (*packed.shape[:2], 1))
    whole = np.concatenate([packed, np.ascontiguousarray(half).view(np.uint8)], axis=2)
    return np.ascontiguousarray(whole.reshape(len(codes), -1))


def _add_shape(writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.inner)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_vocab_size(config.vocabulary)
    rope = config.rope
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_float32(f"{writer.arch}.rope.scaling.factor", float(rope["factor"]))
    elif kind == "factors":
        writer.add_tensor("rope_freqs.weight", np.array(rope["factors"], np.float32))
    elif kind != "default":
        raise ExportError(f"rotary positions of type {kind!r} are not written to GGUF")


def _add_tokenizer(writer: Any, file: ModelFile) -> None:
    """Write a byte-level BPE tokenizer; a model without one gets none, and readers then take tokens only."""
    text = file.tokenizer()
    if text is None:
        writer.add_tokenizer_model("none")
        return
    given = json.loads(text)
    model = given.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ExportError("only byte-level BPE tokenizers are written to GGUF")
    pieces = {int(at): piece for piece, at in model["vocab"].items()}
    special = {int(t["id"]): t for t in given.get("added_tokens", [])}
    pieces |= {at: token["content"] for at, token in special.items()}
    count = file.config.vocabulary
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if "p{N}{1,3}" in json.dumps(given.get("pre_tokenizer")) else "gpt-2")
    writer.add_token_list([pieces.get(at, f"[unused{at}]") for at in range(count)])
    control, user, normal, unused = 3, 4, 1, 5
    types = [normal if at in pieces else unused for at in range(count)]
    for at, token in special.items():
        types[at] = control if token.get("special") else user
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_add_bos_token(bool(file.metadata.get("add_bos")))
    if file.config.bos is not None:
        writer.add_bos_token_id(file.config.bos)
    if file.config.eos:
        writer.add_eos_token_id(file.config.eos[0])
    if file.metadata.get("chat_template"):
        writer.add_chat_template(file.metadata["chat_template"])
