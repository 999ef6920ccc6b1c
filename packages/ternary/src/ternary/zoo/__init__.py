"""Networks that ship as sources in the ternary language."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from ternary._language.compiler import compile as compile_source
from ternary._language.diagnostics import did_you_mean
from ternary.errors import UnknownModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load", "names", "source"]


def names() -> tuple[str, ...]:
    """Return the names of the networks, sorted.

    Example:
        >>> from ternary import zoo
        >>> zoo.names()
        ('bitnet', 'mlp', 'mobilenet_v2', 'resnet18', 'vit')
    """
    files = (f.name for f in resources.files(__name__).iterdir())
    return tuple(sorted(f.removesuffix(".tri") for f in files if f.endswith(".tri")))


def source(name: str) -> str:
    """Return the source of a network, such as `"resnet18"`; raises `UnknownModelError` for an unknown name.

    Example:
        >>> from ternary import zoo
        >>> "model ResNet18" in zoo.source("resnet18")
        True
    """
    if name not in names():
        hint = did_you_mean(name, names())
        raise UnknownModelError(f"the zoo has no '{name[:80]}', only {', '.join(names())}. {hint}".rstrip())
    return resources.files(__name__).joinpath(f"{name}.tri").read_text(encoding="utf-8")


def load(name: str, *, quantized: bool = True) -> type[nn.Module]:
    """Return the class of a network; `quantized=False` returns its float form with the same state dict.

    Example:
        >>> from ternary import zoo
        >>> sum(p.numel() for p in zoo.load("resnet18")().parameters())
        11689512
    """
    return compile_source(source(name), name=f"{name}.tri", quantized=quantized)
