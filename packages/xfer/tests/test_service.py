"""A day's service: second threads, restarts, dropped ends, mixed sizes, wrong numbers; real processes throughout."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import importlib
import multiprocessing
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xfer
from xfer import errors
from xfer._channel.layout import RECEIVER_PID

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "workers"))
workers = importlib.import_module("xfer_workers")
BUDGET_SECONDS = float(os.environ.get("XFER_BUDGET_SECONDS", "20"))
RECEIVE = "rx = xfer.Receiver.from_bytes(bytes.fromhex(arg[0]))\n"


@pytest.fixture
def channel(pool: xfer.Pool) -> Iterator[xfer.Channel]:
    """A channel for four arrays."""
    with xfer.Channel(4, pool=pool) as made:
        yield made


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a call in a thread; its result or error comes in the list."""
    said: list[Any] = []

    def run() -> None:
        try:
            said.append(call())
        except BaseException as error:
            said.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    time.sleep(0.05)
    return thread, said


def test_close_ends_a_wait_of_another_thread(channel: xfer.Channel) -> None:
    """While one thread waits in recv, another's timeout and close are not held up, and the wait ends with the close."""
    thread, said = in_thread(channel.receiver.recv)
    with pytest.raises(errors.WaitTimeoutError):
        channel.receiver.recv(timeout=0.05)
    channel.receiver.close()
    thread.join(30)
    assert isinstance(said[0], errors.ChannelClosedError)


def test_close_ends_a_send_of_another_thread(channel: xfer.Channel) -> None:
    """The same for a full channel and its sender."""
    for _ in range(4):
        channel.sender.send(np.zeros(3))
    thread, said = in_thread(lambda: channel.sender.send(np.zeros(3)))
    with pytest.raises(errors.WaitTimeoutError):
        channel.sender.send(np.zeros(3), timeout=0.05)
    with pytest.raises(errors.WaitTimeoutError):
        channel.sender.close(timeout=0)
    thread.join(30)
    assert isinstance(said[0], errors.ChannelClosedError)


def test_many_threads_wait_and_each_gets_one(channel: xfer.Channel) -> None:
    """Several threads that wait for arrays get one each, and none is lost."""
    waits = [in_thread(lambda: int(channel.receiver.recv(timeout=30)[0])) for _ in range(4)]
    for number in range(4):
        channel.sender.send(np.full(3, number))
    for thread, _ in waits:
        thread.join(30)
    assert sorted(said[0] for _, said in waits) == [0, 1, 2, 3]


def test_a_signal_handler_may_close(helper: Callable[..., Any]) -> None:
    """A handler that closes the end on which its own thread waits ends the wait with the usual error."""
    code = """
import signal
channel = xfer.Channel(2)
signal.signal(signal.SIGALRM, lambda *_: channel.receiver.close()); signal.setitimer(signal.ITIMER_REAL, 0.1)
try: channel.receiver.recv()
except xfer.errors.ChannelClosedError as error: say(error)
"""
    assert helper(code).line() == "this end is closed"


@pytest.mark.parametrize("how", ["thread", "executor", "asyncio"])
def test_the_interpreter_exits_while_a_thread_waits(how: str) -> None:
    """No wait without a timeout keeps a process from exiting."""
    code = """
import asyncio, concurrent.futures, sys, threading, time, xfer
channel = xfer.Channel(2)
def wait():
    try: channel.receiver.recv()
    except xfer.errors.ChannelClosedError as error: print(error, flush=True)
async def cancelled():
    task = asyncio.create_task(asyncio.to_thread(wait)); await asyncio.sleep(0.1); task.cancel()
    channel.receiver.close()
if sys.argv[1] == "thread": threading.Thread(target=wait).start()
elif sys.argv[1] == "executor": concurrent.futures.ThreadPoolExecutor().submit(wait)
else: asyncio.run(cancelled())
time.sleep(0.1)
"""
    done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "exiting" in done.stdout or "closed" in done.stdout


