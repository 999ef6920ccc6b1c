"""Full disks, no descriptors, odd files, threads, clocks: typed errors, nothing lost, nothing left."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef, ZerocopyError, _ref
from zerocopy import _directory as places
from zerocopy._held import _published
from zerocopy.errors import CorruptSegmentError, NoSpaceError

Publish = Callable[..., ModelRef]
MODEL = {"w": torch.arange(2000.0)}
CALLS = ("mkdir", "open", "symlink", "rename", "pwrite", "ftruncate", "posix_fallocate", "fchmod", "utime", "fsync")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EDQUOT, errno.EROFS, errno.EIO], ids=os.strerror)
def test_every_call_of_a_publish_fails(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    """Whichever system call is refused: a typed error, nothing stays, and the next publish works."""
    failures: list[Any] = []
    for name in CALLS:
        for nth in range(12):
            folder = tmp_path / f"{name}-{nth}"
            left = nth
            with monkeypatch.context() as patch:
                real = getattr(os, name)

                def refuse(*args: Any, real: Any = real, folder: Path = folder, **options: Any) -> Any:
                    nonlocal left
                    first = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else str(args)
                    mine = str(folder) in first
                    left -= mine
                    if mine and left < 0:
                        left = 10**9
                        raise OSError(number, os.strerror(number))
                    return real(*args, **options)

                patch.setattr(os, name, refuse)
                try:
                    ref = zerocopy.publish(MODEL, name="net", directory=folder, keep=True)
                except ZerocopyError as error:
                    failures.append(error)
                else:
                    zerocopy.unpublish(ref)
            refused = left > 1000
            assert [path.name for path in folder.glob("*.zc*")] == []
            ref = zerocopy.publish(MODEL, name="net", directory=folder, keep=True)
            zerocopy.unpublish(ref)
            assert list(folder.iterdir()) == []
            if not refused:
                break
    assert len(failures) >= len(CALLS) - 1
    assert {error.errno for error in failures} == {number}
    assert not [path for path in _published if path.startswith(str(tmp_path))]


def test_no_descriptors(tmp_path: Path, fresh_python: Any) -> None:
    """With few descriptors left, every call works or raises a typed error, and no descriptor leaks."""
    code = """
