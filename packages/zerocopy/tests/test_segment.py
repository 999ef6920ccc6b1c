"""The segment file: corrupt and truncated ones are refused, full disks leave nothing, killed processes neither."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy._caretaker import Caretaker
from zerocopy._directory import default_directory, remove_if_free, segments
from zerocopy._lease import gate
from zerocopy.errors import CorruptSegmentError, NoSpaceError, OtherFormatError, SegmentGoneError

Publish = Callable[..., ModelRef]


def altered(path: str, offset: int, data: bytes) -> None:
    """Overwrite bytes of a segment, as a stray process would."""
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(offset if offset >= 0 else os.path.getsize(path) + offset)
        file.write(data)


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.001, 0.0])
def test_truncated_segment(keep: float, simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """A file that lost its end is refused at open: no bus error later."""
    ref = publish(simple_model, directory=tmp_path)
    os.chmod(ref.path, 0o600)
    os.truncate(ref.path, max(0, int(os.path.getsize(ref.path) * keep) - 1))
    with pytest.raises(CorruptSegmentError, match=Path(ref.path).name):
        ref.load()


@pytest.mark.parametrize("by", [-1, -5000, 1, 5000])
def test_another_length_and_the_same_time(by: int, simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """A tool that restores times does not hide that a file lost its end or grew."""
    ref = publish(simple_model, directory=tmp_path)
    status = os.stat(ref.path)
    os.chmod(ref.path, 0o600)
    os.truncate(ref.path, status.st_size + by)
    os.chmod(ref.path, 0o400)
    os.utime(ref.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CorruptSegmentError, match=f"{Path(ref.path).name} has .* bytes instead of"):
        ref.load()


@pytest.mark.parametrize("offset", [0, 8, 20, 70, 100, 200, 900, -5000, -1], ids=str)
def test_altered_segment(offset: int, simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """One changed byte anywhere, in header, manifest, skeleton or weights, is found at open."""
    ref = publish(nn.Sequential(*simple_model, nn.Linear(1000, 5)), directory=tmp_path)
    with open(ref.path, "rb") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        old = file.read(1)
    altered(ref.path, offset, bytes([old[0] ^ 1]))
    with pytest.raises(CorruptSegmentError):
        ref.load()


def test_altered_weight_is_named(simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """The error names the tensor whose bytes changed."""
    ref = publish(simple_model, directory=tmp_path)
    altered(ref.path, -2, b"\xff")
    with pytest.raises(CorruptSegmentError, match=r"3\.bias"):
        ref.load()


def test_something_else_is_refused(simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """A file that is no segment, and a segment that holds another model, are told apart from the right one."""
    ref = publish(simple_model)
    other = tmp_path / "other.zc"
    other.write_bytes(b"hello" * 1000)
    fields = {"name": "x", "version": 1, "nbytes": 1}
    with pytest.raises(CorruptSegmentError, match="not a segment"):
        ModelRef(**fields, digest=ref.digest, path=str(other)).load()
    with pytest.raises(CorruptSegmentError, match="instead of"):
        ModelRef(**fields, digest="0" * 64, path=ref.path).load()


def test_a_copy_is_checked_in_full_and_works(simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """A file that was copied is no longer as it was sealed: every byte is hashed, and then it serves."""
    ref = publish(simple_model)
    copied = tmp_path / "copied.zc"
    shutil.copy2(ref.path, copied)
    moved = ModelRef(ref.name, ref.version, ref.digest, ref.nbytes, str(copied))
    assert torch.equal(moved.load(cached=False)[0].weight, simple_model[0].weight)


def test_file_size_limit_leaves_nothing(tmp_path: Path, fresh_python: Any) -> None:
    """A write that the system refuses is a typed error, and no file, part or name stays."""
    code = """
import resource, signal, sys, os, torch, zerocopy
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True  # Python would keep what it wrote of a module
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    zerocopy.publish(torch.nn.Linear(1000, 1000), name="big", directory=sys.argv[1])
except zerocopy.errors.NoSpaceError as error:
    print("refused", isinstance(error, OSError), "directory=" in str(error), os.listdir(sys.argv[1]))