def test_threads_that_work_on_while_the_interpreter_exits_get_a_typed_error() -> None:
    """A thread in the middle of puts, sends and publications: closed, and never an error about a descriptor."""
    program = """
import atexit, threading
atexit.register(lambda: [thread.join(60) for thread in threads] and topic.remove())  # runs after xfer's own
import numpy as np, os, xfer
pool, channel, topic = xfer.Pool("1MiB"), xfer.Channel(), xfer.Topic(f"exit-{os.getpid()}")
reader = topic.subscribe()

def put():
    pool.release(pool.put(np.arange(3)))

def send():
    channel.sender.send(np.arange(3))
    channel.receiver.recv()

def publish():
    topic.publish(np.arange(3))
    reader.recv(timeout=60)

def again_and_again(step):
    step()
    begun.wait()
    while True:
        try:
            step()
        except Exception as error:
            os.write(1, f"{type(error).__name__}\\n".encode())  # in one piece, beside other threads
            return

threads = [threading.Thread(target=again_and_again, args=(step,), daemon=True) for step in (put, send, publish)]
begun = threading.Barrier(4)
for thread in threads:
    thread.start()
begun.wait()
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.split()) == ["ChannelClosedError", "ChannelClosedError", "PoolClosedError"], done


def test_asyncio_waits_are_cancelled_and_leave_the_end_usable(channel: xfer.Channel) -> None:
    """A cancelled `arecv` lets the next one, a timeout and a close work at once."""

    async def run() -> list[Any]:
        task = asyncio.create_task(channel.receiver.arecv())
        await asyncio.sleep(0.02)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with pytest.raises(errors.WaitTimeoutError):
            await channel.receiver.arecv(timeout=0.02)
        both = asyncio.gather(channel.receiver.arecv(), channel.receiver.arecv())
        await asyncio.sleep(0.02)
        for number in (1, 2):
            await channel.sender.asend(np.full(2, number))
        got = sorted(int(array[0]) for array in await both)
        closing = asyncio.create_task(channel.receiver.arecv())
        await asyncio.sleep(0.02)
        channel.receiver.close()
        with pytest.raises(errors.ChannelClosedError):
            await asyncio.wait_for(closing, 30)
        return got

    assert asyncio.run(run()) == [1, 2]


def test_async_iteration_and_back_pressure(channel: xfer.Channel) -> None:
    """A producer and a consumer coroutine in one loop pass more arrays than the channel holds, small and large."""

    async def produce() -> None:
        for number in range(40):
            await channel.sender.asend(np.full(10 if number % 2 else 20_000, number))
        await asyncio.to_thread(channel.sender.close)

    async def consume() -> list[int]:
        return [int(array[0]) async for array in channel.receiver]

    async def run() -> list[int]:
        return (await asyncio.gather(consume(), produce()))[0]

    assert asyncio.run(run()) == list(range(40))


def test_fileno_is_readable_exactly_while_something_waits(channel: xfer.Channel, helper: Callable[..., Any]) -> None:
    """`select` sees arrays, their absence, the close and the death of the other end."""
    fd = channel.receiver.fileno()
    with contextlib.suppress(errors.WaitTimeoutError):
        channel.receiver.recv(timeout=0)
    assert not select.select([fd], [], [], 0.02)[0]
    for size in (3, 20_000):
        channel.sender.send(np.zeros(size))
        channel.sender.send(np.zeros(size))
        for _ in range(2):
            assert select.select([fd], [], [], 60)[0]
            channel.receiver.recv(timeout=0)
        assert not select.select([fd], [], [], 0.02)[0]
    with xfer.Channel() as other:
        source = helper(
            "tx = xfer.Sender.from_bytes(bytes.fromhex(arg[0])); tx.attach(); say('in'); wait()",
            bytes(other.sender).hex(),
        )
        assert source.line() == "in"
        with pytest.raises(errors.WaitTimeoutError):
            other.receiver.recv(timeout=0.01)
        fd = other.receiver.fileno()
        with contextlib.suppress(errors.WaitTimeoutError):
            other.receiver.recv(timeout=0)
        source.kill()
        assert select.select([fd], [], [], 60)[0]
        with pytest.raises(errors.PeerDiedError):
            other.receiver.recv(timeout=0)


def test_a_close_ends_the_waits_of_all_event_loops(channel: xfer.Channel) -> None:
    """Two loops in two threads, with two tasks each, share one end: each array is taken once, and each task ends."""
    taken: list[int] = []

    async def consume() -> None:
        taken.extend([int(array[0]) async for array in channel.receiver])

    async def both() -> None:
        await asyncio.gather(consume(), consume())

    threads = [threading.Thread(target=asyncio.run, args=(both(),), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(200):
        channel.sender.send(np.full(2, number), timeout=30)
    channel.sender.close(timeout=30)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(taken) == list(range(200))


def test_select_sees_the_death_of_each_holder(channel: xfer.Channel, helper: Callable[..., Any]) -> None:
    """A sender that took a dead one's place is seen to die as well, and until then nothing is readable."""
    code = "tx = xfer.Sender.from_bytes(bytes.fromhex(arg[0])); tx.send(np.zeros(3)); say('in'); wait()"
    fd = channel.receiver.fileno()
    for _ in range(2):
        source = helper(code, bytes(channel.sender).hex())
        assert source.line() == "in"
        assert channel.receiver.recv(timeout=30).size == 3
        with pytest.raises(errors.WaitTimeoutError):
            channel.receiver.recv(timeout=0)
        assert not select.select([fd], [], [], 0.02)[0]
        source.kill()
        assert select.select([fd], [], [], 60)[0]
        with pytest.raises(errors.PeerDiedError):
            channel.receiver.recv(timeout=0)


