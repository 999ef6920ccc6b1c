"""Versions switch in one step, fine-tunes share what did not change, and old bytes go with their last reader."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy.errors import UnknownNameError

Publish = Callable[..., ModelRef]


class Constant(nn.Module):
    """Two weights with the version in them, so that a mixture of versions shows."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((1000,), float(value)))
        self.second = nn.Parameter(torch.full((1000,), float(value)))

    def forward(self) -> tuple[float, float, float, float]:
        """Return the extremes of both weights."""
        first, second = self.first.detach(), self.second.detach()
        return float(first.min()), float(first.max()), float(second.min()), float(second.max())


def test_follow_switches_between_calls(publish: Publish, tmp_path: Path) -> None:
    """The next call after a publish is of the new version; versions count up by themselves."""
    one = publish(Constant(1), name="model", directory=tmp_path)
    live = zerocopy.follow("model", directory=tmp_path)
    assert live() == (1, 1, 1, 1)
    two = publish(Constant(2), name="model", directory=tmp_path)
    assert live() == (2, 2, 2, 2)
    assert (one.version, two.version, live.ref.version) == (1, 2, 2)
    assert zerocopy.current("model", directory=tmp_path) == two
    assert live.model is two.load()


def test_old_bytes_go_with_the_last_reader(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """A superseded version stays while a process holds its model, and is removed then."""
    one = publish(Constant(1), name="model", directory=tmp_path)
    held = one.load()
    publish(Constant(2), name="model", directory=tmp_path)
    assert Path(one.path).exists()
    assert held()[0] == 1
    del held
    gc.collect()
    assert eventually(lambda: not Path(one.path).exists())


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("by_value")
def test_reload_under_load(publish: Publish, tmp_path: Path, fresh_python: Any, eventually: Any) -> None:
    """While versions change, every answer in another process is wholly of one version, and versions never go back."""
    code = """
import pathlib, sys, zerocopy, time
live = zerocopy.follow("model", directory=sys.argv[1])
pathlib.Path(sys.argv[2]).touch()
seen, end = [], time.monotonic() + 200
while time.monotonic() < end and (not seen or seen[-1] < 30):
    answer = live()
    assert len(set(answer)) == 1, answer
    if not seen or seen[-1] != answer[0]:
        seen.append(answer[0])
assert seen == sorted(seen), seen
print("last", seen[-1])
"""
    printed: list[str] = []
    segments, following = tmp_path / "segments", tmp_path / "following"
    publish(Constant(1), name="model", directory=segments)
    runner = threading.Thread(target=lambda: printed.append(fresh_python(code, str(segments), str(following)).stdout))
    runner.start()
    assert eventually(following.exists)
    for value in range(2, 31):
        publish(Constant(value), name="model", directory=segments)
        threading.Event().wait(0.02)
    runner.join()
    assert printed == ["last 30.0\n"]
    assert eventually(lambda: len(list(segments.glob("*.zc"))) == 1)


def test_threads_see_whole_versions(publish: Publish, tmp_path: Path) -> None:
    """Threads that share one follower get whole answers too."""
    publish(Constant(1), name="model", directory=tmp_path)
    live = zerocopy.follow("model", directory=tmp_path)
    wrong: list[Any] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            answer = live()
            if len(set(answer)) != 1:
                wrong.append(answer)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for value in range(2, 12):
        publish(Constant(value), name="model", directory=tmp_path)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_follower_travels_by_name(publish: Publish, tmp_path: Path) -> None:
    """A pickled follower looks the name up where it arrives."""
    import pickle

    publish(Constant(1), name="model", directory=tmp_path)
    data = pickle.dumps(zerocopy.follow("model", directory=tmp_path))
    publish(Constant(2), name="model", directory=tmp_path)
    assert pickle.loads(data)() == (2, 2, 2, 2)


def test_unknown_name(tmp_path: Path, publish: Publish) -> None:
    """The error tells what names there are."""
    publish(Constant(1), name="there", directory=tmp_path)
    with pytest.raises(UnknownNameError, match=r"not-there.*there is \['there'\]"):
        zerocopy.follow("not-there", directory=tmp_path)


def test_fine_tunes_share_the_base(large_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """Ten fine-tunes that differ in one tensor take the base, ten tensors and at most 5 %."""
    base = publish(large_model, directory=tmp_path)
    tensor = large_model[3].bias
    tuned = []
    for index in range(10):
        with torch.no_grad():
            tensor.fill_(index)
        tuned.append(publish(large_model, base=base, directory=tmp_path))
    total = sum(os.stat(path).st_blocks * 512 for path in tmp_path.glob("*.zc"))
    assert total <= (base.nbytes + 10 * tensor.nbytes) * 1.05
    models = [ref.load(cached=False) for ref in tuned]
    assert [float(model[3].bias[0].detach()) for model in models] == list(range(10))
    assert all(torch.equal(model[0].weight, large_model[0].weight) for model in models)


def test_a_delta_of_a_delta(simple_model: nn.Module, publish: Publish) -> None:
    """A base that has a base itself works, and each segment that is used stays as long as the delta."""
    base = publish(simple_model)
    with torch.no_grad():
        simple_model[0].bias.fill_(1)
    middle = publish(simple_model, base=base)
    with torch.no_grad():
        simple_model[3].bias.fill_(2)
    top = publish(simple_model, base=middle)
    zerocopy.unpublish(base)
    zerocopy.unpublish(middle)
    loaded = top.load(cached=False)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), simple_model.parameters(), strict=True))


