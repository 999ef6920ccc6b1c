"""Rotary positions, grouped attention, uneven windows and transposed convolutions, from source to exported file."""

from __future__ import annotations

from pathlib import Path

import onnxruntime  # at the top: it opens its own files once
import pytest
import torch
from torch import nn
from torch.nn import functional

import ternary
from ternary.export import export
from ternary.nn import rotary

DECODER = """
layer Attention(width: int, heads: int, shared: int) {
  let size = width // heads
  q = ternary Linear(width, width, bias=false)
  k = ternary Linear(width, shared * size, bias=false)
  v = ternary Linear(width, shared * size, bias=false)

  forward(x: float[N, T, width]) -> float[N, T, width] {
    query = rotary(transpose(reshape(q(x), [N, T, heads, size]), 1, 2))
    key = rotary(transpose(reshape(k(x), [N, T, shared, size]), 1, 2))
    value = transpose(reshape(v(x), [N, T, shared, size]), 1, 2)
    mixed = attention(query, key, value, causal=true, grouped=true)
    return reshape(transpose(mixed, 1, 2), [N, T, width])
  }
}

model Decoder(width: int = 32) {
  embed = Embedding(50, width)
  mix = Attention(width, 4, 2)
  head = Linear(width, 50)

  forward(x: int[N, T]) -> float[N, T, 50] {
    return head(mix(embed(x)))
  }
}
"""
PICTURE = """
model Picture(wide: int = 7) {
  let window = [3, 1]
  down = [
    ternary Conv2d(3, 16, [1, wide], stride=[1, 2], padding=[0, wide // 2]),
    ReLU(),
    ternary Conv2d(16, 16, window, padding=[1, 0], dilation=[1, 2]),
  ]
  pool = MaxPool2d([2, 1])
  up = ConvTranspose2d(16, 4, [2, 4], stride=2, padding=[0, 1], extra=[1, 0])

  forward(x: float[N, 3, H, W]) -> float[N, 4, _, _] {
    return up(avg_pool2d(pool(down(x)), [1, 2], stride=1))
  }
}
"""
SOURCES = {
    "decoder": (DECODER, torch.randint(0, 50, (2, 9))),
    "picture": (PICTURE, torch.randn(2, 3, 16, 20)),
}


@pytest.mark.parametrize("name", SOURCES)
class TestWholeWay:
    """Each source is checked, trained, packed, saved, loaded and exported."""

    def test_trains_packs_and_loads(self, name: str, tmp_path: Path) -> None:
        """A step lowers the loss, packing only rounds activations, and the file holds the program."""
        source, x = SOURCES[name]
        assert not ternary.check(source)
        torch.manual_seed(0)
        model = ternary.compile(source)()
        wanted = torch.zeros_like(model(x))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        losses = []
        for _ in range(5):
            losses.append(functional.mse_loss(model(x), wanted))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < losses[0]
        assert all(p.grad is not None for p in model.parameters())
        model.eval()
        packed = ternary.pack(model)
        assert (packed(x) - model(x)).norm() < 0.05 * model(x).norm()
        ternary.save(model, tmp_path / "m.safetensors")
        assert torch.allclose(ternary.load(tmp_path / "m.safetensors")(x), model(x), atol=1e-5)

    def test_the_formatter_keeps_it(self, name: str) -> None:
        """Formatting changes no meaning and is stable."""
        source, _ = SOURCES[name]
        once = ternary.format_source(source)
        assert ternary.format_source(once) == once
        assert ternary.generate(once) == ternary.generate(source)

    def test_onnx_computes_the_same(self, name: str, tmp_path: Path) -> None:
        """A runtime of others reads the exported file and agrees."""
        source, x = SOURCES[name]
        torch.manual_seed(0)
        model = ternary.compile(source)().eval()
        export(model, tmp_path, ["onnx"], example=x)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(next(tmp_path.glob("*.onnx"))), options)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-4)


class TestRotary:
    """Rotations by position."""

    def test_products_depend_on_distance(self) -> None:
        """The same two vectors, moved together, have the same product; lengths stay."""
        q, k = torch.randn(8), torch.randn(8)
        turned_q, turned_k = rotary(q.expand(1, 1, 12, 8)), rotary(k.expand(1, 1, 12, 8))
        products = turned_q[0, 0] @ turned_k[0, 0].T
        for distance in range(-5, 6):
            row = products.diagonal(distance)
            assert torch.allclose(row, row[:1].expand_as(row), atol=1e-5)
        assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(1, 1, 12), atol=1e-5)
        assert not torch.allclose(turned_q[0, 0, 0], turned_q[0, 0, 1])

    def test_it_is_that_of_llama(self) -> None:
        """Weights of such a model can be used as they are."""
        llama = pytest.importorskip("transformers.models.llama.modeling_llama")
        x = torch.randn(1, 2, 7, 16)
        steps = 1.0 / 10000.0 ** (torch.arange(0, 16, 2).float() / 16)
        angles = torch.arange(7).float()[:, None] * steps
        both = torch.cat((angles, angles), -1)[None]
        expected, _ = llama.apply_rotary_pos_emb(x, x, both.cos(), both.sin())
        assert torch.allclose(rotary(x), expected, atol=1e-5)

    def test_half_precision(self) -> None:
        """Angles are computed in float32; the result has the dtype of the input."""
        x = torch.randn(1, 1, 600, 8)
        assert rotary(x.bfloat16()).dtype == torch.bfloat16
        assert torch.allclose(rotary(x.bfloat16()).float(), rotary(x), atol=0.05)


