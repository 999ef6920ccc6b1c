"""A write in one process reaches no other, is reported by name, and in strict mode does not happen."""

from __future__ import annotations

import collections
import functools
import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy.errors import WriteRefusedError

Publish = Callable[..., ModelRef]
# Python 3.12 and later warn of forking beside threads; torch and pytest-timeout have some that a child does not need.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
FIRST = "0.weight"


def write_fill(model: Any) -> None:
    """An in-place operator under no_grad."""
    with torch.no_grad():
        model[0].weight.fill_(7)


def write_data(model: Any) -> None:
    """The back door that autograd does not see."""
    model[0].weight.data.add_(1)


def write_numpy(model: Any) -> None:
    """A write that torch does not see."""
    model[0].weight.detach().numpy()[0, 0] = 99


def write_asarray(model: Any) -> None:
    """The same through the array protocol."""
    np.asarray(model[0].weight.detach())[0, 0] = 99


def with_gradients(model: Any) -> None:
    """Give every parameter a gradient by hand: autograd fails in a fork whose parent ever had threads for it."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def write_optimizer(model: Any) -> None:
    """One step of a foreach optimizer."""
    with_gradients(model)
    torch.optim.SGD(model.parameters(), lr=0.1, foreach=True).step()


def write_fused(model: Any) -> None:
    """One step of a fused optimizer."""
    with_gradients(model)
    torch.optim.Adam(model.parameters(), lr=0.1, fused=True).step()


def write_batchnorm(model: Any) -> None:
    """A forward pass in train mode, which updates running statistics."""
    model.train()(torch.randn(4, 8))
    model.eval()


def write_functional_batchnorm(model: Any) -> None:
    """The functional form, whose schema does not declare what it writes."""
    norm = model[2]
    nn.functional.batch_norm(torch.randn(4, 16), norm.running_mean, norm.running_var, training=True)


def write_out(model: Any) -> None:
    """An out= argument."""
    with torch.no_grad():
        torch.add(model[0].weight, 1, out=model[0].weight)


def write_foreach(model: Any) -> None:
    """A foreach operator called by hand."""
    with torch.no_grad():
        torch._foreach_mul_([model[0].weight, model[3].weight], 2.0)


def write_view(model: Any) -> None:
    """A write through a view of a weight."""
    model[0].weight.detach().t()[0].zero_()


WRITES = {
    write_fill: FIRST, write_data: FIRST, write_numpy: FIRST, write_asarray: FIRST, write_optimizer: FIRST,
    write_fused: FIRST,
    write_batchnorm: "2.running_mean", write_functional_batchnorm: "2.running_mean", write_out: FIRST, write_foreach:
    FIRST,
    write_view: FIRST,
}  # fmt: skip
CASES = pytest.mark.parametrize(("write", "name"), WRITES.items(), ids=[w.__name__ for w in WRITES])


def _worker(ref: ModelRef, write: Any, pipe: Any) -> None:
    model = ref.load()
    pipe.send("ready")
    if pipe.recv() == "write":
        write(model)
    names = [entry.name for entry in zerocopy.written(model)]
    pipe.send((names, {key: value.numpy().copy() for key, value in model.state_dict().items()}))
    pipe.recv()


def answer(pipe: Any) -> Any:
    """Return what a worker sends; a dead one is noticed, though other workers have its end of the pipe too."""
    assert pipe.poll(200), "the worker does not answer"
    return pipe.recv()


@CASES
def test_a_write_reaches_no_other_process(write: Any, name: str, simple_model: nn.Module, publish: Publish) -> None:
    """Publisher, a worker that runs, and a worker that starts later all see the published bytes."""
    ref = publish(simple_model)
    expected = {key: value.numpy().copy() for key, value in simple_model.state_dict().items()}
    context = multiprocessing.get_context("fork")
    workers: list[Any] = []

    def start() -> Any:
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(ref, write, theirs), daemon=True)
        process.start()
        workers.append((process, ours, theirs))
        assert answer(ours) == "ready"
        return ours

    writer, reader = start(), start()
    writer.send("write")
    names, state = answer(writer)
    assert name in names
    assert any(not np.array_equal(state[key], expected[key]) for key in expected)
    late = start()
    for pipe in (reader, late):
        pipe.send("read")
        names, state = answer(pipe)
        assert names == []
        assert all(np.array_equal(state[key], expected[key]) for key in expected)
    assert all(np.array_equal(value.numpy(), expected[key]) for key, value in simple_model.state_dict().items())
    fresh = ref.load(cached=False)
    assert all(np.array_equal(value.numpy(), expected[key]) for key, value in fresh.state_dict().items())
    for process, ours, theirs in workers:
        ours.send("end")
        process.join()
        ours.close()
        theirs.close()


@CASES
def test_strict_mode_refuses_before_the_write(write: Any, name: str, simple_model: nn.Module, publish: Publish) -> None:
    """Every write raises, and no byte of the model has changed."""
    model = publish(simple_model).load(cached=False)
    before = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    with pytest.raises(WriteRefusedError) as caught, zerocopy.strict(model):
        write(model)
    assert any(part in str(caught.value) for part in (name, "2.num_batches_tracked"))
    assert {key: value.numpy().tobytes() for key, value in model.state_dict().items()} == before
    assert zerocopy.written(model) == ()


def test_strict_mode_lets_work_through(simple_model: nn.Module, publish: Publish) -> None:
    """Inference, reading as numpy, gradients and writes to anything else are unhindered."""
    model = publish(simple_model).load(cached=False)
    inputs = torch.randn(4, 8)
    with zerocopy.strict(model):
        output = model(inputs)
        output.sum().backward()
        scratch = torch.zeros(3)
        scratch.add_(1)
        clone = model[0].weight.detach().clone()
        clone.zero_()
        assert model[0].weight.detach().numpy().sum() == simple_model[0].weight.detach().numpy().sum()
    assert torch.equal(output, simple_model(inputs))
    with pytest.raises(WriteRefusedError, match="DLPack"), zerocopy.strict(model):
        np.from_dlpack(model[0].weight.detach())


def test_written_counts_bytes_and_forgives_equal_writes(simple_model: nn.Module, publish: Publish) -> None:
    """Only bytes that differ count; a write of the same value is none; a replaced tensor is called that."""
    model = publish(simple_model).load(cached=False)
    with torch.no_grad():
        model[0].weight.mul_(1)
    assert zerocopy.written(model) == ()
    model[0].bias.data.view(torch.uint8)[:3] ^= 255
    assert zerocopy.written(model) == (zerocopy.Written("0.bias", 3),)
    model[3].bias = nn.Parameter(torch.zeros(4))
    assert zerocopy.Written("3.bias", 16, replaced=True) in zerocopy.written(model)


def test_without_pagemap_every_byte_is_compared(
    simple_model: nn.Module, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system does not tell which pages were written, the answer is the same."""
    monkeypatch.setattr("zerocopy._writes.private_pages", lambda *_: None)
    model = publish(simple_model).load(cached=False)
    assert zerocopy.written(model) == ()
    write_data(model)
    assert [entry.name for entry in zerocopy.written(model)] == [FIRST]


