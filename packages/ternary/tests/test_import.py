"""Importing ternary stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_import_pulls_in_nothing_heavy() -> None:
    """A fresh interpreter that imports ternary has loaded none of the heavy optional libraries."""
    heavy = {"onnx", "onnxscript", "onnxruntime", "gguf", "huggingface_hub", "github", "matplotlib", "rich"}
    heavy |= {"transformers", "triton"}
    code = f"import sys, ternary, ternary.export; print(sorted({heavy!r} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


FIRST = ["nn", "llm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("runtime", "export", "zoo", "packing"))]


@pytest.mark.parametrize("name", FIRST)
def test_any_public_module_may_be_the_first(name: str) -> None:
    """A fresh interpreter that has not even torch imports the module, and each of its names."""
    code = f"from ternary import {name} as m; print([getattr(m, n) for n in getattr(m, '__all__', [])] is not None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
