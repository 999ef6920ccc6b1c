"""Channels: order, back-pressure, fan-out, closing, and the death of either side."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xfer
from xfer import errors
from xfer._channel.channel import Receiver, Sender
from xfer._channel.ring import Ring

ECHO = """
rx = xfer.Receiver.from_bytes(bytes.fromhex(arg[0])); tx = xfer.Sender.from_bytes(bytes.fromhex(arg[1]))
with tx:
    for array in rx: tx.send(array)
"""
SINK = """
rx = xfer.Receiver.from_bytes(bytes.fromhex(arg[0])); rx.attach(); say("ready")
wait()
total = 0
for array in rx: total += int(array.sum())
say(total)
"""


@pytest.fixture
def channel(pool: xfer.Pool) -> Iterator[xfer.Channel]:
    """A channel for four arrays from the test's pool."""
    with xfer.Channel(4, pool=pool) as made:
        yield made


@pytest.mark.parametrize("spin", [0.0, 50e-6], ids=["sleeping", "spinning"])
def test_arrays_go_there_and_back(helper: Callable[..., Any], spin: float) -> None:
    """What comes back through two channels and another process is what went in, in order."""
    with xfer.Channel(8, spin=spin) as there, xfer.Channel(8, spin=spin) as back:
        helper(ECHO, bytes(there.receiver).hex(), bytes(back.sender).hex())
        for size in (0, 1, 1000, 300_000):
            for number in range(5):
                there.sender.send(np.full(size, number))
                assert (back.receiver.recv(timeout=30) == number).all()
        there.sender.close()
        with pytest.raises(errors.ChannelClosedError):
            back.receiver.recv(timeout=30)