def test_wait_over_several_ends(pool: xfer.Pool) -> None:
    """`xfer.wait` returns the ends that have something, in order, and an empty list when the time is up."""
    channels = [xfer.Channel(2, pool=pool) for _ in range(3)]
    receivers = [channel.receiver for channel in channels]
    assert xfer.wait(receivers, timeout=0.02) == []
    threading.Timer(0.05, channels[1].sender.send, (np.full(3, 5),)).start()
    assert xfer.wait(receivers, timeout=60) == [receivers[1]]
    channels[2].sender.send(np.zeros(3))
    assert xfer.wait(receivers, timeout=0) == receivers[1:]
    for receiver in xfer.wait(receivers):
        receiver.recv(timeout=0)
    assert xfer.wait(receivers, timeout=0.02) == []
    for channel in channels:
        channel.close()


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_receiver_is_restarted(pool: xfer.Pool, helper: Callable[..., Any], size: int) -> None:
    """A receiver that is killed and started again is heard of at once, and its arrays are its own."""
    with xfer.Channel(2, pool=pool, spin=0) as channel:
        code = RECEIVE + "rx.attach(); say('in')\nfor array in rx: say(array[0], array[-1])"
        for round_number in range(3):
            reader = helper(code, bytes(channel.receiver).hex())
            assert reader.line() == "in"
            for number in range(8):  # more than fit: the sender waits for this reader
                channel.sender.send(np.full(size, 10 * round_number + number), timeout=60)
            value = 10 * round_number
            assert [reader.line() for _ in range(8)] == [f"{value + n} {value + n}" for n in range(8)]
            reader.process.send_signal(signal.SIGSTOP)
            with contextlib.suppress(errors.WaitTimeoutError):
                while True:
                    channel.sender.send(np.full(size, -1), timeout=0.1)
            thread, said = in_thread(lambda: channel.sender.send(np.full(size, -1)))
            reader.kill()
            thread.join(30)
            assert isinstance(said[0], errors.PeerDiedError)
            assert pool.stats().live == 0


def test_a_sender_is_restarted(helper: Callable[..., Any]) -> None:
    """A sender that is killed while its receiver waits is noticed, and the next one is heard."""
    with xfer.Channel(4) as channel:
        code = (
            "tx = xfer.Sender.from_bytes(bytes.fromhex(arg[0]))\ntx.send(np.full(9, int(arg[1])))\nsay('sent'); wait()"
        )
        for number in range(3):
            source = helper(code, bytes(channel.sender).hex(), str(number))
            assert source.line() == "sent"
            assert channel.receiver.recv(timeout=5)[0] == number
            thread, said = in_thread(channel.receiver.recv)
            source.kill()
            thread.join(30)
            assert isinstance(said[0], errors.PeerDiedError)


