"""Torch's own files, exported programs (.pt2) and TorchScript, with packed weights. Loading needs `import ternary`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ternary.errors import ExportError
from ternary.export.files import as_inputs, packed_form
from ternary.wholefile import whole_file

__all__ = ["to_pt2", "to_torchscript"]


def to_pt2(model: nn.Module, path: str | Path, example: Any) -> None:
    """Write an exported program (`torch.export`), its batch size free, its ternary weights in 2 bits.

    Load it with `torch.export.load(path).module()` after `import ternary`, which brings the operators.

    Args:
        model: With ternary or packed layers.
        path: Where to, by custom ending in `.pt2`.
        example: An input of the model, or a tuple of them.

    Raises:
        ExportError: The model has no ternary layer, or there is no example.
    """
    packed, inputs = packed_form(model), as_inputs(example)
    free = tuple({0: torch.export.Dim.AUTO} if t.dim() else None for t in inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates parts of itself
        program = torch.export.export(packed, inputs, dynamic_shapes=free)
    with whole_file(path) as temporary:
        torch.export.save(program, temporary, extra_files={"ternary.json": json.dumps({"model": type(model).__name__})})


def to_torchscript(model: nn.Module, path: str | Path, example: Any = None, *, form: str = "trace") -> None:
    """Write TorchScript, for C++ and for old deployments; torch calls it deprecated, but reads it.

    Load it with `torch.jit.load(path)` after `import ternary`, which brings the operators.

    Args:
        model: With ternary or packed layers.
        path: Where to, by custom ending in `.ts`.
        example: An input of the model, or a tuple of them; only tracing needs it.
        form: 'trace' or 'script'.

    Raises:
        ExportError: The model has no ternary layer, the form is unknown, or tracing lacks an example.
    """
    if form not in ("trace", "script"):
        raise ExportError(f"got form={form!r}; TorchScript is made by 'trace' or 'script'")
    packed = packed_form(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(packed) if form == "script" else torch.jit.trace(packed, as_inputs(example))  # type: ignore[no-untyped-call]
        with whole_file(path) as temporary:
            torch.jit.save(made, str(temporary))