def test_two_models_in_one_process_are_isolated(simple_model: nn.Module, publish: Publish) -> None:
    """Uncached loads have mappings of their own: a write to one does not show in the other."""
    ref = publish(simple_model)
    one, two = ref.load(cached=False), ref.load(cached=False)
    write_fill(one)
    assert torch.equal(two[0].weight, simple_model[0].weight)
    assert zerocopy.written(two) == ()


@pytest.mark.parametrize(
    "convert", [lambda model: model.half(), lambda model: model.to(torch.bfloat16)], ids=["half", "to"]
)
def test_a_converted_model_is_said_to_share_nothing(convert: Any, large_model: nn.Module, publish: Publish) -> None:
    """After .half() every weight is listed as replaced, here and in the report of this process from outside."""
    ref = publish(large_model, name="converted")
    model = convert(ref.load(cached=False))
    entries = zerocopy.written(model)
    assert [entry.name for entry in entries] == [name for name, _ in large_model.named_parameters()]
    assert all(entry.replaced for entry in entries)
    assert sum(entry.nbytes for entry in entries) == ref.nbytes // 2
    (view,) = zerocopy.report(pids=[os.getpid()]).views
    assert {tensor.name for tensor in view.released} == {name for name, _ in large_model.named_parameters()}
    assert sum(tensor.private_bytes for tensor in view.released) == ref.nbytes
    assert view.private_elsewhere >= ref.nbytes // 2
    assert "shares no more 0.weight (16.0 MiB)" in str(zerocopy.report())
    assert [info.readers for info in zerocopy.report().segments if info.name == "converted"] == [0]
    code = "import sys, zerocopy; print(*zerocopy.report(pids=[int(sys.argv[1])]).views[0].released, sep='\\n')"
    printed = subprocess.run([sys.executable, "-c", code, str(os.getpid())], capture_output=True, text=True, check=True)
    assert len(printed.stdout.splitlines()) == 8
    del model
    gc.collect()
    assert zerocopy.report(pids=[os.getpid()]).views == ()


