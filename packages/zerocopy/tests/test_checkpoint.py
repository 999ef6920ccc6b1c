"""publish_file: from safetensors and torch files to a segment, without a heap copy, and with every misfit listed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy._publish import digest
from zerocopy.errors import CheckpointMismatchError, CorruptSegmentError, NoSpaceError, SegmentGoneError


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
    with pytest.warns(UserWarning, match="converted from"):
        ref = publish_file([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], build)
    loaded = ref.load(cached=False)
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


def test_a_random_buffer_is_what_the_build_makes(tmp_path: Path, publish_file: Any) -> None:
    """A large random tensor that the file does not have is drawn as by a plain build, and no uninitialised memory."""
    save_file(RandomBuffer().state_dict(), tmp_path / "m.safetensors")
    torch.manual_seed(5)
    expected = RandomBuffer().noise
    torch.manual_seed(5)
    assert torch.equal(publish_file(tmp_path / "m.safetensors", RandomBuffer).load(cached=False).noise, expected)


class Derived(nn.Module):
    """Buffers that depend on what was drawn: small and large, from weights, by a seed of its own, as a number."""

    def __init__(self, how: str) -> None:
        super().__init__()
        if how == "seeded":
            torch.manual_seed(3)
        self.net = nn.Linear(300, 300)
        if how == "norm":
            self.register_buffer("derived", self.net.weight.detach().norm(dim=1), persistent=False)
        elif how == "number":
            scale = float(self.net.weight.detach().abs().max())
            self.register_buffer("derived", torch.full((4,), scale), persistent=False)
        elif how == "attribute":
            self.derived = self.net.weight.detach() * 2
        else:
            self.register_buffer("derived", torch.randn(20), persistent=False)


@pytest.mark.parametrize("how", ["seeded", "after", "norm", "number", "attribute"])
def test_what_depends_on_a_skipped_fill_is_right(how: str, tmp_path: Path, publish_file: Any) -> None:
    """Whatever the file does not have is published as a plain build makes it, bit for bit."""
    saved = Derived(how)
    torch.save(saved.state_dict(), tmp_path / "m.pt")
    torch.manual_seed(11)
    expected = Derived(how).derived
    torch.manual_seed(11)
    loaded = publish_file(tmp_path / "m.pt", lambda: Derived(how)).load(cached=False)
    assert torch.equal(loaded.derived, expected)
    assert torch.equal(loaded.net.weight, saved.net.weight)


def test_a_dtype_that_changes_is_said(tmp_path: Path, publish_file: Any) -> None:
    """Converting a checkpoint warns with both dtypes and sizes, and takes no heap to speak of."""
    save_file(build().half().state_dict(), tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match=r"converted from torch.float16 .* to torch.float32 .* bytes instead of"):
        publish_file(tmp_path / "m.safetensors", build)


def nested(state: Any) -> Any:
    """As training loops save."""
    return {"model": state, "epoch": 3}


def prefixed(state: Any) -> Any:
    """As DataParallel saves."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("change", [dict, nested, prefixed, lambda state: nested(prefixed(state))])
@pytest.mark.parametrize("legacy", [False, True])
def test_forms_of_torch_files(change: Any, legacy: bool, tmp_path: Path, publish_file: Any) -> None:
    """Nested dicts, prefixes and the old format without a zip archive."""
    saved = build()
    torch.save(change(saved.state_dict()), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    loaded = publish_file(tmp_path / "m.pt", build).load(cached=False)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), saved.state_dict().values(), strict=True)
    )


def test_meta_builds(tmp_path: Path, publish_file: Any, transformer_model: nn.Module) -> None:
    """A model built on the meta device gets the file's tensors, ties and flags; what the file lacks is named."""
    transformer_model.embed.weight.requires_grad_(False)
    state = {name: t for name, t in transformer_model.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "m.safetensors")

    def on_meta() -> nn.Module:
        with torch.device("meta"):
            made = type(transformer_model)().eval()
        made.scale = torch.tensor(0.5)
        made.embed.weight.requires_grad_(False)
        return made

    loaded = publish_file(tmp_path / "m.safetensors", on_meta).load(cached=False)
    tokens = torch.randint(0, 100, (1, 4))
    assert torch.equal(loaded(tokens), transformer_model(tokens))
    assert loaded.head.weight is loaded.embed.weight
    assert not loaded.head.weight.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: torch.save(build(), path / "m.pt"), "pickled objects"),
        (lambda path: (path / "m.pt").write_bytes(b"\x00garbage" * 99), "not a"),
        (lambda path: torch.save([1, 2], path / "m.pt"), "holds a list and no state_dict"),
        (lambda path: torch.save({"epoch": 1}, path / "m.pt"), "a dict with epoch"),
        (lambda path: (path / "m.safetensors").write_bytes(b"\xff" * 99), "not a readable safetensors file"),
        (lambda path: None, "holds none of model.safetensors"),
        (lambda path: (path / "model.safetensors.index.json").write_text("[]"), "no weight_map"),
        (
            lambda path: (path / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "gone.safetensors"}}'
            ),
            "shards that do not exist",
        ),
    ],
    ids=["pickled", "garbage", "list", "no tensors", "damaged", "empty folder", "no index", "lost shard"],
)
def test_what_is_no_checkpoint_is_said(make: Any, message: str, tmp_path: Path) -> None:
    """Each is a typed error that says what was found and what to do; nothing is published."""
    make(tmp_path)
    path = next((tmp_path / name for name in ("m.pt", "m.safetensors") if (tmp_path / name).exists()), tmp_path)
    with pytest.raises(CheckpointMismatchError, match=message):
        zerocopy.publish_file(path, build, name="never", directory=tmp_path / "out")
    assert list(tmp_path.glob("out/*")) == []


