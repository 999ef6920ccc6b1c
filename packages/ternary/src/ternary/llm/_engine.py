"""The engine that runs a model file: the compiled core, or numpy where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ternary import _core
from ternary._limits import processors
from ternary.errors import KernelUnavailableError
from ternary.llm._modelfile import ModelFile
from ternary.llm._native import NativeModel, decoder_library

if TYPE_CHECKING:
    from ternary.llm._fallback import FallbackModel

__all__ = ["Engine", "open_engine"]

Engine: TypeAlias = "NativeModel | FallbackModel"


def open_engine(file: ModelFile, *, kernel: str, threads: int, cache_bits: int, positions: int) -> Engine:
    """Return the decoder for a kernel by name; "auto" takes the fastest one of this machine, "torch" the fallback.

    Raises:
        KernelUnavailableError: This machine or this build does not have the kernel.
    """
    if cache_bits not in (8, 16):
        raise ValueError(f"got cache_bits={cache_bits}; the cache holds 8 or 16 bits")
    number = _core.path_number(kernel)
    if number < 0:
        return _fallback(file, cache_bits, positions)
    library = _core.core().library
    if library is None or not decoder_library(library):
        if kernel == "auto":
            return _fallback(file, cache_bits, positions)
        raise KernelUnavailableError("the compiled core has no decoder; reinstall pentad-ternary to build it again")
    return NativeModel(file, library, number, threads or processors(), cache_bits, positions)


def _fallback(file: ModelFile, cache_bits: int, positions: int) -> FallbackModel:
    from ternary.llm._fallback import FallbackModel  # loads torch, which the core does without

    return FallbackModel(file, cache_bits, positions)
