"""Ternary language models: convert a checkpoint, open it, generate text, serve it."""

from __future__ import annotations

from ternary.llm._config import ModelConfig
from ternary.llm._convert import convert, load
from ternary.llm._decoder import Decoder
from ternary.llm._gguf_export import to_gguf
from ternary.llm._model import Generation, Model
from ternary.llm._sampling import Sampling

__all__ = ["Decoder", "Generation", "Model", "ModelConfig", "Sampling", "convert", "load", "to_gguf"]
