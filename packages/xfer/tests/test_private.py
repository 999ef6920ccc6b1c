"""Tensors over private memory: what one reader wrote is never in the next array, though the mapping is the same one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import xfer
from xfer._shared import private
from xfer._shared.private import PAGE, PrivateMap

MIB = 1 << 20
told = pytest.mark.skipif(not private.pages_are_told(), reason="the system does not tell which pages were written")


def batch(step: int, size: int = MIB) -> torch.Tensor:
    """Return a tensor whose elements differ from one to the next and from step to step."""
    return torch.arange(size, dtype=torch.int32) * 7 + step


def test_what_a_reader_wrote_is_not_in_the_next_array(pool: xfer.Pool) -> None:
    """Nothing, a part, single pages or all of it is written; arrays of other sizes follow in the same slot."""
    writes: list[Any] = [
        lambda t: None, lambda t: t.zero_(), lambda t: t[5:6].fill_(9), lambda t: t[:: PAGE // 2].neg_(),
        lambda t: t[len(t) // 2 :].add_(3), lambda t: t.mul_(2),
    ]  # fmt: skip
    with xfer.Channel(2, pool=pool) as channel:
        for step in range(24):
            want = batch(step, MIB - (step % 3) * 1000)
            channel.sender.send({"a": want[:1000], "b": want[1000:]} if step % 2 else want, timeout=5)
            got = channel.receiver.recv(timeout=5, as_="torch")
            whole = torch.cat(list(got.values())) if step % 2 else got
            assert torch.equal(whole, want), step
            for tensor in got.values() if step % 2 else [got]:
                writes[step % len(writes)](tensor)
            del got, whole, tensor


@told
def test_the_mapping_is_used_again(pool: xfer.Pool) -> None:
    """Also for another array of the slot; two arrays at the same time have one each, and neither sees the other."""
    handle = pool.put(batch(1))
    first = xfer.get(handle, as_="torch")
    address = first.data_ptr()
    second = xfer.get(handle, as_="torch")
    assert second.data_ptr() != address
    first.zero_()
    assert torch.equal(second, batch(1))
    del first
    third = xfer.get(handle, as_="torch")
    assert third.data_ptr() == address
    assert torch.equal(third, batch(1))
    pool.release(handle)
    del third, second  # the first of them is kept
    handle = pool.put(batch(2))
    again = xfer.get(handle, as_="torch")
    assert again.data_ptr() == address
    assert torch.equal(again, batch(2))


@told
def test_memory_that_was_written_is_given_back_with_the_array(pool: xfer.Pool) -> None:
    """The mapping that is kept holds no page of its own."""
    handle = pool.put(batch(1))
    tensor = xfer.get(handle, as_="torch")
    address = tensor.data_ptr() // PAGE * PAGE
    tensor.zero_()
    assert anonymous_kib(address) >= 4 * MIB >> 10
    del tensor
    assert anonymous_kib(address) == 0
    pool.release(handle)


def anonymous_kib(address: int) -> int:
    """Return how much memory of its own a mapping has that starts at this address."""
    with open("/proc/self/smaps") as file:
        text = file.read()
    found = re.search(rf"^{address:x}-.*?^Anonymous: +(\d+) kB", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return int(found[1])


@told
def test_a_moment_without_memory_costs_only_the_mapping(pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The array that ends then is followed by a right one, no call raises, and the next mapping is kept again."""

    def refuse(fd: int, count: int, offset: int) -> bytes:
        raise MemoryError

    handle = pool.put(batch(5))
    lease = xfer.get(handle)  # without one the mapping of the segment ends after a moment
    tensor = xfer.get(handle, as_="torch")
    tensor.zero_()
    with monkeypatch.context() as spent:
        spent.setattr(os, "pread", refuse)
        del tensor
        xfer.get(pool.put(batch(6, 10)))  # a call that finds the array that ended
    for _ in range(2):
        tensor = xfer.get(handle, as_="torch")
        assert torch.equal(tensor, batch(5))
        address = tensor.data_ptr()
        tensor.zero_()
        del tensor
    assert xfer.get(handle, as_="torch").data_ptr() == address
    del lease


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(["put", "get", "get", "write", "drop", "release"]), st.integers(0, 1 << 16))))
def test_any_order_of_calls_shows_what_was_put_and_what_was_written(
    pool: xfer.Pool, calls: list[tuple[str, int]]
) -> None:
    """Every tensor equals a plain copy that has the same writes, however slots and mappings are used again."""
    live: list[tuple[xfer.Handle, torch.Tensor]] = []
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for step, (call, number) in enumerate([("put", 0), *calls]):
            if call == "put" or not live:
                want = batch(step, 20_000 + number % 3 * 30_000)
                live.append((pool.put(want if number % 2 else {"a": want}), want))
            elif call == "get":
                handle, want = live[number % len(live)]
                got = xfer.get(handle, as_="torch")
                held.append((got["a"] if isinstance(got, dict) else got, want.clone()))
                del got
            elif call == "write" and held:
                for tensor in held[number % len(held)]:
                    tensor[number % 20_000 :: 1 + number % 3000] = -step
                del tensor
            elif call == "drop" and held:
                held.pop(number % len(held))
            elif call == "release":
                pool.release(live.pop(number % len(live))[0])
            assert all(torch.equal(tensor, want) for tensor, want in held)
    finally:
        for handle, _ in live:
            pool.release(handle)


