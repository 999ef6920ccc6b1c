"""ONNX in all its forms, run by onnxruntime and read back: the integers of the packed layers, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import ternary
from ternary.errors import ExportError, ImportFormatError
from ternary.export import read_onnx, to_onnx
from ternary.export._onnxfile import OPSETS
from ternary.nn import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear
from ternary.runtime import PackedLinear, packed_layers, parts

# Torch's exporter reads the sources of its whole operator library at every call.
pytestmark = pytest.mark.timeout(300)

OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
LEVELS = pytest.mark.parametrize("level", [OFF, ALL], ids=["plain", "optimized"])
FORMS = ["standard", "compatible", "matmulnbits"]


def run_all(path: Path, *inputs: torch.Tensor, level: object = ALL) -> list[torch.Tensor]:
    """What onnxruntime computes, on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feeds)]


def run(path: Path, *inputs: torch.Tensor, level: object = ALL) -> torch.Tensor:
    """The same for one output."""
    return run_all(path, *inputs, level=level)[0]


def every_layer() -> nn.Sequential:
    """Odd shapes, strides, groups, paddings, two scales, one dimension: everything that a packed layer can be."""
    torch.manual_seed(0)
    two = TernaryConv2d(12, 10, (3, 1), (2, 1), (1, 0), quantizer="ttq")
    with torch.no_grad():
        two.scale_negative.mul_(1.5)
    layers = (
        TernaryConv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        TernaryConv2d(12, 12, 3, padding=1, groups=12, padding_mode="reflect"),
        two,
        TernaryConv2d(10, 6, 1, groups=2),
        nn.Flatten(2),
        TernaryConv1d(6, 5, 3, padding=2, dilation=2, per="tensor"),
        TernaryLinear(27, 9, quantizer="absmean"),
        nn.Flatten(),
        TernaryLinear(45, 7, bias=False),
    )
    return nn.Sequential(*layers).eval()


INPUT = (3, 6, 9)


KEYS = [(f, "float") for f in FORMS] + [("standard", "int8"), ("compatible", "int8")]


class Written:
    """The network, and one file per form and kind of activations, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = every_layer()
        self.packed = ternary.pack(self.model)

    def file(self, form: str, activations: str) -> Path:
        """The file of a form."""
        path = self.folder / f"{form}-{activations}.onnx"
        if not path.exists():
            to_onnx(self.model, path, torch.randn(1, *INPUT), form=form, activations=activations)
        return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """One network for most of the tests: writing is what takes the time."""
    return Written(tmp_path_factory.mktemp("onnx"))


class Side(nn.Module):
    """Layers side by side, each with an input and an output of its own, so that one file tests them all."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, a, b, c, d, e=None) -> tuple[torch.Tensor, ...]:
        """Each layer's output."""
        return tuple(layer(x) for layer, x in zip(self.layers, (a, b, c, d, e), strict=False))


@LEVELS
@pytest.mark.parametrize("form", ["standard", "compatible"])
def test_rounded_activations_are_those_of_the_packed_network(written: Written, form: str, level: object) -> None:
    """The whole network agrees, but where batch normalization's float sums come out on another side of a rounding."""
    x = torch.randn(4, *INPUT)
    with torch.no_grad():
        wanted = written.packed(x)
    got = run(written.file(form, "int8"), x, level=level)
    assert (got - wanted).norm() <= 2e-2 * wanted.norm()


ALONE = {
    (5, 53): TernaryLinear(53, 37),
    (2, 3, 64): TernaryLinear(64, 3, quantizer="absmean", per="tensor"),
    (2, 5, 9, 8): TernaryConv2d(5, 7, 3, 2, 1),
    (2, 6, 9, 8): TernaryConv2d(6, 6, 3, padding=1, groups=6),
    (2, 1): TernaryLinear(1, 1),
}


@pytest.mark.parametrize("form", ["standard", "compatible"])
def test_exactly_equal(form: str, temp_dir: Path) -> None:
    """With activations in 8 bits the file gives the packed layers' floats, every bit, whatever is optimized.

    What a hook makes of an output is in the file too.
    """
    packed, inputs = ternary.pack(Side(*ALONE.values())), [torch.randn(shape) * 3 for shape in ALONE]
    packed.layers[0].register_forward_hook(lambda layer, given, out: out * 2)
    for x in inputs:
        x[0] = 0  # a row of zeros divides by nothing
    to_onnx(packed, temp_dir / "m.onnx", tuple(inputs), form=form, activations="int8")
    wanted = packed(*inputs)
    for level in (OFF, ALL):
        for shape, got, y in zip(ALONE, run_all(temp_dir / "m.onnx", *inputs, level=level), wanted, strict=True):
            assert torch.equal(got, y), (shape, level)


