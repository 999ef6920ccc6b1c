"""What all formats share: example inputs, optional libraries, the packed form."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ternary.errors import ExportError, MissingExtraError, NothingToPackError
from ternary.runtime._pack import pack

__all__ = ["NO_GROUPS", "as_inputs", "first_cause", "optional", "packed_form", "traceable_form"]


NO_GROUPS = "{} is written with one scale an output, and this layer has one per group of {} inputs; use per='channel'"
"""Why a format refuses a layer."""


def optional(name: str, extra: str) -> ModuleType:
    """Import an optional library; the error names the extra that installs it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise MissingExtraError(f"{e.name or name} is needed here; pip install 'pentad-ternary[{extra}]'") from e


def packed_form(model: nn.Module) -> nn.Module:
    """Return the model with its ternary layers packed, or a copy if there are none; in evaluation mode.

    Raises:
        ExportError: There is no ternary layer to export.
    """
    try:
        return pack(model)
    except NothingToPackError as e:
        raise ExportError(str(e)) from None


def traceable_form(model: nn.Module) -> nn.Module:
    """Return the packed form without key/value caches: a graph cannot return the cache of a Hugging Face model.

    Raises:
        ExportError: There is no ternary layer to export.
    """
    packed = packed_form(model)
    for module in packed.modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False  # type: ignore[union-attr] # of the copy
    return packed


def first_cause(error: BaseException) -> str:
    """Return the first line of the error that led to this one; exporters wrap it in others without content."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def as_inputs(example: Any) -> tuple[Tensor, ...]:
    """Return example inputs as a tuple of tensors, a first dimension of 1 doubled.

    torch.export takes a size of 1 for a constant; with two samples the first dimension stays free.

    Raises:
        ExportError: There is no example, or it is no tensor.
    """
    given = (example,) if isinstance(example, Tensor) else example
    if not isinstance(given, Sequence) or not given or not all(isinstance(t, Tensor) for t in given):
        raise ExportError(f"got example={example!r}; this format traces the model, so give a tensor or a tuple of them")
    if all(t.dim() > 0 and t.shape[0] == 1 for t in given):
        return tuple(torch.cat([t, t]) for t in given)
    return tuple(given)
