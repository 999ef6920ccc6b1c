"""Code generation: valid, deterministic, readable Python that says what the program says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ternary
from ternary import zoo
from ternary._language import syntax as s


class TestPyTorchCodeGenerator:
    """The generator on its own."""

    def test_codegen_initialization(self, adapters: ModuleType, simple_source: str) -> None:
        """A generator takes a program and keeps it."""
        generator, program = adapters.generator_of(simple_source)
        assert generator.program is program
        assert [d.name for d in program.definitions] == ["Simple"]

    @pytest.mark.parametrize("name", zoo.names())
    def test_code_is_valid_python(self, name: str) -> None:
        """The code parses and imports nothing but torch and ternary."""
        tree = ast.parse(ternary.generate(zoo.source(name)))
        roots = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                roots |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add(str(node.module).split(".")[0])
        assert roots <= {"torch", "ternary"}

    @pytest.mark.parametrize("name", zoo.names())
    def test_code_is_deterministic_across_processes(self, name: str) -> None:
        """Two interpreters with different hash seeds write the same bytes."""
        code = f"import ternary; print(ternary.generate(ternary.zoo.source({name!r})), end='')"
        runs = [
            subprocess.run(
                [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
            ).stdout
            for seed in ("1", "2")
        ]
        assert runs[0] == runs[1] == ternary.generate(zoo.source(name)).encode()

    @pytest.mark.parametrize("name", zoo.names())
    @pytest.mark.parametrize("quantized", [True, False])
    def test_code_passes_ruff(self, name: str, quantized: bool, tmp_path: Path) -> None:
        """The linter finds nothing and the usual formatter would change nothing."""
        code = ternary.generate(zoo.source(name), quantized=quantized).encode()
        lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,W,I,B,UP", "-"]
        # Elsewhere than here, where ruff would take `ternary` for the code of the project itself.
        found = subprocess.run(lint, input=code, capture_output=True, check=False, cwd=tmp_path)
        assert found.returncode == 0, found.stdout.decode()
        layout = [sys.executable, "-m", "ruff", "format", "--isolated", "-"]
        assert subprocess.run(layout, input=code, capture_output=True, check=True).stdout == code

    def test_parameter_extraction(self, adapters: ModuleType) -> None:
        """A model's parameters become typed arguments with their defaults."""
        generator, program = adapters.generator_of(zoo.source("mobilenet_v2"))
        model = next(d for d in program.definitions if d.kind == "model")
        assert [(p.name, p.type) for p in model.parameters] == [
            ("classes", "int"),
            ("width", "float"),
            ("dropout", "float"),
        ]
        assert model.parameters[1].default == s.Literal(1.0)
        assert "def __init__(\n" in generator.generate() or "width: float = 1.0" in generator.generate()

    def test_float_form_has_no_ternary_layer(self) -> None:
        """Without quantization the same program becomes plain PyTorch."""
        code = ternary.generate(zoo.source("resnet18"), quantized=False)
        assert "ternary.nn" not in code
        assert "nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False)" in code

    def test_source_text_cannot_reach_the_code(self) -> None:
        """Strings come out as literals, whatever they hold."""
        text = (
            'model M(name: str = "\\"); import os; (\\"") {\n'
            'require name != "x", "\'); print(1)"\n'
            "forward(x: float[N]) -> float[N] { return x }\n}"
        )
        tree = ast.parse(ternary.generate(text))
        assert not any(isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print" for n in ast.walk(tree))
        assert ternary.compile(text)()(torch.ones(1)) == 1

    def test_every_function_and_layer_runs(self) -> None:
        """One program with all that the language knows gives what the checker says, in every form of torch."""
        text = """
layer Two(n: int) {
  a = Linear(n, n)
  forward(x: float[N, n], y: float[N, n]) -> float[N, n] { return a(x) - y / 2.0 }
}
model All(c: int = 4, wide: bool = true) {
  let mid = c // 2 if wide else max(1, min(c, 2))
  conv = [Conv2d(3, c, 3, padding=1), BatchNorm2d(c), SiLU(), MaxPool2d(2), AvgPool2d(2, stride=1), Dropout(p=0.1)]
  odd = ternary(quantizer="absmean", per="tensor") Conv2d(c, c, 3, padding=1, groups=mid)
  two = Two(c)
  scale = Parameter(1, c)
  line = [Flatten(), Identity(), Sigmoid(), Tanh(), GELU(), ReLU(), ReLU6(), LayerNorm(c), RMSNorm(c), BatchNorm1d(c)]
  seq = [Conv1d(c, c, 1), MaxPool1d(1)]
  forward(x: float[N, 3, 8, 8]) -> float[N, c, 2] {
    y = odd(conv(x))
    z = global_avg_pool(avg_pool2d(max_pool2d(y, 2), 1))
    z = line(two(z, -z)) * scale if mid > 1 and not (c == 3 or c != c) else z
    w = concat([sigmoid(z), tanh(z), silu(gelu(relu6(relu(z))))], dim=0)
    v = reshape(softmax(w, dim=1), [3 * N, 1, c])
    u = attention(reshape(v, [3 * N, 1, 1, c]), reshape(v, [3 * N, 1, 1, c]), reshape(v, [3 * N, 1, 1, c]))
    t = mean(reshape(expand(u, [3 * N, 1, 2, c]), [3, N, 2, c]), 0)
    s = select(reshape(t, [1, N, 2, c]), 0, 0) @ transpose(t, 1, 2)
    r = seq(transpose(t, 1, 2)) @ s if c > 0 else flatten(x)
    return r
  }
}
"""
        assert ternary.check(text) == ()
        model = ternary.compile(text)().eval()
        x = torch.randn(2, 3, 8, 8)
        y = model(x)
        assert y.shape == (2, 4, 2)
        assert torch.equal(torch.export.export(model, (x,)).module()(x), y)
