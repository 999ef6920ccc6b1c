"""A small language and compiler for ternary neural networks: check, train, pack, run."""

from ternary import nn, zoo
from ternary.errors import CompileError, TernaryError
from ternary.language.compiler import check, compile, generate
from ternary.language.formatter import format_source
from ternary.modelfile import load, save
from ternary.quantize import Recipe, Report, quantize, rules_by_sensitivity, sensitivity, to_fp16, to_int8
from ternary.runtime.pack import pack
from ternary.train import TrainConfig, fit

__all__ = [
    "CompileError",
    "Recipe",
    "Report",
    "TernaryError",
    "TrainConfig",
    "check",
    "compile",
    "fit",
    "format_source",
    "generate",
    "load",
    "nn",
    "pack",
    "quantize",
    "rules_by_sensitivity",
    "save",
    "sensitivity",
    "to_fp16",
    "to_int8",
    "zoo",
]