"""
    assert fresh_python(code, str(tmp_path)).stdout.split() == ["refused", "True", "True", "[]"]


def test_full_tmpfs_leaves_nothing(tmp_path: Path, fresh_python: Any) -> None:
    """A tmpfs that is too small refuses before anything is visible, and takes a model that fits afterwards."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m none "$0" && exec "$@"', str(tmp_path)]
    probe = subprocess.run([*mount, "true"], capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode != 0:
        pytest.skip("this system lets no ordinary user mount a tmpfs of their own")
    code = """
import sys, os, torch, zerocopy
try:
    zerocopy.publish(torch.nn.Linear(1000, 1000), name="big", directory=sys.argv[1])
except zerocopy.errors.NoSpaceError as error:
    print("refused", os.listdir(sys.argv[1]))
ref = zerocopy.publish(torch.nn.Linear(100, 100), name="small", directory=sys.argv[1])
print(ref.load()(torch.ones(1, 100)).shape)
zerocopy.unpublish(ref)
"""
    done = subprocess.run([*mount, sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.startswith("refused []\ntorch.Size([1, 100])"), done.stderr


PUBLISHER = """
import sys, time, torch, zerocopy
torch.manual_seed(0)
ref = zerocopy.publish(torch.nn.Linear(64, 64), name=sys.argv[1])
print(ref.path, ref.digest, flush=True)
sys.stdin.readline()
"""
READER = """
import sys, torch, zerocopy
ref = zerocopy.ModelRef("x", 1, sys.argv[2], 0, sys.argv[1])
model = ref.load()
print("loaded", flush=True)
sys.stdin.readline()
print(float(model(torch.ones(1, 64)).sum()) == float(model(torch.ones(1, 64)).sum()), flush=True)
sys.stdin.readline()
"""


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str], how: str) -> None:
    if how == "kill":
        process.kill()
    process.communicate("\n\n")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("last", ["kill", "exit"])
def test_killed_publisher_then_last_reader(last: str, eventually: Any) -> None:
    """A killed publisher's segment serves its reader on, and goes with it, however that ends; the name goes too."""
    name = f"orphan-{last}-{os.getpid()}"
    publisher = _start(PUBLISHER, name)
    path, digest = publisher.stdout.readline().split()  # type: ignore[union-attr]
    reader = _start(READER, path, digest)
    assert reader.stdout.readline() == "loaded\n"  # type: ignore[union-attr]
    publisher.send_signal(signal.SIGKILL)
    publisher.communicate()
    time.sleep(0.3)
    assert Path(path).exists()
    reader.stdin.write("\n")  # type: ignore[union-attr]
    reader.stdin.flush()  # type: ignore[union-attr]
    assert reader.stdout.readline() == "True\n"  # type: ignore[union-attr]
    _end(reader, last)
    assert eventually(lambda: not Path(path).exists())
    assert eventually(lambda: not list(default_directory().glob(f"{name}*")))


@pytest.mark.timeout(300)
def test_publisher_killed_while_writing(tmp_path: Path, eventually: Any) -> None:
    """Nothing of a half-written segment becomes visible or stays."""
    code = """
import os, sys, signal, torch, zerocopy
from zerocopy._segment import writing
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
writing.seal = die
zerocopy.publish(torch.nn.Linear(64, 64), name="half", directory=sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert eventually(lambda: not any(tmp_path.iterdir())), list(tmp_path.iterdir())


def test_unpublish(simple_model: nn.Module) -> None:
    """The file is removed at once; loading it raises an error that says what to do."""
    ref = zerocopy.publish(simple_model, name="fleeting")
    zerocopy.unpublish(ref)
    assert not Path(ref.path).exists()
    with pytest.raises(SegmentGoneError, match="publish the model again"):
        ref.load()
    with pytest.raises(zerocopy.errors.UnknownNameError, match="fleeting"):
        zerocopy.current("fleeting")


def test_a_reader_keeps_an_unpublished_model(simple_model: nn.Module, eventually: Any) -> None:
    """The model goes on working, and the file goes with its last tensor."""
    ref = zerocopy.publish(simple_model)
    weight = ref.load()[0].weight
    zerocopy.unpublish(ref)
    assert Path(ref.path).exists()
    assert torch.equal(weight, simple_model[0].weight)
    del weight
    assert eventually(lambda: not Path(ref.path).exists())


def test_a_sweep_meets_a_file_that_was_just_made(
    simple_model: nn.Module, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's sweep between making the file and leasing it takes the file, and the publish goes on."""
    swept: list[Path] = []
    real = os.open

    def open_and_be_swept(path: Any, flags: int, *mode: int, **options: Any) -> int:
        fd = real(path, flags, *mode, **options)
        if flags & os.O_EXCL and not swept:
            swept.extend(zerocopy.sweep(tmp_path))
        return fd

    monkeypatch.setattr(os, "open", open_and_be_swept)
    ref = publish(simple_model, directory=tmp_path)
    assert len(swept) == 1
    assert torch.equal(ref.load()[0].weight, simple_model[0].weight)


def test_a_sweep_leaves_what_took_a_files_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was replaced while the sweep waited for its lock is another file, and stays."""
    path = tmp_path / "x.zc"
    path.write_text("old")
    real = os.open

    def open_and_be_replaced(name: Any, flags: int, *mode: int, **options: Any) -> int:
        fd = real(name, flags, *mode, **options)
        (tmp_path / "new").write_text("new")
        (tmp_path / "new").replace(path)
        return fd

    monkeypatch.setattr(os, "open", open_and_be_replaced)
    remove_if_free(str(path))
    assert path.read_text() == "new"


def test_threads_share_a_caretaker(tmp_path: Path) -> None:
    """However threads publish and unpublish at once, no line to it goes astray and it ends with the last file."""
    failures: list[Exception] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(40):
            caretaker, together = Caretaker(), threading.Barrier(6)
            paths = [tmp_path / f"{number}-{index}" for index in range(6)]

            def go(path: Path, caretaker: Caretaker = caretaker, together: threading.Barrier = together) -> None:
                together.wait()
                try:
                    caretaker.take(path)
                    caretaker.publisher_done(path)
                except Exception as failure:
                    failures.append(failure)

            threads = [threading.Thread(target=go, args=(path,)) for path in paths]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not caretaker.running
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_a_model_without_a_name_is_called_after_its_class(publish: Publish, tmp_path: Path) -> None:
    """Whatever the class is called, its model can be published, and what is unfit for a file name is left out."""
    for called, name in (("_Net", "Net"), ("Größe", "Gre"), ("__", "model"), ("A" * 200, "A" * 100)):
        model = type(called, (nn.Linear,), {"__module__": "__main__"})(2, 2)
        cls = type(model)
        setattr(sys.modules["__main__"], called, cls)
        try:
            assert publish(model, directory=tmp_path).name == name
        finally:
            delattr(sys.modules["__main__"], called)


def test_sweep_removes_files_without_a_lease(simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """Files without a lease go, those in use and those published to stay do not."""
    used = publish(simple_model, directory=tmp_path, name="used")
    kept = publish(simple_model, directory=tmp_path, name="kept", keep=True)
    stray = tmp_path / "stray@1-00000000.zc"
    shutil.copy(used.path, stray)
    half = tmp_path / "half@1-00000000.zc.part"
    half.write_bytes(b"")
    (tmp_path / "lost@current").symlink_to("nowhere.zc")
    assert {path.name for path in zerocopy.sweep(tmp_path)} == {stray.name, half.name, "lost@current"}
    assert segments(tmp_path) == sorted([Path(kept.path), Path(used.path)])


def test_another_format_is_told_and_left_alone(simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """A segment of a later zerocopy is refused with both formats named, and a sweep does not take it away."""
    ref = publish(simple_model, directory=tmp_path, keep=True)
    altered(ref.path, 8, b"\x63")
    with pytest.raises(OtherFormatError, match="format 99"):
        ref.load()
    assert zerocopy.sweep(tmp_path) == []


def test_keep_outlives_its_publisher(tmp_path: Path, fresh_python: Any) -> None:
    """A model published with keep=True is there for processes that start later, until it is unpublished."""
    code = """
import sys, torch, zerocopy
zerocopy.publish(torch.nn.Linear(2, 2), name="kept", directory=sys.argv[1], keep=True)
"""
    fresh_python(code, str(tmp_path))
    ref = zerocopy.current("kept", directory=tmp_path)
    assert ref.load(cached=False).in_features == 2
    zerocopy.unpublish(ref)
    assert list(tmp_path.iterdir()) == []


def test_a_publication_of_another_process(simple_model: nn.Module, publish: Publish) -> None:
    """A model that another process holds cannot be unpublished from here."""
    ref = publish(simple_model)
    from zerocopy._held import _published

    held = _published.pop(ref.path)
    with pytest.raises(ValueError, match="unpublish it there"):
        zerocopy.unpublish(ref)
    _published[ref.path] = held


def test_a_superseded_version_needs_no_unpublishing(simple_model: nn.Module, publish: Publish) -> None:
    """`unpublish` says that it was given up already, whether a reader still has it or not."""
    old = publish(simple_model, name="moving")
    readers = [old.load()]
    publish(simple_model, name="moving")
    for _ in range(2):
        with pytest.raises(ValueError, match="moving version 1 was given up when version 2 was published"):
            zerocopy.unpublish(old)
        readers.clear()


def test_bad_names_and_versions(simple_model: nn.Module, publish: Publish) -> None:
    """A name that is no file name, or a version that is not newer, is refused."""
    with pytest.raises(ValueError, match="not a model name"):
        publish(simple_model, name="../up")
    publish(simple_model, name="numbered", version=3)
    with pytest.raises(ValueError, match="not newer than the current one, 3"):
        publish(simple_model, name="numbered", version=3)


def test_no_space_is_an_os_error() -> None:
    """Callers that know only builtin errors catch the right ones."""
    assert issubclass(NoSpaceError, OSError)
    assert issubclass(SegmentGoneError, FileNotFoundError)
    assert issubclass(CorruptSegmentError, ValueError)


def test_a_gate_lets_one_in_and_goes(tmp_path: Path) -> None:
    """Of many that come to a gate at once, one is inside at a time, all get in, and no file stays."""
    inside, most, through = 0, 0, []

    def enter(number: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with gate(tmp_path / "gate"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1
        through.append(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, sorted(through), list(tmp_path.iterdir())) == (1, list(range(6)), [])


def test_blocks_are_aligned(transformer_model: nn.Module, publish: Publish) -> None:
    """Every storage lies at a multiple of 64, in the file and in memory."""
    loaded = publish(transformer_model).load(cached=False)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {tensor.untyped_storage().data_ptr() % 64 for tensor in tensors} == {0}
