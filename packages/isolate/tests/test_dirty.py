"""The kernel's word on whether an array has changed since it was last passed; wrong would mean old data delivered."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integration_test_base import IntegrationTestBase

from isolate._worker.dirty import SMALLEST, DirtyTracker, available, partial_pages

COUNT = SMALLEST // 8


def ask(watch: DirtyTracker, array: Any) -> tuple[int, ...] | None:
    """The stamp of an array, and a hash of the partial pages that it does not tell of."""
    stamp = watch.stamp(array, array.ctypes.data, array.nbytes)
    parts = [
        array.view(np.uint8)[offset : offset + count]
        for offset, count in partial_pages(array.ctypes.data, array.nbytes)
    ]
    return None if stamp is None else (stamp, *map(zlib.crc32, parts))


needs_kernel = pytest.mark.skipif(bool(available()), reason=f"every array is copied here: {available()}")


@pytest.fixture
def watch() -> Iterator[DirtyTracker]:
    """One that is open, and closed after the test."""
    made = DirtyTracker()
    made.retain()
    yield made
    made.release()


def _by_kernel(array: Any) -> None:
    with open("/dev/urandom", "rb", buffering=0) as file:
        file.readinto(memoryview(array)[1000:1100].cast("B"))


def _in_thread(array: Any) -> None:
    thread = threading.Thread(target=lambda: np.copyto(array[-512:], np.random.random(512)))
    thread.start()
    thread.join()


def _discarded(array: Any) -> None:
    first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(16 * mmap.PAGESIZE), mmap.MADV_DONTNEED) == 0
    assert array[1024] == 0


WRITES = {
    "element": lambda array: array.__setitem__(1007, np.random.random()),
    "first": lambda array: array.__setitem__(0, np.random.random()),
    "view": lambda array: array.reshape(64, -1)[3:5].__iadd__(1),
    "all": lambda array: array.fill(np.random.random()),
    "kernel": _by_kernel,
    "thread": _in_thread,
    "discarded": _discarded,
}


@needs_kernel
@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([*WRITES, *["ask"] * 10]), min_size=5, max_size=40))
def test_equal_stamps_mean_equal_content(steps: list[str]) -> None:
    """Whatever writes, and however: two equal stamps were never given for two contents."""
    watch = DirtyTracker()
    watch.retain()
    array, seen = np.ones(COUNT), {}
    for step in steps:
        if step in WRITES:
            WRITES[step](array)
        stamp = ask(watch, array)
        digest = hashlib.blake2b(array).digest()
        if stamp is not None:
            assert seen.setdefault(stamp, digest) == digest
    watch.release()


@needs_kernel
@pytest.mark.parametrize("write", WRITES)
def test_each_way_to_write_is_seen(watch: DirtyTracker, write: str) -> None:
    """An array that was served once and is written to gets another stamp, and that one serves again."""
    array = np.ones(COUNT)
    stamps = [ask(watch, array) for _ in range(4)]
    assert stamps[0] is None  # the first time it is only noted
    assert stamps[1] == stamps[2] == stamps[3] is not None
    WRITES[write](array)
    changed = ask(watch, array)
    assert changed not in (None, stamps[1])
    assert watch.is_current(stamps[1][0]) == (changed[0] == stamps[1][0])
    assert ask(watch, array) == changed


@needs_kernel
def test_what_a_neighbour_writes_does_not_count(watch: DirtyTracker) -> None:
    """The allocator puts others' memory into the pages where an array begins and ends; they come and go."""
    room = np.ones(COUNT + 2)
    array = room[1:-1]
    stamps = []
    for value in range(5):
        room[0] = room[-1] = value
        stamps.append(ask(watch, array))
    assert stamps[0] is None
    assert len({*stamps[1:]}) == 1


@needs_kernel
def test_a_buffer_that_is_filled_anew_is_left_alone(watch: DirtyTracker) -> None:
    """What changes between any two calls gets no stamp, and after one try no page faults."""
    array = np.ones(COUNT)
    for value in range(5):
        array.fill(value)
        assert ask(watch, array) is None
    assert ask(watch, array) is not None
    array.fill(9)
    assert [ask(watch, array) for _ in range(3)] == [None] * 3


