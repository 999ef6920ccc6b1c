"""How a weight becomes ternary, as one value: the layers, the recipes and the language all take these six options."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict

from ternary.errors import UnknownQuantizerError, UnsupportedGroupError

__all__ = ["CHOICES", "QUANTIZERS", "QuantizerKeywords", "QuantizerOptions", "require_choice"]

QUANTIZERS = ("twn", "ttq", "absmean", "fixed", "stochastic", "sparse", "exact")
CHOICES = {"quantizer": QUANTIZERS, "per": ("tensor", "channel", "group"), "activations": ("float", "int8")}
"""The values of each option that takes a word."""


@dataclass(frozen=True, slots=True)
class QuantizerOptions:
    """How a layer quantizes its weight and its input.

    Args:
        quantizer: One of 'twn', 'ttq', 'absmean', 'fixed', 'stochastic', 'sparse', or 'exact' for a weight that is
            ternary already.
        per: 'channel' for one scale per output, 'tensor' for one, 'group' for one per output and `group` inputs, which
            only linear layers have.
        threshold: For 'twn' the factor of the mean magnitude, for 'fixed' the magnitude.
        sparsity: For 'sparse', the fraction of zeros.
        activations: 'int8' rounds the input to 8 bits, 'float' leaves it as it is.
        group: Inputs that share a scale with `per='group'`; the last group has those that are left over.

    Raises:
        UnknownQuantizerError: An option has a word that is not one of its choices.
        ValueError: A number is out of range.
        UnsupportedGroupError: The quantizer is 'ttq', which has no scales per group.
    """

    quantizer: str = "twn"
    per: str = "channel"
    threshold: float = 0.7
    sparsity: float = 0.5
    activations: str = "float"
    group: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        """Check every option."""
        for option, choices in CHOICES.items():
            require_choice(option, getattr(self, option), choices)
        if not in_range("sparsity", self.sparsity):
            raise ValueError(f"sparsity is a fraction of zeros in [0, 1), got {self.sparsity}")
        if not in_range("threshold", self.threshold):
            raise ValueError(f"a threshold is at least 0, got {self.threshold}")
        if type(self.group) is not int or self.group < 1:  # True is an int
            raise ValueError(f"a group is a whole number of inputs, 1 or more, got {self.group!r}")
        if self.per == "group" and self.quantizer == "ttq":
            raise UnsupportedGroupError(
                "'ttq' learns two scales and none per group; take another quantizer, or per='channel'"
            )


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
    group: int


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `UnknownQuantizerError` unless a value is one of the choices."""
    if value not in choices:
        raise UnknownQuantizerError(f"unknown {name} {value!r}; it is one of {', '.join(choices)}")
