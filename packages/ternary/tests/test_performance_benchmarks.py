"""What can be said of speed without a clock that decides: counted work, linear growth, sizes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ternary
from ternary import zoo


def layers(count: int) -> str:
    """A program of many layers."""
    members = "\n".join(f"a{i} = ternary Linear(8, 8)" for i in range(count))
    steps = "\n".join(f"y{i + 1} = a{i}(y{i})" for i in range(count))
    return f"model M {{\n{members}\nforward(y0: float[N, 8]) -> float[N, 8] {{\n{steps}\nreturn y{count}\n}}\n}}\n"


def calls(text: str, work: Callable[[str], object] = ternary.generate) -> int:
    """Count the Python and C calls of some work, generating code as a rule: a measure that no load changes."""
    count = 0

    def tick(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tick)
    try:
        work(text)
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_linearly() -> None:
    """Eight times the layers cost eight times the calls, within a tenth."""
    small, large = calls(layers(100)), calls(layers(800))
    assert 7.2 < large / small < 8.8


def test_work_does_not_grow_with_repetition() -> None:
    """A repeated layer is checked once, however often it stands in the network."""
    text = "layer L() = [Linear(8, 8), ReLU()]\nmodel M() = [repeat(COUNT) L(), Linear(8, 4)]\n"
    assert calls(text.replace("COUNT", "100000")) == calls(text.replace("COUNT", "100"))


def test_work_of_reporting_grows_linearly() -> None:
    """Errors are no dearer than layers: four times the wrong lines cost about four times the calls."""

    def wrong(count: int) -> int:
        lines = "\n".join(f"a{i} = Linear(8, 8" for i in range(count))
        return calls(f"model M {{\n{lines}\nforward(x: float[N, 8]) -> float[N, 8] {{ return x }}\n}}\n", ternary.check)

    assert 3.0 < wrong(80) / wrong(20) < 5.0


@pytest.mark.parametrize("text", ["model M(", "layer L() = [ReLU()]", "(" * 100, "$"])
def test_garbage_collection_goes_on(text: str) -> None:
    """Parsing pauses the collector and always gives it back as it was."""
    for wanted in (True, False):
        (gc.enable if wanted else gc.disable)()
        try:
            ternary.check(text)
            assert gc.isenabled() is wanted
        finally:
            gc.enable()


@pytest.mark.slow
def test_ten_thousand_layers() -> None:
    """A program of ten thousand layers compiles, at ten times the calls of one with a thousand, within a tenth."""
    assert ternary.generate(layers(10_000)).count("TernaryLinear(8, 8)") == 10_000
    assert 9 < calls(layers(10_000)) / calls(layers(1_000)) < 11


@pytest.mark.parametrize("name", zoo.names())
def test_code_generation_is_bounded(name: str) -> None:
    """The zoo compiles in a bounded number of calls (ResNet-18 in under a hundred thousand)."""
    assert calls(zoo.source(name)) < 100_000


def test_ternary_weights_take_a_sixteenth(temp_dir: object, utils: ModuleType) -> None:
    """Packed weights take two bits each."""
    model = zoo.load("mlp")(width=512)
    info = ternary.save(model, f"{temp_dir}/m.safetensors")
    packed = sum(v for k, v in info.tensor_bytes.items() if k.endswith("weight.packed"))
    assert packed * 16 == sum(layer.weight.numel() * 4 for layer in ternary.nn.ternary_layers(model).values())


@pytest.mark.parametrize("name", ["mlp", "vit", "bitnet", "mobilenet_v2", "resnet18"])
def test_memory_by_stage(name: str, utils: ModuleType) -> None:
    """Half the bytes in fp16; int8 and ternary reports add up to less than 0.3 and 0.15 of the float layers."""
    model = zoo.load(name, quantized=False)().eval()
    whole = utils.count_bytes(model)
    assert utils.count_bytes(ternary.to_fp16(model)) <= whole / 2 + 1024  # counters stay integers
    _, eight = ternary.to_int8(model)
    _, two = ternary.quantize(model, ternary.Recipe(rules=(("*", "ternary"),)))
    kept = sum(r.bytes_before for r in eight.layers if r.precision == "float")  # embeddings have no int8 form
    assert eight.bytes_after - kept < 0.3 * (eight.bytes_before - kept)
    assert two.bytes_after < 0.15 * two.bytes_before
    assert two.bytes_before <= whole


class Operators(TorchDispatchMode):
    """Counts the operators that torch runs."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one, counted."""
        del types
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp", "vit", "bitnet"])
def test_evaluation_does_the_work_of_float(name: str) -> None:
    """A quantized model in evaluation rounds its weights once: later calls run as many operators as the float model."""
    inputs = {"mlp": [torch.randn(1, 64)], "vit": [torch.randn(1, 3, 32, 32)]}.get(
        name, [torch.zeros(1, 8).long(), torch.arange(8)]
    )
    counts = []
    for quantized in (True, False):
        model = zoo.load(name, quantized=quantized)().eval()
        for layer in ternary.nn.ternary_layers(model).values():
            layer.activations = "float"
        with torch.no_grad():
            model(*inputs)
            with Operators() as operators:
                model(*inputs)
        counts.append(operators.count)
    reads = 6 * len(ternary.nn.ternary_layers(zoo.load(name)()))  # whether a weight is still the one that was rounded
    assert counts[1] <= counts[0] <= counts[1] + reads


def test_the_helper_calls_as_often_as_it_is_told(utils: ModuleType) -> None:
    """Warm-up and repetitions are calls of the model, and nothing else is."""
    model, seen = zoo.load("mlp")().eval(), []
    model.register_forward_hook(lambda *_: seen.append(1))
    utils.measure_inference_time(model, torch.randn(2, 64), repeat=4, warmup=3)
    assert len(seen) == 7


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_large_batch_equals_small_ones(name: str) -> None:
    """A batch of 64 gives the rows of four batches of 16."""
    model = zoo.load(name)().eval()
    x = torch.randn(64, 64) if name == "mlp" else torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(x), torch.cat([model(part) for part in x.split(16)]), atol=1e-5)


def test_result_does_not_depend_on_device(device: torch.device) -> None:
    """The same network gives the same values on each device."""
    model = zoo.load("mlp")().eval()
    x = torch.randn(4, 64)
    wanted = model(x)
    got = model.to(device)(x.to(device)).cpu()
    assert torch.allclose(got, wanted, atol=1e-5)
