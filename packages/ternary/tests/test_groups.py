"""Scales per group of inputs: the values against a slow reference, training, files, packed layers, and refusals."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ternary
from ternary._modelfile import info
from ternary.errors import (
    ExportError,
    ImportFormatError,
    KernelUnavailableError,
    LayerShapeError,
    ModelFileError,
    UnsupportedGroupError,
)
from ternary.nn import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear, fake_int8, ternarize
from ternary.runtime import PackedGroupedLinear, available_kernels, parts
from ternary.runtime import _grouped as grouped

QUANTIZERS = ("twn", "absmean", "fixed", "sparse", "exact")
PROGRAM = """
model M(per: str = "group", group: int = 8) {
  first = Linear(20, 20)
  hidden = ternary(per=per, group=group) Linear(20, 12)
  head = Linear(12, 3)
  forward(x: float[N, 20]) -> float[N, 3] { return head(relu(hidden(first(x)))) }
}
"""


def random_weight(outputs: int, inputs: int, seed: int) -> Tensor:
    """Weights of very different sizes along the inputs, some of them equal."""
    made = torch.Generator().manual_seed(seed)
    size = 10.0 ** torch.randint(-2, 3, (1, inputs), generator=made)
    return (torch.randn(outputs, inputs, generator=made) * size * 4).round() / 4


def layer(inputs: int = 53, outputs: int = 37, group: int = 16, **options: Any) -> TernaryLinear:
    """A layer with groups of which the last is short, its inputs of different sizes."""
    made = TernaryLinear(inputs, outputs, per="group", group=group, **options)
    with torch.no_grad():
        made.weight.mul_(torch.linspace(0.1, 3, inputs))
    return made


class TestValues:
    """What a weight becomes."""

    @given(
        st.integers(1, 6), st.integers(1, 40), st.integers(1, 45), st.sampled_from(QUANTIZERS), st.integers(0, 2**31)
    )
    def test_each_group_is_a_row_of_its_own(self, outputs, inputs, group, quantizer, seed) -> None:
        """The values and scales are those of the quantizer on each group alone."""
        weight = random_weight(outputs, inputs, seed)
        values, scale = ternarize(weight, quantizer, group=group)
        groups = [weight[:, at : at + group] for at in range(0, inputs, group)]
        assert scale.shape == (outputs, len(groups))
        for number, part in enumerate(groups):
            for row in range(outputs):
                wanted, one = ternarize(part[row : row + 1], quantizer)
                assert torch.equal(values[row, number * group :][: part.shape[1]], wanted[0])
                assert torch.allclose(scale[row, number], one[0, 0], rtol=1e-6)

    def test_the_layer_multiplies_each_group_by_its_scale(self) -> None:
        """In training and in evaluation, where the weight is kept; a group wider than the weight is a channel."""
        made = layer()
        values, scale, negative = made.ternary_values()
        assert scale is negative
        assert scale.shape == (37, 4)
        wanted = torch.cat([values[:, at : at + 16] * scale[:, [at // 16]] for at in range(0, 53, 16)], 1)
        assert torch.equal(made.ternary_weight(), wanted)
        with torch.no_grad():
            assert torch.equal(made.eval().ternary_weight(), wanted)
            made.group = 8
            assert made.ternary_values()[1].shape == (37, 7)
            assert not torch.equal(made.ternary_weight(), wanted)
            wide, channel = layer(group=53), layer(group=53)
            channel.load_state_dict(wide.state_dict())
            channel.per = "channel"
            assert torch.equal(wide.ternary_weight(), channel.ternary_weight())
            assert wide.ternary_values()[1].shape == (37,)

    @pytest.mark.parametrize("quantizer", [*QUANTIZERS[:4], "stochastic"])
    def test_a_step_of_training(self, quantizer) -> None:
        """Gradients reach every weight within the limit, and the loss falls."""
        made = layer(quantizer=quantizer, threshold=0.1)
        x, wanted = torch.randn(64, 53), torch.randn(64, 37)
        losses = []
        for _ in range(20):
            loss = nn.functional.mse_loss(made(x), wanted)
            made.zero_grad()
            loss.backward()
            assert made.weight.grad is not None
            assert bool(made.weight.grad.isfinite().all())
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter -= 0.5 * parameter.grad
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_copies_moves_and_scripts(self) -> None:
        """The layer pickles, copies, scripts and moves; another state dict has the same names as a float layer's."""
        made = layer().eval()
        x = torch.randn(3, 53)
        assert list(made.state_dict()) == ["weight", "bias"]
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.jit.script(made)):
            assert torch.equal(other(x), made(x))
        small = copy.deepcopy(made).to(torch.bfloat16)
        assert small(x.bfloat16()).dtype == torch.bfloat16
        assert torch.allclose(small(x.bfloat16()).float(), made(x), atol=0.3)
        assert "per=group, group=16" in repr(made)

    def test_empty_and_one_wide(self) -> None:
        """No inputs, no outputs, one of each."""
        with pytest.warns(UserWarning, match="no-op"):
            without_inputs, without_outputs = layer(0, 4), layer(4, 0, 2)
        assert without_inputs(torch.zeros(2, 0)).shape == (2, 4)
        assert without_outputs(torch.zeros(2, 4)).shape == (2, 0)
        assert layer(1, 1, 1).ternary_values()[1].shape == (1,)