import gc, os, resource, sys, torch, zerocopy
model, folder = {"w": torch.arange(2000.0)}, sys.argv[1]
zerocopy.unpublish(zerocopy.publish(model, directory=folder))
ref = zerocopy.publish(model, name="net", directory=folder)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
calls = [
    lambda: zerocopy.unpublish(zerocopy.publish(model, name="other", directory=folder)),
    lambda: ref.load(cached=False),
    lambda: zerocopy.current("net", directory=folder),
    lambda: zerocopy.share("net", lambda: model, directory=folder, timeout=0.05),
    lambda: zerocopy.sweep(folder),
    lambda: zerocopy.report(directory=folder),
]
typed = 0
for free in range(8):
    for call in calls:
        before = sorted(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) - 1 + free, hard))
        try:
            call()
        except zerocopy.ZerocopyError as error:
            typed += 1
            assert "ulimit -n" in str(error) or isinstance(error, LookupError | TimeoutError), repr(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == len(before), (free, call)
assert ref.load(cached=False)["w"].sum() == model["w"].sum()
zerocopy.unpublish(ref)
print(typed > 5, os.listdir(folder))
"""
    assert fresh_python(code, str(tmp_path)).stdout == "True []\n"


def header(**fields: int) -> bytes:
    """Return a file of 5,000 bytes that starts like a segment with these numbers."""
    numbers = {"flags": 0, "manifest": 10, "skeleton": 10, "data": 4096, "size": 5000, **fields}
    order = ("manifest", "skeleton", "data", "size")
    fixed = struct.pack("<8sIIQQQQQq", b"ZEROCOPY", 3, numbers["flags"], *(numbers[name] for name in order), 1, 1)
    return fixed.ljust(5000, b"\0")


HUGE = (1 << 62, (1 << 63) - 1, (1 << 64) - 1, 1 << 40)


def test_odd_files_stop_no_publish(tmp_path: Path, publish: Publish) -> None:
    """Files that claim sizes beyond their own are not believed: publish, sweep and report go on."""
    kept = zerocopy.publish(MODEL, name="kept", directory=tmp_path, keep=True)
    odd = [header(manifest=size, data=size) for size in HUGE]
    odd += [header(skeleton=size, data=size) for size in HUGE]
    odd += [header(data=size) for size in HUGE] + [header(manifest=size, skeleton=size) for size in HUGE]
    odd += [header(), header(flags=1), b"", b"ZEROCOPY", b"\xff" * 5000]
    for number, content in enumerate(odd):
        (tmp_path / f"odd@{number + 1}-{number:08x}.zc").write_bytes(content)
    sparse = tmp_path / "odd@900-00000000.zc"
    sparse.write_bytes(header(manifest=(1 << 34) - 5000, data=1 << 34, size=1 << 34))
    os.truncate(sparse, 1 << 34)
    report = zerocopy.report(directory=tmp_path, pids=[])
    assert {entry.file for entry in report.unreadable} == {path.name for path in tmp_path.glob("odd@*.zc")}
    sparse.unlink()
    places.Sweeper().step(tmp_path)
    ref = publish(MODEL, name="net", directory=tmp_path)
    zerocopy.sweep(tmp_path)
    assert {path.name for path in tmp_path.glob("*.zc")} == {Path(kept.path).name, Path(ref.path).name}
    zerocopy.unpublish(kept)


def resealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a segment's manifest and make its digest fit again."""
    raw = bytearray(path.read_bytes())
    length, skeleton_length = struct.unpack_from("<QQ", raw, 16)
    manifest = json.loads(raw[128 : 128 + length])
    skeleton = bytes(raw[128 + length : 128 + length + skeleton_length])
    change(manifest)
    text = json.dumps(manifest, separators=(",", ":")).encode()
    struct.pack_into("<Q", raw, 16, len(text))
    raw[128 : 128 + len(text) + len(skeleton)] = text + skeleton
    raw[96:128] = hashlib.sha256(raw[:96] + text + skeleton).digest()
    path.chmod(0o600)
    path.write_bytes(raw[: struct.unpack_from("<Q", raw, 40)[0]])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["blocks"][0].__setitem__(0, 1 << 40),
        lambda m: m["blocks"][0].__setitem__(0, -8),
        lambda m: m["blocks"][0].__setitem__(1, 1 << 40),
        lambda m: m["blocks"][0].__setitem__(1, -1),
        lambda m: m["blocks"][0].__setitem__(1, 8),
        lambda m: m["blocks"][0].__setitem__(1, True),
        lambda m: m["blocks"][0].__setitem__(3, 0),
        lambda m: m["blocks"][0].pop(),
        lambda m: m["blocks"].clear(),
        lambda m: m.pop("digest"),
        lambda m: m.update(version="1"),
        lambda m: m.update(extra=1),
        lambda m: m.update(bases=[1]),
        lambda m: m.update(bases=[{"file": 3}]),
        lambda m: (m.update(bases=[{"name": "x"}]), m["blocks"][0].__setitem__(3, 0)),
    ],
)
def test_forged_manifests(change: Callable[[dict[str, Any]], object], tmp_path: Path, publish: Publish) -> None:
    """A manifest whose digest fits and whose numbers do not is a corrupt segment, whatever it says."""
    ref = publish(MODEL, name="net", directory=tmp_path)
    resealed(Path(ref.path), change)
    with pytest.raises(CorruptSegmentError):
        ref.load(cached=False)
    zerocopy.report(directory=tmp_path)
    zerocopy.sweep(tmp_path)


