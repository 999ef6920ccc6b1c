"""Packed ternary layers and the kernels that run them."""

from __future__ import annotations

from ternary.runtime._composed import PackedConv1d, PackedPadded, PackedPair
from ternary.runtime._doctor import Report, doctor
from ternary.runtime._fuse import fuse
from ternary.runtime._grouped import PackedGroupedLinear
from ternary.runtime._modules import PackedConv2d, PackedEmbedding, PackedLinear
from ternary.runtime._native import available_kernels
from ternary.runtime._pack import Parts, pack, packed_layers, parts

__all__ = [
    "PackedConv1d",
    "PackedConv2d",
    "PackedEmbedding",
    "PackedGroupedLinear",
    "PackedLinear",
    "PackedPadded",
    "PackedPair",
    "Parts",
    "Report",
    "available_kernels",
    "doctor",
    "fuse",
    "pack",
    "packed_layers",
    "parts",
]
