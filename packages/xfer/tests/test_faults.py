"""Real processes, real signals: nothing is left behind, nothing stale is readable, nothing leased is overwritten."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xfer
from xfer import errors
from xfer._shared import names
from xfer._shared.lease import Leases, PosixLeases
from xfer._shared.listing import held_segments
from xfer._shared.reader import READER
from xfer._shared.segment import LIFE

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and memfd")
HOLD = "view = xfer.get(bytes.fromhex(arg[0])); say('held'); wait(); say(int(view[0]), int(view[-1]))"


@linux_only
@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(240)])])
def test_kill_of_everything_leaves_nothing(helper: Callable[..., Any], rounds: int) -> None:
    """Producer and readers killed together, again and again: their memory is gone within 2 s, and nothing is named."""
    pids = []
    producer_code = """
pool = xfer.Pool("256MiB"); channel = xfer.Channel(8, pool=pool)
say(bytes(pool.put(np.ones(32 << 20, np.uint8))).hex()); say(bytes(channel.receiver).hex())
while True: channel.sender.send(np.ones(256, np.float32))
"""
    stream = "rx = xfer.Receiver.from_bytes(bytes.fromhex(arg[0])); held = rx.recv(); say('held')\nfor got in rx: pass"
    for _ in range(rounds):
        producer = helper(producer_code)
        processes = [producer, helper(HOLD, producer.line()), helper(stream, producer.line())]
        for reader in processes[1:]:
            assert reader.line() == "held"
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            pids.append(process.pid)
        for process in processes:
            process.process.wait()
        deadline = time.monotonic() + 30
        while any(f"of process {producer.pid}," in held.segment for held in held_segments()):
            assert time.monotonic() < deadline, "somebody still holds memory of a killed producer"
            time.sleep(0.01)
    mine = tuple(f"xfer-{os.getuid()}-{pid}-" for pid in pids)
    assert [name for name in os.listdir("/dev/shm") if name.startswith(mine)] == []


def test_a_slot_that_is_filled_again_before_the_lease_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released and filled again just before the reader has its lease: the handle is stale, and shows no newer array."""
    acquire = Leases.acquire
    with xfer.Pool("1MiB") as pool:
        handle = pool.put(np.full(900_000, 1, np.uint8))
        newer: list[xfer.Handle] = []

        def fill_again_first(fd: int, slot: int) -> None:
            if slot != LIFE and not newer:
                pool.release(handle)
                newer.append(pool.put(np.full(900_000, 2, np.uint8)))
            acquire(fd, slot)

        monkeypatch.setattr(Leases, "acquire", staticmethod(fill_again_first))
        with pytest.raises(errors.StaleHandleError, match="filled again"):
            xfer.get(handle)
        assert newer[0].fields.slot == handle.fields.slot
        assert xfer.get(newer[0])[0] == 2
        pool.release(newer[0])
        assert pool.stats().used == 0, "the failed attempt holds no lease"


@linux_only
def test_killed_reader_gives_the_last_slot_back(helper: Callable[..., Any]) -> None:
    """The only slot, leased by a reader that is killed, is free again with no timeout configured anywhere."""
    with xfer.Pool("1MiB") as pool:
        handle = pool.put(np.full(900_000, 1, np.uint8))
        reader = helper(HOLD, bytes(handle).hex())
        assert reader.line() == "held"
        pool.release(handle)
        with pytest.raises(errors.BudgetExceededError):
            pool.put(np.full(900_000, 2, np.uint8))
        reader.kill()
        assert xfer.get(pool.put(np.full(900_000, 3, np.uint8), timeout=30))[0] == 3


@linux_only
def test_slow_living_reader_keeps_its_slot(helper: Callable[..., Any]) -> None:
    """A reader that is stopped (SIGSTOP) for a while still finds its array untouched."""
    with xfer.Pool("8MiB") as pool:
        handle = pool.put(np.full(1000, 7))
        reader = helper(HOLD, bytes(handle).hex())
        assert reader.line() == "held"
        os.kill(reader.pid, signal.SIGSTOP)
        pool.release(handle)
        for number in range(2000):
            pool.release(pool.put(np.full(1000, number)))
        os.kill(reader.pid, signal.SIGCONT)
        reader.say()
        assert reader.line() == "7 7"


