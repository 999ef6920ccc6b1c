"""What a report says is what the model does: bypassed layers, ties, whole sizes, outliers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import ternary
from ternary._quantization.probe import probe
from ternary._quantization.recipe import Precision
from ternary._quantization.source_reads import read_in_source
from ternary.nn import FloatChannels

TERNARY = ternary.Recipe(ends="ternary", embeddings="ternary")


class ReadsTheWeight(nn.Module):
    """Computes with a layer's weight and never calls the layer, as window attentions and state-space models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.projection = nn.Linear(32, 32)
        self.last = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three products, the second one without its layer."""
        if isinstance(self.first.weight, torch.Tensor):
            x = x.to(self.first.weight.dtype)
        x = self.first(x)
        return self.last(functional.linear(torch.relu(x), self.projection.weight, self.projection.bias))


class Branches(nn.Module):
    """Layers whose weights other methods than `forward` read: to merge them, and in what `forward` leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.merged, self.kept, self.led = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.way = self.by_reference

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call a layer, then another method."""
        return self.way(self.onwards(self.merged(x + torch.zeros_like(self.merged.weight)[0])))

    def onwards(self, x: torch.Tensor) -> torch.Tensor:
        """Read a weight in what `forward` calls."""
        return functional.linear(x, self.led.weight)

    def by_reference(self, x: torch.Tensor) -> torch.Tensor:
        """Read a weight in what `__init__` keeps."""
        return functional.linear(x, self.kept.weight)

    def merge(self) -> torch.Tensor:
        """Read a weight as RepVGG does after training."""
        return self.merged.weight + torch.eye(32)


class Inherits(Branches):
    """Has every method from another class."""


class Calls(ReadsTheWeight):
    """Never uses the projection."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two products."""
        return self.last(self.first(x))


