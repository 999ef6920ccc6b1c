"""ResNet-18 from source: equal to an independent definition, trainable, quantizable."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ternary
from ternary import zoo


class Block(nn.Module):
    """A basic block written by hand, in the names of the usual checkpoints."""

    def __init__(self, i: int, o: int, s: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o)) if s > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Reference(nn.Module):
    """ResNet-18 written by hand."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        for at, (i, o, s) in enumerate([(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]):
            setattr(self, f"layer{at + 1}", nn.Sequential(Block(i, o, s), Block(o, o, 1)))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        y = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        return self.fc(functional.adaptive_avg_pool2d(y, 1).flatten(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The ternary network."""
    torch.manual_seed(0)
    return zoo.load("resnet18")()


class TestResNet18:
    """The compiled network."""

    @pytest.mark.parametrize(("classes", "count"), [(1000, 11_689_512), (10, 11_181_642)])
    def test_parameter_count(self, utils: ModuleType, classes: int, count: int) -> None:
        """The published number of parameters, ternary or float."""
        assert utils.count_parameters(zoo.load("resnet18")(classes)) == count
        assert utils.count_parameters(zoo.load("resnet18", quantized=False)(classes)) == count

    def test_equals_an_independent_definition(self, utils: ModuleType) -> None:
        """With the same weights and statistics, the float form gives the same logits to 1e-5."""
        reference = Reference()
        reference(torch.randn(4, 3, 64, 64))  # moves the running statistics away from their start
        compiled = zoo.load("resnet18", quantized=False)()
        compiled.load_state_dict(reference.state_dict())
        utils.compare_model_outputs(compiled, reference, torch.randn(2, 3, 96, 96), 1e-5)

    def test_ternary_equals_the_independent_definition_with_ternary_weights(self, utils: ModuleType) -> None:
        """Ternary layers are the float network with ternary weights put in."""
        compiled = zoo.load("resnet18")(7)
        reference = Reference(7)
        reference.load_state_dict(compiled.state_dict())
        with torch.no_grad():
            for name, layer in ternary.nn.ternary_layers(compiled).items():
                reference.get_submodule(name).weight.copy_(layer.ternary_weight())
        utils.compare_model_outputs(compiled, reference, torch.randn(1, 3, 64, 64), 1e-5)

    @pytest.mark.parametrize("size", [32, 64, 97])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_output_shapes(self, model: nn.Module, utils: ModuleType, size: int, batch: int) -> None:
        """Any image size and batch."""
        utils.validate_output_shape(model.eval(), torch.randn(batch, 3, size, size), (batch, 1000))

    def test_large_batch(self, model: nn.Module) -> None:
        """A batch of 32 small images gives the rows of two batches of 16."""
        x = torch.randn(32, 3, 32, 32)
        with torch.no_grad():
            whole, parts = model.eval()(x), torch.cat([model(part) for part in x.split(16)])
        assert torch.allclose(whole, parts, atol=1e-4)

    def test_state_dict_has_the_usual_names(self, model: nn.Module) -> None:
        """Parameters and buffers are named and shaped as in the usual checkpoints."""
        wanted = {name: tuple(value.shape) for name, value in Reference().state_dict().items()}
        assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted

    def test_result_does_not_depend_on_device(self, model: nn.Module, device: torch.device) -> None:
        """The same network gives the same logits on each device."""
        x = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            wanted = model.eval()(x)
            got = copy.deepcopy(model).to(device)(x.to(device)).cpu()
        assert (got - wanted).abs().max() <= 1e-3 * wanted.abs().max()

    def test_architecture(self, model: nn.Module) -> None:
        """Nineteen ternary convolutions; the first one and the classifier are float."""
        layers = ternary.nn.ternary_layers(model)
        assert len(layers) == 19
        assert type(model.conv1) is nn.Conv2d
        assert type(model.fc) is nn.Linear

    def test_weights_are_ternary(self, model: nn.Module, utils: ModuleType) -> None:
        """Every ternary layer acts with at most three values per row."""
        utils.validate_ternary_weights(model)

    def test_backward(self, utils: ModuleType, device: torch.device) -> None:
        """Every parameter gets a gradient that is finite and not zero."""
        made = zoo.load("resnet18")(5).to(device)
        made(torch.randn(2, 3, 64, 64, device=device)).square().mean().backward()
        utils.validate_gradients(made)

    def test_trains(self) -> None:
        """A few steps on one batch lower the loss."""
        made = zoo.load("resnet18")(4)
        x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
        history = ternary.fit(made, lambda: [(x, y)], ternary.TrainConfig(epochs=6, learning_rate=3e-3))
        assert history.loss[-1] < 0.7 * history.loss[0]

    @pytest.mark.parametrize("encoding", ["2bit", "base3"])
    def test_file_round_trip(self, model: nn.Module, temp_dir: Path, utils: ModuleType, encoding: str) -> None:
        """A packed file gives back the same logits, in less than a tenth of the float size."""
        info = ternary.save(model.eval(), temp_dir / "m.safetensors", encoding=encoding)
        assert info.file_bytes < 11_689_512 * 4 / 8
        utils.compare_model_outputs(ternary.load(temp_dir / "m.safetensors"), model, torch.randn(1, 3, 64, 64), 0.0)
        packed = sum(v for k, v in info.tensor_bytes.items() if k.endswith("weight.packed"))
        held = sum(layer.weight.numel() for layer in ternary.nn.ternary_layers(model).values())
        assert packed <= held * 4 / 15

    def test_post_training_quantization(self, utils: ModuleType) -> None:
        """A float network becomes ternary but for its ends, which are 8 bits."""
        made, report = ternary.quantize(zoo.load("resnet18", quantized=False)(10).eval())
        assert [r.precision for r in report.layers].count("ternary") == 19
        assert (report.layers[0].precision, report.layers[-1].precision) == ("int8", "int8")
        assert report.bytes_before / report.bytes_after > 14
        utils.validate_output_shape(made, torch.randn(1, 3, 64, 64), (1, 10))

    @pytest.mark.parametrize("form", ["trace", "script", "export"])
    def test_torch_forms_agree(self, model: nn.Module, form: str) -> None:
        """Tracing, scripting and exporting give the same logits."""
        made, x = model.eval(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            if form == "export":
                other = torch.export.export(made, (x,)).module()
            else:
                other = torch.jit.trace(made, x) if form == "trace" else torch.jit.script(made)
            assert (other(x) - made(x)).abs().max() <= 1e-4

    def test_inference_time_is_measured(self, model: nn.Module, utils: ModuleType) -> None:
        """The helper gives a time; no bound, that is the benchmarks' affair."""
        assert utils.measure_inference_time(model.eval(), torch.randn(1, 3, 64, 64), repeat=2) > 0
