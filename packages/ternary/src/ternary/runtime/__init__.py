"""Packed ternary layers and the kernels that run them."""

from ternary.runtime.composed import PackedConv1d, PackedPadded, PackedPair
from ternary.runtime.doctor import Report, doctor
from ternary.runtime.modules import PackedConv2d, PackedEmbedding, PackedLinear
from ternary.runtime.native import available_kernels
from ternary.runtime.pack import Parts, pack, packed_layers, parts

__all__ = [
    "PackedConv1d",
    "PackedConv2d",
    "PackedEmbedding",
    "PackedLinear",
    "PackedPadded",
    "PackedPair",
    "Parts",
    "Report",
    "available_kernels",
    "doctor",
    "pack",
    "packed_layers",
    "parts",
]
