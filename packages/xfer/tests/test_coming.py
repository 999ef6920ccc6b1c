"""A waiting receiver makes a large tree while the sender copies its arrays, and shows it only when they are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import xfer
from xfer import errors

COUNT = 800_000  # so that the copy takes longer than to make the tree


@pytest.fixture
def channel(pool: xfer.Pool) -> Iterator[xfer.Channel]:
    """A channel whose two ends are attached in this process."""
    with xfer.Channel(4, pool=pool) as channel:
        channel.receiver.attach()
        channel.sender.attach()
        yield channel


def tree(value: float) -> dict[str, Any]:
    """Return a large tree of tensors."""
    return {"a": torch.full((COUNT,), value), "b": [torch.full((2, COUNT), value), value]}


def check(got: Any, value: float) -> None:
    """Check that a tree is the one of a value, as arrays or as tensors."""
    assert got["b"][1] == value
    for array in (got["a"], got["b"][0]):
        assert bool((array == value).all())


def put_while(channel: xfer.Channel, pool: xfer.Pool, value: Any, meanwhile: Callable[[], None]) -> xfer.Handle:
    """Put a tree as a sender does; call a function when it was shown and its arrays are not there yet."""
    sender: Any = channel.sender

    def coming(handle: xfer.Handle) -> None:
        sender._show(sender._ring, handle)
        meanwhile()

    return pool.put_tree(value, coming)


def wait_in_vain(channel: xfer.Channel, library: Any) -> Any:
    """Wait for a message that does not come, and return what the receiver has made meanwhile."""
    receiver: Any = channel.receiver
    with pytest.raises(errors.WaitTimeoutError):
        receiver.recv(timeout=0.01, as_=library)
    return receiver._coming


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_tree_is_made_while_it_is_copied(channel: xfer.Channel, pool: xfer.Pool, library: Any) -> None:
    """It is the receiver's when the message comes, with every value, again and again in the same memory."""
    for value in (1.0, 2.0, 3.0):
        made: list[Any] = []
        handle = put_while(channel, pool, tree(value), lambda made=made: made.append(wait_in_vain(channel, library)))  # type: ignore[misc]
        assert wait_in_vain(channel, library) is made[0]
        channel.sender.send(handle)
        got = channel.receiver.recv(timeout=5, as_=library)
        assert got is made.pop().tree
        check(got, value)
        if library == "torch":
            got["a"].add_(1)
        del got
        pool.release(handle)
    channel.sender.flush(5)
    assert (pool.stats().live, pool.stats().waiting_for_readers) == (0, 0)


def test_it_is_made_anew_where_another_library_is_asked_for(channel: xfer.Channel, pool: xfer.Pool) -> None:
    """A tree that was made for one call of `recv` is not what another call returns in another library."""
    handle = put_while(channel, pool, tree(1.0), lambda: wait_in_vain(channel, "numpy"))
    channel.sender.send(handle)
    got = channel.receiver.recv(timeout=5, as_="torch")
    assert isinstance(got["a"], torch.Tensor)
    check(got, 1.0)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_tree_that_needs_copies_waits_for_its_arrays(channel: xfer.Channel, pool: xfer.Pool, library: Any) -> None:
    """Torch has no foreign byte order: such a tensor is a copy, which is not made before there is something to copy."""
    value = {"a": np.full(COUNT, 3, ">f4"), "b": [torch.full((2, COUNT), 3.0, dtype=torch.float64), 3.0]}
    made: list[Any] = []
    handle = put_while(channel, pool, value, lambda: made.append(wait_in_vain(channel, library)))
    assert (made[0].tree is None) == (library == "torch")
    channel.sender.send(handle)
    check(channel.receiver.recv(timeout=5, as_=library), 3.0)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_tree_whose_copy_fails_is_never_seen(channel: xfer.Channel, pool: xfer.Pool, library: Any) -> None:
    """What was made for it is let go of with the next message, which may lie in the same slot."""

    def fail() -> None:
        assert wait_in_vain(channel, library).tree is not None
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        put_while(channel, pool, tree(1.0), fail)
    wait_in_vain(channel, library)
    for value in (2.0, 3.0):
        channel.sender.send(tree(value), timeout=5)
        check(channel.receiver.recv(timeout=5, as_=library), value)
    channel.sender.flush(5)
    assert (pool.stats().live, pool.stats().waiting_for_readers) == (0, 0)


@pytest.mark.parametrize("size", [3, 100_000])
def test_another_message_may_come_first(channel: xfer.Channel, pool: xfer.Pool, size: int) -> None:
    """Another thread may send while a tree is copied: its message is the next one, and the tree comes after it."""

    def overtake() -> None:
        assert wait_in_vain(channel, "torch").tree is not None
        channel.sender.send(np.arange(size), timeout=5)

    handle = put_while(channel, pool, tree(1.0), overtake)
    channel.sender.send(handle)
    assert channel.receiver.recv(timeout=5).tolist() == list(range(size))
    check(channel.receiver.recv(timeout=5, as_="torch"), 1.0)


def test_a_stream_between_threads_shows_every_value(channel: xfer.Channel) -> None:
    """Copies and preparations run at the same time, and each tree has its own values when it is received."""
    values = [float(number) for number in range(1, 13)]

    def send() -> None:
        for value in values:
            channel.sender.send(tree(value), timeout=60)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for number, value in enumerate(values):
            check(channel.receiver.recv(timeout=60, as_="torch" if number % 3 else "numpy"), value)
    finally:
        thread.join(60)


SENDER = """
import os, signal, sys
import torch, xfer
sender = xfer.Sender.from_bytes(bytes.fromhex(sys.argv[1]))
sender.attach()
pool = xfer.Pool("64MiB")
def coming(handle):
    sender._show(sender._ring, handle)
    print("shown", flush=True)
    signal.pause()
pool.put_tree({"a": torch.ones(3_000_000)}, coming)
"""


def test_a_sender_that_is_killed_while_it_copies_has_died(pool: xfer.Pool) -> None:
    """The receiver says so as ever, sees nothing of the tree, keeps nothing of it, and goes on with the next sender."""
    with xfer.Channel(4, pool=pool) as channel:
        receiver: Any = channel.receiver
        receiver.attach()
        token = bytes(channel.sender).hex()
        with subprocess.Popen([sys.executable, "-c", SENDER, token], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "shown\n"
                assert wait_in_vain(channel, "torch").tree is not None
            finally:
                os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(errors.PeerDiedError):
            receiver.recv(timeout=30, as_="torch")
        assert receiver._coming is None
        channel.sender.send(tree(2.0), timeout=30)
        check(receiver.recv(timeout=30, as_="torch"), 2.0)


def test_a_receiver_that_closes_lets_go_of_what_it_has_made(channel: xfer.Channel, pool: xfer.Pool) -> None:
    """Also in a child that was forked meanwhile: the slot comes back while that child lives."""
    pipe = os.pipe()

    def fork_and_close() -> None:
        assert wait_in_vain(channel, "torch").tree is not None
        pid = os.fork()
        if not pid:
            os.close(pipe[1])
            os.read(pipe[0], 1)
            os._exit(0)
        children.append(pid)
        channel.receiver.close()

    children: list[int] = []
    try:
        pool.release(put_while(channel, pool, tree(1.0), fork_and_close))
        deadline = time.monotonic() + 30
        while pool.stats().waiting_for_readers and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.stats().waiting_for_readers == 0
    finally:
        for end in pipe:
            os.close(end)
        for pid in children:
            os.waitpid(pid, 0)
