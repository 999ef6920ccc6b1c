"""torch: what would lose something as a plain tensor, and the small values around tensors."""

from __future__ import annotations

import sys
from typing import Any

from .errors import UnsupportedTypeError, WireError
from .kinds_standard import wanted
from .libraries import library
from .segments import TENSOR_TYPES


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts; None for what travels as it is, and for what does not."""
    torch = sys.modules["torch"]
    if kind is torch.Tensor:
        if value.requires_grad:
            raise UnsupportedTypeError("a tensor that requires a gradient does not travel; send value.detach()")
        if value.device.type == "meta":
            raise UnsupportedTypeError("a tensor on the meta device has no data to travel; send its shape and dtype")
        if value.layout is not torch.strided or value.dim() < 2 or value.is_contiguous() or not value.numel():
            return None
        axes = sorted(range(value.dim()), key=lambda axis: -value.stride(axis))
        turned = value.permute(axes)
        return ("torch.order", [axes, turned]) if turned.is_contiguous() else None
    if kind is torch.Size:
        return "torch.Size", list(value)
    if kind is torch.dtype:
        name = str(value).removeprefix("torch.")
        return ("torch.dtype", name) if name in TENSOR_TYPES else None
    if kind is torch.device:
        return "torch.device", [value.type, value.index]
    return None


def build(tag: str, parts: Any) -> Any:
    """Return the value for a tag and its parts."""
    torch = library("torch", f"a {tag:.40}")
    if tag == "torch.order":
        axes, turned = parts
        wanted(isinstance(turned, torch.Tensor) and sorted(axes) == list(range(turned.dim())), "a tensor's order")
        return turned.permute(sorted(range(len(axes)), key=axes.__getitem__))
    if tag == "torch.Size":
        wanted(type(parts) is list and all(type(n) is int for n in parts), "a torch.Size")
        return torch.Size(parts)
    if tag == "torch.dtype":
        wanted(parts in TENSOR_TYPES and hasattr(torch, parts), "a torch.dtype")
        return getattr(torch, parts)
    if tag == "torch.device":
        name, index = parts
        return torch.device(name) if index is None else torch.device(name, index)
    raise WireError(f"there is no type {tag!r:.40} in the protocol")
