"""Importing ternary stays cheap."""

from __future__ import annotations

import subprocess
import sys


def test_import_pulls_in_nothing_heavy() -> None:
    """A fresh interpreter that imports ternary has loaded none of the heavy optional libraries."""
    heavy = {"onnx", "onnxscript", "onnxruntime", "gguf", "huggingface_hub", "github", "matplotlib", "rich"}
    heavy |= {"transformers", "triton"}
    code = f"import sys, ternary, ternary.export; print(sorted({heavy!r} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
