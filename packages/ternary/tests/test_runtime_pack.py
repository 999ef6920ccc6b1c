"""From quantized and compiled models to packed ones: the same values, nearly the same outputs, files, compilers."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

import ternary
from ternary.errors import ModelFileError, NonFiniteWeightError, NothingToPackError
from ternary.nn import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear, ternary_layers
from ternary.runtime import PackedConv2d, PackedPadded, PackedPair, available_kernels, packed_layers, parts

LAYERS = {
    "linear": (lambda q: TernaryLinear(53, 37, quantizer=q), (3, 53)),
    "linear without bias, one scale": (lambda q: TernaryLinear(53, 37, bias=False, quantizer=q, per="tensor"), (3, 53)),
    "conv2d": (lambda q: TernaryConv2d(5, 7, (3, 2), (2, 1), (1, 0), quantizer=q), (2, 5, 9, 8)),
    "conv2d dilated": (lambda q: TernaryConv2d(5, 7, 3, padding=2, dilation=2, quantizer=q), (2, 5, 9, 8)),
    "conv2d grouped": (lambda q: TernaryConv2d(6, 9, 3, groups=3, quantizer=q), (2, 6, 9, 8)),
    "conv2d depthwise": (lambda q: TernaryConv2d(6, 6, 3, 2, 1, groups=6, quantizer=q), (2, 6, 9, 8)),
    "conv2d same, even kernel": (lambda q: TernaryConv2d(3, 4, 2, padding="same", quantizer=q), (2, 3, 5, 5)),
    "conv2d valid": (lambda q: TernaryConv2d(3, 4, 2, padding="valid", quantizer=q), (2, 3, 5, 5)),
    "conv2d reflect": (
        lambda q: TernaryConv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect", quantizer=q),
        (2, 3, 5, 6),
    ),
    "conv1d": (lambda q: TernaryConv1d(5, 7, 3, 2, 1, quantizer=q), (2, 5, 11)),
    "conv1d depthwise": (lambda q: TernaryConv1d(6, 6, 5, padding=4, dilation=2, groups=6, quantizer=q), (2, 6, 11)),
    "conv1d circular": (lambda q: TernaryConv1d(5, 7, 3, padding=1, padding_mode="circular", quantizer=q), (2, 5, 11)),
    "one wide": (lambda q: TernaryLinear(1, 1, quantizer=q), (2, 1)),
}


def tolerance(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The most that rounding the input to 8 bits can change: half a step a weight, and a little for float sums."""
    weight = layer.ternary_weight().detach().flatten(1).abs().sum(1).max()
    return x.abs().max() / 127 * 0.51 * weight + 1e-5


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of the float layer
@pytest.mark.parametrize("quantizer", ["twn", "ttq", "absmean"])
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer(name: str, quantizer: str) -> None:
    """Values and scales are bit-equal, outputs agree within half a step of the 8-bit activations."""
    make, shape = LAYERS[name]
    layer = make(quantizer).eval()
    if quantizer == "ttq":
        with torch.no_grad():
            layer.scale_negative.mul_(1.5)
    packed, x = ternary.pack(layer), torch.randn(shape)
    got = parts(packed)
    values, positive, negative = layer.ternary_values()
    assert torch.equal(got.values, values)
    assert torch.equal(got.positive, positive.expand(len(values)))
    assert torch.equal(got.negative, negative.expand(len(values)))
    assert isinstance(packed, PackedPair) == (quantizer == "ttq")
    with torch.no_grad():
        wanted, found = layer(x), packed(x)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert ((found - wanted).abs() <= tolerance(layer, x)).all()