def test_an_equal_model_stores_nothing(large_model: nn.Module, publish: Publish) -> None:
    """Publishing the same model over itself takes the header alone."""
    base = publish(large_model)
    again = publish(copy.deepcopy(large_model), base=base)
    assert os.path.getsize(again.path) < 20_000
    assert again.digest == base.digest
    loaded = again.load(cached=False)
    assert torch.equal(loaded[0].weight, large_model[0].weight)


def test_a_base_of_which_nothing_is_used_may_go(simple_model: nn.Module, publish: Publish) -> None:
    """A model that shares no tensor with its base does not keep it."""
    base = publish(simple_model, name="base")
    other = copy.deepcopy(simple_model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.add_(3)
    ref = publish(other, name="other", base=base)
    zerocopy.unpublish(base)
    assert not os.path.exists(base.path)
    loaded = ref.load(cached=False)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), other.parameters(), strict=True))


class LoRA(nn.Module):
    """A frozen layer and a low-rank update."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.01)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output plus the update."""
        return self.base(x) + x @ self.down.t() @ self.up.t()


def test_lora_hot_swap_over_a_shared_base(large_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """Adapters train over mapped weights, are published as kilobytes, and swap between calls."""
    base = publish(large_model, directory=tmp_path)
    adapted = base.load(cached=False)
    adapted[3] = LoRA(adapted[3])
    inputs = torch.randn(2, 2048)
    publish(adapted, name="adapted", base=base, directory=tmp_path)
    live = zerocopy.follow("adapted", directory=tmp_path)
    assert torch.equal(live(inputs), large_model(inputs))

    optimizer = torch.optim.SGD([adapted[3].up, adapted[3].down], lr=0.1)
    adapted(inputs).square().mean().backward()
    assert adapted[3].base.weight.grad is None
    optimizer.step()
    assert zerocopy.written(adapted[0]) == ()
    second = publish(adapted, name="adapted", base=base, directory=tmp_path)
    assert os.path.getsize(second.path) < 200_000
    assert torch.equal(live(inputs), adapted(inputs))
    assert not torch.equal(live(inputs), large_model(inputs))


@pytest.mark.parametrize(
    "options", [{"name": 5}, {"base": "m"}, *({"name": "m", "version": odd} for odd in (1.5, True, "2"))]
)
def test_arguments_of_other_types(options: dict[str, Any], tmp_path: Path) -> None:
    """They are refused before anything is written."""
    with pytest.raises(ValueError, match=r"is not a model name|is no integer|is no ModelRef"):
        zerocopy.publish(nn.Linear(2, 2), directory=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of descriptors")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <generator object:pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_every_call_of_a_follower(publish: Publish, tmp_path: Path) -> None:
    """Wherever it ends a look at a newer version, the next look has that one, and no older lease stays."""
    package, inside, at = str(Path(zerocopy.__file__).parent), 0, -1

    def interrupt(frame: Any, event: str, _argument: object) -> None:
        nonlocal inside
        # Python ignores an error at the entry of a finalizer, so that none can be mended there.
        if event == "call" and frame.f_code.co_filename.startswith(package) and frame.f_code.co_name != "__del__":
            inside += 1
            if inside == at + 1:
                raise KeyboardInterrupt

    def leases() -> list[str]:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        found = [os.readlink(link) for link in links if os.path.islink(link)]
        return [path for path in found if str(tmp_path) in path and path.removesuffix(" (deleted)").endswith(".zc")]

    publish({"w": torch.zeros(10)}, name="model", directory=tmp_path)
    live = zerocopy.follow("model", directory=tmp_path)
    interrupted = True
    while interrupted:
        at, inside = at + 1, 0
        ref = publish({"w": torch.full((10,), at + 1.0)}, name="model", directory=tmp_path)
        sys.setprofile(interrupt)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                live.get()
        finally:
            sys.setprofile(None)
        interrupted = inside > at
        assert live.get()[0] == ref
        assert live.get()[1]["w"].tolist() == [at + 1.0] * 10
        if set(leases()) != {ref.path}:
            gc.collect()  # of what lies in a cycle with the error's traceback
        assert set(leases()) == {ref.path}, f"after an interrupt at call {at}"
    assert at > 30
