"""What formats share: files that appear whole or not at all, example inputs, optional libraries. Knows no format."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ternary.errors import ExportError, MissingExtraError, NothingToPackError
from ternary.runtime.pack import pack

__all__ = ["as_inputs", "optional", "packed_form", "whole_file"]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there at the end, or remove it if anything goes wrong."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def optional(name: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra brings it.

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
