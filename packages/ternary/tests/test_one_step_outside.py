"""What users pass one step outside the examples: read iterators, weights without values, other types and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ternary
from ternary._cli import main
from ternary.errors import CompileError, ModelFileError, NoBatchesError, UnknownQuantizerError, WeightsNotLoadedError


def net() -> nn.Sequential:
    """A small network with a layer in the middle."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))


class TestIterators:
    """Data that can be read only once must not count as data when it is read again."""

    def test_fit(self) -> None:
        """A function that returns the same iterator at each epoch trained on nothing from the second one on."""
        same = iter([(torch.ones(2, 4), torch.tensor([0, 1]))])
        with pytest.raises(NoBatchesError, match="epoch 2 has no batch"):
            ternary.fit(net(), lambda: same, ternary.TrainConfig(epochs=2))
        with pytest.raises(NoBatchesError, match="epoch 1 has no batch"):
            ternary.fit(net(), list, ternary.TrainConfig(epochs=1))
        with pytest.raises(TypeError, match="wanted a function that returns them"):
            ternary.fit(net(), [(torch.ones(2, 4), torch.tensor([0, 1]))])  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "measure", [ternary.sensitivity, lambda model, data: ternary.quantize(model, calibration=data)]
    )
    def test_measuring(self, measure: Callable[[nn.Module, Any], Any]) -> None:
        """Without a batch every layer cost nothing, and calibration was left out unsaid."""
        read = iter([torch.ones(2, 4)])
        measure(net(), read)
        for data in (read, []):
            with pytest.raises(NoBatchesError, match="holds no batch"):
                measure(net(), data)


class TestWeights:
    """Weights that cannot become ternary."""

    def test_a_complex_layer_stays_float(self) -> None:
        """Its imaginary part was lost."""
        model = nn.Sequential(*(nn.Linear(4, 4, dtype=torch.complex64) for _ in range(3)))
        x = torch.randn(2, 4, dtype=torch.complex64)
        for small, report in (ternary.quantize(model), ternary.to_int8(model)):
            assert {(layer.precision, layer.note) for layer in report.layers} == {
                ("float", "kept float: its weight is complex")
            }
            assert small(x).equal(model(x))

    @pytest.mark.parametrize("made", [lambda: net().to("meta"), lambda: nn.Sequential(nn.LazyLinear(3))])
    @pytest.mark.parametrize(
        "use",
        [
            ternary.quantize,
            ternary.to_fp16,
            ternary.to_int8,
            ternary.pack,
            lambda model: ternary.sensitivity(model, [torch.ones(1, 4)]),
            lambda model: ternary.save(model, "never.safetensors"),
        ],
    )
    def test_weights_without_values(
        self, made: Callable[[], nn.Module], use: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error names the first of them; what is no module is refused too."""
        monkeypatch.chdir(tmp_path)
        with pytest.raises(WeightsNotLoadedError, match=r"0\.weight"):
            use(made())
        for wrong in (3, nn.Linear, made().state_dict):
            with pytest.raises(TypeError, match=r"wanted a torch\.nn\.Module"):
                use(wrong)
        assert list(tmp_path.iterdir()) == []


class TestNumbers:
    """Numbers out of range."""

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("sparsity=2.0", "0 or more and below 1"),
            ("sparsity=1", "0 or more and below 1"),
            ("threshold=-1.0", "0 or more"),
        ],
    )
    def test_options_in_a_source(self, options: str, expected: str) -> None:
        """The checker says so with the place; it was an error of the class that was compiled."""
        source = f"model M(n: int = 4) = [ternary({options}) Linear(n, n)]"
        (problem,) = ternary.check(source)
        assert (problem.code, problem.expected) == ("bad-value", expected)
        with pytest.raises(CompileError):
            ternary.compile(source)

    @pytest.mark.parametrize("options", ["sparsity=0", "sparsity=0.99", "threshold=0", "threshold=2.5"])
    def test_options_that_are_in_range(self, options: str) -> None:
        """They compile, and the layer takes them."""
        assert ternary.compile(f"model M = [ternary({options}) Linear(4, 4)]")()(torch.ones(1, 4)).shape == (1, 4)

    @pytest.mark.parametrize("epochs", [-1, 1.5, "2", True])
    def test_epochs(self, epochs: Any) -> None:
        """A negative number trained nothing and said nothing."""
        with pytest.raises(ValueError, match="epochs"):
            ternary.TrainConfig(epochs=epochs)

    def test_rules(self) -> None:
        """Rules of an iterator count; a precision that does not exist is refused before a layer has it."""
        recipe = ternary.Recipe(rules=iter([("0", "float"), ("*", "int8")]))  # type: ignore[arg-type]
        assert [layer.precision for layer in ternary.quantize(net(), recipe)[1].layers] == ["float", "int8", "int8"]
        for options in ({"rules": (("nowhere", "int9"),)}, {"ends": "int9"}, {"embeddings": "x"}):
            with pytest.raises(UnknownQuantizerError, match="unknown precision"):
                ternary.Recipe(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [".", "/", ""])
def test_a_folder_is_no_output(path: str) -> None:
    """The error is one of the system, in the shell one line."""
    with pytest.raises(IsADirectoryError, match="wanted the name of a file"):
        ternary.save(net(), path)
    assert main(["compile", "mlp", "-o", path or "."]) == 2


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    """The error says what to name."""
    with pytest.raises(ModelFileError, match="is a folder; name the file"):
        ternary.load(tmp_path)


@pytest.mark.parametrize("source", [3, None, b"model M = [Linear(1, 1)]"])
def test_a_source_is_text(source: Any) -> None:
    """A path is a `pathlib.Path`, a program is text."""
    for use in (ternary.check, ternary.compile, ternary.generate, ternary.format_source):
        with pytest.raises(TypeError, match="wanted a program as text"):
            use(source)
