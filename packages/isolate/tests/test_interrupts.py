"""Calls that end at any moment, by a signal handler's error or by cancellation, leave nothing on either side."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from isolate import Extension, Host, Policy
from isolate._policy import Quotas
from isolate.errors import OverloadedError

PROGRAM = Path(__file__).parent / "interrupts" / "run_interrupts.py"
EXTENSION = """
import time
RUNNING = set()
def count(value):
    return 1
def back(value):
    return value
def apply(function):
    return function(-1)
def sleep(seconds):
    RUNNING.add("sleep")
    try:
        for _ in range(int(seconds * 1000)):
            time.sleep(0.001)
    finally:
        RUNNING.discard("sleep")
def stream(n):
    RUNNING.add("stream")
    try:
        yield from range(n)
        time.sleep(0)
    finally:
        RUNNING.discard("stream")
async def astream(n):
    for i in range(n):
        yield i
def working():
    return len(RUNNING)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An extension that tells whether a call still runs."""
    (tmp_path / "manifest.yaml").write_text("name: interrupted\n")
    (tmp_path / "main.py").write_text(EXTENSION)
    return tmp_path


def test_a_signal_handler_may_raise_at_any_moment(folder: Path, store: Path) -> None:
    """Ctrl-C at each moment of a call or stream: the callee ends, no block stays lent, and no frame is cut off."""
    done = subprocess.run([sys.executable, str(PROGRAM), str(store), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    moments = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    assert len(moments) == 9
    assert min(moments.values()) > 20, "the tracer found no moments"


async def settled(extension: Extension[Any]) -> None:
    """Wait until nothing is left of the calls before, on either side."""
    left: object = None
    for _ in range(3000):
        stats = extension.stats()
        working = await extension.aio(timeout=60).working()
        left = stats["pending"], stats["serving"], stats["lent"], working
        if not any(left):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"pending, serving, lent, working: {left}")


async def drained(items: Any) -> None:
    """Iterate over a stream."""
    async for _ in items:
        pass


async def late(extension: Extension[Any]) -> None:
    """Await what does not answer in time."""
    with pytest.raises(TimeoutError):
        await extension.aio(timeout=0.001).sleep(60)


STEPS: dict[str, Callable[[Extension[Any]], Awaitable[Any]]] = {
    "call": lambda ext: ext.aio.count(1),
    "deadline": lambda ext: ext.aio(timeout=60).count(1),
    "late": late,
    "long": lambda ext: ext.aio.sleep(60),
    "shared": lambda ext: ext.aio.back(bytes(1 << 18)),
    "copied elsewhere": lambda ext: ext.aio.back(bytes(5 << 20)),
    "callable": lambda ext: ext.aio.apply(abs),
    "stream": lambda ext: drained(ext.aio.stream(40)),
    "async stream": lambda ext: drained(ext.aio.astream(40)),
}


async def cancelled_everywhere(extension: Extension[Any], step: Callable[[Extension[Any]], Awaitable[Any]]) -> None:
    """Cancel a step after each number of turns of the event loop, until it ends before."""
    for turns in range(30):
        task = asyncio.ensure_future(step(extension))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await settled(extension)


@pytest.mark.parametrize("own", [True, False], ids=["the host's loop", "another loop"])
def test_awaited_calls_may_be_cancelled_at_any_moment(folder: Path, store: Path, own: bool) -> None:
    """The table of pending calls, the leases, the callables and what runs in the worker: all are empty afterwards."""

    async def try_all(extension: Extension[Any]) -> None:
        pid = extension.pid
        for step in STEPS.values():
            await cancelled_everywhere(extension, step)
        callables = extension._current.link.values.callables if extension._current else ()
        for _ in range(3000):  # the worker's collector of garbage releases them
            if not callables:
                break
            await asyncio.sleep(0.01)
        assert len(callables) == 0
        assert extension.pid == pid

    async def on_own_loop() -> None:
        async with Host(store) as host:
            await try_all(await host.aload(folder))

    if own:
        asyncio.run(on_own_loop())
    else:
        with Host(store) as host:
            asyncio.run(try_all(host.load(folder)))


def test_a_call_cancelled_while_it_answers_with_shared_memory(folder: Path, store: Path) -> None:
    """A worker that announced a segment twice would be ended; the first answers of a worker announce segments."""

    async def run() -> None:
        async with Host(store) as host:
            extension = await host.aload(folder)
            for seed in range(4):
                times = random.Random(seed)
                pid = extension.pid
                for size in (18, 19, 20, 21) * 3:
                    task = asyncio.ensure_future(extension.aio.back(bytes(1 << size)))
                    await asyncio.sleep(times.uniform(0, 0.003))
                    task.cancel()
                    await asyncio.wait([task])
                assert await extension.aio(timeout=60).back(bytes(1 << 18)) == bytes(1 << 18)
                assert extension.pid == pid
                await extension.areload()

    asyncio.run(run())


def test_an_awaited_call_that_is_thrown_away_is_cancelled(folder: Path, store: Path) -> None:
    """A coroutine that is closed and not cancelled, as at the end of a loop, ends its callee too."""

    async def close() -> None:
        async with Host(store) as host:
            extension = await host.aload(folder)
            call = extension.aio.sleep(60)
            call.send(None)
            assert extension.stats()["pending"] == 1
            call.close()
            await settled(extension)

    asyncio.run(close())


def test_a_message_that_is_too_large_gives_back_its_arrays(folder: Path, store: Path) -> None:
    """The frame is refused after its large bytes have been put into shared memory."""
    with Host(store, policy=Policy(quotas=Quotas(frame_bytes=1 << 20))) as host:
        extension = host.load(folder)
        for _ in range(3):
            with pytest.raises(OverloadedError):
                extension.call.count([bytes(1 << 18), abs, "x" * (2 << 20)])
        asyncio.run(settled(extension))
        assert extension._current is not None
        assert len(extension._current.link.values.callables) == 0