def test_a_retained_model_writes_to_itself_only(tmp_path: Path, publish_file: Any) -> None:
    """A build that keeps its model keeps a private view: writing to it changes no other, and no segment."""
    kept: list[nn.Module] = []

    def keeping() -> nn.Module:
        kept.append(build().double())
        return kept[0]

    saved = build().double()
    torch.save(saved.state_dict(), tmp_path / "m.pt")
    with warnings.catch_warnings():
        ref = publish_file(tmp_path / "m.pt", keeping)
    with torch.no_grad():
        kept[0][0].weight.zero_()
    assert torch.equal(ref.load(cached=False)[0].weight, saved[0].weight)


@pytest.mark.timeout(300)
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
    with pytest.warns(UserWarning, match="converted from"):
        ref = publish_file(tmp_path / "m.safetensors", build, in_place=True)
    loaded = ref.load(cached=False)
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


def test_save_aligned_does_not_take_a_devices_name(tmp_path: Path) -> None:
    """Moving a file to the name of a pipe, or of /dev/null, would remove it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a device or a pipe"):
        zerocopy.save_aligned({"a": torch.ones(3)}, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_save_aligned_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """A tensor that cannot be written leaves the old file as it was, and no part of a new one."""

    class Broken(torch.Tensor):
        """A tensor of a library, whose memory is not to be had."""

        def cpu(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError("not here")

    path = tmp_path / "m.safetensors"
    zerocopy.save_aligned({"a": torch.ones(3)}, path)
    with pytest.raises(NotImplementedError):
        zerocopy.save_aligned({"a": torch.zeros(3), "b": torch.ones(3).as_subclass(Broken)}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load_file(path)["a"], torch.ones(3))


def test_save_aligned_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typed error, the old file as it was, and no part of a new one."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep what it wrote of a module
    resource = pytest.importorskip("resource")
    path = tmp_path / "m.safetensors"
    zerocopy.save_aligned({"a": torch.ones(3)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(NoSpaceError, match=r"m\.safetensors .*nothing was written"):
            zerocopy.save_aligned({"a": torch.ones(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load_file(path)["a"], torch.ones(3))


def test_save_aligned_by_several_at_once(tmp_path: Path) -> None:
    """The file is wholly of one of them, and a link at the name that others might guess is not followed."""
    path, canary = tmp_path / "m.safetensors", tmp_path / "canary"
    canary.write_text("as it was")
    (tmp_path / "m.safetensors.part").symlink_to(canary)

    def save(value: int) -> None:
        for _ in range(20):
            zerocopy.save_aligned({"a": torch.full((10_000,), value), "b": torch.full((7,), value)}, path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(4)))
    state = load_file(path)
    assert len({*state["a"].tolist(), *state["b"].tolist()}) == 1
    assert canary.read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 3


def test_progress_bar(simple_model: nn.Module, capsys: Any) -> None:
    """A bar is shown on standard error on request, and the model is published all the same."""
    pytest.importorskip("rich")
    ref = zerocopy.publish(simple_model, progress=True)
    assert capsys.readouterr().out == ""
    assert torch.equal(ref.load(cached=False)[0].weight, simple_model[0].weight)
    zerocopy.unpublish(ref)


def test_what_a_file_cannot_hold_is_named(tmp_path: Path) -> None:
    """A value that is no tensor, or one without plain bytes; nothing is written."""
    for value in (3, "text", None, nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=r"'a' is .*wanted names and tensors"):
            zerocopy.save_aligned({"a": value}, tmp_path / "a.safetensors")  # type: ignore[dict-item]
    for tensor in (torch.eye(2).to_sparse(), torch.ones(1, device="meta")):
        with pytest.raises(zerocopy.errors.UnshareableError, match="a: a tensor without plain bytes"):
            zerocopy.save_aligned({"a": tensor}, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [".", "/", ""])
def test_a_folder_is_no_file_to_save_to(path: str) -> None:
    """The error is one of the system and says what to name."""
    with pytest.raises(IsADirectoryError, match="wanted the name of a file"):
        zerocopy.save_aligned({"a": torch.ones(1)}, path)
