"""Topics: late joiners, slow readers, many writers, and the death and restart of either end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

import xfer
from xfer import errors
from xfer._channel import board

WRITE = """
topic = xfer.Topic(arg[0], keep=int(arg[1])); base = int(arg[2]); say("up")
for number in range(int(arg[3])):
    topic.publish(np.full(200 if number % 2 else 20_000, base + number), timeout=20)
say("done"); wait()
"""
READ = """
with xfer.Topic(arg[0], keep=int(arg[1])).subscribe(every=arg[2] == "every") as reader:
    say("up")
    for array in reader:
        say(int(array[0]) if (array == array[0]).all() else "WRONG")
"""


@pytest.fixture
def name() -> Iterator[str]:
    """A name of a topic, removed after the test."""
    made = f"test {os.getpid()} / {random.random()}"
    yield made
    with contextlib.suppress(ValueError):
        xfer.Topic(made).remove()


def test_a_late_reader_gets_the_last_publication(name: str, pool: xfer.Pool) -> None:
    """The last one, then each new one, once."""
    with xfer.Topic(name, pool=pool) as topic:
        for number in range(3):
            topic.publish(np.full(3, number))
        with topic.subscribe() as reader:
            assert reader.recv(timeout=1)[0] == 2
            with pytest.raises(errors.WaitTimeoutError):
                reader.recv(timeout=0.02)
            topic.publish({"a": np.full(3, 3), "b": 1})
            assert reader.recv(timeout=1)["a"].tolist() == [3, 3, 3]
        assert pool.stats().live == 1
    assert pool.stats().live == 0


def test_a_slow_reader_misses_or_holds_up_as_it_chose(name: str, pool: xfer.Pool) -> None:
    """Without `every` a reader gets the newest that are kept; with it, writers wait for it."""
    with xfer.Topic(name, keep=2, pool=pool) as topic, topic.subscribe() as latest:
        for number in range(10):
            topic.publish(np.full(3, number), timeout=1)
        assert [latest.recv(timeout=1)[0] for _ in range(2)] == [8, 9]
        with topic.subscribe(every=True) as every:
            topic.publish(np.full(3, 10), timeout=1)
            with pytest.raises(errors.WaitTimeoutError):
                topic.publish(np.full(3, 11), timeout=0.05)
            assert every.recv(timeout=1)[0] == 9
            topic.publish(np.full(3, 11), timeout=1)
            assert [every.recv(timeout=1)[0] for _ in range(2)] == [10, 11]
        topic.publish(np.full(3, 12), timeout=1)


def test_a_dropped_topic_has_published_all_the_same(name: str) -> None:
    """Without `close` the last publication stays for late readers, and older ones are released, however often."""
    with xfer.Pool("1MiB") as pool:
        for number in range(100):
            xfer.Topic(name, pool=pool).publish(np.full(50_000, number % 250, np.uint8))
        assert pool.stats().live == 1
        with xfer.Topic(name).subscribe() as reader:
            assert reader.recv(timeout=1)[0] == 99
        xfer.Topic(name).close()
        assert pool.stats().live == 0


def test_a_writer_finds_the_name_again_after_it_was_removed(
    name: str, pool: xfer.Pool, helper: Callable[..., Any]
) -> None:
    """Another process removes the topic: what is published next is seen by new readers."""
    topic = xfer.Topic(name, keep=2, pool=pool)
    topic.publish(np.zeros(3))
    assert helper("xfer.Topic(arg[0], keep=2).remove(); say('removed')", name).line() == "removed"
    topic.publish(np.ones(3))
    with xfer.Topic(name, keep=2).subscribe() as reader:
        assert reader.recv(timeout=5).tolist() == [1, 1, 1]
    assert pool.stats().live == 1
    xfer.Topic(name).remove()
    assert pool.stats().live == 0


def test_threads_and_a_forked_child_publish_by_one_name(name: str, pool: xfer.Pool) -> None:
    """Threads of a process share its end of the topic; a forked child has its own."""
    topics = [xfer.Topic(name, pool=pool) for _ in range(8)]
    threads = [threading.Thread(target=topic.publish, args=(np.zeros(3),), daemon=True) for topic in topics]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert pool.stats().live == 1
    with xfer.Topic(name).subscribe() as reader:
        assert reader.recv(timeout=5).tolist() == [0, 0, 0]
        child = os.fork()
        if child == 0:
            try:
                xfer.Topic(name).publish(np.ones(3), timeout=60)
                time.sleep(60)
            finally:
                os._exit(1)
        got = reader.recv(timeout=60)
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert got.tolist() == [1, 1, 1]
    topics[0].close()
    assert pool.stats().live == 0


def test_many_writers_and_readers(name: str, helper: Callable[..., Any]) -> None:
    """Two readers that want every publication get all of two writers', each writer's in order."""
    readers = [helper(READ, name, "4", "every") for _ in range(2)]
    assert [reader.line() for reader in readers] == ["up", "up"]
    writers = [helper(WRITE, name, "4", str(base), "40") for base in (0, 1000)]
    for reader in readers:
        got = [int(reader.line()) for _ in range(80)]
        assert [value for value in got if value < 1000] == list(range(40))
        assert [value for value in got if value >= 1000] == list(range(1000, 1040))
    for writer in writers:
        assert [writer.line(), writer.line()] == ["up", "done"]


def test_both_ends_are_restarted(name: str, helper: Callable[..., Any], pool: xfer.Pool) -> None:
    """A killed reader does not hold up writers, and the next writer is heard at once."""
    with xfer.Topic(name, pool=pool) as topic:
        reader = helper(READ, name, "1", "every")
        assert reader.line() == "up"
        topic.publish(np.full(9, 1), timeout=5)
        assert reader.line() == "1"
        os.kill(reader.pid, 19)
        topic.publish(np.full(9, 2), timeout=5)
        threading.Timer(0.2, reader.kill).start()
        topic.publish(np.full(9, 3), timeout=60)
        with topic.subscribe() as mine:
            assert mine.recv(timeout=1)[0] == 3
            for base in (10, 20, 30):
                writer = helper(WRITE, name, "1", str(base), "1")
                assert mine.recv(timeout=60)[0] == base
                assert [writer.line(), writer.line()] == ["up", "done"]
                writer.kill()
            with topic.subscribe() as late, pytest.raises(errors.WaitTimeoutError):
                late.recv(timeout=0.05)  # its writer has died


def test_waits_end_by_close_and_cancellation(name: str) -> None:
    """Another thread's close ends recv; a cancelled arecv leaves the reader usable; several are waited for at once."""
    topic = xfer.Topic(name)
    reader, other = topic.subscribe(), topic.subscribe()
    said: list[Any] = []

    def wait() -> None:
        try:
            reader.recv()
        except errors.ChannelClosedError as error:
            said.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.05)
    reader.close()
    thread.join(30)
    assert len(said) == 1

    async def run() -> Any:
        task = asyncio.create_task(other.arecv())
        await asyncio.sleep(0.02)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        task = asyncio.create_task(other.arecv(timeout=60))
        await asyncio.sleep(0.02)
        topic.publish(np.arange(3))
        return (await task).tolist()

    assert asyncio.run(run()) == [0, 1, 2]
    with xfer.Channel() as channel, topic.subscribe() as late:
        late.recv(timeout=1)
        ends: list[Any] = [late, channel.receiver]
        assert xfer.wait(ends, timeout=0.02) == []
        topic.publish(np.arange(4))
        assert xfer.wait(ends, timeout=60) == [late]
    other.close()
    topic.close()


