"""extract_tensors takes every tensor out of a module; replace_tensors puts them in again."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zerocopy
from zerocopy.errors import CheckpointMismatchError


@pytest.mark.parametrize("name", ["simple_model", "large_model", "transformer_model"])
def test_extract_and_replace_give_the_same_model(name: str, request: pytest.FixtureRequest) -> None:
    """Outputs are equal bit for bit, and the original is untouched."""
    model = request.getfixturevalue(name)
    inputs = torch.randint(0, 100, (2, 5)) if name == "transformer_model" else torch.randn(2, model[0].in_features)
    expected = model(inputs)
    skeleton, tensors = zerocopy.extract_tensors(model)
    restored = zerocopy.replace_tensors(skeleton, tensors)
    assert restored is skeleton
    assert torch.equal(restored(inputs), expected)
    assert torch.equal(model(inputs), expected)


def test_skeleton_has_no_weights(large_model: nn.Module) -> None:
    """64 MiB of weights leave a skeleton of a few kilobytes."""
    skeleton, tensors = zerocopy.extract_tensors(large_model)
    assert all(value is None for module in skeleton.modules() for value in module._parameters.values())
    assert len(pickle.dumps(skeleton)) < 10_000
    assert sum(t.nbytes for t in tensors.values()) == sum(p.nbytes for p in large_model.parameters())


def test_nothing_is_copied(large_model: nn.Module) -> None:
    """Extracted tensors are the model's own, and replaced ones the given ones."""
    skeleton, tensors = zerocopy.extract_tensors(large_model)
    assert all(tensors[name] is value for name, value in large_model.named_parameters())
    zerocopy.replace_tensors(skeleton, tensors)
    assert skeleton[0].weight.data_ptr() == large_model[0].weight.data_ptr()


def test_ties_buffers_and_flags(transformer_model: nn.Module) -> None:
    """Tied tensors are one object under both names; buffers, requires_grad and train flags survive."""
    transformer_model.embed.weight.requires_grad_(False)
    skeleton, tensors = zerocopy.extract_tensors(transformer_model)
    assert tensors["head.weight"] is tensors["embed.weight"]
    assert "scale" in tensors
    restored = zerocopy.replace_tensors(skeleton, tensors)
    assert restored.head.weight is restored.embed.weight
    assert not restored.embed.weight.requires_grad
    assert list(restored.state_dict()) == list(transformer_model.state_dict())
    assert not restored.training


def test_plain_tensors_become_frozen_parameters(simple_model: nn.Module) -> None:
    """Tensors that lost their Parameter class on the way are taken over without a copy."""
    skeleton, tensors = zerocopy.extract_tensors(simple_model)
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    restored = zerocopy.replace_tensors(skeleton, plain)
    assert isinstance(restored[0].weight, nn.Parameter)
    assert restored[0].weight.data_ptr() == simple_model[0].weight.data_ptr()
    assert not restored[0].weight.requires_grad


def test_replace_works_on_a_model_with_weights(simple_model: nn.Module) -> None:
    """Weights that are present are replaced."""
    other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()
    zerocopy.replace_tensors(other, zerocopy.extract_tensors(simple_model)[1])
    inputs = torch.randn(2, 8)
    assert torch.equal(other(inputs), simple_model(inputs))


def test_wrong_names_are_refused(simple_model: nn.Module) -> None:
    """A name that the module does not have is an error that contains it."""
    skeleton, _ = zerocopy.extract_tensors(simple_model)
    with pytest.raises(CheckpointMismatchError, match=r"9\.weight"):
        zerocopy.replace_tensors(skeleton, {"9.weight": torch.zeros(1)})
    with pytest.raises(CheckpointMismatchError, match=r"0\.colour: Linear has no tensor"):
        zerocopy.replace_tensors(skeleton, {"0.colour": torch.zeros(1)})


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"3.bias": torch.zeros(5)}, CheckpointMismatchError, r"3\.bias: got shape \(5,\), the module has \(4,\)"),
        ({"0.in_features": torch.zeros(1)}, CheckpointMismatchError, "Linear has no tensor of this name"),
        ({"_parameters": torch.zeros(1)}, CheckpointMismatchError, "has no tensor of this name"),
        ({"_is_full_backward_hook": torch.zeros(1)}, CheckpointMismatchError, "has no tensor of this name"),
        ({"3.bias": np.zeros(4)}, TypeError, r"3\.bias is array.*wanted a tensor"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    simple_model: nn.Module, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A shape of another network, an attribute that holds no tensor, an array: the tensors before it stay too."""
    before = copy.deepcopy(simple_model)
    with pytest.raises(error, match=message):
        zerocopy.replace_tensors(simple_model, {"0.weight": torch.zeros(16, 8), **wrong})
    assert torch.equal(simple_model[0].weight, before[0].weight)  # type: ignore[index]
    assert simple_model(torch.ones(1, 8)).shape == (1, 4)


def test_lazy_weights_are_replaced() -> None:
    """They have no shape yet."""
    lazy = nn.LazyLinear(4)
    zerocopy.replace_tensors(lazy, {"weight": torch.ones(4, 3), "bias": torch.zeros(4)})
    assert lazy.weight.shape == (4, 3)


def test_a_tensor_that_is_no_parameter(simple_model: nn.Module) -> None:
    """Plain tensor attributes are extracted as well."""
    simple_model.mean = torch.tensor(4.0)
    skeleton, tensors = zerocopy.extract_tensors(simple_model)
    assert skeleton.mean is None
    assert zerocopy.replace_tensors(skeleton, tensors).mean == 4


def test_what_a_pipeline_refuses() -> None:
    """A mode that does not exist, before Ray is started; a text, whose letters are no methods."""
    with pytest.raises(ValueError, match="mode 'locl' is none of task, actor, local"):
        zerocopy.rewrite_pipeline(nn.Linear(2, 2), mode="locl")  # type: ignore[arg-type]
    for methods in ("forward", [1]):
        with pytest.raises(TypeError, match="wanted a list of names"):
            zerocopy.rewrite_pipeline(nn.Linear(2, 2), mode="local", methods=methods)  # type: ignore[arg-type]
    both = zerocopy.rewrite_pipeline([nn.Linear(2, 2), nn.Linear(2, 3)], mode="local", methods=iter(["__call__"]))  # type: ignore[arg-type]
    widths = [stand_in(torch.ones(1, 2)).shape[1] for stand_in in both]
    refs = [stand_in.ref for stand_in in both]
    del both  # gives up the models
    gc.collect()
    for ref in refs:
        zerocopy.forget(ref)
    assert widths == [2, 3]
