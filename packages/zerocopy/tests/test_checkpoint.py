"""publish_file: from safetensors and torch files to a segment, without a heap copy, and with every misfit listed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy._publish import digest
from zerocopy.errors import CheckpointMismatchError, CorruptSegmentError, SegmentGoneError


@pytest.fixture
def publish_file() -> Iterator[Callable[..., ModelRef]]:
    """zerocopy.publish_file, undone at the end of the test."""
    refs: list[ModelRef] = []

    def _publish(*args: Any, **options: Any) -> ModelRef:
        refs.append(zerocopy.publish_file(*args, **options))
        return refs[-1]

    yield _publish
    for ref in refs:
        zerocopy.unpublish(ref)


def build() -> nn.Module:
    """Return a model with other weights than any saved one."""
    return nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Linear(300, 7)).eval()


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_becomes_the_model(kind: str, tmp_path: Path, publish_file: Any) -> None:
    """Outputs equal those of the model that was saved, bit for bit, and weights are aligned again."""
    torch.manual_seed(0)
    saved = build()
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file(saved.state_dict(), path, metadata={"shift": "x" * 3})
    else:
        torch.save(saved.state_dict(), path)
    loaded = publish_file(path, build).load(cached=False)
    inputs = torch.randn(4, 300)
    assert torch.equal(loaded(inputs), saved(inputs))
    assert all(p.data_ptr() % 64 == 0 for p in loaded.parameters())


def test_shards_and_dtype(tmp_path: Path, publish_file: Any) -> None:
    """Several files make one model; a file of another dtype is converted to the model's."""
    saved = build().half()
    state = saved.state_dict()
    parts = [dict(list(state.items())[:3]), dict(list(state.items())[3:])]
    for index, part in enumerate(parts):
        save_file(part, tmp_path / f"{index}.safetensors")
    loaded = publish_file([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], build).load(cached=False)
    assert loaded[0].weight.dtype == torch.float32
    assert torch.equal(loaded[0].weight, saved[0].weight.float())


def test_tied_weights_need_one_name(tmp_path: Path, publish_file: Any, transformer_model: nn.Module) -> None:
    """A file that holds a tied weight once fills both names, and they stay tied."""
    state = {name: t for name, t in transformer_model.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "m.safetensors")
    loaded = publish_file(tmp_path / "m.safetensors", lambda: type(transformer_model)().eval()).load(cached=False)
    assert loaded.head.weight is loaded.embed.weight
    tokens = torch.randint(0, 100, (1, 4))
    assert torch.equal(loaded(tokens), transformer_model(tokens))


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    """Missing, superfluous and misshapen tensors are named together, and nothing is published."""
    state = build().state_dict()
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    state["2.weight"] = torch.zeros(5, 5)
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        zerocopy.publish_file(tmp_path / "m.safetensors", build, name="misfit")
    for part in ("0.bias is missing", "extra is in the file only", "2.weight has shape (5, 5)"):
        assert part in str(caught.value)
    with pytest.raises(zerocopy.errors.UnknownNameError):
        zerocopy.current("misfit")


class RandomBuffer(nn.Linear):
    """A layer whose large non-persistent buffer is random, so that no file can have it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("noise", torch.empty(1 << 16).normal_(), persistent=False)


def test_a_random_buffer_is_not_left_unfilled(tmp_path: Path) -> None:
    """A large random tensor that the file does not have is an error, not uninitialised memory."""
    save_file(RandomBuffer().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointMismatchError, match="noise is filled at random"):
        zerocopy.publish_file(tmp_path / "m.safetensors", RandomBuffer)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_no_heap_copy(kind: str, tmp_path: Path, large_model: nn.Module, fresh_python: Any) -> None:
    """Publishing 64 MiB from a file raises the process's own memory by less than a quarter of that."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's RssAnon")
    path = tmp_path / f"m.{kind}"
    if kind == "safetensors":
        save_file(large_model.state_dict(), path)
    else:
        torch.save(large_model.state_dict(), path)
    code = """
import sys, threading, torch, zerocopy
if sys.argv[1].endswith("safetensors"):
    import safetensors.torch
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) // 1024
def build():
    return torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(4)])
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
zerocopy.publish_file(sys.argv[1], build)
done.set()
thread.join()
print(max(peak, anonymous()) - before)
"""
    assert int(fresh_python(code, str(path)).stdout) < 16