class TestRefusals:
    """What has no groups says so."""

    @pytest.mark.parametrize("group", [0, -1, True, 1.5, "64"])
    def test_a_wrong_size(self, group) -> None:
        """Of every door."""
        for make in (ternary.Recipe, lambda **o: TernaryLinear(4, 4, **o)):
            with pytest.raises(ValueError, match="a group is a whole number of inputs"):
                make(per="group", group=group)

    def test_other_layers_and_ttq(self) -> None:
        """Convolutions, embeddings and learned scales name what to take instead."""
        for make in (
            lambda: TernaryConv1d(2, 2, 1, per="group"),
            lambda: TernaryConv2d(2, 2, 1, per="group"),
            lambda: TernaryEmbedding(2, 2, per="group"),
            lambda: TernaryLinear(2, 2, per="group", quantizer="ttq"),
        ):
            with pytest.raises(UnsupportedGroupError, match="per='channel'"):
                make()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ('per="group", group=0', "group = 0"),
            ('per="group", group=true', "of type bool"),
            ('per="grup"', "unknown per 'grup'"),
            ('per="group", quantizer="ttq"', "no scales per group"),
        ],
    )
    def test_programs(self, options, message) -> None:
        """The checker finds each at its place."""
        (problem,) = ternary.check(PROGRAM.replace("per=per, group=group", options))
        assert message in problem.message
        assert problem.hint or problem.expected

    def test_a_convolution_in_a_program(self) -> None:
        """Only Linear has groups."""
        source = 'model M {\n  a = ternary(per="group") Conv1d(3, 4, 1)\n'
        source += "  forward(x: float[N, 3, L]) -> float[N, 4, L] { return a(x) }\n}"
        (problem,) = ternary.check(source)
        assert "Conv1d has no scales per group" in problem.message
        assert problem.expected == "Linear"


class TestFiles:
    """Saved and loaded."""

    @pytest.mark.parametrize("encoding", ["2bit", "base3"])
    def test_programs_and_their_files(self, tmp_path: Path, encoding) -> None:
        """A program with groups is formatted, compiled, saved and loaded with equal weights."""
        assert ternary.compile(ternary.format_source(PROGRAM), "M")().hidden.group == 8
        model = ternary.compile(PROGRAM, "M")(group=6).eval()
        header = ternary.save(model, tmp_path / "m.safetensors", arguments={"group": 6}, encoding=encoding)
        assert header.layers["hidden"].group == 6
        x = torch.randn(5, 20)
        other = ternary.compile(PROGRAM, "M")("channel")
        for again in (ternary.load(tmp_path / "m.safetensors"), ternary.load(tmp_path / "m.safetensors", other)):
            assert torch.equal(again(x), model(x))
            assert (again.hidden.per, again.hidden.group, again.hidden.quantizer) == ("group", 6, "exact")
            further = ternary.to_trainable(again)
            assert torch.allclose(further.hidden.ternary_weight(), model.hidden.ternary_weight(), rtol=1e-6)

    @pytest.mark.parametrize("per", ["group", "channel", "tensor"])
    @pytest.mark.parametrize("into", ["group", "channel", "tensor"])
    def test_the_file_decides_which_scales_there_are(self, tmp_path: Path, per, into) -> None:
        """Whatever the program that it is read into was made with."""
        model = ternary.compile(PROGRAM, "M")(per).eval()
        ternary.save(model, tmp_path / "m.safetensors")
        x = torch.randn(5, 20)
        again = ternary.load(tmp_path / "m.safetensors", ternary.compile(PROGRAM, "M")(into))
        assert torch.equal(again(x), model(x))

    def test_the_version_tells_earlier_readers(self, tmp_path: Path) -> None:
        """Files without groups are what they were."""
        for group, version in ((8, 3), (20, 1)):
            ternary.save(ternary.compile(PROGRAM, "M")(group=group), tmp_path / "m.safetensors")
            with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
                header = json.loads(file.metadata()["ternary"])
            assert header["version"] == version
            assert ("group" in header["layers"]["hidden"]) == (version == 3)

    @pytest.mark.parametrize("scales", [(12, 2), (12,), (1,), (36,), (12, 4), (11, 3)])
    def test_scales_of_a_wrong_size(self, tmp_path: Path, scales) -> None:
        """The header alone is enough to refuse the file."""
        file = tmp_path / "m.safetensors"
        ternary.save(ternary.compile(PROGRAM, "M")(), file)
        damage(file, tensors={"hidden.weight.scale": torch.ones(scales)})
        for read in (ternary.load, info):
            with pytest.raises(ModelFileError, match=r"hidden.*scales of shape"):
                read(file)

    @pytest.mark.parametrize("group", [0, -8, True, 5, 20, 10**30, "8", None, [8]])
    def test_groups_that_the_scales_do_not_fit(self, tmp_path: Path, group) -> None:
        """Whatever number the header names."""
        file = tmp_path / "m.safetensors"
        ternary.save(ternary.compile(PROGRAM, "M")(group=8), file)
        damage(file, layer={"group": group})
        with pytest.raises(ModelFileError):
            ternary.load(file)

    @pytest.mark.parametrize("group", [0, -1, True, "8", None])
    def test_a_description_without_a_group(self, tmp_path: Path, group) -> None:
        """The same for the description that makes layers of a float model."""
        file = tmp_path / "m.safetensors"
        ternary.save(ternary.compile(PROGRAM, "M")(group=8), file)
        damage(file, quantized={"group": group})
        with pytest.raises(ModelFileError, match="damaged"):
            ternary.load(file)


