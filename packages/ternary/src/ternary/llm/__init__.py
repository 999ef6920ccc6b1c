"""Ternary language models: convert a checkpoint, open it, generate text, serve it.

Opening a model and generating do without torch; `Decoder` and `to_gguf` are imported at their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ternary.llm._config import ModelConfig
from ternary.llm._convert import convert, load
from ternary.llm._model import Generation, Model
from ternary.llm._sampling import Sampling

if TYPE_CHECKING:
    from ternary.llm._application import application
    from ternary.llm._decoder import Decoder
    from ternary.llm._frozen import FrozenForCausalLM
    from ternary.llm._gguf_export import to_gguf
    from ternary.llm._on_ray import deployment
    from ternary.llm._save import save
    from ternary.llm._shared import publish
    from ternary.llm._transformers import TernaryForCausalLM
    from ternary.llm._workers import serve

__all__ = [
    "Decoder",
    "FrozenForCausalLM",
    "Generation",
    "Model",
    "ModelConfig",
    "Sampling",
    "TernaryForCausalLM",
    "application",
    "convert",
    "deployment",
    "load",
    "publish",
    "save",
    "serve",
    "to_gguf",
]


def __getattr__(name: str) -> Any:
    import importlib

    homes = {"Decoder": "_decoder", "save": "_save", "TernaryForCausalLM": "_transformers", "to_gguf": "_gguf_export"}
    homes |= {"FrozenForCausalLM": "_frozen"}
    homes |= {"publish": "_shared", "deployment": "_on_ray", "application": "_application", "serve": "_workers"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)
    globals()[name] = found
    return found
