"""Packed ternary layers and the kernels that run them."""

from ternary.runtime.doctor import Report, doctor
from ternary.runtime.modules import PackedConv2d, PackedEmbedding, PackedLinear
from ternary.runtime.native import available_kernels

__all__ = ["PackedConv2d", "PackedEmbedding", "PackedLinear", "Report", "available_kernels", "doctor"]
