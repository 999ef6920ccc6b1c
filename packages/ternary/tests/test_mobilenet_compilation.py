"""MobileNetV2 from source: equal to an independent definition, at every width."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import ternary
from ternary import zoo


def rounded(v: float) -> int:
    """The channel rule, written anew."""
    r = max(8, int(v + 4) // 8 * 8)
    return r if r >= 0.9 * v else r + 8


def unit(i: int, o: int, k: int = 3, s: int = 1, g: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU6."""
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), nn.ReLU6())


class Residual(nn.Module):
    """An inverted residual written by hand."""

    def __init__(self, i: int, o: int, s: int, t: int):
        super().__init__()
        h = i * t
        first = [] if t == 1 else [unit(i, h, 1)]
        self.conv = nn.Sequential(*first, unit(h, h, 3, s, h), nn.Conv2d(h, o, 1, bias=False), nn.BatchNorm2d(o))
        self.add = s == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return x + self.conv(x) if self.add else self.conv(x)


class Reference(nn.Module):
    """MobileNetV2 written by hand."""

    def __init__(self, classes: int = 1000, width: float = 1.0):
        super().__init__()
        i, last = rounded(32 * width), rounded(1280 * max(1.0, width))
        parts: list[nn.Module] = [unit(3, i, 3, 2)]
        table = [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]
        for t, c, n, s in table:
            for at in range(n):
                parts.append(Residual(i, rounded(c * width), s if at == 0 else 1, t))
                i = rounded(c * width)
        self.features = nn.Sequential(*parts, unit(i, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.features(x).mean([2, 3]))


class TestMobileNetV2:
    """The compiled network."""

    def test_parameter_count(self, utils: ModuleType) -> None:
        """The published number of parameters."""
        assert utils.count_parameters(zoo.load("mobilenet_v2")()) == 3_504_872

    @pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.4])
    def test_equals_an_independent_definition(self, utils: ModuleType, width: float) -> None:
        """At every width the same parameters, names and logits to 1e-5."""
        reference = Reference(10, width)
        with torch.no_grad():
            reference(torch.randn(4, 3, 64, 64))
        compiled = zoo.load("mobilenet_v2", quantized=False)(10, width)
        compiled.load_state_dict(reference.state_dict())
        utils.compare_model_outputs(compiled, reference, torch.randn(2, 3, 64, 64), 1e-5)

    @pytest.mark.parametrize("size", [32, 65])
    def test_output_shapes(self, utils: ModuleType, size: int) -> None:
        """Any image size."""
        utils.validate_output_shape(zoo.load("mobilenet_v2")(9).eval(), torch.randn(2, 3, size, size), (2, 9))

    def test_depthwise_layers_stay_float(self) -> None:
        """Pointwise convolutions are ternary, depthwise ones, the first and the last are not."""
        model = zoo.load("mobilenet_v2")()
        layers = ternary.nn.ternary_layers(model)
        assert len(layers) == 34
        assert all(layer.groups == 1 and layer.kernel_size == (1, 1) for layer in layers.values())

    def test_smaller_than_resnet18(self, utils: ModuleType) -> None:
        """Fewer parameters than ResNet-18."""
        small = utils.count_parameters(zoo.load("mobilenet_v2")())
        assert 3 * small < utils.count_parameters(zoo.load("resnet18")())

    def test_backward(self, utils: ModuleType, device: torch.device) -> None:
        """Every parameter gets a gradient."""
        model = zoo.load("mobilenet_v2")(5, 0.35).to(device)
        model(torch.randn(4, 3, 64, 64, device=device)).square().mean().backward()
        utils.validate_gradients(model)

    def test_trains(self) -> None:
        """A few steps on one batch lower the loss."""
        model = zoo.load("mobilenet_v2")(4, 0.35, 0.0)
        x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
        history = ternary.fit(model, lambda: [(x, y)], ternary.TrainConfig(epochs=12, learning_rate=1e-2))
        assert history.loss[-1] < 0.8 * history.loss[0]

    @pytest.mark.parametrize("encoding", ["2bit", "base3"])
    @pytest.mark.parametrize("width", [0.35, 1.0])
    def test_persistence(self, temp_dir: Path, utils: ModuleType, width: float, encoding: str) -> None:
        """A file remembers the arguments and gives back the same logits."""
        arguments = {"classes": 6, "width": width}
        model = zoo.load("mobilenet_v2")(**arguments).eval()
        ternary.save(model, temp_dir / "m.safetensors", arguments=arguments, encoding=encoding)
        utils.compare_model_outputs(ternary.load(temp_dir / "m.safetensors"), model, torch.randn(1, 3, 64, 64), 0.0)

    def test_width_must_be_positive(self) -> None:
        """The program's own requirement is an error of the constructor."""
        with pytest.raises(ValueError, match="width must be positive"):
            zoo.load("mobilenet_v2")(width=0.0)

    def test_state_dict_save_and_load(self, temp_dir: Path, utils: ModuleType) -> None:
        """Plain torch.save of the state works as for any module."""
        model = zoo.load("mobilenet_v2")(5, 0.35)
        torch.save(model.state_dict(), temp_dir / "s.pt")
        other = zoo.load("mobilenet_v2")(5, 0.35)
        other.load_state_dict(torch.load(temp_dir / "s.pt", weights_only=True))
        utils.compare_model_outputs(model, other, torch.randn(1, 3, 32, 32), 0.0)

    def test_post_training_quantization(self, utils: ModuleType) -> None:
        """A float network becomes ternary but for its ends and depthwise convolutions, which are 8 bits."""
        model = zoo.load("mobilenet_v2", quantized=False)(10, 0.35).eval()
        made, report = ternary.quantize(model, calibration=[torch.randn(4, 3, 32, 32)])
        depthwise = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        eight = [r.name for r in report.layers if r.precision == "int8"]
        assert sorted(eight) == sorted([*depthwise, report.layers[0].name, report.layers[-1].name])
        utils.validate_output_shape(made, torch.randn(1, 3, 64, 64), (1, 10))

    @pytest.mark.parametrize(
        "form", ["trace", *(pytest.param(form, marks=pytest.mark.slow) for form in ("script", "export"))]
    )
    def test_torch_forms_agree(self, temp_dir: Path, form: str) -> None:
        """Traced, scripted and exported programs are saved, loaded and give the same logits."""
        made, x = zoo.load("mobilenet_v2")(10, 0.35).eval(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            if form == "export":
                torch.export.save(torch.export.export(made, (x,)), temp_dir / "m.pt2")
                other = torch.export.load(temp_dir / "m.pt2").module()
            else:
                (torch.jit.trace(made, x) if form == "trace" else torch.jit.script(made)).save(temp_dir / "m.ts")
                other = torch.jit.load(temp_dir / "m.ts")
            assert (other(x) - made(x)).abs().max() <= 1e-4
