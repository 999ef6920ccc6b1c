"""Programs of one's own: layers, parameters, composition, formatting, the same code every time."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import ternary
from ternary import zoo
from ternary._language.compiler import parse_source
from ternary.errors import CompileError, UnknownModelError

TEXT = """
# comment
layer Twice(n: int, gain: float = 2.0) {
  a = ternary Linear(n, n)   # inside
  forward(x: float[N, n]) -> float[N, n] { return a(x) * gain + x }
}
model Net(n: int = 6, depth: int = 3) {
  body = [Twice(n), repeat(depth) Twice(n, gain=0.5), Identity() if depth > 9]
  forward(x: float[N, n]) -> float[N, n] { return body(x) }
}
"""


class TestCustomModelCompilation:
    """Compiling one's own programs."""

    def test_layers_compile(self) -> None:
        """A layer can be compiled by name, a model without one."""
        assert ternary.compile(TEXT).__name__ == "Net"
        layer = ternary.compile(TEXT, "Twice")(4)
        x = torch.randn(2, 4)
        assert torch.allclose(layer(x), layer.a(x) * 2.0 + x)

    @pytest.mark.parametrize("n", [1, 5, 64])
    @pytest.mark.parametrize("depth", [0, 1, 4])
    def test_parameters_set_shapes(self, n: int, depth: int) -> None:
        """Arguments change sizes and how often a layer is repeated."""
        model = ternary.compile(TEXT)(n, depth)
        assert len(model.body) == 1 + depth
        assert model.body[0].a.weight.shape == (n, n)
        assert model(torch.randn(3, n)).shape == (3, n)

    def test_large_batch(self) -> None:
        """A batch of a thousand rows gives what its rows give one by one."""
        model, x = ternary.compile(TEXT)(8, 2).eval(), torch.randn(1000, 8)
        with torch.no_grad():
            assert torch.allclose(model(x)[::100], torch.cat([model(row[None]) for row in x[::100]]), atol=1e-5)

    def test_ternary_packing_of_a_custom_layer(self, temp_dir: Path, utils: ModuleType) -> None:
        """What was compiled from source comes back from its file without any Python of the user."""
        model = ternary.compile(TEXT)(7, 2).eval()
        ternary.save(model, temp_dir / "m.safetensors", arguments={"n": 7, "depth": 2})
        utils.compare_model_outputs(ternary.load(temp_dir / "m.safetensors"), model, torch.randn(2, 7), 0.0)

    def test_consistent_code(self) -> None:
        """Two compilations, and one of the formatted source, give the same bytes."""
        assert ternary.generate(TEXT) == ternary.generate(TEXT)
        assert ternary.generate(ternary.format_source(TEXT)) == ternary.generate(TEXT)

    def test_which_model(self) -> None:
        """Several models need a name, and an unknown one gets a suggestion."""
        two = TEXT + TEXT.replace("Twice", "Thrice").replace("Net", "Nest")
        with pytest.raises(UnknownModelError, match="Net, Nest"):
            ternary.compile(two)
        assert ternary.compile(two, "Nest").__name__ == "Nest"
        with pytest.raises(UnknownModelError, match="did you mean 'Nest'"):
            ternary.compile(two, "Nesst")

    @pytest.mark.parametrize("text", [TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT, TEXT.replace("\n", "\r")])
    def test_line_ends_and_byte_order_mark(self, text: str) -> None:
        """Sources from any editor give the same code."""
        assert ternary.generate(text) == ternary.generate(TEXT)

    def test_source_from_a_file(self, temp_dir: Path) -> None:
        """A Path is read; bytes that are not UTF-8 are an error with a place."""
        path = temp_dir / "net.tri"
        path.write_text(TEXT, encoding="utf-8")
        assert ternary.compile(path).__source__ == TEXT
        path.write_bytes(b"model M \xff")
        with pytest.raises(CompileError, match="1:9: error: byte 0xff is not UTF-8"):
            ternary.compile(path)
        assert ternary.check(path)[0].code == "bad-character"

    @pytest.mark.parametrize("name", zoo.names())
    def test_formatting_is_stable(self, name: str) -> None:
        """The zoo is formatted, and formatting keeps tree and comments."""
        text = zoo.source(name)
        assert ternary.format_source(text) == text
        squeezed = text.replace("  ", " ")
        assert parse_source(ternary.format_source(squeezed))[0] == parse_source(text)[0]

    def test_formatting_keeps_comments(self) -> None:
        """Comments stay, wherever they stand, and formatting twice changes nothing."""
        text = """# top
model A(  # why
  x:int=3,g:float=1.5){# open
  # own
  a=[ # first
   Linear(x,4), # one
   # two
   ReLU(),
   # last
  ]   # end
  let z = (1+2)*-(3-4)  # zz
  require z>0 and not(x==4 or x==5),"a \\"b\\"" # q


  forward(x1: float[N,3]) ->   float[N,_] { # f
     # in
     y = a(x1 # inside call
       ) + (a(x1) - a(x1)) if not (z == 3 and true) else a(x1)
     return y # r
     # tail
  }
  # end of A
}
# eof"""
        once = ternary.format_source(text)
        assert ternary.format_source(once) == once
        assert once.count("#") == text.count("#")
        assert parse_source(once)[0] == parse_source(text)[0]
        assert "let z = (1 + 2) * -(3 - 4)  # zz" in once

    def test_formatter_refuses_bad_syntax(self) -> None:
        """A source that does not parse is left alone."""
        with pytest.raises(CompileError):
            ternary.format_source("model {")

    def test_zoo_names_and_suggestions(self) -> None:
        """The zoo lists its networks; a near miss gets a suggestion."""
        assert {"bitnet", "mlp", "mobilenet_v2", "resnet18", "vit"} <= set(zoo.names())
        with pytest.raises(UnknownModelError, match="did you mean 'resnet18'"):
            zoo.load("resnet8")

    def test_bitnet_block_runs_and_is_causal(self) -> None:
        """The language model's outputs do not depend on later tokens."""
        model = zoo.load("bitnet")(depth=2).eval()
        ids, place = torch.randint(0, 256, (1, 12)), torch.arange(12)
        other = ids.clone()
        other[0, -1] = (other[0, -1] + 1) % 256
        with torch.no_grad():
            a, b = model(ids, place), model(other, place)
        assert torch.equal(a[:, :-1], b[:, :-1])
        assert not torch.equal(a[:, -1], b[:, -1])

    def test_vit_runs_at_other_sizes(self) -> None:
        """The vision transformer follows its parameters."""
        assert zoo.load("vit")(size=16, width=48, depth=2, classes=3)(torch.randn(2, 3, 16, 16)).shape == (2, 3)