@pytest.mark.parametrize("form", ["standard", "compatible"])
def test_float_activations_are_the_ternary_network(written: Written, form: str) -> None:
    """Without optimizations the file computes what the float form of the ternary weights computes."""
    x = torch.randn(4, *INPUT)
    with torch.no_grad():
        wanted = written.model(x)
    got = run(written.file(form, "float"), x, level=OFF)
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()


@LEVELS
@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_torch_on_the_packed_weights(written: Written, form: str, level: object) -> None:
    """However onnxruntime fuses and rounds, it stays within what 8-bit activations cost."""
    x = torch.randn(4, *INPUT)
    with torch.no_grad():
        wanted = written.packed(x)
    assert (run(written.file(form, "float"), x, level=level) - wanted).norm() <= 5e-2 * wanted.norm()


@pytest.mark.parametrize("key", KEYS)
def test_reading_back_loses_nothing(written: Written, key: tuple[str, str]) -> None:
    """Values and scales come out of every form as they went in."""
    found = read_onnx(written.file(*key))
    for name, layer in packed_layers(written.packed).items():
        if name == "3" or name == "4" or name == "7":
            continue  # made of packed layers, which have names of their own
        wanted, got = parts(layer), found[f"{name}.weight"]
        assert torch.equal(got.values, wanted.values), name
        assert torch.equal(got.scale, wanted.positive), name
    assert torch.equal(found["4.plus.weight"].values - 0, written.packed[4].plus.values())


def test_what_is_in_the_files(written: Written) -> None:
    """Two bits a weight, only known operators, the promised operator sets, and no path of the machine that wrote it."""
    for form, activations in KEYS:
        path = written.file(form, activations)
        model = onnx.load(path)
        domains = {o.domain: o.version for o in model.opset_import}
        assert domains == {"": OPSETS[form][0]} | ({"com.microsoft": 1} if form == "matmulnbits" else {})
        assert {n.domain for n in model.graph.node} <= set(domains)
        assert str(Path(__file__).parent).encode() not in path.read_bytes()
        kinds = {i.name: i.data_type for i in model.graph.initializer}
        assert set(kinds) <= {name for n in model.graph.node for name in n.input}
        if form == "standard":
            assert kinds["0.weight"] == onnx.TensorProto.INT2
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("form", FORMS)
def test_size(form: str, temp_dir: Path) -> None:
    """A large layer takes little more than 2 bits a weight in each form."""
    layer = PackedLinear.from_ternary(torch.randint(-1, 2, (512, 512)), 0.5)
    to_onnx(layer, temp_dir / "m.onnx", torch.randn(2, 512), form=form)
    assert (temp_dir / "m.onnx").stat().st_size <= 512 * 512 / 4 * 1.2 + 5000


def test_rows_that_end_within_a_byte(temp_dir: Path) -> None:
    """They are right in onnxruntime's fused kernel, which reads such weights wrongly unless they are filled up."""
    sizes = [(64, 128), (61, 128), (1, 64), (2, 31)]
    layers = [PackedLinear.from_ternary(torch.randint(-1, 2, s), torch.rand(s[0]) + 0.5) for s in sizes]
    model, inputs = Side(*layers), [torch.randn(3, k) for _, k in sizes]
    to_onnx(model, temp_dir / "m.onnx", tuple(inputs))
    for got, wanted in zip(run_all(temp_dir / "m.onnx", *inputs), model(*inputs), strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() <= 0.03 * wanted.abs().max().clamp(min=1)


def test_embedding_stays_packed(temp_dir: Path) -> None:
    """A table keeps its 2 bits; onnxruntime unpacks the rows that are looked up."""
    model = nn.Sequential(TernaryEmbedding(50, 21), TernaryLinear(21, 8))
    index = torch.randint(0, 50, (4, 6))
    to_onnx(model, temp_dir / "m.onnx", index, activations="int8")
    packed = ternary.pack(model)
    assert torch.equal(run(temp_dir / "m.onnx", index), packed(index))
    kinds = {i.name: i.data_type for i in onnx.load(temp_dir / "m.onnx").graph.initializer}
    assert kinds["0.packed"] == onnx.TensorProto.UINT8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit"])
def test_zoo(name: str, temp_dir: Path) -> None:
    """Whole networks agree with the float form of their ternary weights."""
    model, x = ternary.zoo.load(name)().eval(), torch.randn(2, 3, 32, 32)
    to_onnx(model, temp_dir / "m.onnx", x)
    with torch.no_grad():
        wanted = model(x)
    assert (run(temp_dir / "m.onnx", x, level=OFF) - wanted).norm() <= 1e-4 * wanted.norm()
    assert (run(temp_dir / "m.onnx", x) - wanted).norm() <= 5e-2 * wanted.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "int2"}, "forms are"),
        ({"activations": "int4"}, "activations float"),
        ({"form": "matmulnbits", "block": 16}, "blocks 32"),
        ({"form": "matmulnbits", "activations": "int8"}, "by itself"),
        ({"example": None}, "traces the model"),
        ({"example": (1, 2)}, "traces the model"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str, temp_dir: Path) -> None:
    """What a form cannot do is said, and nothing is written."""
    given = {"example": torch.randn(2, 4)} | arguments
    with pytest.raises(ExportError, match=message):
        to_onnx(TernaryLinear(4, 4), temp_dir / "m.onnx", given.pop("example"), **given)
    assert list(temp_dir.iterdir()) == []


