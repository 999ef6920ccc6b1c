"""rewrite_pipeline and call_model: pipelines of every shape, in tasks, actors and the calling process."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelProxy, ModelRef
from zerocopy.errors import MethodNotAllowedError, WriteRefusedError

Publish = Callable[..., ModelRef]
Pair = namedtuple("Pair", "left right")
MODES = ["local", "task", "actor"]


class Net(nn.Linear):
    """A layer with several methods, so that each can be told from the others."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return something else than forward."""
        return self(x) + 100

    def score(self, x: torch.Tensor, scale: float = 1.0) -> float:
        """Return a number."""
        return float(self(x).detach().sum()) * scale

    def whoami(self) -> tuple[int, int]:
        """Return the process and the identity of this object in it."""
        return os.getpid(), id(self)

    def fail(self) -> None:
        """Raise."""
        raise ZeroDivisionError("from inside the model")

    def spoil(self) -> None:
        """Write to a weight."""
        self.weight.fill_(0)


@dataclass(frozen=True)
class Frozen:
    """A frozen holder."""

    model: Any


class Slotted:
    """A holder with slots."""

    __slots__ = ("model",)


@dataclass
class Pipeline:
    """Models in every place that a pipeline keeps them."""

    plain: Any
    stages: list[Any]
    table: dict[str, Any]
    pair: Any
    frozen: Any
    slotted: Any
    words: list[str] = field(default_factory=lambda: ["kept"])
    me: Any = None

    def models(self) -> Iterator[tuple[str, Any]]:
        """Yield each place and what is there."""
        yield from (
            ("plain", self.plain),
            ("list", self.stages[0]),
            ("nested", self.stages[1]["deep"][0]),
            ("dict", self.table["a"]),
            ("tuple", self.pair.right),
            ("frozen", self.frozen.model),
            ("slots", self.slotted.model),
        )


@pytest.fixture(autouse=True)
def unpublished() -> Iterator[None]:
    """What pipelines published in a test goes at its end."""
    from zerocopy._held import _published, release

    before = set(_published)
    yield
    zerocopy.forget()
    for path in set(_published) - before:
        release(path)


