"""Scales per group of inputs: the values against a slow reference, training, files, packed layers, and refusals."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ternary
from ternary._modelfile import info
from ternary.errors import ModelFileError, UnsupportedGroupError
from ternary.nn import TernaryConv1d, TernaryConv2d, TernaryEmbedding, TernaryLinear, ternarize

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
