"""How long things stay, and where they are found: copies, moved folders, dropped pipelines, durable segments."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy._held import release
from zerocopy._segment import mapping as segment_mapping
from zerocopy.errors import CorruptSegmentError, SegmentGoneError

Publish = Callable[..., ModelRef]


def test_dropped_pipelines_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewritten pipeline that is dropped gives its models up; one that was pickled keeps them for its receiver."""
    import pickle

    monkeypatch.setattr("zerocopy._directory.default_directory", lambda: tmp_path)
    for _ in range(10):
        pipe = zerocopy.rewrite_pipeline({"net": nn.Linear(4, 4)}, mode="local")
        pipe["net"](torch.ones(1, 4))
        del pipe
    gc.collect()
    assert list(tmp_path.glob("*.zc")) == []
    pipe = zerocopy.rewrite_pipeline({"net": nn.Linear(4, 4)}, mode="local")
    sent = pickle.dumps(pipe)
    ref = pipe["net"].ref
    del pipe
    gc.collect()
    received = pickle.loads(sent)
    assert received["net"](torch.ones(1, 4)).shape == (1, 4)
    zerocopy.forget()
    del received
    gc.collect()
    zerocopy.unpublish(ref)


def test_a_copy_is_verified_once(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of a copy is hashed by its first load; a copy that is written afterwards is hashed again."""
    monkeypatch.setattr("zerocopy._segment.verified.default_directory", lambda: tmp_path / "notes")
    monkeypatch.setattr("zerocopy._segment.verified.prepare", lambda _: (tmp_path / "notes").mkdir(exist_ok=True))
    hashed: list[Path] = []
    real = segment_mapping.verify

    def verify(data: Any, manifest: Any, path: Path, *rest: Any, **options: Any) -> None:
        hashed.append(path)
        real(data, manifest, path, *rest, **options)

    monkeypatch.setattr(segment_mapping, "verify", verify)
    ref = publish(nn.Linear(64, 64))
    path = tmp_path / "copied.zc"
    shutil.copy(ref.path, path)
    time.sleep(0.2)
    copy = ModelRef(ref.name, ref.version, ref.digest, ref.nbytes, str(path))
    for _ in range(3):
        copy.load(cached=False)
    assert hashed == [path]
    path.chmod(0o600)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptSegmentError):
        copy.load(cached=False)


def test_a_moved_folder_of_deltas(tmp_path: Path) -> None:
    """A delta finds its base beside itself, by name or by content, and says what is missing."""
    folder, moved = tmp_path / "models", tmp_path / "moved"
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    base = zerocopy.publish(model, name="base", directory=folder, keep=True)
    with torch.no_grad():
        model[1].bias.add_(1)
    delta = zerocopy.publish(model, name="delta", base=base, directory=folder, keep=True)
    folder.rename(moved)
    loaded = zerocopy.current("delta", directory=moved).load(cached=False)
    assert torch.equal(loaded[0].weight, model[0].weight)
    (moved / Path(base.path).name).rename(moved / "called@7-00000000.zc")
    loaded = zerocopy.current("delta", directory=moved).load(cached=False)
    assert torch.equal(loaded[1].bias, model[1].bias)
    del loaded
    (moved / "called@7-00000000.zc").unlink()
    with pytest.raises(SegmentGoneError, match="needs the model base version 1, which is neither at"):
        zerocopy.current("delta", directory=moved).load(cached=False)
    assert release(base.path)
    assert release(delta.path)


def test_kept_segments_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keep=True the file and its folder are flushed to the disk; without, nothing is."""
    flushed: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    zerocopy.unpublish(zerocopy.publish(nn.Linear(4, 4), directory=tmp_path))
    assert flushed == []
    zerocopy.unpublish(zerocopy.publish(nn.Linear(4, 4), directory=tmp_path, keep=True))
    assert [path.endswith(".zc.part") for path in flushed] == [True, False]
    assert flushed[1] == str(tmp_path)


def test_the_json_of_a_reference(publish: Publish) -> None:
    """It comes back equal, and anything else is refused with what is wrong."""
    ref = publish(nn.Linear(4, 4))
    assert ModelRef.from_json(ref.to_json()) == ModelRef.from_dict(ref.as_dict()) == ref
    for bad, message in (({"name": "x"}, "has the fields"), ({**ref.as_dict(), "version": "1"}, "wrong type: version")):
        with pytest.raises(ValueError, match=message):
            ModelRef.from_dict(bad)
    for text in ("[]", "nonsense"):
        with pytest.raises(ValueError, match=r"object|Expecting"):
            ModelRef.from_json(text)


def test_publishing_looks_at_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish beside 500 segments opens a handful of them."""
    refs = [zerocopy.publish({"w": torch.zeros(index + 1)}, directory=tmp_path) for index in range(500)]
    opened: list[Any] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **options: (opened.append(path), real(path, *rest, **options))[1]
    )
    refs.append(zerocopy.publish({"w": torch.ones(3)}, directory=tmp_path))
    assert len(opened) < 60
    for ref in refs:
        zerocopy.unpublish(ref)