def test_grouped_attention_repeats_the_shared_heads() -> None:
    """Each group of query heads reads its own head of keys and values."""
    source = """model M {
      forward(q: float[N, 6, T, 8], k: float[N, 2, T, 8], v: float[N, 2, T, 8]) -> float[N, 6, T, 8] {
        return attention(q, k, v, grouped=true)
      }
    }"""
    q, k, v = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    wide = functional.scaled_dot_product_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    assert torch.allclose(ternary.compile(source)()(q, k, v), wide, atol=1e-5)


def one_layer(layer: str, given: str, returned: str) -> str:
    """The source of a model that applies one layer."""
    return f"model M {{\n  a = {layer}\n  forward(x: float[{given}]) -> float[{returned}] {{ return a(x) }}\n}}"


@pytest.mark.parametrize("kernel", [(2, 2), (3, 1), (4, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 0)])
@pytest.mark.parametrize("extra", [(0, 0), (1, 0)])
def test_sizes_of_transposed_convolutions(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], extra: tuple[int, int]
) -> None:
    """The checker's sizes are torch's, and what torch refuses is an error."""

    def listed(pair: tuple[int, int]) -> str:
        return f"[{pair[0]}, {pair[1]}]"

    options = f"stride={listed(stride)}, padding={listed(padding)}, extra={listed(extra)}"
    layer = f"ConvTranspose2d(2, 3, {listed(kernel)}, {options})"
    try:
        made = nn.ConvTranspose2d(2, 3, kernel, stride, padding, extra)
        height, width = made(torch.zeros(1, 2, 5, 4)).shape[2:]
    except RuntimeError:
        height = width = 0
    source = one_layer(layer, "N, 2, 5, 4", f"N, 3, {height}, {width}")
    assert bool(ternary.check(source)) == (height == 0)


@pytest.mark.parametrize(
    ("member", "shape", "message"),
    [
        ("Conv2d(3, 4, [1, 2, 3])", "3, 4, 4", "kernel has 3 sizes"),
        ("Conv2d(3, 4, [1, 0])", "3, 4, 4", "kernel = 0"),
        ("Conv2d(3, 4, 3, padding=[0, -1])", "3, 4, 4", "padding = -1"),
        ("Conv2d(3, 4, [1, 9])", "3, 4, 4", "has a window of 9"),
        ("Conv2d(3, 4, [])", "3, 4, 4", "kernel has 0 sizes"),
        ("Conv2d(3, 4, [1.5, 2])", "3, 4, 4", "this is of type float"),
        ("Conv1d(3, 4, [1, 2])", "3, 4", "this is of type dims"),
        ("MaxPool2d([2, 4], padding=[2, 0])", "3, 4, 4", "padding 2 for a window of 2"),
        ("ConvTranspose2d(3, 4, 2, padding=40)", "3, 4, 4", "leaves nothing"),
        ("ConvTranspose2d(3, 4, 3, extra=2)", "3, 4, 4", "extra = 2"),
        ("ternary ConvTranspose2d(3, 4, 3)", "3, 4, 4", "no ternary form"),
    ],
)
def test_mistakes(member: str, shape: str, message: str) -> None:
    """Each is one error that says what is wrong."""
    source = one_layer(member, f"N, {shape}", ", ".join("_" * (shape.count(",") + 2)))
    (problem,) = ternary.check(source)
    assert message in problem.message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("attention(x, y, y, grouped=true)", "6 heads in groups of 4"),
        ("attention(x, y, x, grouped=true)", "4 heads of keys and 6 of values"),
        ("rotary(select(x, 3, 0))", "last dimension is 5"),
        ("rotary(x, base=0.0)", "base = 0"),
        ("max_pool2d(x, [1, 2, 3])", "kernel has 3 sizes"),
        ("max_pool2d(x, [0, 2])", "kernel = 0"),
    ],
)
def test_mistakes_in_forward(call: str, message: str) -> None:
    """The same for functions."""
    inputs = "x: float[N, 6, 5, 8], y: float[N, 4, 5, 8]"
    source = f"model M {{\n  forward({inputs}) -> float[_, _, _, _] {{ return {call} }}\n}}"
    assert message in ternary.check(source)[0].message