def test_a_publication_in_the_last_moment_before_the_sleep_is_heard(
    name: str, pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has looked for the last time, and seen nothing, still hears of what comes before it sleeps."""
    with xfer.Topic(name, pool=pool) as topic, topic.subscribe() as reader:
        looks: list[bool] = []

        def look() -> bool:
            looks.append(type(reader)._can_go_on(reader))
            if len(looks) == 1:
                topic.publish(np.arange(3))
            return looks[-1]

        monkeypatch.setattr(reader, "_can_go_on", look)
        start = time.monotonic()
        assert reader.recv(timeout=30).tolist() == [0, 1, 2]
        assert looks[0] is False
        assert time.monotonic() - start < 20  # not at the end of its time


def test_names_and_numbers_are_checked(name: str) -> None:
    """Wrong names and a different `keep` are refused; a topic is pickled by its name."""
    for wrong in ("", "x" * 200):
        with pytest.raises(ValueError, match="want 1 to 180"):
            xfer.Topic(wrong)
    with pytest.raises(ValueError, match="at least 1"):
        xfer.Topic(name, keep=0)
    with xfer.Topic(name, keep=3) as topic:
        topic.publish(np.zeros(1))
        with pytest.raises(ValueError, match="keeps 3"):
            xfer.Topic(name, keep=4).publish(np.zeros(1))
        again = pickle.loads(pickle.dumps(topic))
        assert (again.name, again.keep) == (name, 3)
        assert stat.S_IMODE(os.stat(board.path_of(name)).st_mode) == 0o600
        assert [used for found, _, used in board.topics() if found == name] == [True]
    assert [used for found, _, used in board.topics() if found == name] == [False]
    topic.remove()
    assert not [found for found, _, _ in board.topics() if found == name]


DRILL = Path(__file__).parent / "workers" / "topic_drill.py"
KILLS = int(os.environ.get("XFER_DRILL", "600"))


@pytest.mark.parametrize(
    "kills", [40, pytest.param(KILLS, marks=[pytest.mark.slow, pytest.mark.timeout(KILLS // 2 + 200)], id="long")]
)
def test_drill_of_kills_and_restarts(name: str, kills: int) -> None:
    """Writers and readers are killed at random; no array is wrong, no wait is long, nothing is left.

    XFER_DRILL=10000 makes the slow run kill so many.
    """
    command = [sys.executable, str(DRILL), name, str(kills), "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=kills // 2 + 100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["kills"] == said["received"] == kills
    assert said["longest"] < 10, said  # milliseconds at rest; on a busy machine a process may not run for a second
    assert not [entry for entry in os.listdir("/dev/shm") if quote(name, safe="") in entry]