def test_one_replaced_layer_among_shared_ones(simple_model: nn.Module, publish: Publish) -> None:
    """A layer that was replaced, inside a wrapper that was never published, is named with its path there."""
    ref = publish(nn.Sequential(*simple_model, nn.Linear(600, 600)), name="partly")
    model = ref.load(cached=False)
    outer = nn.ModuleDict({"net": model})
    model[4].weight = nn.Parameter(torch.zeros(600, 600))
    assert zerocopy.Written("net.4.weight", 1440000, replaced=True) in zerocopy.written(outer)
    (view,) = zerocopy.report(pids=[os.getpid()]).views
    assert [tensor.name for tensor in view.released] == ["4.weight"]
    assert view.mapped > 0


def test_a_forked_child_notes_for_itself(simple_model: nn.Module, publish: Publish) -> None:
    """What a child replaces is the child's: the parent's report stays clean."""
    model = publish(simple_model).load(cached=False)
    model[0].bias = nn.Parameter(torch.zeros(16))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        model[3].bias = nn.Parameter(torch.zeros(4))
        theirs.send("ready")
        theirs.recv()

    worker = context.Process(target=child, daemon=True)
    worker.start()
    theirs.close()  # the child's end: without the child it says so
    ours.recv()
    pids = (os.getpid(), worker.pid)  # other programs of this user may share models too
    views = {v.pid: [tensor.name for tensor in v.released] for v in zerocopy.report().views if v.pid in pids}
    ours.send("end")
    worker.join()
    assert views == {os.getpid(): ["0.bias"], worker.pid: ["0.bias", "3.bias"]}
    worker.close()
    ours.close()


class TwoParts(torch.Tensor):
    """A subclass over two tensors, as quantized weights are."""

    @staticmethod
    def __new__(cls, high: torch.Tensor, low: torch.Tensor) -> TwoParts:
        """Make the wrapper."""
        return torch.Tensor._make_wrapper_subclass(cls, high.shape, dtype=high.dtype)

    def __init__(self, high: torch.Tensor, low: torch.Tensor) -> None:
        self.high, self.low = high, low

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Name the inner tensors."""
        return ["high", "low"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], context: None, size: Any, stride: Any) -> TwoParts:
        """Make the wrapper from inner tensors."""
        return cls(inner["high"], inner["low"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write to the parts, and compute on the sum."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0].high, args[0].low)
        if func is torch.ops.aten.zero_.default:
            args[0].high.zero_()
            args[0].low.zero_()
            return args[0]
        plain = torch.utils._pytree.tree_map(
            lambda x: x.high + x.low if isinstance(x, cls) else x, (args, kwargs or {})
        )
        return func(*plain[0], **plain[1])


def test_the_parts_of_a_subclass_are_guarded(publish: Publish) -> None:
    """A write to the inner data of a wrapper, direct or through it, is refused, and reported by the part's name."""
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(TwoParts(torch.randn(4, 4), torch.randn(4, 4)), requires_grad=False)
    loaded = publish(model).load(cached=False)
    assert zerocopy.written(loaded) == ()
    with pytest.raises(WriteRefusedError, match=r"weight\.high"), zerocopy.strict(loaded):
        loaded.weight.high.add_(1)
    with pytest.raises(WriteRefusedError, match=r"weight\.high"), zerocopy.strict(loaded):
        loaded.weight.zero_()
    with zerocopy.strict(loaded):
        loaded(torch.ones(1, 4))
    assert zerocopy.written(loaded) == ()
    loaded.weight.low.add_(1)
    assert [entry.name for entry in zerocopy.written(loaded)] == ["weight.low"]