def test_channel_is_bounded(channel: xfer.Channel, pool: xfer.Pool) -> None:
    """A full channel makes the sender wait, and a taken message lets it go on."""
    for number in range(4):
        channel.sender.send(np.full(3, number), timeout=0)
    with pytest.raises(errors.WaitTimeoutError):
        channel.sender.send(np.zeros(3), timeout=0.05)
    assert channel.receiver.recv(timeout=1)[0] == 0
    channel.sender.send(np.full(3, 4), timeout=5)
    assert [int(channel.receiver.recv(timeout=1)[0]) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(TimeoutError, match="nothing was sent"):
        channel.receiver.recv(timeout=0.02)
    channel.sender.flush(timeout=1)
    assert pool.stats().live == 0


def test_sender_waits_for_the_budget(helper: Callable[..., Any]) -> None:
    """A spent budget is back-pressure too: all arrays arrive though only two fit at a time."""
    with xfer.Pool("2MiB") as pool, xfer.Channel(16, pool=pool) as channel:
        sink = helper(SINK, bytes(channel.receiver).hex())
        assert sink.line() == "ready"
        sink.say()
        for _ in range(30):
            channel.sender.send(np.ones(900_000, np.uint8), timeout=30)
        channel.sender.close(timeout=30)
        assert sink.line() == str(30 * 900_000)


def test_held_arrays_are_back_pressure(pool: xfer.Pool) -> None:
    """If the receiver looks at all that the budget holds, sending times out and nothing is overwritten."""
    with xfer.Pool("1MiB") as small, xfer.Channel(4, pool=small) as channel:
        channel.sender.send(np.full(900_000, 1, np.uint8))
        held = channel.receiver.recv(timeout=5)
        with pytest.raises(errors.WaitTimeoutError):
            channel.sender.send(np.full(900_000, 2, np.uint8), timeout=0.1)
        assert held.min() == held.max() == 1
        with pytest.raises(errors.BudgetExceededError):
            channel.sender.send(np.zeros(2 << 20, np.uint8), timeout=0.1)


def test_one_array_goes_to_many_without_more_copies(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """A handle is sent as it is: four readers, one copy in shared memory."""
    channels = [xfer.Channel(2, pool=pool) for _ in range(4)]
    sinks = [helper(SINK, bytes(channel.receiver).hex()) for channel in channels]
    for sink in sinks:
        assert sink.line() == "ready"
    handle = pool.put(np.ones(100_000, np.uint8))
    for channel in channels:
        channel.sender.send(handle)
    assert pool.stats().live == 1
    pool.release(handle)
    for sink, channel in zip(sinks, channels, strict=True):
        sink.say()
        channel.sender.close(timeout=30)
        assert sink.line() == "100000"
        channel.close()
    assert pool.stats().live == 0


def test_receiver_that_dies_releases_what_was_in_flight(
    channel: xfer.Channel, pool: xfer.Pool, helper: Callable[..., Any]
) -> None:
    """Kill -9 of the receiver raises at the sender, and the slots come back."""
    sink = helper(SINK, bytes(channel.receiver).hex())
    assert sink.line() == "ready"
    for _ in range(4):
        channel.sender.send(np.zeros(1000))
    threading.Timer(0.1, os.kill, (sink.pid, signal.SIGKILL)).start()
    with pytest.raises(errors.PeerDiedError):
        channel.sender.send(np.zeros(1000), timeout=30)
    assert pool.stats().live == 0
    assert pool.stats().waiting_for_readers == 0


def test_sender_that_dies_is_noticed(helper: Callable[..., Any]) -> None:
    """Kill -9 of the sender wakes a receiver that waits without a timeout."""
    with xfer.Channel() as channel:
        code = "tx = xfer.Sender.from_bytes(bytes.fromhex(arg[0])); tx.send(np.ones(3)); say('sent'); wait()"
        source = helper(code, bytes(channel.sender).hex())
        assert source.line() == "sent"
        assert channel.receiver.recv(timeout=60).sum() == 3
        threading.Timer(0.1, os.kill, (source.pid, signal.SIGKILL)).start()
        with pytest.raises(errors.PeerDiedError):
            channel.receiver.recv()


def poll(receiver: Receiver) -> Any:
    """Look until something comes, as a program with a loop of its own would."""
    for _ in range(100_000):
        with contextlib.suppress(errors.WaitTimeoutError):
            return receiver.recv(timeout=0)
        time.sleep(0.0001)
    raise AssertionError("nothing came")


def test_a_receiver_that_only_looks_sees_every_end(helper: Callable[..., Any]) -> None:
    """`recv(timeout=0)` finds arrays, a killed sender, the next sender and a closed one."""
    with xfer.Channel() as channel:
        code = (
            "tx = xfer.Sender.from_bytes(bytes.fromhex(arg[0])); tx.send(np.ones(3)); say('sent'); wait(); tx.close()"
        )
        for ends in (signal.SIGKILL, None):
            source = helper(code, bytes(channel.sender).hex())
            assert source.line() == "sent"
            assert poll(channel.receiver).sum() == 3
            with pytest.raises(errors.WaitTimeoutError):
                channel.receiver.recv(timeout=0)
            if ends is None:
                source.say()
            else:
                source.kill()
            with pytest.raises(errors.ChannelClosedError if ends is None else errors.PeerDiedError):
                poll(channel.receiver)
            assert channel.receiver.ready()
    with xfer.Channel() as channel:
        channel.sender.attach()
        for _ in range(2):
            with pytest.raises(errors.WaitTimeoutError):
                channel.receiver.recv(timeout=0)
        channel.sender.send(np.ones(3))
        assert channel.receiver.recv(timeout=0).sum() == 3
        with pytest.raises(errors.WaitTimeoutError):
            channel.receiver.recv(timeout=0)
        channel.sender.close()
        with pytest.raises(errors.ChannelClosedError):
            channel.receiver.recv(timeout=0)


def test_arrays_of_a_dead_sender_are_an_error(helper: Callable[..., Any]) -> None:
    """What a killed sender had sent and nobody had taken is gone, and that is said."""
    with xfer.Channel() as channel:
        code = "tx = xfer.Sender.from_bytes(bytes.fromhex(arg[0])); tx.send(np.ones(3)); say('sent'); wait()"
        source = helper(code, bytes(channel.sender).hex())
        assert source.line() == "sent"
        source.kill()
        with pytest.raises(errors.PeerDiedError, match="memory"):
            channel.receiver.recv()


def test_close_waits_until_everything_is_taken(helper: Callable[..., Any]) -> None:
    """A sender that closes and exits loses nothing."""
    with xfer.Channel() as channel:
        code = """
with xfer.Sender.from_bytes(bytes.fromhex(arg[0])) as tx:
    for number in range(10): tx.send(np.full(10, number))
"""
        helper(code, bytes(channel.sender).hex())
        assert [int(array[0]) for array in channel.receiver] == list(range(10))


def test_close_by_the_receiver_stops_the_sender(channel: xfer.Channel, pool: xfer.Pool) -> None:
    """After the receiver closed, sending raises and nothing stays behind."""
    channel.sender.send(np.zeros(3))
    channel.receiver.recv(timeout=5)
    channel.receiver.close()
    channel.receiver.close()
    with pytest.raises(errors.ChannelClosedError):
        channel.sender.send(np.zeros(3))
    with pytest.raises(errors.ChannelClosedError):
        channel.receiver.recv()
    channel.sender.close()
    with pytest.raises(errors.ChannelClosedError):
        channel.sender.send(np.zeros(3))
    assert pool.stats().live == 0


def fill_and_fail(channel: xfer.Channel) -> None:
    """Send an array that nobody takes, and raise."""
    channel.sender.send(np.ones(3))
    raise ZeroDivisionError


def test_the_error_of_a_block_is_not_hidden_by_what_was_not_taken(pool: xfer.Pool) -> None:
    """A block that fails with arrays under way ends with its own error; one that does not says what is left."""
    with pytest.raises(ZeroDivisionError), xfer.Channel(2, pool=pool) as channel:
        fill_and_fail(channel)
    with pytest.raises(xfer.errors.WaitTimeoutError, match="1 array"), xfer.Channel(2, pool=pool) as channel:
        channel.sender.send(np.ones(3))


def test_close_with_a_timeout_says_what_was_not_taken(channel: xfer.Channel) -> None:
    """Closing with a receiver that does not take is a TimeoutError, and the channel is closed all the same."""
    channel.receiver.attach()
    channel.sender.send(np.zeros(3))
    with pytest.raises(errors.WaitTimeoutError, match="1 arrays are waiting"):
        channel.sender.close(timeout=0.05)
    with pytest.raises(errors.ChannelClosedError, match="gave up"):
        channel.receiver.recv(timeout=1)


def test_an_end_has_one_holder(channel: xfer.Channel, helper: Callable[..., Any]) -> None:
    """A second process that takes the same end gets a typed error."""
    channel.receiver.attach()
    code = """
try: xfer.Receiver.from_bytes(bytes.fromhex(arg[0])).attach()
except xfer.errors.EndpointTakenError: say("taken")
"""
    assert helper(code, bytes(channel.receiver).hex()).line() == "taken"


def test_ends_travel_by_pickle(channel: xfer.Channel) -> None:
    """An end that was not used yet can be pickled and used in place of the original."""
    receiver = pickle.loads(pickle.dumps(channel.receiver))
    assert isinstance(receiver, Receiver)
    channel.sender.send(np.arange(3))
    with receiver:
        assert receiver.recv(timeout=5).tolist() == [0, 1, 2]


def test_damaged_ends_are_refused(channel: xfer.Channel) -> None:
    """Every flipped byte of a token, and the token of a closed channel, is a typed error."""
    token = bytes(channel.sender)
    for position in range(len(token)):
        altered = bytearray(token)
        altered[position] ^= 1
        with pytest.raises(errors.HandleError):
            Ring(bytes(altered), sending=True)
    channel.close()
    with pytest.raises(errors.ProducerGoneError):
        Sender(token).attach()


def test_capacity_has_a_least_value() -> None:
    """A channel for nothing is a ValueError."""
    with pytest.raises(ValueError, match="at least 1"):
        xfer.Channel(0)


def test_a_channel_that_cannot_be_made_leaves_no_descriptor() -> None:
    """Where descriptors run out in the middle, those that were opened are closed again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, hard))
    filled: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                filled.append(os.open("/dev/null", os.O_RDONLY))
        for spare in range(5):  # a channel takes five
            for fd in filled[:spare]:
                os.close(fd)
            with pytest.raises(OSError, match="Too many open files"):
                xfer.Channel()
            filled[:spare] = [os.open("/dev/null", os.O_RDONLY) for _ in range(spare)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filled:
            os.close(fd)


SCRIPT = """
import multiprocessing, sys
import numpy as np, xfer

def child(sender):
    with sender:
        for number in range(3):
            sender.send(np.full(4, number))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with xfer.Channel() as channel:
        process = context.Process(target=child, args=(channel.sender,), daemon=True)
        process.start()
        print([int(channel.receiver.recv(timeout=30)[0]) for _ in range(3)])
        process.join()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing_takes_ends_as_arguments(tmp_path: Path, method: str) -> None:
    """Ends are ordinary arguments of a multiprocessing.Process, whatever its start method."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), method], capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout.strip() == "[0, 1, 2]"


def test_a_forked_child_does_not_hold_its_parents_ends(channel: xfer.Channel) -> None:
    """After a fork, ends that the parent uses are closed in the child; unused ones may be used there."""
    channel.sender.send(np.arange(2))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            channel.sender.send(np.zeros(1))
        except errors.ChannelClosedError:
            status = 0 if channel.receiver.recv(timeout=5).tolist() == [0, 1] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_slow_sender_is_waited_for(channel: xfer.Channel) -> None:
    """A receiver that sleeps is woken by the message, long before any timeout."""
    thread = threading.Thread(target=lambda: (time.sleep(0.2), channel.sender.send(np.arange(3))), daemon=True)
    thread.start()
    assert channel.receiver.recv(timeout=30).sum() == 3
    thread.join()