class Tied(nn.Module):
    """An embedding whose table is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 64)
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, 500, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """Scores of the next token."""
        return self.head(torch.relu(self.body(self.table(index))))


class Experts(nn.Module):
    """Matrices of several experts in one parameter, as mixtures keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 16)
        self.up = nn.Parameter(torch.randn(8, 16, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All experts, summed."""
        return torch.einsum("ni,eio->no", self.gate(x), self.up)


class Own(nn.Linear):
    """A Linear with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Twice the product."""
        return super().forward(input) * 2


def with_other_weights(made: nn.Module) -> nn.Module:
    """Another model of the same layers."""
    again = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.normal_()
    return again


class TestBypassedLayers:
    """A layer that is never called is not reported ternary."""

    @pytest.mark.parametrize("calibration", [None, [torch.randn(4, 32)]], ids=["from its source", "with data"])
    def test_it_is_kept_float_and_said(self, calibration: list[torch.Tensor] | None) -> None:
        """The bypassed layer stays float, the others become ternary, and packing only rounds activations."""
        made, report = ternary.quantize(ReadsTheWeight(), TERNARY, calibration=calibration)
        found = {r.name: r.precision for r in report.layers}
        assert found == {"first": "ternary", "projection": "float", "last": "ternary"}
        assert "reads this weight itself" in str(report)
        x = torch.randn(4, 32)
        assert functional.cosine_similarity(ternary.pack(made)(x), made.eval()(x)).min() > 0.99

    def test_a_packed_layer_that_is_bypassed_serves_its_ternary_weight(self) -> None:
        """A network that was packed all the same computes with the ternary weight, not with another one."""
        model = ReadsTheWeight()
        model.projection = ternary.nn.TernaryLinear(32, 32)
        packed = ternary.pack(model)
        x = torch.randn(4, 32)
        with torch.no_grad():
            weight = model.projection.ternary_weight()
            hidden = functional.linear(torch.relu(model.first(x)), weight, model.projection.bias)
            assert torch.allclose(packed(x), model.last(hidden), atol=1e-5)

    def test_the_probe_counts_and_leaves_no_trace(self) -> None:
        """Calls and reads by layer; afterwards classes and hooks are as before, also when the model fails."""
        model = ReadsTheWeight()
        uses = probe(model, [torch.randn(4, 32)] * 3, ["first", "projection", "last"])
        assert [(u.calls, u.reads) for u in uses.values()] == [(3, 0), (0, 3), (3, 0)]
        assert [u.bypassed for u in uses.values()] == [False, True, False]
        with pytest.raises(RuntimeError):
            probe(model, [torch.randn(4, 31)], ["first"])
        assert type(model.first) is nn.Linear
        assert not model.first._forward_pre_hooks

    def test_metadata_is_no_read(self) -> None:
        """Reading a dtype is harmless, and torch's own encoder calls its layers here."""
        assert read_in_source(ReadsTheWeight()) == {"projection"}
        assert read_in_source(nn.TransformerEncoderLayer(16, 2)) == set()

    @pytest.mark.parametrize("kind", [Branches, Inherits])
    def test_only_what_runs_counts(self, kind: type[Branches]) -> None:
        """A method that merges branches keeps no layer float; one that `forward` leads to does, inherited or not."""
        assert read_in_source(nn.Sequential(kind())) == {"0.kept", "0.led"}

    def test_layers_that_the_data_do_not_reach(self) -> None:
        """They are quantized, and the report says that nothing was measured."""
        _, report = ternary.quantize(Calls(), TERNARY, calibration=[torch.randn(4, 32)])
        assert {r.name: r.note for r in report.layers}["projection"] == "not reached by the calibration data"


class TestSizes:
    """Totals count the whole model, and one weight once."""

    @pytest.mark.parametrize("embeddings", ["float", "ternary"])
    def test_tied_weights_are_stored_once(self, embeddings: str, tmp_path: Path) -> None:
        """In the model, in the report and in the file; loading brings both names back."""
        made, report = ternary.quantize(Tied(), ternary.Recipe(embeddings=embeddings, ends="ternary"))
        assert made.head.weight is made.table.weight
        rows = {r.name: r for r in report.layers}
        assert rows["head"].bytes_before == rows["head"].bytes_after == 0
        info = ternary.save(made, tmp_path / "tied.safetensors")
        table = 500 * 64 * 4 if embeddings == "float" else 500 * (64 // 4 + 2 * 4)
        assert info.file_bytes < table + 64 * 80 + 2500
        again = ternary.load(tmp_path / "tied.safetensors", with_other_weights(made))
        index = torch.arange(20)
        assert torch.allclose(again(index), made.eval()(index), atol=1e-5)

    def test_a_calibrated_tied_weight_is_read_as_it_was_fitted(self, tmp_path: Path) -> None:
        """Calibration fits the head of a table, or the first of two tied layers: both names keep one ternary weight."""
        made, _ = ternary.quantize(Tied(), TERNARY, calibration=[torch.arange(40)])
        head, table = made.head.ternary_weight(), made.table.ternary_weight()
        assert torch.equal(head, table)
        assert bool((head == 0).any())  # signs alone would be another quantizer's
        ternary.save(made, tmp_path / "tied.safetensors")
        again = ternary.load(tmp_path / "tied.safetensors", with_other_weights(made))
        assert torch.allclose(again(torch.arange(20)), made.eval()(torch.arange(20)), atol=1e-5)

        pair = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        pair[2].weight = pair[0].weight
        fitted, _ = ternary.quantize(pair, TERNARY, calibration=[torch.randn(16, 32)])
        assert fitted[0].quantizer == fitted[2].quantizer == "exact"
        assert torch.equal(fitted[0].ternary_weight(), fitted[2].ternary_weight())

    def test_totals_count_what_was_not_touched(self) -> None:
        """Fused experts are listed with their reason, and the ratio is that of the whole model."""
        model = Experts()
        _, report = ternary.quantize(model, TERNARY)
        assert report.bytes_before == sum(p.nbytes for p in model.parameters())
        (experts,) = (u for u in report.untouched if u.name == "up")
        assert experts.bytes == model.up.nbytes
        assert "8 matrices fused in one parameter" in experts.why
        assert "up: 32,768 bytes" in str(report)
        assert report.bytes_before / report.bytes_after < 1.1

    def test_layers_of_other_classes_are_listed(self) -> None:
        """A Linear with a forward of its own, or a parametrized layer of another class, stays and is listed."""
        model = nn.Sequential(Own(16, 16), nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(16, 16, 3)))
        _, report = ternary.quantize(model, TERNARY)
        assert not report.layers
        reasons = {u.name: u.why for u in report.untouched}
        assert reasons["0.weight"] == "Own has a forward of its own"
        assert "parametrized" in reasons["1.parametrizations.weight.original1"]


LAYERS = {
    "linear": lambda: nn.Linear(64, 48),
    "convolution": lambda: nn.Conv2d(64, 48, 3, padding=1),
    "signal": lambda: nn.Conv1d(64, 48, 4, stride=2, padding=1, dilation=2),
    "same": lambda: nn.Conv2d(64, 48, (1, 3), padding="same"),
    "circular": lambda: nn.Conv2d(64, 48, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(64, 48, 3, groups=4),
}
SIZES = {nn.Linear: (256, 64), nn.Conv1d: (8, 64, 40), nn.Conv2d: (4, 64, 8, 8)}


class Channels(nn.Module):
    """Layers of which one input channel can be made larger; with `balanced`, their weights for it are smaller."""

    def __init__(self, kind: str, factor: float, balanced: bool) -> None:
        super().__init__()
        self.layer = LAYERS[kind]()
        self.last = nn.Linear(48, 8)
        self.factor = factor
        if balanced:
            self.balance()

    def balance(self) -> None:
        """Make the weights for the large channel smaller."""
        rows = 48 // getattr(self.layer, "groups", 1)
        with torch.no_grad():
            self.layer.weight[:rows, 5] /= self.factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both layers, the mean of a picture between them."""
        sizes = torch.ones(64)
        sizes[5] = self.factor
        x = self.layer(x * sizes.reshape([-1] + [1] * (x.dim() - 2)))
        return self.last(x.flatten(2).mean(2) if x.dim() > 2 else x)

    def data(self) -> torch.Tensor:
        """Inputs of a normal distribution."""
        return torch.randn(*SIZES[type(self.layer)])


def error_of(made: nn.Module, model: nn.Module, x: torch.Tensor) -> float:
    """The relative error of the first layer as it runs packed."""
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, net in (("wanted", model), ("got", ternary.pack(made))):
            handle = net.layer.register_forward_hook(lambda m, i, o, n=name: seen.update({n: o}))
            net(x)
            handle.remove()
    return float((seen["got"] - seen["wanted"]).norm() / seen["wanted"].norm())


class TestOutliers:
    """A channel that drowns the others is measured, and kept float where the error says so."""

    @pytest.mark.parametrize("factor", [1.0, 100.0, 1000.0])
    def test_the_report_warns(self, factor: float) -> None:
        """The ratio is measured at calibration; a recipe that keeps 8 bits gets a note with remedies."""
        x = torch.randn(256, 32)
        x[:, 5] *= factor
        _, report = ternary.quantize(nn.Linear(32, 32), ternary.Recipe(outliers="keep"), calibration=[x])
        (layer,) = report.layers
        assert layer.outlier == pytest.approx(factor, rel=0.6)
        assert ("keep this layer float" in layer.note) == (factor > 50)

    @pytest.mark.parametrize(
        ("kind", "precision", "factor"),
        [
            *((kind, precision, 100.0) for kind in ("linear", "convolution") for precision in ("ternary", "int8")),
            *(("linear", "ternary", 1000.0), ("convolution", "int8", 1000.0)),
            *((kind, "ternary", 100.0) for kind in ("signal", "same", "circular", "grouped")),
        ],
    )
    def test_it_costs_nothing(self, factor: float, kind: str, precision: Precision, tmp_path: Path) -> None:
        """The layer is as good as without the outlier; the network is saved, loaded, copied and scripted with it."""
        torch.manual_seed(0)
        rules = (("layer", precision), ("last", "ternary"))
        usual = Channels(kind, 1.0, balanced=True)
        x = usual.data()
        plain, _ = ternary.quantize(usual, ternary.Recipe(rules=rules), calibration=[x])
        usual_error = error_of(plain, usual, x)
        model = Channels(kind, factor, balanced=True)
        model.load_state_dict(usual.state_dict())
        model.balance()
        kept, _ = ternary.quantize(model, ternary.Recipe(rules=rules, outliers="keep"), calibration=[x])
        assert error_of(kept, model, x) > usual_error + 0.05
        made, report = ternary.quantize(model, ternary.Recipe(rules=rules), calibration=[x])
        assert isinstance(made.layer, FloatChannels)
        assert made.layer.channels.tolist() == [5]
        assert error_of(made, model, x) < usual_error * 1.05 + 0.01
        assert "1 input channel kept float, which lowers the error from" in str(report)
        assert report.bytes_before == sum(p.nbytes for p in model.parameters())
        assert made.layer.weight.shape == model.layer.weight.shape
        rows = 48 // getattr(model.layer, "groups", 1)
        assert torch.allclose(made.layer.weight[:rows, 5] * 1.0, model.layer.weight[:rows, 5])
        ternary.save(made, tmp_path / "model.safetensors")
        packed = ternary.pack(made)
        again = ternary.load(tmp_path / "model.safetensors", with_other_weights(made), packed=True)
        assert torch.allclose(again(x), packed(x), atol=1e-4)
        scripted = torch.jit.script(packed.layer)
        given = x * 1.0
        assert torch.allclose(scripted(given), packed.layer(given), atol=1e-5)

    def test_where_the_weights_are_not_smaller(self) -> None:
        """The large channel makes most of the result: float weights for it lower the error of the weights too."""
        model = Channels("linear", 1000.0, balanced=False)
        x = model.data()
        made, _ = ternary.quantize(model, ternary.Recipe(rules=(("*", "ternary"),)), calibration=[x])
        assert error_of(made, model, x) < 0.02

    def test_many_large_channels_keep_the_layer_float(self) -> None:
        """Half of the channels cannot stay float at little cost; the layer does, and the report says why."""
        torch.manual_seed(0)
        layer, x = nn.Linear(64, 48), torch.randn(64, 64) * torch.logspace(0, 6, 64)
        with torch.no_grad():
            layer.weight /= torch.logspace(0, 6, 64)
        _, report = ternary.quantize(layer, calibration=[x])
        assert [r.precision for r in report.layers] == ["float"]
        assert "kept float, since its error would be" in str(report)

    def test_a_quantized_copy_is_quantized_again(self) -> None:
        """Float channels stay as they are when a model is quantized a second time without data."""
        model = Channels("linear", 1000.0, balanced=True)
        x = model.data()
        made, _ = ternary.quantize(model, ternary.Recipe(rules=(("*", "ternary"),)), calibration=[x])
        twice, report = ternary.quantize(made, ternary.Recipe(rules=(("*", "ternary"),)))
        assert torch.allclose(twice(x), made(x), atol=1e-4)
        assert "input channels that stay float" in str(report)