def test_threads_that_receive_at_the_same_time_see_what_was_put(pool: xfer.Pool) -> None:
    """Each writes to its own tensors of the same two slots, and drops them while the others take theirs."""
    values = [batch(1, 50_000), batch(2, 60_000)]
    handles = [pool.put(value) for value in values]
    wrong: list[str] = []

    def receive(number: int) -> None:
        for step in range(40):
            which = (number + step) % 2
            tensor = xfer.get(handles[which], as_="torch")
            if not torch.equal(tensor, values[which]):
                wrong.append(f"thread {number}, step {step}")
            tensor[step::7] = -number
            if int(tensor[step]) != -number:
                wrong.append(f"thread {number}, written in step {step}")
            del tensor

    threads = [threading.Thread(target=receive, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize("limit", ["memory", "descriptors", "user"])
def test_arrays_are_right_under_a_limit(limit: str) -> None:
    """Without memory or descriptors a typed error refuses a call; an ordinary user may not read the pages' table."""
    if limit == "user" and os.geteuid() != 0:
        pytest.skip("becomes another user")
    program = Path(__file__).parent / "workers" / "private_churn.py"
    done = subprocess.run([sys.executable, str(program), limit], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0


@pytest.mark.parametrize("fault", ["closed", "empty", "none is told"])
def test_where_the_system_does_not_tell_memory_is_mapped_anew(
    pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A kernel without, or with another meaning of, this file: the arrays are right all the same."""
    plain_open, plain_pread = os.open, os.pread

    def opening(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == "/proc/self/pagemap" and fault == "closed":
            raise PermissionError(1, "Operation not permitted")
        return plain_open(path, *args, **kwargs)

    def reading(fd: int, count: int, offset: int) -> bytes:
        if fault != "closed" and "pagemap" in os.readlink(f"/proc/self/fd/{fd}"):
            return b"" if fault == "empty" else bytes(count)
        return plain_pread(fd, count, offset)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "pread", reading)
    monkeypatch.setattr(private, "_told", None)
    handle = pool.put(batch(3))
    for _ in range(3):
        tensor = xfer.get(handle, as_="torch")
        assert torch.equal(tensor, batch(3))
        tensor.zero_()
        del tensor
    assert not private.pages_are_told()


@told
def test_an_attempt_that_finds_no_descriptor_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails for a moment does not slow the process down for ever."""

    def refuse(_: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(private, "_told", None)
    with monkeypatch.context() as spent:
        spent.setattr(private, "new_memory", refuse)
        assert not private.pages_are_told()
    assert private.pages_are_told()


@told
@example(pages=set(range(0, 41, 2)), lead=64, beyond=True)  # too many runs to give up one at a time
@example(pages=set(range(41)), lead=0, beyond=False)
@given(st.sets(st.integers(0, 40)), st.integers(0, 3 * PAGE), st.booleans())
def test_exactly_the_pages_that_were_written_are_given_up(pages: set[int], lead: int, beyond: bool) -> None:
    """Wherever the slot starts, and however many runs of pages there are."""
    lead -= lead % 64
    fd = os.memfd_create("test")
    try:
        room = 44 * PAGE
        content = np.random.default_rng(0).integers(1, 255, lead + room, np.uint8)
        os.pwrite(fd, content.tobytes(), 0)
        mapping = PrivateMap(fd, lead, room)
        view = mapping.array(41 * PAGE + 5)
        assert np.array_equal(view, content[lead:][: view.size])
        for page in pages:
            view[page * PAGE] = 0
        del view
        assert mapping.reset()
        changed = content[::-1].copy()
        os.pwrite(fd, changed.tobytes(), 0)
        view = mapping.array(room if beyond else 100)
        assert np.array_equal(view, changed[lead:][: view.size])
    finally:
        os.close(fd)


def test_a_forked_child_and_its_parent_do_not_see_each_others_writes(pool: xfer.Pool) -> None:
    """A kept mapping and one in use go through a fork; the child uses NumPy, since torch's threads are not forked."""
    wanted = batch(4).numpy()
    handle = pool.put(wanted)
    spare, used = xfer.get(handle, as_="torch"), xfer.get(handle, as_="torch")
    used[0] = -1
    del spare
    child = os.fork()
    if child == 0:
        code = 1
        try:
            used.numpy()[1:] = 0
            mine = xfer.get(handle, as_="torch").numpy()
            mine[7] = 0
            right = np.array_equal(mine[8:], wanted[8:])
            del used
            again = xfer.get(handle, as_="torch").numpy()
            code = 0 if right and np.array_equal(again, wanted) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(used[1:], batch(4)[1:])
    assert used[0] == -1
    assert torch.equal(xfer.get(handle, as_="torch"), batch(4))