@pytest.mark.parametrize("quantizer", ["twn", "ttq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embeddings_are_exact(quantizer: str, dtype: torch.dtype) -> None:
    """Looking up has no activations to round; the dtype stays."""
    table = TernaryEmbedding(11, 7, quantizer=quantizer, dtype=dtype)
    if quantizer == "ttq":
        with torch.no_grad():
            table.scale_negative.mul_(2)
    index = torch.tensor([[0, 10, 3], [3, 3, 1]])
    found = ternary.pack(table)(index)
    assert found.dtype == dtype
    assert torch.allclose(found, table(index), rtol=1e-3 if dtype == torch.float16 else 0, atol=0)


ZOO = {"mlp": ((4, 64),), "vit": ((2, 3, 32, 32),), "resnet18": ((1, 3, 32, 32),), "mobilenet_v2": ((1, 3, 32, 32),)}


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    """Every network of the zoo packs: all layers, all values, outputs near those of the trained form."""
    model = ternary.zoo.load(name)().eval()
    packed = ternary.pack(model)
    layers = ternary_layers(model)
    assert set(packed_layers(packed)) == set(layers)
    assert not ternary_layers(packed)
    for layer_name, layer in packed_layers(packed).items():
        assert torch.equal(parts(layer).values, layers[layer_name].ternary_values()[0])
    inputs = [torch.randn(s) for s in ZOO[name]]
    with torch.no_grad():
        wanted, got = model(*inputs), packed(*inputs)
    assert (got - wanted).norm() <= 0.1 * wanted.norm()


def test_language_model_with_int8_activations_agrees() -> None:
    """A decoder that trained with 8-bit activations computes the same packed, but for roundings on an edge."""
    model = ternary.zoo.load("bitnet")().eval()
    ids, positions = torch.randint(0, 256, (2, 12)), torch.arange(12)
    with torch.no_grad():
        wanted, got = model(ids, positions), ternary.pack(model)(ids, positions)
    assert (got - wanted).norm() <= 1e-2 * wanted.norm()


def test_quantized_model(reference_pytorch_model: nn.Module) -> None:
    """What `quantize` gives packs too; the model that was given stays as it was."""
    made, _ = ternary.quantize(reference_pytorch_model.eval(), ternary.Recipe(activations="int8"))
    before = {k: v.clone() for k, v in made.state_dict().items()}
    packed = ternary.pack(made)
    x = torch.randn(5, 16)
    with torch.no_grad():
        assert torch.allclose(packed(x), made(x), atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in made.state_dict().items())
    assert ternary_layers(made)
    assert not packed.training


def test_kernels_and_threads_reach_the_layers(compiled_simple_model: nn.Module) -> None:
    """A kernel named for the model is that of each layer, and each gives the same floats."""
    x = torch.randn(3, 16)
    results = []
    for kernel in available_kernels():
        packed = ternary.pack(compiled_simple_model, kernel=kernel, threads=1)
        assert packed.hidden.kernel == kernel
        assert packed.hidden.threads == 1
        with torch.no_grad():
            results.append(packed(x))
    assert all(torch.equal(results[0], r) for r in results)


def test_a_layer_with_two_names_is_packed_once() -> None:
    """Shared layers stay shared; a model that is one layer, and one packed already, are packed too."""
    shared = TernaryLinear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    packed = ternary.pack(model)
    assert packed[0] is packed[2]
    assert set(packed_layers(packed)) == {"0", "2"}  # as in the state dict
    again = ternary.pack(packed)
    x = torch.randn(2, 4)
    assert torch.equal(again(x), packed(x))
    assert packed_layers(ternary.pack(shared)).keys() == {""}


def test_layers_inside_layers_are_one() -> None:
    """A layer made of packed ones counts once, and its padding is kept."""
    conv = TernaryConv2d(3, 4, 3, padding=1, padding_mode="replicate", quantizer="ttq")
    with torch.no_grad():
        conv.scale_negative.mul_(2)
    packed = ternary.pack(nn.Sequential(conv))
    assert list(packed_layers(packed)) == ["0"]
    assert isinstance(packed[0].plus, PackedPadded)
    assert isinstance(packed[0].plus.layer, PackedConv2d)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("features", [(0, 3), (3, 0)])
def test_empty_layers(features: tuple[int, int]) -> None:
    """A layer without inputs or outputs packs and computes."""
    layer = TernaryLinear(*features)
    x = torch.zeros(2, features[0])
    assert torch.equal(ternary.pack(layer)(x), layer(x))


def test_refusals() -> None:
    """A model without ternary layers, and a weight that is not finite, are errors by name."""
    with pytest.raises(NothingToPackError, match="Sequential has no ternary layer"):
        ternary.pack(nn.Sequential(nn.Linear(2, 2)))
    layer = TernaryLinear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeightError):
        ternary.pack(layer)


@pytest.mark.parametrize("quantizer", ["twn", "ttq", "absmean"])
@pytest.mark.parametrize("encoding", ["2bit", "base3"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_packed_file(temp_dir: Path, quantizer: str, encoding: str, per: str) -> None:
    """A packed model is saved, and read back packed or trainable with the same results."""
    source = f"""
model Net(width: int = 24) {{
  first = Conv2d(1, width, 3, padding=1)
  body = ternary(quantizer="{quantizer}", per="{per}") Conv2d(width, width, 3, padding=1)
  head = ternary(quantizer="{quantizer}", per="{per}") Linear(width, 10)
  forward(x: float[N, 1, H, W]) -> float[N, 10] {{
    return head(global_avg_pool(relu(body(first(x)))))
  }}
}}
"""
    model = ternary.compile(source)(width=33).eval()
    packed, x = ternary.pack(model), torch.randn(2, 1, 6, 6)
    info = ternary.save(packed, temp_dir / "p.safetensors", arguments={"width": 33}, encoding=encoding)
    assert info.layers["body"].shape == (33, 33, 3, 3)
    again = ternary.load(temp_dir / "p.safetensors", packed=True)
    with torch.no_grad():
        assert torch.equal(again(x), packed(x))
        assert torch.allclose(ternary.load(temp_dir / "p.safetensors")(x), model(x), atol=1e-6)
    other = ternary.compile(source)(width=33)
    assert torch.equal(ternary.load(temp_dir / "p.safetensors", other, packed=True)(x), packed(x))
    with pytest.raises(ModelFileError, match="does not fit"):
        ternary.load(temp_dir / "p.safetensors", nn.Linear(1, 1), packed=True)


def composed() -> nn.Sequential:
    """Every composed module in one network."""
    uneven = TernaryConv2d(4, 4, 2, padding="same", quantizer="ttq")
    with torch.no_grad():
        uneven.scale_negative.mul_(2)
    flat = nn.Sequential(TernaryConv1d(4, 6, 3, padding=1, padding_mode="replicate"), nn.ReLU())
    return nn.Sequential(uneven, nn.Flatten(2), *flat, nn.Flatten(), TernaryLinear(6 * 36, 5)).eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # tested while torch has it
def test_compilers() -> None:
    """torch.compile in one graph, torch.export with a free batch, and both forms of TorchScript."""
    packed, x = ternary.pack(composed()), torch.randn(2, 4, 6, 6)
    wanted = packed(x)
    assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), wanted)
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    other = torch.randn(5, 4, 6, 6)
    assert torch.equal(program.module()(other), packed(other))
    for scripted in (torch.jit.trace(packed, x), torch.jit.script(packed)):
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        assert torch.equal(torch.jit.load(buffer)(x), wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler deprecates parts of itself
def test_inductor() -> None:
    """torch.compile with its C++ backend keeps the integers; skipped where no C++ compiler is."""
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        pytest.skip("no C++ compiler for torch.compile")
    layers = (TernaryConv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), TernaryLinear(144, 5, quantizer="absmean"))
    packed, x = ternary.pack(nn.Sequential(*layers)), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert torch.allclose(torch.compile(packed, fullgraph=True)(x), packed(x), atol=1e-5)