def damage(
    file: Path,
    *,
    tensors: dict[str, Tensor] | None = None,
    layer: dict[str, Any] | None = None,
    quantized: dict[str, Any] | None = None,
) -> None:
    """Write a file anew with other tensors or another description of its ternary layer."""
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["ternary"])
    header["layers"]["hidden"] |= layer or {}
    header["quantized"]["hidden"] |= quantized or {}
    save_file({**load_file(file), **(tensors or {})}, file, metadata={"ternary": json.dumps(header)})


class TestPacked:
    """The packed layer."""

    @given(
        st.sampled_from([1, 2, 5, 19, 40]),
        st.integers(2, 150),
        st.integers(1, 40),
        st.sampled_from([1, 3, 16, 32, 48, 64, 100]),
        st.booleans(),
        st.integers(0, 2**31),
    )
    @settings(max_examples=40)
    def test_every_kernel_gives_the_same_floats(self, rows, inputs, outputs, group, biased, seed) -> None:
        """Bit for bit, threads or not, and close to the float layer with rounded activations."""
        torch.manual_seed(seed % 2**31)
        values = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8)
        scale, bias = torch.rand(outputs, -(-inputs // group)) + 0.1, torch.randn(outputs) if biased else None
        x = torch.randn(rows, inputs)
        first = PackedGroupedLinear.from_ternary(values, scale, group, bias, kernel="torch")
        assert torch.equal(first.values(), values)
        assert torch.equal(first.scales(), scale)
        for kernel in available_kernels():
            for threads in (1, 3):
                made = copy.deepcopy(first)
                made.kernel, made.threads = kernel, threads
                assert torch.equal(made(x), first(x))
        wanted = nn.functional.linear(
            fake_int8(x).double(), first.dense().double(), None if bias is None else bias.double()
        )
        size = (fake_int8(x).abs().double() @ first.dense().abs().double().T).amax()
        assert float((first(x) - wanted).abs().max()) <= 1e-5 * float(size + 1)

    def test_a_whole_model(self, tmp_path: Path) -> None:
        """Packed, saved, loaded packed: equal bits, and the sizes that the report counts."""
        model = ternary.compile(PROGRAM, "M")(group=6).eval()
        packed, x = ternary.pack(model), torch.randn(5, 20)
        assert isinstance(packed.hidden, PackedGroupedLinear)
        found = parts(packed.hidden)
        assert found.group == 6
        assert torch.equal(found.spread() * found.values, model.hidden.ternary_weight())
        assert torch.equal(packed.hidden.weight + 0, model.hidden.ternary_weight())
        for source in (model, packed):
            ternary.save(source, tmp_path / "m.safetensors", arguments={"group": 6})
            assert torch.equal(ternary.load(tmp_path / "m.safetensors", packed=True)(x), packed(x))
        again = ternary.pack(ternary.compile(PROGRAM, "M")(group=6))
        again.load_state_dict(packed.state_dict())
        assert torch.equal(again(x), packed(x))

    # cuda: ternary.runtime._grouped:_elsewhere by stand-in
    def test_where_there_is_no_core(self) -> None:
        """On other devices plain torch computes the same; Triton has no kernel for groups and says so."""
        packed, x = ternary.pack(layer()), torch.randn(3, 53)
        given = (x, packed.packed, packed.scale, packed.bias, 37, 16)
        assert torch.equal(grouped._elsewhere(*given), packed(x))
        with pytest.raises(KernelUnavailableError, match="per group"):
            grouped._elsewhere(*given, "triton")
        with pytest.raises(KernelUnavailableError):
            ternary.pack(layer(), kernel="triton")(x)
        assert packed.to("meta")(x.to("meta")).shape == (3, 37)

    def test_copies_moves_and_scripts(self) -> None:
        """What every packed layer can do."""
        packed = ternary.pack(layer())
        x = torch.randn(3, 53)
        script = torch.jit.script(packed)
        buffer = io.BytesIO()
        torch.jit.save(script, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), script, torch.jit.load(buffer)):
            assert torch.equal(other(x), packed(x))
        small = copy.deepcopy(packed).to(torch.bfloat16)
        assert small.scale.dtype == torch.float32
        assert torch.equal(small(x.bfloat16()), packed(x.bfloat16().float()).bfloat16())
        assert small.weight.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(PackedGroupedLinear.from_ternary(*pieces(packed), kernel="torch")(x), packed(x))
        assert torch.equal(torch.func.vmap(packed)(x.unsqueeze(1)).squeeze(1), packed(x))
        assert packed(torch.zeros(2, 0, 53)).shape == (2, 0, 37)
        assert packed(x[0]).shape == (37,)

    def test_gradients_are_those_of_the_float_product(self) -> None:
        """Backwards and forwards."""
        packed = ternary.pack(layer())
        x, direction = torch.randn(3, 53, requires_grad=True), torch.randn(3, 53)
        (of_x,) = torch.autograd.grad(packed(x).sum(), x)
        assert torch.allclose(of_x, packed.dense().sum(0).expand(3, -1), rtol=1e-4, atol=1e-5)
        _, moved = torch.func.jvp(packed, (x.detach(),), (direction,))
        assert torch.allclose(
            moved, direction @ packed.dense().T + packed.bias, rtol=1e-4, atol=1e-4
        ) or torch.allclose(moved, direction @ packed.dense().T, rtol=1e-4, atol=1e-4)

    def test_a_row_that_is_not_finite(self) -> None:
        """It becomes NaN; the others stay."""
        for kernel in available_kernels():
            packed = ternary.pack(layer(), kernel=kernel)
            x = torch.randn(4, 53)
            whole = packed(x)
            x[1, 7] = float("inf")
            assert bool(packed(x)[1].isnan().all())
            assert torch.equal(packed(x)[[0, 2, 3]], whole[[0, 2, 3]])

    def test_parts_that_do_not_fit(self) -> None:
        """Each is refused before a kernel reads it."""
        values, scale = torch.ones(4, 10, dtype=torch.int8), torch.ones(4, 3)
        for wrong in (torch.ones(4), torch.ones(4, 2), torch.ones(3, 3), torch.full((4, 3), float("nan"))):
            with pytest.raises(LayerShapeError):
                PackedGroupedLinear.from_ternary(values, wrong, 4)
        with pytest.raises(LayerShapeError):
            PackedGroupedLinear.from_ternary(values, scale, 4, torch.ones(3))
        for group in (0, -1, True):
            with pytest.raises(LayerShapeError):
                PackedGroupedLinear(10, 4, group)
        packed = PackedGroupedLinear.from_ternary(values, scale, 4)
        with pytest.raises(LayerShapeError):
            packed(torch.zeros(2, 11))
        operator = torch.ops.ternary.grouped_linear
        for change in (
            {"scale": torch.ones(1, 3, 15)},
            {"weight": packed.packed[:, :2]},
            {"bias": torch.ones(5)},
            {"x": torch.zeros(2, 13)},
            {"group": 0},
        ):
            given = {"x": torch.zeros(2, 10), "weight": packed.packed, "scale": packed.scale, "bias": None}
            with pytest.raises(LayerShapeError):
                operator(**given | {"outputs": 4, "group": 4} | change)


class TestQuantize:
    """`ternary.quantize` with groups."""

    def network(self) -> nn.Module:
        """Three layers, the middle one becomes ternary."""
        return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)).eval()

    @pytest.mark.parametrize("calibrated", [False, True])
    def test_groups_lower_the_error(self, tmp_path: Path, calibrated) -> None:
        """The report counts the scales; a float model takes the file, and packs to equal bits."""
        net, x = self.network(), torch.randn(64, 20)
        with torch.no_grad():
            net[2].weight.mul_(torch.logspace(-1, 1, 5).repeat_interleave(8))
        data = {"calibration": [x]} if calibrated else {}
        small, report = ternary.quantize(net, ternary.Recipe(per="group", group=8), **data)
        _, plain = ternary.quantize(net, **data)
        assert report.layers[1].error < plain.layers[1].error
        assert report.layers[1].bytes_after == 40 * 10 + 4 * 40 * 5
        assert small[2].quantizer == ("exact" if calibrated else "twn")
        ternary.save(small, tmp_path / "m.safetensors")
        assert torch.equal(ternary.load(tmp_path / "m.safetensors", self.network())(x), small(x))
        again = ternary.load(tmp_path / "m.safetensors", self.network(), packed=True)
        assert torch.equal(again(x), ternary.pack(small)(x))
        assert list(ternary.sensitivity(net, [x], ternary.Recipe(per="group", group=8)))

    def test_an_outlier_is_kept_float_beside_groups(self, tmp_path: Path) -> None:
        """Channels that stay float leave the groups where they were."""
        net, x = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)).eval(), torch.randn(64, 40)
        x[:, 3] *= 500
        recipe = ternary.Recipe(per="group", group=8, rules=(("0", "ternary"),))
        small, report = ternary.quantize(net, recipe, calibration=[x])
        assert "kept float" in report.layers[0].note
        assert isinstance(small[0], ternary.nn.FloatChannels)
        assert small[0].layer.ternary_values()[1].shape == (40, 5)
        packed = ternary.pack(small)
        with torch.no_grad():
            assert float((packed(x) - small(x)).norm() / small(x).norm()) < 0.05
        ternary.save(packed, tmp_path / "m.safetensors")
        assert torch.equal(ternary.load(tmp_path / "m.safetensors", net, packed=True)(x), packed(x))

    def test_other_layers_are_named(self) -> None:
        """The error says which layer, and what to write."""
        net = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(8, 4))
        with pytest.raises(UnsupportedGroupError, match=r"1 is a Conv1d.*\('1', 'int8'\)"):
            ternary.quantize(net, ternary.Recipe(per="group"))
        with pytest.raises(UnsupportedGroupError, match="is a Conv1d"):
            ternary.sensitivity(net, [torch.zeros(1, 4, 6)], ternary.Recipe(per="group", rules=(("*", "ternary"),)))
        ternary.quantize(net, ternary.Recipe(per="group", rules=(("1", "float"),)))