def test_a_worker_that_crashes_before_it_attached_is_noticed(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """Named by `expect`, a process that never attached is not waited for."""
    with xfer.Channel(1, pool=pool) as channel:
        worker = helper("wait(); sys.exit(1)")
        channel.sender.expect(worker.process)
        channel.sender.send(np.zeros(3))
        thread, said = in_thread(lambda: channel.sender.send(np.zeros(3)))
        assert not said
        worker.kill()
        thread.join(30)
        assert isinstance(said[0], errors.PeerDiedError)


def test_a_spawned_process_is_expected_by_itself(pool: xfer.Pool) -> None:
    """An end given to a spawned multiprocessing.Process that dies at once is not waited for."""
    with xfer.Channel(1, pool=pool) as channel:
        process = multiprocessing.get_context("spawn").Process(target=os._exit, args=(channel.receiver,))
        process.start()
        channel.sender.send(np.zeros(3))
        with pytest.raises(errors.PeerDiedError):
            channel.sender.send(np.zeros(3), timeout=120)
        process.join()
        process.close()


def _another_number(ring: Any, end: int, pid: int) -> None:
    """Write a process number as the holder's, as if the system had given it out again."""
    ring.words[end] = pid


def test_a_process_number_that_is_given_out_again_is_not_the_peer(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """A living process that has a dead receiver's number by now does not stand for it, and is not waited for."""
    with xfer.Channel(1, pool=pool) as channel:
        reader = helper(RECEIVE + "rx.attach(); say('in'); wait()", bytes(channel.receiver).hex())
        stranger = helper("say('up'); wait()")
        assert [reader.line(), stranger.line()] == ["in", "up"]
        channel.sender.send(np.zeros(3))
        reader.kill()
        _another_number(channel.sender._ring, RECEIVER_PID, stranger.pid)
        with pytest.raises(errors.PeerDiedError):
            channel.sender.send(np.zeros(3), timeout=60)
        assert pool.stats().live == 0


def test_a_receiver_with_the_number_of_a_dead_one_is_alive(
    pool: xfer.Pool, helper: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new holder that the system gave the dead holder's number is heard and waited for like any other."""
    code = RECEIVE + "rx.attach(); say('in')\nwhile wait(): say(int(rx.recv(timeout=20)[0]))"
    with xfer.Channel(1, pool=pool, spin=0) as channel:
        first = helper(code, bytes(channel.receiver).hex())
        assert first.line() == "in"
        channel.sender.send(np.full(3, 1))
        thread, said = in_thread(lambda: channel.sender.send(np.full(3, 2)))
        first.kill()
        thread.join(60)
        assert isinstance(said[0], errors.PeerDiedError)
        second = helper(code, bytes(channel.receiver).hex())
        assert second.line() == "in"
        ring: Any = channel.sender._ring
        _another_number(ring, RECEIVER_PID, first.pid)
        open_process = os.pidfd_open
        monkeypatch.setattr(os, "pidfd_open", lambda pid: open_process(second.pid if pid == first.pid else pid))
        channel.sender.send(np.full(3, 3), timeout=20)
        ring.watch_peer()
        assert not ring.peer_dead()
        thread, said = in_thread(lambda: channel.sender.send(np.full(3, 4), timeout=20))
        assert not said, "it waits for the living receiver"
        for value in (3, 4):
            second.say("next")
            assert second.line() == str(value)
        thread.join(60)
        assert said == [None]


def test_a_forked_process_that_dies_before_it_attached_is_noticed(tmp_path: Any) -> None:
    """An end among the arguments of a forked multiprocessing.Process is expected without a call of `expect`."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, numpy as np, xfer\n"
        "context = multiprocessing.get_context('fork')\n"
        "with xfer.Channel(1) as channel:\n"
        "    end = {'args': ([channel.receiver],), 'kwargs': {}}\n"
        "    context.Process(target=lambda *a, **k: os._exit(3), **end).start()\n"
        "    channel.sender.send(np.zeros(3))\n"
        "    try: channel.sender.send(np.zeros(3), timeout=100)\n"
        "    except xfer.errors.PeerDiedError: print('noticed', flush=True)\n"
        "with xfer.Channel(1) as channel:\n"
        "    context.Process(target=lambda end: os._exit(3), kwargs={'end': channel.sender}).start()\n"
        "    try: channel.receiver.recv(timeout=100)\n"
        "    except xfer.errors.PeerDiedError: print('noticed', flush=True)\n"
        "with xfer.Channel(1) as channel:\n"
        "    context.Process(target=print, args=(1,)).start()\n"
        "    channel.sender.send(np.zeros(3))\n"
        "    try: channel.sender.send(np.zeros(3), timeout=0.3)\n"
        "    except xfer.errors.WaitTimeoutError: print('waited', flush=True)\n"
        "    channel.receiver.recv(timeout=5)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200, check=True)
    said = [line for line in done.stdout.split() if line != "1"]
    assert said == ["noticed", "noticed", "waited"]


def test_dropped_channels_give_everything_back(pool: xfer.Pool) -> None:
    """Fifty channels that were used and dropped leave no descriptor, no array and no memory in use."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        channel = xfer.Channel(4, pool=pool)
        channel.sender.send(np.zeros(10))
        channel.sender.send(np.zeros(20_000))
        if number % 2:
            channel.receiver.recv(timeout=5)
        del channel
    gc.collect()
    assert pool.stats().live == 0
    pool.trim()
    gc.collect()
    xfer.trim()
    assert pool.stats().used == 0
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_dropped_sender_loses_nothing_that_can_still_be_taken(pool: xfer.Pool) -> None:
    """Arrays of a sender that was dropped reach the receiver, and then their memory comes back."""
    channel = xfer.Channel(4, pool=pool)
    sender = xfer.Sender(bytes(channel.sender), pool=pool)
    for size in (10, 20_000):
        sender.send(np.full(size, size))
    del sender
    gc.collect()
    assert [array.size for array in channel.receiver] == [10, 20_000]
    assert pool.stats().live == 0
    channel.close()


def test_a_dropped_loan_gives_its_slot_back_when_no_view_is_left(pool: xfer.Pool) -> None:
    """Loans that are abandoned stand in `leaks()` until they are dropped; a view of one keeps its slot from reuse."""
    loan = pool.loan(1000, np.uint8)
    assert [leak.nbytes for leak in pool.leaks()] == [1000]
    view = loan.__enter__()[10:20]
    del loan
    gc.collect()
    assert pool.leaks() == []
    assert pool.stats().waiting_for_readers == 1
    others = [pool.put(np.zeros(1000, np.uint8)) for _ in range(100)]
    view[:] = 9
    assert all(not xfer.get(other).any() for other in others)
    del view
    assert pool.stats().waiting_for_readers == 0
    loan = pool.loan(1000, np.uint8)
    with loan as array:
        late = array[:5]
    del array
    pool.release(loan.handle)
    others += [pool.put(np.zeros(1000, np.uint8)) for _ in range(100)]
    late[:] = 9
    assert all(not xfer.get(other).any() for other in others)


def test_a_dead_producer_has_one_meaning(helper: Callable[..., Any]) -> None:
    """What a reader holds stays valid; anything new from a dead producer is ProducerGoneError at once."""
    code = "pool = xfer.Pool('1MiB'); say(*(bytes(pool.put(np.full(9, n))).hex() for n in range(3))); wait()"
    producer = helper(code)
    first, second, third = producer.line().split()
    held = xfer.get(bytes.fromhex(first))
    producer.kill()
    start = time.monotonic()
    for token in (first, second, third):
        with pytest.raises(errors.ProducerGoneError):
            xfer.get(bytes.fromhex(token))
    assert time.monotonic() - start < 15
    assert held.tolist() == [0] * 9
    del held
    deadline = time.monotonic() + 30
    reader = sys.modules["xfer._shared.reader"].READER
    while reader.stats()["mappings"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reader.stats()["mappings"] == 0


def test_an_idle_reader_keeps_no_memory_and_does_not_poll(pool: xfer.Pool) -> None:
    """A mapping goes within a second of its last view, although its producer lives, and so does the thread for it."""
    reader = sys.modules["xfer._shared.reader"].READER
    xfer.trim()
    threads = len(os.listdir("/proc/self/task"))
    handle = pool.put(np.zeros(1 << 20))
    array = xfer.get(handle)
    assert reader.stats()["mappings"] == 1
    assert array.sum() == 0
    del array
    pool.release(handle)
    deadline = time.monotonic() + 30
    while reader.stats()["mappings"] or len(os.listdir("/proc/self/task")) > threads:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_number_that_is_a_fifo_now_never_blocks(pool: xfer.Pool, tmp_path: Any) -> None:
    """A handle and a channel token whose descriptor is a FIFO now are refused at once, and other reads go on."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with xfer.Pool("1MiB") as old, xfer.Channel(1) as channel:
        handle, token = old.put(np.zeros(3)), bytes(channel.receiver)
        number = handle.fields.fd
        channel_fds = list(channel._owner.fds)
    opened = []
    for fd in {number, *channel_fds}:
        spare = os.open(fifo, os.O_RDWR)
        os.dup2(spare, fd)
        opened.append(fd)
        if spare != fd:
            os.close(spare)
    try:
        start = time.monotonic()
        with pytest.raises(errors.ProducerGoneError):
            xfer.get(handle)
        with pytest.raises(errors.ProducerGoneError):
            xfer.Receiver.from_bytes(token).attach()
        assert time.monotonic() - start < 15
    finally:
        for fd in opened:
            os.close(fd)


def test_a_number_that_is_something_else_now_is_not_opened(tmp_path: Any) -> None:
    """Opening alone has effects: it lets a process go on that waits to write to a named pipe."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with xfer.Pool("1MiB") as old, xfer.Channel(1) as channel:
        handle, token = old.put(np.zeros(3)), bytes(channel.receiver)
        numbers = {handle.fields.fd, channel._owner.fds[0]}
    for number in numbers:  # a descriptor that reads and writes nothing, so that the pipe has no reader
        spare = os.open(fifo, os.O_PATH)
        os.dup2(spare, number)
        if spare != number:
            os.close(spare)
    writer, said = in_thread(lambda: os.close(os.open(fifo, os.O_WRONLY)))
    try:
        with pytest.raises(errors.ProducerGoneError):
            xfer.get(handle)
        with pytest.raises(errors.ProducerGoneError):
            xfer.Receiver.from_bytes(token).attach()
        writer.join(0.2)
        assert not said
    finally:
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        writer.join(30)
        for number in numbers:
            os.close(number)
    assert said == [None]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_results_survive_a_worker_that_returned(method: str) -> None:
    """Handles of a process that has exited are read once each, and their memory comes back with the last view."""
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=workers.give_results, args=(queue, 3), daemon=True)
    worker.start()
    handles = queue.get(timeout=120)
    worker.join(120)
    assert worker.exitcode == 0
    before = len(os.listdir("/proc/self/fd"))
    views = [xfer.get(handle) for handle in handles]
    assert [int(view[99]) for view in views] == [0, 1, 2]
    for handle in handles:
        with pytest.raises(errors.StaleHandleError):
            xfer.get(handle)
    assert int(views[1].sum()) == 100
    del views
    xfer.trim()
    assert len(os.listdir("/proc/self/fd")) <= before
    queue.close()
    worker.close()


def test_results_survive_an_executor_and_an_unrelated_command(tmp_path: Any) -> None:
    """Also those of a pool of workers that was shut down, and of a command; a killed worker's do not."""
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        parts = list(executor.map(workers.results, [4, 5], [10, 40_000]))
    for handles, size in zip(parts, (10, 40_000), strict=True):
        assert [(int(array[0]), array.size) for array in map(xfer.get, handles)] == [
            (number, size) for number in range(len(handles))
        ]
    code = (
        "import os, sys, numpy as np, xfer\nprint(bytes(xfer.put({'a': np.arange(4)}, consume=True)).hex(), flush=True)"
    )
    for end, lives in (("", True), ("\nos.kill(os.getpid(), 9)", False)):
        done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, timeout=120)
        handle = bytes.fromhex(done.stdout.strip())
        if lives:
            assert xfer.get(handle)["a"].tolist() == [0, 1, 2, 3]
        with pytest.raises(errors.StaleHandleError):
            xfer.get(handle)


def test_a_result_that_cannot_be_read_is_not_lost(pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array is taken over only once its reader has it: after an error it can be got again, but only once."""
    handle = pool.put({"a": np.arange(3)}, consume=True)
    with monkeypatch.context() as patch:
        patch.setattr("xfer._shared.tree.unpack", lambda *_: (_ for _ in ()).throw(errors.HandleError("not here")))
        with pytest.raises(errors.HandleError):
            xfer.get(handle)
    assert pool.stats().live == 1
    assert xfer.get(handle)["a"].tolist() == [0, 1, 2]
    with pytest.raises(errors.StaleHandleError):
        xfer.get(handle)
    assert pool.stats().used == 0


def test_more_arrays_are_consumed_than_a_pipe_holds(pool: xfer.Pool) -> None:
    """A producer that does not look for a long time still learns of every array that was taken."""
    handles = [pool.put(np.zeros(1, np.uint8), consume=True) for _ in range(9000)]
    for handle in handles:
        xfer.get(handle)
    assert pool.stats().used == 0


def test_a_consumed_array_comes_back_when_its_reader_is_done(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """No release is needed: the slot is free after the reader's last view, and after the reader was killed."""
    handle = pool.put(np.arange(5), consume=True)
    assert pool.stats().live == 1
    array = xfer.get(handle)
    assert pool.stats().live == 0
    assert pool.stats().waiting_for_readers == 1
    with pytest.raises(errors.StaleHandleError):
        xfer.get(handle)
    assert array.tolist() == [0, 1, 2, 3, 4]
    del array
    assert pool.stats().waiting_for_readers == 0
    handle = pool.put(np.arange(5), consume=True)
    reader = helper("a = xfer.get(bytes.fromhex(arg[0])); say('has'); wait()", bytes(handle).hex())
    assert reader.line() == "has"
    assert pool.stats().waiting_for_readers == 1
    reader.kill()
    assert pool.stats().waiting_for_readers == 0
    assert pool.stats().used == 0


def test_an_array_is_taken_over_once_though_its_producer_does_not_look(pool: xfer.Pool) -> None:
    """The second reader is told at once, without a word of the producer between the two."""
    handle = pool.put(np.arange(5), consume=True)
    array = xfer.get(handle)
    with pytest.raises(errors.StaleHandleError, match="another reader"):
        xfer.get(handle)
    assert array.tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from([1 << 20, 16 << 20]))
def test_any_mix_of_sizes_fits_below_the_mark(random: Any, budget: int) -> None:
    """Sizes from 1 B to a quarter of the budget: with less than budget / 1.25 in use no request is refused."""
    with xfer.Pool(budget) as pool:
        live: dict[xfer.Handle, int] = {}
        total = 0
        for _ in range(400):
            size = int(budget / 4 ** random.uniform(1, 11 if budget > 1 << 20 else 9)) or 1
            while live and total + size > budget / 1.25:
                handle = random.choice(list(live))
                total -= live.pop(handle)
                pool.release(handle)
            handle = pool.put(np.zeros(size, np.uint8))
            live[handle] = size
            total += size
        assert pool.stats().used == total


@pytest.mark.slow
@pytest.mark.timeout(int(BUDGET_SECONDS) + 120)
def test_a_budget_serves_for_minutes() -> None:
    """Arrays, trees and loans of every size are put, held, consumed, released and streamed; nothing is refused.

    XFER_BUDGET_SECONDS=300 makes it run for five minutes.
    """
    chance, budget = random.Random(11), 16 << 20
    under_way = 6 * (budget // 64)  # of the channel: four that wait, one that is read, one that is sent
    held: dict[Any, tuple[int, Callable[[], Any]]] = {}  # bytes, and how to let go, of what is live
    with xfer.Pool(budget) as pool, xfer.Channel(4, pool=pool) as channel:
        thread, said = in_thread(lambda: [int(array[0]) for array in channel.receiver])
        total, sent, end = 0, 0, time.monotonic() + BUDGET_SECONDS
        while time.monotonic() < end:
            size = int(budget / 4 ** chance.uniform(1, 11)) or 1
            while held and total + size + 4096 + under_way > budget / 1.25:
                nbytes, let_go = held.pop(chance.choice(list(held)))
                let_go()
                total -= nbytes
            kind = chance.random()
            if kind < 0.3:
                channel.sender.send(np.full(min(size, budget // 64), sent % 251, np.uint8), timeout=30)
                sent += 1
                continue
            if kind < 0.5:
                loan = pool.loan(size, np.uint8)
                with loan as array:
                    array[:] = 7
                del array
                handle = loan.handle
            else:
                handle = pool.put({"a": np.full(size, 7, np.uint8)} if kind < 0.6 else np.full(size, 7, np.uint8))
            if kind > 0.8:  # released, and still read
                views = [xfer.get(handle)]
                pool.release(handle)
                held[handle] = size, views.clear
            elif kind > 0.7:
                pool.release(handle)
                views = [xfer.get(pool.put(np.full(size, 7, np.uint8), consume=True))]
                held[handle] = size, views.clear
            else:
                held[handle] = size + (4096 if kind < 0.6 else 0), partial(pool.release, handle)
            total += held[handle][0]
        channel.sender.close(timeout=30)
        thread.join(30)
        assert said[0] == [number % 251 for number in range(sent)]
        for _, let_go in held.values():
            let_go()
        channel.receiver.close()
        gc.collect()
        assert pool.stats().live == 0
        assert pool.stats().waiting_for_readers == 0


def test_many_small_arrays_fit(pool: xfer.Pool) -> None:
    """Twelve arrays of a few hundred bytes each, of twelve size classes, do not fill a pool; nor does a state dict."""
    with xfer.Pool("16MiB") as small:
        for number in range(300):
            small.put(np.zeros(int(1.06**number) % 200_000 + 1, np.uint8))
    sizes = [int(4 ** (n / 8)) for n in range(1, 90)]
    budget = int(sum(sizes) * 1.25) + 1
    with xfer.Pool(budget) as exact:
        for size in sizes:
            exact.put(np.zeros(size, np.uint8))


def test_a_stream_of_mixed_sizes_never_stops() -> None:
    """A channel whose pool is small passes on arrays of every size for as long as the receiver drops them."""
    random = np.random.default_rng(3)
    with xfer.Pool("8MiB") as pool, xfer.Channel(8, pool=pool) as channel:
        thread, said = in_thread(lambda: [array.nbytes for array in channel.receiver])
        sizes = [int(2 ** random.uniform(0, 21)) for _ in range(600)]
        for size in sizes:
            channel.sender.send(np.zeros(size, np.uint8), timeout=60)
        channel.sender.close(timeout=60)
        thread.join(60)
        assert said[0] == sizes


def test_an_idle_wait_does_not_wake(helper: Callable[..., Any]) -> None:
    """A receiver that waits without a timeout sleeps; `recv(timeout=0)` returns at once."""
    with xfer.Channel(4) as channel:
        reader = helper(RECEIVE + "rx.attach(); say('in'); rx.recv(); say('got')", bytes(channel.receiver).hex())
        assert reader.line() == "in"

        def switches() -> int:
            with open(f"/proc/{reader.pid}/status") as file:
                return int(next(line for line in file if line.startswith("voluntary")).split()[1])

        deadline = time.monotonic() + 30  # until it waits, which a busy machine puts off
        while True:
            before = switches()
            time.sleep(1.0)
            if (woken := switches() - before) <= 1 or time.monotonic() > deadline:
                break
        assert woken <= 1
        channel.sender.send(np.zeros(3))
        assert reader.line() == "got"


def test_descriptors_that_run_out_are_taken_from_free_memory() -> None:
    """Where the process has no descriptor left, segments without a used slot are given back for new ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    with xfer.Pool("64MiB") as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, hard))
        try:
            for number in range(60):
                pool.release(pool.put(np.zeros((300 + 40 * number) << 10, np.uint8)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_workers_fill_parts_of_one_writable_array(helper: Callable[..., Any]) -> None:
    """Each of three processes fills its part; damaged bytes and a closed array are typed errors."""
    result = xfer.WritableArray((3, 1000), np.int64)
    code = (
        "part = xfer.WritableArray.from_bytes(bytes.fromhex(arg[0])); part.array[int(arg[1])] = int(arg[1]) + 1; say()"
    )
    for number in range(3):
        assert helper(code, bytes(result).hex(), str(number)).line() == ""
    assert result.array.sum(axis=1).tolist() == [1000, 2000, 3000]
    with pytest.raises(errors.HandleError):
        xfer.WritableArray.from_bytes(bytes(result)[:-1] + b"x")
    held, token = result.array[0], bytes(result)
    result.close()
    result.close()
    assert held.sum() == 1000
    with pytest.raises(errors.StaleHandleError):
        _ = result.array
    with pytest.raises(errors.ProducerGoneError):
        xfer.WritableArray.from_bytes(token)
    with pytest.raises(errors.UnsupportedDtypeError):
        xfer.WritableArray(3, object)
    with pytest.raises(ValueError, match="0 and more"):
        xfer.WritableArray((2, -1))


def test_a_store_of_many_names(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """Thousands of names, replaced and removed while another process reads: each is found, and never torn."""
    with xfer.SharedArrayStore(pool) as store:
        store.create("hot", np.zeros(50))
        reader = helper(
            "store = xfer.SharedArrayStore.attach(bytes.fromhex(arg[0])); say('in')\n"
            "seen = {int(store.get('hot')[0])}; say('seen')\n"
            "while 399 not in seen:\n"
            "    array = store.get('hot'); assert (array == array[0]).all(); seen.add(int(array[0]))\n"
            "say(len(store), 'name 7' in store, 'name 8' in store, store.get('x' * 500).tolist(), len(seen) > 1)",
            bytes(store).hex(),
        )
        assert [reader.line(), reader.line()] == ["in", "seen"]
        for number in range(3000):
            store.create(f"name {number}", np.full(2, number))
        store.create("x" * 500, np.arange(2))
        for number in range(0, 3000, 2):
            store.remove(f"name {number}")
        for number in range(0, 1000, 2):
            store.create(f"again {number}", np.zeros(1))
        for number in range(400):
            store.replace("hot", np.full(50, number))
            time.sleep(0.0005)
        assert reader.line() == f"{2 + 1500 + 500} True False [0, 1] True"
        used = pool.stats().live
        store.replace("x" * 500, np.arange(3))
        assert pool.stats().live == used
        store.clear()
        assert store.list() == []
    assert pool.stats().live == 0


def test_a_store_of_a_dead_process_says_so(helper: Callable[..., Any]) -> None:
    """Arrays that were got stay; everything else is ProducerGoneError at once."""
    owner = helper("store = xfer.SharedArrayStore(); store.create('a', np.arange(3)); say(bytes(store).hex()); wait()")
    store = xfer.SharedArrayStore.attach(bytes.fromhex(owner.line()))
    held = store.get("a")
    owner.kill()
    start = time.monotonic()
    for call in (lambda: store.get("a"), lambda: store.get("b"), store.list, lambda: len(store), lambda: "a" in store):
        with pytest.raises(errors.ProducerGoneError):
            call()
    assert time.monotonic() - start < 15
    assert held.tolist() == [0, 1, 2]
    store.close()