def test_threads_publish_one_name(tmp_path: Path, eventually: Any) -> None:
    """However they overlap: each gets a version, the newest stays current, and this process keeps no other."""
    together, refs, failures = threading.Barrier(4), [], []

    def go() -> None:
        together.wait()
        try:
            refs.extend(zerocopy.publish(MODEL, name="net", directory=tmp_path) for _ in range(8))
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(ref.version for ref in refs) == list(range(1, 33))
    newest = max(refs, key=lambda ref: ref.version)
    assert zerocopy.current("net", directory=tmp_path) == newest
    assert [path for path in _published if path.startswith(str(tmp_path))] == [newest.path]
    assert eventually(lambda: [str(path) for path in tmp_path.glob("*.zc")] == [newest.path])
    with pytest.raises(ValueError, match="given up when version"):
        zerocopy.unpublish(refs[0])
    zerocopy.unpublish(newest)
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_one_copy_however_the_device_is_written(publish: Publish) -> None:
    """The host's memory has many names and holds one copy of the weights, in the segment."""
    ref = publish(nn.Linear(40, 40))
    model = ref.load()
    for device in ("cpu:0", torch.device("cpu"), torch.device("cpu", 0)):
        assert ref.load(device=device) is model
    assert zerocopy.written(ref.load(device="cpu:0", cached=False)) == ()


# cuda: zerocopy._ref:_place by stand-in
def test_the_current_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` means the GPU that is current at the load, so that another current one later gets a copy of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert _ref._place("cuda") == torch.device("cuda", 2)
    assert _ref._place("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("years", [-30, -1, 1, 30])
def test_the_clock_jumps(years: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing, following, sharing, copying and sweeping go on, and nothing in use or unfinished is removed."""
    monkeypatch.setattr(places, "memory_folder", lambda: tmp_path)
    monkeypatch.delenv("ZEROCOPY_DIRECTORY")
    folder = tmp_path / "segments"
    first = zerocopy.publish(MODEL, name="net", directory=folder)
    live = zerocopy.follow("net", directory=folder)
    seconds, nanoseconds = time.time, time.time_ns
    jump = years * 365 * 86400
    monkeypatch.setattr(time, "time", lambda: seconds() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + jump * 10**9)
    unfinished = []
    real = os.posix_fallocate

    def half(fd: int, *rest: int) -> None:
        unfinished.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        zerocopy.sweep(folder)
        assert unfinished[-1].exists()
        real(fd, *rest)

    monkeypatch.setattr(os, "posix_fallocate", half)
    second = zerocopy.publish({"w": MODEL["w"] + 1}, name="net", directory=folder)
    assert unfinished
    assert live.ref == second
    assert (first.version, second.version) == (1, 2)
    copied = folder / "copied.zc"
    shutil.copy(second.path, copied)
    copy = ModelRef("net", 2, second.digest, second.nbytes, str(copied))
    for _ in range(2):
        assert torch.equal(copy.load(cached=False)["w"], MODEL["w"] + 1)
    model = zerocopy.share("shared", lambda: MODEL, directory=folder, timeout=100)
    assert torch.equal(model["w"], MODEL["w"])
    zerocopy.sweep(folder)
    assert Path(second.path).exists()
    del live
    gc.collect()
    zerocopy.unpublish(second)
    zerocopy.unpublish(zerocopy.current("shared", directory=folder))


def test_no_space_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full disk of a link, not of the weights, is the same typed error."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "symlink", full)
    with pytest.raises(NoSpaceError, match=r"no room for .*directory="):
        zerocopy.publish(MODEL, name="net", directory=tmp_path)
    assert list(tmp_path.glob("*.zc")) == []


def test_a_publish_does_not_grow_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first publish into a folder and later ones make as many system calls beside 10,000 files as beside 1,000."""
    source = zerocopy.publish(MODEL, directory=tmp_path / "source", keep=True)
    names = ("open", "fstat", "lstat", "stat", "pread", "readlink", "listdir", "scandir", "unlink")
    calls: dict[str, int] = {}
    for name in names:
        real = getattr(os, name)

        def counted(*args: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return real(*args, **options)

        monkeypatch.setattr(os, name, counted)

    def cost(count: int) -> list[int]:
        folder = places.prepare(tmp_path / f"with-{count}")
        for number in range(count):
            os.link(source.path, folder / f"other{number}@1-{number:08x}.zc")
        found = []
        for _ in range(3):
            calls.clear()
            zerocopy.unpublish(zerocopy.publish(MODEL, name="net", directory=folder))
            found.append(sum(calls.values()))
        return found

    few, many = cost(1000), cost(10_000)
    assert all(abs(a - b) < 20 for a, b in zip(few, many, strict=True)), (few, many)
    zerocopy.unpublish(source)