class TestExports:
    """Formats with a scale an output refuse the layer by name; those that store operators take it."""

    def test_gguf_refuses(self, tmp_path: Path) -> None:
        """The message names the format, the layer and what to do."""
        model = ternary.compile(PROGRAM, "M")(group=6)
        with pytest.raises(ExportError, match=r"hidden.*GGUF.*group of 6 .*per='channel'"):
            ternary.export.to_gguf(model, tmp_path / "m")
        assert not (tmp_path / "m").exists()

    def test_torchscript(self, tmp_path: Path) -> None:
        """The operator is in the file."""
        model = ternary.compile(PROGRAM, "M")(group=6).eval()
        x = torch.randn(3, 20)
        ternary.export.to_torchscript(model, tmp_path / "m.ts", x)
        assert torch.equal(torch.jit.load(tmp_path / "m.ts")(x), ternary.pack(model)(x))

    def test_a_decoder(self, tmp_path: Path) -> None:
        """A language model's file has one scale a row."""
        config = ternary.llm.ModelConfig(
            48, hidden=32, inner=48, layers=1, heads=2, kv_heads=1, head_size=16, context=32
        )
        decoder = ternary.llm.Decoder(config, ternary=True)
        for made in decoder.modules():
            if isinstance(made, TernaryLinear):
                made.per, made.group = "group", 16
        with pytest.raises(ImportFormatError, match=r"scales per group.*per='channel'"):
            ternary.llm.save(decoder, tmp_path / "m.ternary")


def pieces(packed: PackedGroupedLinear) -> tuple[Tensor, Tensor, int, Tensor | None]:
    """Return what a packed layer is made of."""
    found = parts(packed)
    return found.values, found.positive, found.group, found.bias
