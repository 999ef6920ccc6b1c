"""The two words of the suite's older vocabulary, kept as thin wrappers over the library, with tests of their own."""

from __future__ import annotations

import torch

import ternary
from ternary._language import syntax as s
from ternary._language.codegen import PyTorchCodeGenerator
from ternary._language.compiler import parse_source
from ternary.nn._quantizers import thresholded


def compile_dsl(text: str) -> str:
    """Return the PyTorch code of a program."""
    return ternary.generate(text)


def ternary_quantize(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the values of a weight at an absolute threshold."""
    return thresholded(weight, torch.tensor([threshold]), per_channel=False)[0]


def generator_of(text: str) -> tuple[PyTorchCodeGenerator, s.Program]:
    """Return a code generator and the tree that it works on."""
    program = parse_source(text)[0]
    return PyTorchCodeGenerator(program), program


def test_adapters_reach_the_library() -> None:
    """Each wrapper does what the library does."""
    text = "model M(n: int = 2) {\n a = Linear(n, n)\n forward(x: float[N, n]) -> float[N, n] { return a(x) }\n}"
    assert compile_dsl(text) == generator_of(text)[0].generate()
    assert ternary_quantize(torch.tensor([[0.1, -0.6, 0.5]]), 0.5).tolist() == [[0.0, -1.0, 0.0]]
