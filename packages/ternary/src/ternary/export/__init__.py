"""Packed models to other runtimes and back: ONNX, GGUF, torch's own files, the Hub, GitHub."""

from __future__ import annotations

from ternary.export._bitnet import read_bitnet
from ternary.export._bundle import FORMATS, Manifest, ManifestFile, export, verify
from ternary.export._gguffile import read_gguf, to_gguf
from ternary.export._imported import TernaryTensor, put_into
from ternary.export._onnxfile import to_onnx
from ternary.export._onnxread import read_onnx
from ternary.export._publish import to_github, to_hub
from ternary.export._torchforms import to_pt2, to_torchscript

__all__ = [
    "FORMATS",
    "Manifest",
    "ManifestFile",
    "TernaryTensor",
    "export",
    "put_into",
    "read_bitnet",
    "read_gguf",
    "read_onnx",
    "to_gguf",
    "to_github",
    "to_hub",
    "to_onnx",
    "to_pt2",
    "to_torchscript",
    "verify",
]