class Names(list):  # type: ignore[type-arg]  # of anything
    """A list with attributes."""


class Options(collections.OrderedDict):  # type: ignore[type-arg]  # of anything
    """A dict with attributes."""


class Slotted(tuple):
    """A tuple with attributes."""


class Bound(nn.Module):
    """A model whose method is taken."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def times(self) -> torch.Tensor:
        """Use the weight."""
        return self.weight * 2


def with_attribute(container: Any, weight: torch.Tensor) -> Any:
    """Return a container with the weight as an attribute."""
    container.weight = weight
    return container


# By where a weight is kept: how it is put there, how it is found again, and its name.
HIDDEN: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor], str]] = {
    "list's attribute": (lambda w: with_attribute(Names("ab"), w), lambda part: part.weight, "part.weight"),
    "dict's attribute": (lambda w: with_attribute(Options(a=1), w), lambda part: part.weight, "part.weight"),
    "tuple's attribute": (lambda w: with_attribute(Slotted("ab"), w), lambda part: part.weight, "part.weight"),
    "plain OrderedDict's attribute": (
        lambda w: with_attribute(collections.OrderedDict(), w), lambda part: part.weight, "part.weight",
    ),
    "deque": (lambda w: collections.deque([1, w]), lambda part: part[1], "part.1"),
    "partial": (lambda w: functools.partial(torch.add, w), lambda part: part.args[0], "part.args.0"),
    "defaultdict": (
        lambda w: collections.defaultdict(functools.partial(torch.clone, w)), lambda part: part.default_factory.args[0],
        "part.default_factory.args.0",
    ),
    "method": (lambda w: Bound(w).times, lambda part: part.__self__.weight, "part.__self__.weight"),
    "closure": (lambda w: lambda: w, lambda part: part(), "part.w"),
    "iterator": (lambda w: iter([w]), lambda part: part.__reduce__()[1][0][0], ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_weight_is_found_wherever_pickle_takes_it_along(kind: str, publish: Publish) -> None:
    """It is shared, `strict` refuses a write to it, and `written` and `report` name it, or its place in the file."""
    put, found, name = HIDDEN[kind]
    model = nn.Module()
    model.part = put(torch.ones(3000))
    ref = publish(model)
    loaded = ref.load(cached=False)
    weight = found(loaded.part)
    with pytest.raises(WriteRefusedError, match=name or r"published weight at byte \d+ of"), zerocopy.strict(loaded):
        weight.add_(1)
    assert bool((weight == 1).all())
    assert zerocopy.written(loaded) == ()
    weight.data[:2] = 7
    (change,) = zerocopy.written(loaded)
    assert change.name == name if name else change.name.startswith("bytes at ")
    assert 2 <= change.nbytes <= 8
    views = zerocopy.report(pids=[os.getpid()]).views
    (wrote,) = [view.written for view in views if view.segment == os.path.basename(ref.path) and view.written]
    assert [tensor.name for tensor in wrote] == [change.name]


def test_what_a_callable_holds_is_named_by_its_other_place(publish: Publish) -> None:
    """A module whose method is kept by one before it has the names that its place in the model gives it."""
    model = nn.Module()
    model.first = nn.Module()
    model.second = Bound(torch.ones(3000))
    model.first.callback = model.second.times
    loaded = publish(model).load(cached=False)
    loaded.second.weight.data[0] = 2
    assert [entry.name for entry in zerocopy.written(loaded)] == ["second.weight"]
