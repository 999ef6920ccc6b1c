"""How a weight becomes ternary, as one value: the layers, the recipes and the language all take these five options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from ternary.errors import UnknownQuantizerError

__all__ = ["CHOICES", "QUANTIZERS", "QuantizerKeywords", "QuantizerOptions", "require_choice"]

QUANTIZERS = ("twn", "ttq", "absmean", "fixed", "stochastic", "sparse", "exact")
CHOICES = {"quantizer": QUANTIZERS, "per": ("tensor", "channel"), "activations": ("float", "int8")}
"""The values of each option that takes a word."""


@dataclass(frozen=True, slots=True)
class QuantizerOptions:
    """How a layer quantizes its weight and its input.

    Args:
        quantizer: One of 'twn', 'ttq', 'absmean', 'fixed', 'stochastic', 'sparse', or 'exact' for a weight that is
            ternary already.
        per: 'channel' for one scale per output, 'tensor' for one.
        threshold: For 'twn' the factor of the mean magnitude, for 'fixed' the magnitude.
        sparsity: For 'sparse', the fraction of zeros.
        activations: 'int8' rounds the input to 8 bits, 'float' leaves it as it is.

    Raises:
        UnknownQuantizerError: An option has a word that is not one of its choices.
        ValueError: A number is out of range.
    """

    quantizer: str = "twn"
    per: str = "channel"
    threshold: float = 0.7
    sparsity: float = 0.5
    activations: str = "float"

    def __post_init__(self) -> None:
        """Check every option."""
        for option, choices in CHOICES.items():
            require_choice(option, getattr(self, option), choices)
        if not in_range("sparsity", self.sparsity):
            raise ValueError(f"sparsity is a fraction of zeros in [0, 1), got {self.sparsity}")
        if not in_range("threshold", self.threshold):
            raise ValueError(f"a threshold is at least 0, got {self.threshold}")


RANGES = {"threshold": (0.0, math.inf, "0 or more"), "sparsity": (0.0, 1.0, "0 or more and below 1")}
"""For each option that is a number: the smallest value, the first that is too large, and both in words."""


def in_range(option: str, value: float) -> bool:
    """Return whether a number may be the value of an option; NaN may not."""
    lowest, end, _ = RANGES[option]
    return lowest <= value < end or (value == end == math.inf)


class QuantizerKeywords(TypedDict, total=False):
    """The same options as the keyword arguments of a layer."""

    quantizer: str
    per: str
    threshold: float
    sparsity: float
    activations: str


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `UnknownQuantizerError` unless a value is one of the choices."""
    if value not in choices:
        raise UnknownQuantizerError(f"unknown {name} {value!r}; it is one of {', '.join(choices)}")
