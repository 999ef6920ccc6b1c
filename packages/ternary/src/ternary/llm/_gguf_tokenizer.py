"""The tokenizer in a GGUF file's metadata as JSON of the `tokenizers` library."""

from __future__ import annotations

import json
from typing import Any

from ternary.errors import ImportFormatError

__all__ = ["tokenizer_json"]

_CONTROL = (3, 4)  # control tokens and those that the user defined
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), _LLAMA3)


def tokenizer_json(values: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return the tokenizer of a GGUF's metadata, empty if it has none, and what the model file says besides.

    Raises:
        ImportFormatError: The tokenizer is of a kind that this library does not know, or damaged.
    """
    kind = values.get("tokenizer.ggml.model")
    pieces = values.get("tokenizer.ggml.tokens")
    texts: dict[str, Any] = {"add_bos": bool(values.get("tokenizer.ggml.add_bos_token", kind == "llama"))}
    if isinstance(values.get("tokenizer.chat_template"), str):
        texts["chat_template"] = values["tokenizer.chat_template"]
    if kind in (None, "none", "no_vocab") or not pieces:
        return b"", texts
    for name in ("bos", "eos"):
        at = values.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(at, int) and 0 <= at < len(pieces):
            texts[name + "_token"] = pieces[at]
    types = values.get("tokenizer.ggml.token_type") or [1] * len(pieces)
    if kind == "gpt2":
        made = _byte_pairs(pieces, values)
    elif kind == "llama":
        made = _sentence_pieces(pieces, values, types)
    else:
        raise ImportFormatError(f"got a tokenizer of kind {kind!r}; this library reads 'gpt2' and 'llama'")
    added = [
        {
            "id": at,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[at] == _CONTROL[0],
        }
        for at, piece in enumerate(pieces)
        if types[at] in _CONTROL
    ]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **made}
    return json.dumps(whole, ensure_ascii=False).encode("utf-8", errors="surrogateescape"), texts


def _byte_pairs(pieces: list[str], values: dict[str, Any]) -> dict[str, Any]:
    merges = values.get("tokenizer.ggml.merges")
    if not merges:
        raise ImportFormatError("the GGUF's tokenizer has no merges")
    name = values.get("tokenizer.ggml.pre", "default")
    if name in ("gpt-2", "default"):
        split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    elif name in _PATTERNS:
        pattern = {"type": "Split", "pattern": {"Regex": _PATTERNS[name]}, "behavior": "Isolated", "invert": False}
        bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        split = {"type": "Sequence", "pretokenizers": [pattern, bytes_only]}
    else:
        known = ", ".join(["default", "gpt-2", *_PATTERNS])
        raise ImportFormatError(f"got the pre-tokenizer {name!r}; this library knows {known}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": byte_level,
        "model": _model(pieces, [merge.split(" ", 1) for merge in merges], unknown=None, byte_fallback=False),
    }


def _sentence_pieces(pieces: list[str], values: dict[str, Any], types: list[int]) -> dict[str, Any]:
    """A SentencePiece BPE: the scores order the merges, each a piece as the sum of two others."""
    scores = values.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(pieces):
        raise ImportFormatError("the GGUF's tokenizer has no score for each token")
    known = {piece: at for at, piece in enumerate(pieces)}
    merges = []
    for at, piece in enumerate(pieces):
        if types[at] != 1:
            continue
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in known and piece[i:] in known]
        merges += [(-scores[at], known[a], known[b], a, b) for a, b in cuts]
    unknown = values.get("tokenizer.ggml.unknown_token_id", 0)
    prefix = bool(values.get("tokenizer.ggml.add_space_prefix", True))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    before = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(pieces, [[a, b] for *_, a, b in sorted(merges)], unknown=pieces[unknown], byte_fallback=True),
    }


def _model(pieces: list[str], merges: list[list[str]], *, unknown: str | None, byte_fallback: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": not byte_fallback,
        "vocab": {piece: at for at, piece in enumerate(pieces)},
        "merges": merges,
    }