def test_models_that_cannot_be_written(temp_dir: Path) -> None:
    """No ternary layers, and layers without weights or with too many columns for exact sums."""
    x = torch.randn(2, 4)
    with pytest.raises(ExportError, match="no ternary layer"):
        to_onnx(nn.Linear(4, 4), temp_dir / "m.onnx", x)
    with pytest.raises(ExportError, match="without weights"):
        to_onnx(PackedLinear(4, 0), temp_dir / "m.onnx", x)
    with pytest.raises(ExportError, match="too many"):
        to_onnx(PackedLinear(140_000, 1), temp_dir / "m.onnx", torch.randn(2, 140_000), activations="int8")
    assert list(temp_dir.iterdir()) == []


def model_of(values: np.ndarray, scale: np.ndarray, **attributes: int) -> onnx.ModelProto:
    """A foreign file with one INT2 weight."""
    h = onnx.helper
    codes = (values.flatten().astype(np.int8) & 3).astype(np.uint8)
    codes = np.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4)
    raw = (codes << np.array([0, 2, 4, 6], np.uint8)).sum(1).astype(np.uint8).tobytes()
    weight = h.make_tensor("w", onnx.TensorProto.INT2, values.shape, raw, raw=True)
    nodes = [h.make_node("DequantizeLinear", ["w", "s"], ["y"], **attributes)]
    out = [h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = h.make_graph(nodes, "g", [], out, [weight, onnx.numpy_helper.from_array(scale, "s")])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 25)], ir_version=13)


def test_foreign_files(temp_dir: Path) -> None:
    """INT2 weights of others are read; -2, scales by block, and damage are refused."""
    values = np.array([[-1, 0, 1], [1, 1, 0]])
    onnx.save(model_of(values, np.array([0.5, 2.0], np.float32), axis=0), temp_dir / "m.onnx")
    assert read_onnx(temp_dir / "m.onnx")["w"].dense().tolist() == [[-0.5, 0, 0.5], [2, 2, 0]]
    onnx.save(model_of(values, np.array(0.5, np.float32)), temp_dir / "m.onnx")
    assert read_onnx(temp_dir / "m.onnx")["w"].scale.tolist() == [0.5, 0.5]
    values[0, 0] = -2
    onnx.save(model_of(values, np.array([0.5, 2.0], np.float32), axis=0), temp_dir / "m.onnx")
    with pytest.raises(ImportFormatError, match="-2"):
        read_onnx(temp_dir / "m.onnx")
    onnx.save(model_of(values, np.ones((2, 3), np.float32), axis=0, block_size=1), temp_dir / "m.onnx")
    with pytest.raises(ImportFormatError, match="by block"):
        read_onnx(temp_dir / "m.onnx")
    (temp_dir / "m.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ImportFormatError, match="damaged"):
        read_onnx(temp_dir / "m.onnx")
    with pytest.raises(FileNotFoundError):
        read_onnx(temp_dir / "none.onnx")


@pytest.mark.parametrize(
    ("form", "inputs", "group"),
    [("standard", 20, 6), ("standard", 64, 16), ("compatible", 20, 6), ("matmulnbits", 144, 64)],
)
def test_scales_per_group_of_inputs(tmp_path: Path, form: str, inputs: int, group: int) -> None:
    """The runtime computes what the float layer does; reading such a weight back is refused by name."""
    model = nn.Sequential(TernaryLinear(inputs, 12, per="group", group=group)).eval()
    x, file = torch.randn(3, inputs), tmp_path / "m.onnx"
    to_onnx(model, file, x, form=form, block=32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():  # MatMulNBits rounds activations block by block
        wanted, near = model(x), 0.02 if form == "matmulnbits" else 1e-5
    assert float((torch.from_numpy(got) - wanted).abs().max()) <= near * float(wanted.abs().max())
    with pytest.raises(ImportFormatError, match="scales"):
        read_onnx(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "int8"}, r"0: ONNX.*group of 6 .*per='channel'"),
        ({"form": "matmulnbits"}, r"0: MatMulNBits.*block of 128 .*group of 6.*per='channel'"),
    ],
)
def test_groups_that_a_form_lacks(tmp_path: Path, options: dict[str, str], message: str) -> None:
    """The message names the format, the layer and what to do."""
    model = nn.Sequential(TernaryLinear(20, 12, per="group", group=6))
    with pytest.raises(ExportError, match=message):
        to_onnx(model, tmp_path / "m.onnx", torch.randn(2, 20), **options)
    assert not (tmp_path / "m.onnx").exists()
