"""Mistakes of callers: shapes, devices, NaN, names; each gives a typed error with advice, or a defined result."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import ternary
from ternary.errors import (
    CompileError,
    MissingExtraError,
    ModelFileError,
    NonFiniteWeightError,
    TernaryError,
    UnknownModelError,
)
from ternary.nn import TernaryConv2d, TernaryLinear, make_divisible
from ternary.nn._quantizers import require_finite


@pytest.mark.parametrize("shape", [(3, 15), (3,), (0, 17)])
def test_mismatched_inputs(compiled_simple_model: nn.Module, shape: tuple[int, ...]) -> None:
    """Torch's own error reaches the caller, from a line of generated code that can be read."""
    with pytest.raises(RuntimeError) as caught:
        compiled_simple_model(torch.randn(shape))
    lines = [str(entry.statement) for entry in caught.traceback]
    assert any("self.first(x)" in line for line in lines)


@pytest.mark.parametrize("shape", [(1, 16), (0, 16), (2, 3, 16)])
def test_unusual_batches(compiled_simple_model: nn.Module, shape: tuple[int, ...]) -> None:
    """One sample, none, and more dimensions work."""
    assert compiled_simple_model(torch.randn(shape)).shape == (*shape[:-1], 4)


@pytest.mark.parametrize("channels", [1, 3, 5, 127, 129])
@pytest.mark.parametrize("quantizer", ["twn", "ttq", "absmean", "sparse"])
def test_odd_channel_counts(channels: int, quantizer: str) -> None:
    """Channels that are no multiple of 4 or 128, one-wide ones too."""
    layer = TernaryConv2d(channels, channels, 3, padding=1, quantizer=quantizer)
    assert layer(torch.randn(1, channels, 4, 4)).shape == (1, channels, 4, 4)
    assert set(layer.ternary_values()[0].unique().tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_weights_never_become_values(value: float) -> None:
    """NaN and infinities are refused when quantizing, with the layer's name."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[3, 0] = value
    with pytest.raises(NonFiniteWeightError, match=r"1\.weight holds 1 values .* first at \(3, 0\)"):
        ternary.quantize(model)


def test_nan_inputs_stay_visible(compiled_simple_model: nn.Module) -> None:
    """A NaN input gives NaN outputs instead of a plausible number."""
    assert torch.isnan(compiled_simple_model(torch.full((1, 16), float("nan")))).all()


def test_wrong_device(compiled_simple_model: nn.Module) -> None:
    """An input on another device is an error, also where no GPU is needed to see it."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        compiled_simple_model.to("meta")(torch.randn(1, 16)).tolist()


def test_large_values_stay_finite() -> None:
    """Weights near the largest float do not overflow a ternary layer's scale."""
    layer = TernaryLinear(4, 2)
    with torch.no_grad():
        layer.weight.fill_(1e37)
    assert torch.isfinite(layer.ternary_weight()).all()


@pytest.mark.parametrize(
    ("member", "code", "advice"),
    [
        ("a = Linaer(4, 4)", "unknown-name", "did you mean 'Linear'?"),
        ("a = Linear(4, 4, bais=false)", "bad-arguments", "did you mean 'bias'?"),
        ("class = Linear(4, 4)", "reserved-name", "choose another name"),
        ("a = Linear(0, 4)", "bad-value", "expected: 1 or more"),
        ("a = Conv2d(4, 6, 3, groups=4)", "bad-value", "expected: a divisor"),
        ("a = Linear(5, 4)", "shape-mismatch", "expected: 5"),
    ],
)
def test_invalid_layer_names_and_shapes(member: str, code: str, advice: str) -> None:
    """A message names the file, the place, the condition, and what to do."""
    applied = "a(x)" if code == "shape-mismatch" else "x"
    text = f"model M {{\n  {member}\n  forward(x: float[N, 4]) -> float[N, 4] {{ return {applied} }}\n}}\n"
    with pytest.raises(CompileError) as caught:
        ternary.compile(text, name="net.tri")
    message = str(caught.value)
    assert message.startswith("net.tri: 1 error\n\nnet.tri:")
    assert f"[{code}]" in message
    assert advice in message


def test_empty_and_blank_sources() -> None:
    """A source that defines nothing is an error with a place."""
    for text in ("", "\n\n", "# only a comment", "\ufeff"):
        with pytest.raises(CompileError, match="1:1"):
            ternary.compile(text)


def test_errors_subclass_what_callers_expect() -> None:
    """Each error is a TernaryError and the builtin of its kind."""
    assert issubclass(CompileError, ValueError)
    assert issubclass(UnknownModelError, LookupError)
    assert issubclass(NonFiniteWeightError, ValueError)
    assert issubclass(ModelFileError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
    assert all(issubclass(e, TernaryError) for e in (CompileError, UnknownModelError, MissingExtraError))


def test_requirements_hold_at_run_time() -> None:
    """What the checker could not know is checked by the constructor."""
    with pytest.raises(ValueError, match="heads must divide width"):
        ternary.zoo.load("vit")(width=50, heads=3)


def test_too_many_errors_end() -> None:
    """A hundred errors are enough."""
    text = "model M {\n" + "\n".join(f"a{i} = Foo{i}()" for i in range(500)) + "\n}"
    assert len(ternary.check(text)) == 100


def test_long_lines_are_cut_around_the_place() -> None:
    """A message stays short however long the line is."""
    text = "model M { a = Linear(4, 4" + ", 1" * 5000 + ") }"
    with pytest.raises(CompileError) as caught:
        ternary.compile(text)
    assert max(map(len, str(caught.value).splitlines())) < 250


def test_compiled_source_travels(compiled_simple_model: nn.Module) -> None:
    """The program is on the class, and can be sent where the class cannot."""
    text = pickle.loads(pickle.dumps(type(compiled_simple_model).__source__))
    assert ternary.compile(text).__code__ == type(compiled_simple_model).__code__


@pytest.mark.parametrize(
    ("value", "by", "wanted"), [(32, 8, 32), (11.2, 8, 16), (1, 8, 8), (17.6, 8, 16), (44.8, 8, 48)]
)
def test_make_divisible(value: float, by: int, wanted: int) -> None:
    """MobileNet's rule, by hand."""
    assert make_divisible(value, by) == wanted


def test_finite_weights_pass() -> None:
    """The check for finite weights takes what is finite, empty tensors too."""
    require_finite(torch.zeros(0))
    require_finite(torch.tensor([1e38]))