@needs_kernel
def test_memory_that_others_may_write_to_is_not_tracked(watch: DirtyTracker, tmp_path: Path) -> None:
    """Shared and file-backed memory has no stamp: its other writers would go unseen."""
    (tmp_path / "file").write_bytes(b"\0" * SMALLEST)
    with mmap.mmap(-1, SMALLEST) as anonymous:
        shared = np.frombuffer(anonymous, np.uint8)
        mapped = np.memmap(tmp_path / "file", np.uint8)
        for array in (shared, mapped):
            assert [ask(watch, array) for _ in range(3)] == [None] * 3
        del shared, array


@needs_kernel
def test_nothing_is_tracked_beside_a_device_driver(watch: DirtyTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device may write to past the kernel's page tables has no stamp; the C library stands for the driver."""
    array = np.ones(COUNT)
    assert [ask(watch, array) for _ in range(2)][1] is not None
    monkeypatch.setattr("isolate._worker.dirty._DRIVERS", (b"libc.so.6",))
    assert ask(watch, array) is None
    assert "driver" in available()


@needs_kernel
def test_memory_that_is_used_again(watch: DirtyTracker) -> None:
    """The stamp of an array that has ended is never that of the next one in its place."""
    seen = set()
    for value in range(20):
        array = np.full(COUNT, value)
        own = {stamp for _ in range(3) if (stamp := ask(watch, array)) is not None}
        assert not own & seen
        seen |= own
        del array
    assert len(seen) == 20
    assert ask(watch, np.ones(8)) is None
    assert len(watch._current) <= 1


@needs_kernel
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_asks_about_its_own_memory(watch: DirtyTracker) -> None:
    """After a fork a child's stamps follow the child's writes, and the parent's are not disturbed."""
    array = np.ones(COUNT)
    before = [ask(watch, array) for _ in range(3)][2]
    child = os.fork()
    if not child:
        good = False
        try:
            mine = [ask(watch, array) for _ in range(3)][2]
            array[0] = 5
            good = mine is not None and ask(watch, array) not in (None, mine)
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ask(watch, array) == before
    array[0] = 6
    assert ask(watch, array) != before


class TestUnchangedArguments(IntegrationTestBase):
    """The same from the outside: what an extension sees is what the array holds."""

    CODE = """
    class Extension:
        def __init__(self, host): self.host = host
        def total(self, value): return float(value.sum())
        def keep(self, value):
            self.value = value
        def kept(self): return float(self.value.sum())
        def result(self):
            import numpy
            if not hasattr(self, "made"):
                self.made = self.host.share(numpy.ones(1 << 20))
            self.made += 1
            return self.made
    """

    def test_an_extension_sees_every_change(self) -> None:
        """Two extensions, one array, writes between the calls; what was kept stays as it was."""
        for name in ("one", "two"):
            self.create_extension(name, self.CODE, dependencies=["numpy>=2"])
        host, loaded = self.load_extensions()
        assert not loaded.errors
        array = np.ones(1 << 20)
        for value in range(1, 4):
            array[:5] = value
            for _ in range(4):
                for name in ("one", "two"):
                    assert host[name].call.total(array) == array.sum()
        host["one"].call.keep(array)
        before = array.sum()
        array[-1] = 100
        for _ in range(4):
            assert host["one"].call.total(array) == array.sum()
            assert host["one"].call.kept() == before
        assert host["two"].stats()["idle"] <= 2

    def test_a_result_that_is_shared(self) -> None:
        """An extension that shares its result hands over the memory itself, read-only."""
        self.create_extension("one", self.CODE, dependencies=["numpy>=2"])
        host, _ = self.load_extensions()
        first = host["one"].call.result()
        assert first[0] == 2
        assert not first.flags.writeable
        second = host["one"].call.result()
        assert second[-1] == first[0] == 3