@pytest.fixture
def run_in(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Make sure that Ray runs if a mode needs it."""

    def prepare(mode: str) -> str:
        request.getfixturevalue("by_value" if mode == "local" else "ray")
        return mode

    return prepare


def pipeline() -> Pipeline:
    """A pipeline with seven places for six models, and a cycle."""
    nets = [Net(4, 4) for _ in range(6)]
    slotted = Slotted()
    slotted.model = nets[5]
    made = Pipeline(nets[0], [nets[1], {"deep": [nets[2]]}], {"a": nets[3]}, Pair(1, nets[4]), Frozen(nets[0]), slotted)
    made.me = made
    return made


def test_models_in_every_place() -> None:
    """Attributes, lists, dicts, tuples, slots, frozen and nested objects, twice under two names, and a cycle."""
    original = pipeline()
    rewritten = zerocopy.rewrite_pipeline(original, mode="local")
    inputs = torch.randn(2, 4)
    for (place, model), (_, stand_in) in zip(original.models(), rewritten.models(), strict=True):
        assert isinstance(model, Net), place
        assert isinstance(stand_in, ModelProxy), place
        assert torch.equal(stand_in(inputs), model(inputs)), place
    assert rewritten.plain is rewritten.frozen.model
    assert rewritten.me is rewritten
    assert rewritten.words is original.words
    assert rewritten.pair.left == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_place_in_tasks(ray: Any) -> None:
    """The same pipeline answers the same from Ray tasks."""
    original = pipeline()
    rewritten = zerocopy.rewrite_pipeline(original)
    inputs = torch.randn(2, 4)
    for (place, model), (_, stand_in) in zip(original.models(), rewritten.models(), strict=True):
        assert torch.equal(stand_in(inputs), model(inputs)), place


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.timeout(300)
def test_methods(mode: str, run_in: Any) -> None:
    """Each allowed method dispatches to itself; any other raises, and so does what the method raises."""
    prepared = run_in(mode)
    net = Net(4, 4)
    methods = ("__call__", "embed", "score", "fail")
    proxy = zerocopy.rewrite_pipeline(net, mode=prepared, methods=methods)
    inputs = torch.randn(2, 4)
    assert torch.equal(proxy(inputs), net(inputs))
    assert torch.equal(proxy.embed(inputs), net.embed(inputs))
    assert proxy.score(inputs, scale=2) == net.score(inputs, scale=2)
    with pytest.raises(ZeroDivisionError, match="from inside the model"):
        proxy.fail()
    with pytest.raises(MethodNotAllowedError, match=r"'spoil' of Net.*methods="):
        proxy.spoil()
    with pytest.raises(MethodNotAllowedError):
        zerocopy.rewrite_pipeline(net, mode="local", methods=("embed",))(inputs)


def test_task_mode_rebuilds_once_per_process(ray: Any) -> None:
    """Many calls of one worker are answered by one object."""
    proxy = zerocopy.rewrite_pipeline(Net(4, 4), methods=("whoami",))
    seen = [proxy.whoami() for _ in range(8)]
    assert os.getpid() not in {pid for pid, _ in seen}
    assert len(set(seen)) == len({pid for pid, _ in seen})


def test_actor_mode_uses_its_workers(ray: Any) -> None:
    """Calls go to the actors in turn."""
    proxy = zerocopy.rewrite_pipeline(
        Net(4, 4), mode="actor", workers=2, methods=("whoami",), options={"num_cpus": 0.5}
    )
    seen = [proxy.whoami()[0] for _ in range(4)]
    assert seen[:2] == seen[2:]
    assert len(set(seen)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["task", "actor"])
def test_a_pipeline_is_used_by_other_workers(mode: str, ray: Any) -> None:
    """Workers that received a pipeline get its answers, of each of its models, also after workers were killed."""
    options = {"num_cpus": 0.25} | ({"max_restarts": -1, "max_task_retries": -1} if mode == "actor" else {})
    original = [Net(4, 4), {"head": Net(4, 4)}]
    small = zerocopy.rewrite_pipeline(original, mode=mode, methods=("__call__", "whoami"), options=options)
    inputs = torch.randn(2, 4)
    wanted = original[1]["head"](original[0](inputs))

    def use(pipeline: Any) -> tuple[torch.Tensor, int]:
        return pipeline[1]["head"](pipeline[0](inputs)), pipeline[0].whoami()[0]

    asked = ray.remote(use).options(num_cpus=0.25)
    for _ in range(2):
        answers = ray.get([asked.remote(small) for _ in range(2)])
        for answer, process in answers:
            assert torch.equal(answer, wanted)
            assert process != os.getpid()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert torch.equal(small[1]["head"](small[0](inputs)), wanted)
    for part in small[0], small[1]["head"]:
        zerocopy.unpublish(part.ref)


def test_call_model_in_a_task(ray: Any, publish: Publish) -> None:
    """call_model is an ordinary function that Ray can run, with args, kwargs and a method."""
    net = Net(4, 4)
    ref = publish(net)
    inputs = torch.randn(2, 4)
    task = ray.remote(zerocopy.call_model)
    assert torch.equal(ray.get(task.remote(ref, "forward", (inputs,))), net(inputs))
    assert ray.get(task.remote(ref, "score", (inputs,), {"scale": 3})) == net.score(inputs, scale=3)


def test_call_model_here(publish: Publish) -> None:
    """It keeps the model between calls, runs without gradients, and can refuse writes."""
    net = Net(4, 4)
    ref = publish(net)
    assert zerocopy.call_model(ref, "whoami") == zerocopy.call_model(ref, "whoami")
    assert not zerocopy.call_model(ref, args=(torch.randn(1, 4),)).requires_grad
    with pytest.raises(WriteRefusedError, match="weight"):
        zerocopy.call_model(ref, "spoil", refuse_writes=True)
    zerocopy.forget(ref)


def test_only_one_version_is_kept(publish: Publish) -> None:
    """Calling a newer version lets the older one go, and only so many models are kept."""
    from zerocopy._invoke import _KEPT, _recent

    for _ in range(3):
        zerocopy.call_model(publish(Net(4, 4), name="versioned"), "whoami")
    assert [kept[0].version for kept in _recent.values()] == [3]
    for index in range(_KEPT + 2):
        zerocopy.call_model(publish(Net(4, 4), name=f"other-{index}"), "whoami")
    assert len(_recent) == _KEPT


def test_rewritten_pipelines_are_small() -> None:
    """Pickling one takes no weights along, and it works in the process it arrives in."""
    rewritten = zerocopy.rewrite_pipeline([nn.Linear(500, 500)], mode="local")
    data = pickle.dumps(rewritten)
    assert len(data) < 2000
    assert pickle.loads(data)[0](torch.ones(1, 500)).shape == (1, 500)


def test_models_in_a_deque() -> None:
    """They are replaced in a deque of its own, which is as long as it may be at most."""
    net = nn.Linear(4, 2)
    original = {"stages": collections.deque([net, 1], maxlen=2)}
    rewritten = zerocopy.rewrite_pipeline(original, mode="local")
    assert original["stages"][0] is net
    assert isinstance(rewritten["stages"][0], ModelProxy)
    assert (rewritten["stages"][1], rewritten["stages"].maxlen) == (1, 2)
    assert torch.equal(rewritten["stages"][0](torch.ones(1, 4)), net(torch.ones(1, 4)))


def test_a_pipeline_without_models_comes_back() -> None:
    """Nothing to replace, nothing copied."""
    thing = {"a": [1, 2]}
    assert zerocopy.rewrite_pipeline(thing, mode="local") is thing


def test_actor_reloads_and_reports(ray: Any, publish: Publish) -> None:
    """A ModelActor switches to a new version between calls, refuses or reports writes by name."""
    from zerocopy.on_ray import ModelActor

    first, second = Net(4, 4), Net(4, 4)
    actor = ray.remote(ModelActor).options(num_cpus=0.5).remote(publish(first))
    inputs = torch.randn(2, 4)
    assert torch.equal(ray.get(actor.call.remote("forward", (inputs,))), first(inputs))
    assert ray.get(actor.reload.remote(publish(second))) == 1
    assert torch.equal(ray.get(actor.call.remote("forward", (inputs,))), second(inputs))
    ray.get(actor.call.remote("spoil"))
    assert [entry.name for entry in ray.get(actor.written.remote())] == ["weight"]
    careful = ray.remote(ModelActor).options(num_cpus=0.5).remote(publish(first), refuse_writes=True)
    with pytest.raises(WriteRefusedError, match="weight"):
        ray.get(careful.call.remote("spoil"))
    ray.kill(actor)
    ray.kill(careful)


@pytest.mark.parametrize("args", [torch.ones(1, 4), np.ones((1, 4)), "x", {"input": torch.ones(1, 4)}, 3])
def test_arguments_are_a_list(args: Any) -> None:
    """The rows of a batch of one are an input of another shape, which the model answers."""
    ref = zerocopy.publish(nn.Linear(4, 2))
    try:
        with pytest.raises(TypeError, match=r"wanted a list of arguments, such as \(inputs,\)"):
            zerocopy.call_model(ref, "forward", args)
        for fine in ([torch.ones(1, 4)], (torch.ones(1, 4),), iter([torch.ones(1, 4)])):
            assert zerocopy.call_model(ref, "forward", fine).shape == (1, 2)  # type: ignore[arg-type]
    finally:
        zerocopy.forget(ref)
        zerocopy.unpublish(ref)
