"""A small language and compiler for ternary neural networks: check, train, quantize, pack, run, export.

A public name is imported at its first use, so that checking a source does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ternary import _moved as _moved
from ternary import _operators as _operators
from ternary._lazy import importer
from ternary.errors import CompileError, TernaryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ternary import export, llm, nn, packing, runtime, zoo
    from ternary._language.compiler import check, compile, generate
    from ternary._language.formatter import format_source
    from ternary._modelfile import load, save
    from ternary._quantization import (
        Recipe,
        Report,
        quantize,
        rules_by_sensitivity,
        sensitivity,
        to_fp16,
        to_int8,
        to_trainable,
    )
    from ternary._training import TrainConfig, fit
    from ternary.runtime import pack

__all__ = [
    "CompileError",
    "Recipe",
    "Report",
    "TernaryError",
    "TrainConfig",
    "check",
    "compile",
    "export",
    "fit",
    "format_source",
    "generate",
    "llm",
    "load",
    "nn",
    "pack",
    "packing",
    "quantize",
    "rules_by_sensitivity",
    "runtime",
    "save",
    "sensitivity",
    "to_fp16",
    "to_int8",
    "to_trainable",
    "zoo",
]

__getattr__: Callable[[str], Any] = importer(
    {
        "_language.compiler": ("check", "compile", "generate"),
        "_language.formatter": ("format_source",),
        "_modelfile": ("load", "save"),
        "_quantization": (
            *("Recipe", "Report", "quantize", "rules_by_sensitivity", "sensitivity", "to_fp16", "to_int8"),
            "to_trainable",
        ),
        "_training": ("TrainConfig", "fit"),
        "runtime": ("pack",),
        "": ("export", "llm", "nn", "packing", "runtime", "zoo"),
    }
)