@linux_only
def test_handle_of_a_dead_producer_is_an_error(helper: Callable[..., Any]) -> None:
    """After the producer's end a new reader gets ProducerGoneError, and one that holds the array keeps it."""
    producer = helper(
        "h = xfer.put(np.arange(5)); say(bytes(h).hex()); say(bytes(xfer.put(np.zeros(1<<20))).hex()); wait()"
    )
    raw, other = bytes.fromhex(producer.line()), bytes.fromhex(producer.line())
    view = xfer.get(raw)
    producer.kill()
    assert view.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(errors.ProducerGoneError, match="exited"):
        xfer.get(other)
    del view
    with xfer.Pool("1MiB") as pool:
        held = xfer.get(pool.put(np.zeros(2)))  # a mapping without a view is dropped soon
        assert READER.stats()["mappings"] == 1, "the dead producer's memory was let go at the next mapping"
        del held


@linux_only
def test_reader_can_neither_write_nor_truncate(pool: xfer.Pool) -> None:
    """The kernel refuses writable mappings, mprotect by way of them, writes and truncation of a segment."""
    handle = pool.put(np.arange(1000))
    fd = os.open(f"/proc/{handle.pid}/fd/{handle.fields.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, mmap.PAGESIZE)
        for attempt in (lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 1 << 30), lambda: os.write(fd, b"x")):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.close(fd)
    assert xfer.get(handle)[999] == 999


@linux_only
def test_descriptor_reused_by_the_producer_is_not_mistaken(helper: Callable[..., Any]) -> None:
    """If the producer closed the segment and the number is another file now, the handle is stale."""
    code = """
pool = xfer.Pool(); h = pool.put(np.arange(5)); say(bytes(h).hex()); wait(); pool.close()
fds = [os.open("/dev/zero", os.O_RDONLY) for _ in range(64)]; say("reused"); wait()
"""
    producer = helper(code)
    raw = bytes.fromhex(producer.line())
    producer.say()
    assert producer.line() == "reused"
    with pytest.raises(errors.ProducerGoneError, match="something else"):
        xfer.get(raw)


@linux_only
def test_ten_thousand_arrays_under_64_descriptors(helper: Callable[..., Any]) -> None:
    """10,000 live arrays of 4 KB, put and held with RLIMIT_NOFILE=64 on both sides."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    producer = helper(
        limit
        + """
pool = xfer.Pool("1GiB")
handles = [pool.put(np.full(1024, n, np.float32)) for n in range(10_000)]
say(len(os.listdir("/proc/self/fd")))
for h in handles: say(bytes(h).hex())
wait()
"""
    )
    assert int(producer.line()) < 64
    reader = helper(
        limit
        + """
views = [xfer.get(bytes.fromhex(wait())) for _ in range(10_000)]
assert all(view[0] == view[-1] == n for n, view in enumerate(views)); say("good")
"""
    )
    assert reader.process.stdin
    for _ in range(10_000):
        reader.process.stdin.write(producer.line() + "\n")
    reader.process.stdin.flush()
    assert reader.line() == "good"


@linux_only
def test_fork_with_live_leases(pool: xfer.Pool) -> None:
    """A forked child keeps its own lease on what it inherited, whatever the parent lets go of."""
    handle = pool.put(np.full(1000, 7))
    view = xfer.get(handle)
    go, ready = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go[0], 1)
        os._exit(0 if (view == 7).all() else 1)
    for fd in (*ready, go[0]):
        os.close(fd)
    del view
    pool.release(handle)
    for number in range(300):
        pool.release(pool.put(np.full(1000, number)))
    assert pool.stats().waiting_for_readers == 1
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(go[1])
    assert pool.stats().waiting_for_readers == 0


@linux_only
def test_fork_in_the_child_releasing_first(pool: xfer.Pool) -> None:
    """The child's release and end do not take the parent's lease away."""
    handle = pool.put(np.full(1000, 7))
    view = xfer.get(handle)
    child = os.fork()
    if child == 0:
        del view
        os._exit(0)
    os.waitpid(child, 0)
    pool.release(handle)
    assert pool.stats().waiting_for_readers == 1
    assert (view == 7).all()


@linux_only
def test_a_forked_child_may_not_use_the_parents_pool(pool: xfer.Pool) -> None:
    """In the child the pool is closed, the default pool is a new one, and the parent's arrays can be read."""
    handle = pool.put(np.arange(3))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            pool.put(np.zeros(1))
        except errors.PoolClosedError:
            own = xfer.put(np.full(3, 2))
            status = int(not (xfer.get(own).sum() == 6 and xfer.get(handle).sum() == 3))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert xfer.get(handle).sum() == 3
    pool.release(handle)


