"""Packed models to other runtimes and back: ONNX, GGUF, torch's own files, the Hub, GitHub."""

from ternary.export.bitnet import read_bitnet
from ternary.export.bundle import FORMATS, Manifest, ManifestFile, export, verify
from ternary.export.gguffile import read_gguf, to_gguf
from ternary.export.imported import TernaryTensor, put_into
from ternary.export.onnxfile import to_onnx
from ternary.export.onnxread import read_onnx
from ternary.export.publish import to_github, to_hub
from ternary.export.torchforms import to_pt2, to_torchscript

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
