"""Layers and quantizers for PyTorch."""

from __future__ import annotations

from ternary._language.divisible import make_divisible
from ternary.nn._experts import SeparateExperts
from ternary.nn._layers import (
    TernaryConv1d,
    TernaryConv2d,
    TernaryEmbedding,
    TernaryLinear,
    TernaryWeight,
    ternary_layers,
)
from ternary.nn._outliers import FloatChannels
from ternary.nn._quantizers import absmean, fake_int8, fixed, sparse, stochastic, ternarize, twn
from ternary.nn._rotary import rotary
from ternary.runtime._int8 import Int8Conv2d, Int8Linear

__all__ = [
    "FloatChannels",
    "Int8Conv2d",
    "Int8Linear",
    "SeparateExperts",
    "TernaryConv1d",
    "TernaryConv2d",
    "TernaryEmbedding",
    "TernaryLinear",
    "TernaryWeight",
    "absmean",
    "fake_int8",
    "fixed",
    "make_divisible",
    "rotary",
    "sparse",
    "stochastic",
    "ternarize",
    "ternary_layers",
    "twn",
]
