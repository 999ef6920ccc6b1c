"""`recycle=True`: the next version is written into the memory of an older one, and no reader of that one sees it."""

from __future__ import annotations

import errno
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zerocopy
from zerocopy import ModelRef, _directory, _held, _lease, _publish
from zerocopy._publish import digest
from zerocopy._segment import copying, writing
from zerocopy.errors import SegmentGoneError, UnknownNameError, ZerocopyError

Publish = Callable[..., ModelRef]


class Filled(nn.Module):
    """Weights that are all the version's number, so that bytes of another version show."""

    def __init__(self, value: float, sizes: tuple[int, ...] = (40_000, 3)) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.full((size,), float(value)) for size in sizes)

    def values(self) -> set[float]:
        """Return the different values of all weights."""
        return {value for weight in self.weights for value in weight.detach().unique().tolist()}


def test_the_next_version_takes_the_memory(publish: Publish, tmp_path: Path) -> None:
    """Two files take turns while nobody reads the older one, and unpublishing the newest leaves nothing."""
    one, two, three, four = (
        publish(Filled(value), name="model", directory=tmp_path, recycle=True) for value in (1, 2, 3, 4)
    )
    assert not Path(one.path).exists()
    assert not Path(two.path).exists()
    assert {path.name for path in tmp_path.glob("*.zc*")} == {Path(three.path).name, Path(four.path).name}
    assert three.load().values() == {3}
    assert zerocopy.current("model", directory=tmp_path) == four
    assert four.load().values() == {4}
    zerocopy.unpublish(four)
    with pytest.raises(UnknownNameError):
        zerocopy.current("model", directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_the_same_file(publish: Publish, tmp_path: Path) -> None:
    """The memory is not taken anew, and is as large as the newer version needs."""
    one = publish(Filled(1, (100_000,)), name="model", directory=tmp_path, recycle=True)
    inode = os.stat(one.path).st_ino
    publish(Filled(2), name="model", directory=tmp_path, recycle=True)
    three = publish(Filled(3, (10,)), name="model", directory=tmp_path, recycle=True)
    assert os.stat(three.path).st_ino == inode
    assert os.stat(three.path).st_blocks * 512 <= 3 * 4096
    assert os.stat(three.path).st_mode & 0o777 == 0o400


def test_what_is_read_is_not_taken(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """A version that a process has loaded stays whole, is not waited for, and goes with its reader."""
    one = publish(Filled(1), name="model", directory=tmp_path, recycle=True)
    inode = os.stat(one.path).st_ino
    held = one.load()
    publish(Filled(2), name="model", directory=tmp_path, recycle=True)
    three = publish(Filled(3), name="model", directory=tmp_path, recycle=True)
    assert os.stat(three.path).st_ino != inode
    assert held.values() == {1}
    assert one.load(cached=False).values() == {1}
    del held
    gc.collect()
    assert eventually(lambda: not Path(one.path).exists())


def test_a_base_is_not_taken(publish: Publish, tmp_path: Path) -> None:
    """A version that a newer one takes weights from stays."""
    one = publish(Filled(1, (1000, 2000)), name="model", directory=tmp_path, recycle=True)
    tuned = one.load(cached=False)
    with torch.no_grad():
        tuned.weights[0].fill_(7)
    two = publish(tuned, name="model", directory=tmp_path, recycle=True, base=one)
    del tuned
    gc.collect()
    publish(Filled(3), name="model", directory=tmp_path, recycle=True)
    assert two.load().values() == {1, 7}


def test_what_was_built_in_place_is_not_taken(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """The process that built a model inside its segment may still have its tensors."""
    built = []

    def build() -> Filled:
        built.append(Filled(1))
        return built[0]

    zerocopy.share("model", build, directory=tmp_path)
    gc.collect()
    one = zerocopy.current("model", directory=tmp_path)
    inode = os.stat(one.path).st_ino
    two = publish(Filled(2), name="model", directory=tmp_path, recycle=True)
    three = publish(Filled(3), name="model", directory=tmp_path, recycle=True)
    assert os.stat(three.path).st_ino != inode
    assert built[0].values() == {1}
    assert two.load().values() == {2}
    built.clear()
    gc.collect()
    assert eventually(lambda: not Path(one.path).exists())


@pytest.mark.parametrize("options", [{}, {"name": "model", "keep": True}])
def test_it_needs_a_name_that_ends_with_the_process(options: dict[str, Any], tmp_path: Path) -> None:
    """What cannot be recycled is refused before anything is written."""
    with pytest.raises(ValueError, match="pass name="):
        zerocopy.publish(Filled(1), directory=tmp_path, recycle=True, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_publish_without_it_gives_the_memory_back(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """Only the newest version is left then."""
    for value in (1, 2):
        publish(Filled(value), name="model", directory=tmp_path, recycle=True)
    three = publish(Filled(3), name="model", directory=tmp_path)
    assert eventually(lambda: [str(path) for path in tmp_path.glob("*.zc*")] == [three.path])


def test_a_failed_publish_leaves_the_current_version(publish: Publish, tmp_path: Path) -> None:
    """A model that cannot be shared costs the older version, which nobody reads, and not the current one."""
    for value in (1, 2):
        two = publish(Filled(value), name="model", directory=tmp_path, recycle=True)
    broken = Filled(3)
    broken.lock = threading.Lock()  # type: ignore[assignment]  # cannot be pickled
    with pytest.raises(zerocopy.errors.UnshareableError):
        publish(broken, name="model", directory=tmp_path, recycle=True)
    assert zerocopy.current("model", directory=tmp_path) == two
    assert two.load().values() == {2}
    assert len(list(tmp_path.glob("*.zc*"))) == 1


def test_every_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    """Whichever system call is refused: a typed error, the current version is whole, and nothing stays behind it."""
    failures = []
    for name in ("pwrite", "rename", "ftruncate", "fchmod", "utime", "symlink"):
        for nth in range(12):
            folder, left = tmp_path / f"{name}-{nth}", nth
            for value in (1, 2):
                two = zerocopy.publish(Filled(value, (2000,)), name="net", directory=folder, recycle=True)
            with monkeypatch.context() as patch:
                real = getattr(os, name)

                def refuse(*args: Any, real: Any = real, folder: Path = folder, **options: Any) -> Any:
                    nonlocal left
                    first = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else str(args)
                    left -= str(folder) in first
                    if str(folder) in first and left < 0:
                        left = 10**9
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return real(*args, **options)

                patch.setattr(os, name, refuse)
                try:
                    newest = zerocopy.publish(Filled(3, (2000,)), name="net", directory=folder, recycle=True)
                except ZerocopyError as error:
                    newest = two
                    failures.append(error)
            assert zerocopy.current("net", directory=folder) == newest
            assert newest.load(cached=False).values() == ({2} if newest == two else {3})
            zerocopy.unpublish(newest)
            assert eventually(lambda folder=folder: not list(folder.iterdir()))
            if newest != two:
                break
    assert len(failures) >= 6
    assert {error.errno for error in failures} == {errno.ENOSPC}


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.lists(st.sampled_from([0, 1, 17, 1024, 5000, 40_000]), max_size=4), min_size=3, max_size=6))
def test_any_sizes_follow_each_other(sizes: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each version is bit-equal whatever lay in its memory before, and passes the check of all its bytes."""
    folder = tmp_path_factory.mktemp("sizes")
    for number, each in enumerate(sizes):
        ref = zerocopy.publish(Filled(number, tuple(each)), name="model", directory=folder, recycle=True)
        loaded = ref.load(cached=False)
        assert [len(weight) for weight in loaded.weights] == each
        assert loaded.values() <= {number}
        del loaded
        gc.collect()
    zerocopy.unpublish(ref)
    assert list(folder.iterdir()) == []


def test_publishers_readers_and_sweeps_at_once(tmp_path: Path, eventually: Any) -> None:
    """A load is wholly of its version or says that the version is gone, and nothing is left of any."""
    newest: list[tuple[ModelRef, int]] = []
    stop = threading.Event()

    def make(first: int) -> None:
        for value in range(first, first + 30):
            ref = zerocopy.publish(Filled(value, (9000, 5)), name="model", directory=tmp_path, recycle=True)
            newest.append((ref, value))

    def read() -> int:
        seen = 0
        while not stop.is_set():
            for ref, value in newest[-4:]:
                try:
                    assert ref.load(cached=False).values() == {value}
                    seen += 1
                except SegmentGoneError:
                    continue
        return seen

    def clean() -> None:
        while not stop.is_set():
            zerocopy.sweep(tmp_path)

    with ThreadPoolExecutor() as pool:
        around = [pool.submit(work) for work in (read, read, clean)]
        try:
            for made in [pool.submit(make, first) for first in (0, 1000)]:
                made.result()
        finally:
            stop.set()
    assert all(work.exception() is None for work in around)
    gc.collect()
    assert zerocopy.current("model", directory=tmp_path).version == 60
    last = next(ref for ref, _ in newest if ref.version == 60)
    zerocopy.unpublish(last)
    assert eventually(lambda: not list(tmp_path.iterdir()))


KILLS = """
import gc, os, random, signal, sys, time
import torch, zerocopy
torch.set_num_threads(1)  # a forked child has no threads of OpenMP
from zerocopy.errors import SegmentGoneError, UnknownNameError

folder, rounds = sys.argv[1], int(sys.argv[2])

def publish():
    value = 0
    while True:
        value += 1
        parts = [torch.full((1_000_000,), float(value)) for _ in range(4)]
        zerocopy.publish(parts, name="model", directory=folder, recycle=True)

def values(parts):
    return {float(end) for part in parts for end in (part.min(), part.max())}

random.seed(1)
for turn in range(rounds):
    process = os.fork()
    if not process:
        publish()
    held, loads, most = [], 0, random.randint(3, 15)
    while loads < most:
        try:
            loaded = zerocopy.current("model", directory=folder).load(cached=False)
        except (SegmentGoneError, UnknownNameError):
            continue
        seen = values(loaded)
        assert len(seen) == 1, seen
        if random.random() < 0.3:
            held.append((loaded, seen))
        loads += 1
    time.sleep(random.random() * 0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    for model, seen in held:
        assert values(model) == seen, (values(model), seen)
    del loaded
    if held:
        del model
    held.clear()
    gc.collect()
    if turn % 2:
        zerocopy.sweep(folder)
    while os.listdir(folder):
        time.sleep(0.05)
print("killed", loads > 0)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_publishers_killed_at_any_moment(tmp_path: Path, fresh_python: Any) -> None:
    """What a killed publisher was writing is never loaded, and both of its versions go with it."""
    assert fresh_python(KILLS, str(tmp_path), "8").stdout == "killed True\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Return a folder in shared memory, where the publisher keeps its mapping of the files that take turns."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs shared memory")
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_publishers_killed_in_shared_memory(in_memory: Path, fresh_python: Any, rounds: int) -> None:
    """The same through the mappings that are used there: a killed publisher changes no version that is read."""
    assert fresh_python(KILLS, str(in_memory), str(rounds)).stdout == "killed True\n"
    assert list(in_memory.iterdir()) == []


def _windows(folder: Path) -> list[str]:
    """Return the writable shared mappings that this process has of files in a folder."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line and line.split()[1] == "rw-s"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs shared memory")
def test_a_window_is_kept_and_hidden_and_closed(publish: Publish, in_memory: Path) -> None:
    """It is of the files that take turns, counts as no reader, follows the model's size, and goes with its file."""
    count = (40_000, 100, 90_000, 3, 1_000_000, 1_000_000)
    for value, size in enumerate(count):
        ref = publish(Filled(value, (size, 7)), name="model", directory=in_memory, recycle=True)
        assert ref.load(cached=False).values() == {value}
        assert zerocopy.current("model", directory=in_memory) == ref
        assert len(_windows(in_memory)) == max(0, min(2, value - 1))
        assert [info.readers for info in zerocopy.report(directory=in_memory).segments] == [0] * min(2, value + 1)
    held = ref.load(cached=False)
    publish(Filled(8), name="model", directory=in_memory, recycle=True)
    publish(Filled(9), name="model", directory=in_memory, recycle=True)
    assert len(_windows(in_memory)) == 1  # what is read was not written to, and its window went
    assert held.values() == {len(count) - 1}
    zerocopy.unpublish(publish(Filled(10), name="model", directory=in_memory))
    assert _windows(in_memory) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs shared memory")
def test_a_forked_child_has_no_window(publish: Publish, in_memory: Path) -> None:
    """A child cannot write into what its parent publishes, and unmaps nothing of its own when it drops the parent's."""
    for value in range(5):
        ref = publish(Filled(value), name="model", directory=in_memory, recycle=True)
    assert len(_windows(in_memory)) == 2
    child = os.fork()
    if not child:
        with suppress(BaseException):
            own = [publish(Filled(value), name="own", directory=in_memory, recycle=True) for value in range(5)]
            good = ref.load().values() == {4} and own[-1].load().values() == {4} and len(_windows(in_memory)) == 2
            os._exit(0 if good else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ref.load().values() == {4}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs shared memory")
def test_blocks_of_recycled_memory_are_whole(publish: Publish, in_memory: Path) -> None:
    """Every block is of its own digest and at its own place."""
    sizes = (3_000_000, 17, 1_000_000, 0, 500_001, 1_000_000)
    for value in range(6):
        weights = {number: torch.full((size,), float(10 * value + number)) for number, size in enumerate(sizes)}
        ref = publish(weights, name="model", directory=in_memory, recycle=True)
        loaded = ref.load(cached=False)
        assert all(torch.equal(loaded[number], weight) for number, weight in weights.items())
        assert ref.digest == digest(weights)
        del loaded


def test_interrupted_at_any_moment(tmp_path: Path, eventually: Any) -> None:
    """Wherever a Ctrl-C reaches a publish, this process keeps no descriptor and no file of it.

    A handler runs when a function is entered and when a call of the system returns, which are events of a profiler.
    """
    folder, model = tmp_path / "segments", Filled(1, (2000, 3))
    sources = {module.__file__ for module in (_publish, _lease, _held, _directory, writing, copying)}
    steps, failed = 0, 0

    def step(frame: Any, event: str, _argument: Any) -> None:
        nonlocal steps
        if event in ("call", "c_return") and frame.f_code.co_filename in sources:
            steps += 1
            if steps == stop:
                raise KeyboardInterrupt

    def left() -> set[str]:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return {Path(link).name.removesuffix(" (deleted)") for link in links if f"{folder}/" in link}

    gc.collect()
    for stop in range(1, 2000, 5):
        steps = 0
        gc.disable()  # what a collection calls could be interrupted too, and that is not the publish
        sys.setprofile(step)
        try:
            zerocopy.publish(model, name="net", directory=folder, recycle=True)
        except KeyboardInterrupt:
            failed += 1
        finally:
            sys.setprofile(None)
            gc.enable()
        if steps < stop:
            break
        live = {Path(path).name for path in _held._published}
        assert left() <= live, (stop, left(), live)
    assert failed > 20
    for path in [path for path in _held._published if str(folder) in path]:
        _held.release(path)  # beside the newest, an older one whose successor was interrupted once it was current
    assert eventually(lambda: not list(folder.iterdir()))