@linux_only
def test_out_of_descriptors_evicts_idle_mappings() -> None:
    """A reader at its descriptor limit drops mappings that nobody looks at, and goes on."""
    with xfer.Pool("64MiB") as pool:
        handles = [pool.put(np.full(300_000 + number, number, np.uint8)) for number in range(30)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for handle in handles[:5]:
            xfer.get(handle)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            assert [int(xfer.get(handle)[0]) for handle in handles] == list(range(30))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_kept_mappings_are_bounded(pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of many segments keeps the mappings in use and a limited number of others."""
    monkeypatch.setattr("xfer._shared.reader.KEPT_MAPPINGS", 3)
    READER.trim()
    handles = [pool.put(np.full(300_000 + number, number, np.uint8)) for number in range(8)]
    first = xfer.get(handles[0])
    for number, handle in enumerate(handles):
        assert xfer.get(handle)[0] == number
    assert READER.stats()["mappings"] <= 3
    assert READER.leases(int(handles[0].fields.segment), handles[0].fields.slot) == 1
    assert (first == 0).all()
    held = [xfer.get(handle) for handle in handles]  # more in use than are kept otherwise
    assert READER.stats()["mappings"] == 8
    assert [int(view[0]) for view in held] == list(range(8))


def test_named_segments_work_and_are_removed(helper: Callable[..., Any]) -> None:
    """The named backend hands arrays to another process and unlinks everything at the end."""
    with xfer.Pool("8MiB", backend="named") as pool:
        handle = pool.put(np.arange(1000))
        mode = [os.stat(path).st_mode & 0o777 for pid, path, _ in names.listing() if pid == os.getpid()]
        assert set(mode) == {0o600}
        other = helper("v = xfer.get(bytes.fromhex(arg[0])); say(int(v.sum())); wait()", bytes(handle).hex())
        assert other.line() == "499500"
        pool.release(handle)
        assert pool.stats().waiting_for_readers == 1
        other.end()
        assert pool.stats().waiting_for_readers == 0
        pool.trim()
        with pytest.raises(errors.StaleHandleError):
            xfer.get(handle)
    assert [entry for entry in names.listing() if entry[0] == os.getpid()] == []


def test_named_segments_of_killed_processes_are_swept(own_directory: None, helper: Callable[..., Any]) -> None:
    """What a killed process left by name goes when the next named pool starts; a live one's stays."""
    code = "pool = xfer.Pool(backend='named'); h = pool.put(np.arange(9)); say(bytes(h).hex()); wait()"
    dead, alive = helper(code), helper(code)
    raw, kept = bytes.fromhex(dead.line()), bytes.fromhex(alive.line())
    dead.kill()
    assert not any(pid == dead.pid and lives for pid, _, lives in names.listing())
    with xfer.Pool("1MiB", backend="named"):
        assert not any(pid == dead.pid for pid, _, _ in names.listing())
    assert xfer.get(kept)[8] == 8
    with pytest.raises(errors.ProducerGoneError):
        xfer.get(raw)
    alive.end()


def test_a_new_sign_of_life_is_not_swept(own_directory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that falls between making the sign of life and locking it does not declare the living dead."""
    met: list[str] = []
    real = os.open

    def open_and_be_swept(path: str, flags: int, *mode: int, **options: Any) -> int:
        fd = real(path, flags, *mode, **options)
        if flags & os.O_EXCL and not met:
            met.append(path)
            assert path in names.reap()
        return fd

    monkeypatch.setattr(os, "open", open_and_be_swept)
    with xfer.Pool("1MiB", backend="named") as pool:
        handle = pool.put(np.arange(3))
        assert met
        assert not any(f"-{os.getpid()}-" in path for path in names.reap())
        assert xfer.get(handle).tolist() == [0, 1, 2]
        assert all(alive for pid, _, alive in names.listing() if pid == os.getpid())


@linux_only
def test_full_shared_memory_is_a_typed_error() -> None:
    """With a full /dev/shm a named pool says what was asked and what there is, and smaller requests go on."""
    code = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PRIVATE, RECURSIVE_PRIVATE = 0x20000 | (0 if os.getuid() == 0 else 0x10000000), 0x44000
if libc.unshare(PRIVATE) or libc.mount(b"none", b"/", None, RECURSIVE_PRIVATE, None) or \\
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=2m"):
    print("cannot mount"); sys.exit()
import numpy as np, xfer
pool = xfer.Pool("1GiB", backend="named")
try: pool.put(np.zeros(4 << 20, np.uint8))
except xfer.errors.BudgetExceededError as error: print("typed", error.asked >= 4 << 20, error.available <= 2 << 20)
print(int(xfer.get(pool.put(np.ones(300_000, np.uint8))).size))
pool.close()
filler = os.open("/dev/shm/filler", os.O_CREAT | os.O_WRONLY)
try:
    while True: os.write(filler, bytes(1 << 16))
except OSError: pass
try: xfer.Topic("full", pool=xfer.Pool("1MiB")).publish(np.zeros(3))
except xfer.errors.BudgetExceededError as error: print("typed", "no room" in str(error))
os.unlink("/dev/shm/filler"); os.close(filler)
topic = xfer.Topic("full"); topic.publish(np.zeros(3)); topic.remove(); print("published")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    if done.stdout.startswith("cannot"):
        pytest.skip("this user may not mount a small /dev/shm")
    assert done.stdout.splitlines() == ["typed True True", "300000", "typed True", "published"]


def test_posix_locks_serve_where_there_are_no_better_ones(tmp_path: Any, helper: Callable[..., Any]) -> None:
    """The macOS locks see another process's lease, and lose it when that process is killed."""
    path = tmp_path / "segment"
    path.write_bytes(b"x")
    code = """
from xfer._shared.lease import PosixLeases
from xfer._shared.listing import held_segments
fd = os.open(arg[0], os.O_RDONLY); PosixLeases.acquire(fd, 5); PosixLeases.acquire(fd, 6); PosixLeases.release(fd, 6)
say("held"); wait()
"""
    fd = os.open(path, os.O_RDWR)
    try:
        assert not PosixLeases.held(fd, 0, 10)
        other = helper(code, str(path))
        assert other.line() == "held"
        assert PosixLeases.held(fd, 0, 10)
        assert PosixLeases.held(fd, 5, 1)
        assert not PosixLeases.held(fd, 6, 1)
        other.kill()
        assert not PosixLeases.held(fd, 0, 10)
    finally:
        os.close(fd)


def test_without_posix_locks_the_error_is_typed() -> None:
    """Where fcntl does not exist (Windows) importing works and sharing says what is missing."""
    code = """
import os, subprocess, sys, tempfile, numpy as np
del os.sysconf
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.platform = "win32"
import xfer
from xfer import _cli as cli
for attempt in (xfer.Pool, lambda: xfer.put(np.zeros(1)), xfer.default_pool):
    try: attempt()
    except xfer.errors.UnsupportedPlatformError as error: print(isinstance(error, OSError), error)
print(cli.main(["ls"]), cli.main(["reap"]), cli.main(["doctor", "--json"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert all(line.startswith("True sharing memory between processes needs POSIX file locks") for line in said[:3])
    assert said[-1] == "2 2 1"
    assert len(done.stderr.splitlines()) == 2


@linux_only
def test_segments_are_locked_while_the_producer_lives(pool: xfer.Pool) -> None:
    """The producer holds a lock on each segment that every other opening can see, until it ends."""
    handle = pool.put(np.zeros(1))
    fd = os.open(f"/proc/{handle.pid}/fd/{handle.fields.fd}", os.O_RDONLY)
    try:
        assert Leases.held(fd, LIFE, 1)
        pool.close()
        assert not Leases.held(fd, LIFE, 1)
    finally:
        os.close(fd)


@pytest.mark.slow
@linux_only
@pytest.mark.timeout(240)
def test_two_gibibytes_and_eight_bytes() -> None:
    """An array past the 31-bit boundary goes through whole."""
    with xfer.Pool("3GiB") as pool:
        size = (1 << 31) + 8
        loan = pool.loan(size, np.uint8)
        with loan as array:
            array[-8:] = 9
        assert xfer.get(loan.handle)[-8:].tolist() == [9] * 8


@pytest.mark.slow
@linux_only
@pytest.mark.timeout(240)
def test_steady_state_is_flat(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """200 hand-offs of 16 MiB: fewer than 64 page faults each on either side, descriptors and mappings flat."""
    code = """
import resource
rx = xfer.Receiver.from_bytes(bytes.fromhex(arg[0])); marks = []
for number, array in enumerate(rx):
    array.view(np.int64).sum(); del array
    if number in (19, 219):
        fds = len(os.listdir("/proc/self/fd")); maps = sum(1 for _ in open("/proc/self/maps"))
        marks.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt, fds, maps))
say((marks[1][0] - marks[0][0]) / 200, marks[1][1] - marks[0][1], marks[1][2] - marks[0][2])
"""
    source = np.ones(16 << 20, np.uint8)
    with xfer.Channel(2, pool=pool) as channel:
        reader = helper(code, bytes(channel.receiver).hex())
        for number in range(220):
            channel.sender.send(source, timeout=30)
            if number == 19:
                start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        mine = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start) / 200
        channel.sender.close(timeout=30)
        faults, descriptors, mappings = reader.line().split()
    assert mine < 64
    assert float(faults) < 64
    assert int(descriptors) <= 2  # those of one more segment, if the reader was late once
    assert abs(int(mappings)) <= 4
