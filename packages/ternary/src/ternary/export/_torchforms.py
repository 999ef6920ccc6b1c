"""Torch's own files, exported programs (.pt2) and TorchScript, with packed weights. Loading needs `import ternary`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ternary._wholefile import whole_file
from ternary.errors import ExportError
from ternary.export._files import as_inputs, first_cause, traceable_form

__all__ = ["to_pt2", "to_torchscript"]


def to_pt2(model: nn.Module, path: str | Path, example: Any) -> None:
    """Write an exported program (`torch.export`), its batch size free, its ternary weights in 2 bits.

    Load it with `torch.export.load(path).module()` after `import ternary`, which brings the operators.

    Args:
        model: With ternary or packed layers.
        path: The file to write, usually ending in `.pt2`.
        example: An input of the model, or a tuple of them.

    Raises:
        ExportError: The model has no ternary layer, there is no example, or torch cannot trace the model with it.

    Example:
        >>> import tempfile, torch, ternary
        >>> from ternary.export import to_pt2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_pt2(ternary.nn.TernaryLinear(16, 4), f"{folder}/layer.pt2", torch.randn(2, 16))
        ...     torch.export.load(f"{folder}/layer.pt2").module()(torch.zeros(3, 16)).shape
        torch.Size([3, 4])
    """
    packed, inputs = traceable_form(model), as_inputs(example)
    free = tuple({0: torch.export.Dim.AUTO} if t.dim() else None for t in inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates parts of itself
        try:
            program = torch.export.export(packed, inputs, dynamic_shapes=free)
        except Exception as e:  # the exporter has many classes of errors, few of them public
            raise ExportError(_refused(model, inputs, e)) from e
    with whole_file(path) as temporary:
        torch.export.save(program, temporary, extra_files={"ternary.json": json.dumps({"model": type(model).__name__})})


def to_torchscript(model: nn.Module, path: str | Path, example: Any = None, *, form: str = "trace") -> None:
    """Write TorchScript, for C++ and for old deployments; torch calls it deprecated, but reads it.

    Load it with `torch.jit.load(path)` after `import ternary`, which brings the operators.

    Args:
        model: With ternary or packed layers.
        path: The file to write, usually ending in `.ts`.
        example: An input of the model, or a tuple of them; only tracing needs it.
        form: 'trace' or 'script'.

    Raises:
        ExportError: The model has no ternary layer, the form is unknown, tracing lacks an example, or torch cannot
            trace or script the model.

    Example:
        >>> import tempfile, torch, ternary
        >>> from ternary.export import to_torchscript
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_torchscript(ternary.nn.TernaryLinear(16, 4), f"{folder}/layer.ts", torch.randn(2, 16))
        ...     torch.jit.load(f"{folder}/layer.ts")(torch.zeros(3, 16)).shape
        torch.Size([3, 4])
    """
    if form not in ("trace", "script"):
        raise ExportError(f"got form={form!r}; TorchScript is made by 'trace' or 'script'")
    packed = traceable_form(model)
    inputs = as_inputs(example) if form == "trace" else ()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = torch.jit.script(packed) if form == "script" else torch.jit.trace(packed, inputs, strict=False)  # type: ignore[no-untyped-call]
        except Exception as e:  # what the model raises in tracing, or torch in scripting
            raise ExportError(_refused(model, inputs, e)) from e
        with whole_file(path) as temporary:
            torch.jit.save(made, str(temporary))


def _refused(model: nn.Module, inputs: tuple[torch.Tensor, ...], error: Exception) -> str:
    given = f" with inputs of shape {', '.join(str(list(t.shape)) for t in inputs)}" if inputs else ""
    return f"torch cannot write {type(model).__name__}{given}: {first_cause(error)}"