def test_in_place(tmp_path: Path, publish_file: Any, large_model: nn.Module) -> None:
    """Aligned tensors are mapped from the file and not stored again; answers are the same bits; writes stay private."""
    model = nn.Sequential(*large_model, nn.Linear(2048, 7), nn.Linear(7, 3)).eval()
    path = tmp_path / "m.safetensors"
    zerocopy.save_aligned(model.state_dict(), path)
    saved = path.read_bytes()

    def build() -> nn.Module:
        return nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(4)], nn.Linear(2048, 7), nn.Linear(7, 3)).eval()

    ref = publish_file(path, build, in_place=True)
    assert os.path.getsize(ref.path) < 50_000
    assert ref.digest == digest(model)
    loaded = ref.load(cached=False)
    inputs = torch.randn(2, 2048)
    assert torch.equal(loaded(inputs), model(inputs))
    assert str(path) in Path("/proc/self/maps").read_text() or sys.platform != "linux"
    with torch.no_grad():
        loaded[1].weight.mul_(2)
    assert [entry.name for entry in zerocopy.written(loaded)] == ["1.weight"]
    assert path.read_bytes() == saved
    assert torch.equal(ref.load(cached=False)(inputs), model(inputs))
    tuned = zerocopy.publish(loaded, base=ref)
    assert os.path.getsize(tuned.path) < 2048 * 2048 * 4 + 50_000
    assert torch.equal(tuned.load(cached=False)(inputs), loaded(inputs))
    zerocopy.unpublish(tuned)


def test_in_place_file_that_changed(tmp_path: Path, publish_file: Any) -> None:
    """A touched file is hashed again and serves; an altered, truncated or removed one is a typed error."""
    model = build()
    path = tmp_path / "m.safetensors"
    zerocopy.save_aligned(model.state_dict(), path)
    ref = publish_file(path, build, in_place=True)
    os.utime(path)
    assert torch.equal(ref.load(cached=False)[0].weight, model[0].weight)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(b"\x01\x02\x03")
    with pytest.raises(CorruptSegmentError, match=r"0\.weight"):
        ref.load(cached=False)
    os.truncate(path, 1000)
    with pytest.raises(CorruptSegmentError, match="1000 bytes instead of"):
        ref.load(cached=False)
    path.unlink()
    with pytest.raises(SegmentGoneError, match="put it back"):
        ref.load(cached=False)


def test_in_place_copies_what_it_cannot_map(tmp_path: Path, publish_file: Any) -> None:
    """Tensors that lie askew, or are of another dtype than the model's, are copied, and the model is right."""
    model = build().half()
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata={"shift": "x" * 3})
    loaded = publish_file(tmp_path / "m.safetensors", build, in_place=True).load(cached=False)
    assert torch.equal(loaded[0].weight, model[0].weight.float())
    assert all(p.data_ptr() % 64 == 0 for p in loaded.parameters())
    with pytest.raises(ValueError, match="safetensors files"):
        zerocopy.publish_file(tmp_path / "m.pt", build, in_place=True)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64], ids=str
)
def test_save_aligned_is_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    """The library itself reads back every tensor, bit for bit, odd sizes and empty ones among them."""
    state = {
        "odd": torch.ones(7).to(dtype),
        "empty": torch.empty(0, 3).to(dtype),
        "even": torch.randn(64, 3).to(dtype),
        "scalar": torch.tensor(1.0).to(dtype),
        "transposed": torch.randn(64, 3).to(dtype).t(),
    }
    zerocopy.save_aligned(state, tmp_path / "m.safetensors")
    read = load_file(tmp_path / "m.safetensors")
    assert set(read) == set(state)
    for name, tensor in state.items():
        assert read[name].dtype is dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))


def test_save_aligned_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """A tensor that cannot be written leaves the old file as it was, and no part of a new one."""
    path = tmp_path / "m.safetensors"
    zerocopy.save_aligned({"a": torch.ones(3)}, path)
    with pytest.raises(NotImplementedError):
        zerocopy.save_aligned({"a": torch.zeros(3), "b": torch.ones(3, device="meta")}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load_file(path)["a"], torch.ones(3))


def test_progress_bar(simple_model: nn.Module, capsys: Any) -> None:
    """A bar is shown on standard error on request, and the model is published all the same."""
    pytest.importorskip("rich")
    ref = zerocopy.publish(simple_model, progress=True)
    assert capsys.readouterr().out == ""
    assert torch.equal(ref.load(cached=False)[0].weight, simple_model[0].weight)
    zerocopy.unpublish(ref)
