"""Numpy arrays share too: values, views, ties and flags, in pipelines and in scikit-learn's models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy.errors import WriteRefusedError

Publish = Callable[..., ModelRef]


def in_segment(array: Any) -> bool:
    """Whether an array lies in a mapped segment."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return ".zc" in line
    return False


def test_arrays_are_mapped_and_not_pickled(publish: Publish) -> None:
    """32 MiB of arrays leave a small skeleton; the loaded ones lie in the segment and have equal bytes."""
    table = np.random.default_rng(0).standard_normal((1 << 20, 4))
    model = {"table": table, "again": table, "rows": table[10:20, ::-1], "net": nn.Linear(4, 4), "small": np.arange(3)}
    ref = publish(model, name="arrays")
    (info,) = (entry for entry in zerocopy.report().segments if ref.path.endswith(entry.file))
    assert info.by_value < 10_000
    assert info.stored_nbytes < table.nbytes + 1000
    loaded = ref.load(cached=False)
    assert np.array_equal(loaded["table"], table)
    assert loaded["again"] is loaded["table"]
    assert np.array_equal(loaded["small"], model["small"])
    assert in_segment(loaded["table"])
    loaded["table"][10, 0] = 7
    assert loaded["rows"].shape == (10, 4)
    assert [entry.name for entry in zerocopy.written(loaded)] == ["table"]
    assert ref.load(cached=False)["table"][10, 0] == table[10, 0]


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from(["f8", "f4", "i2", "u1", "?", "c16", "M8[s]", ">f8", [("a", "i4"), ("b", "f8")], "S5", "U3"]),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    order=st.sampled_from("CF"),
    cut=st.integers(1, 3),
    back=st.booleans(),
    frozen=st.booleans(),
)
def test_any_array_comes_back(
    dtype: Any, shape: list[int], order: Any, cut: int, back: bool, frozen: bool, tmp_path_factory: Any
) -> None:
    """Every dtype without objects, every order, slices and reversed views, writable or not."""
    raw = np.random.default_rng(1).integers(0, 1 if dtype == "?" else 100, size=[*shape, 4000]).astype("u1")
    whole = np.zeros([*shape, 4000], dtype=dtype, order=order)
    if dtype not in ("S5", "U3") and not isinstance(dtype, list):
        whole[...] = raw.astype(dtype)
    array = whole[..., :: -cut if back else cut]
    array.setflags(write=not frozen)
    ref = zerocopy.publish({"array": array}, directory=tmp_path_factory.mktemp("any"))
    loaded = ref.load(cached=False)["array"]
    assert (loaded.dtype, loaded.shape, loaded.flags.writeable) == (array.dtype, array.shape, not frozen)
    assert loaded.tobytes() == array.tobytes()
    del loaded
    zerocopy.unpublish(ref)


def test_an_array_over_a_tensor_stays_one(publish: Publish) -> None:
    """Memory that a tensor and an array share is stored once and is one memory afterwards."""
    tensor = torch.arange(4096.0)
    ref = publish({"tensor": tensor, "array": tensor.numpy(), "half": tensor.numpy()[2048:]})
    assert ref.nbytes == tensor.nbytes
    loaded = ref.load(cached=False)
    loaded["tensor"][2048] = -1
    assert loaded["array"][2048] == loaded["half"][0] == -1


def test_strict_mode_freezes_arrays(publish: Publish) -> None:
    """Inside the block a write to an array of the model is refused by name; afterwards it is possible again."""
    loaded = publish({"table": np.zeros(1000)}).load(cached=False)
    with pytest.raises(WriteRefusedError, match="table"), zerocopy.strict(loaded):
        loaded["table"][0] = 1
    assert zerocopy.written(loaded) == ()
    loaded["table"][0] = 1
    assert [(entry.name, entry.nbytes) for entry in zerocopy.written(loaded)] == [("table", 2)]


def test_scikit_learn(publish: Publish, fresh_python: Any, tmp_path: Path) -> None:
    """A fitted estimator predicts the same in another process, from arrays that it maps."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    data = np.random.default_rng(0).standard_normal((20_000, 16))
    model = neighbors.KNeighborsClassifier(algorithm="brute").fit(data, data[:, 0] > 0)
    ref = publish(model, name="neighbours", directory=tmp_path)
    code = """
import sys, numpy as np, zerocopy
model = zerocopy.current("neighbours", directory=sys.argv[1]).load()
print(model.predict(np.random.default_rng(0).standard_normal((5, 16))).tolist())
print(any(".zc" in line for line in open("/proc/self/maps")), model._fit_X.base is not None)
"""
    predicted, mapped = fresh_python(code, str(tmp_path)).stdout.splitlines()
    assert predicted == str(model.predict(data[:5]).tolist())
    assert mapped == "True True"
    assert os.path.getsize(ref.path) < 1.2 * data.nbytes
