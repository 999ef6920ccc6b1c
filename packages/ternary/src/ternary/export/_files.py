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

__all__ = ["as_inputs", "optional", "packed_form"]


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
