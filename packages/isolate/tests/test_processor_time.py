"""`limits.cpu_seconds`: each call has its own processor time; what exceeds it ends, and the extension goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from integration_test_base import IntegrationTestBase

from isolate import Extension, State, WorkerDiedError
from isolate.errors import CallTimeoutError, CpuLimitError

CODE = """
import asyncio, os, time

ended = []

def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass
    return seconds

def spin(name="spin"):
    try:
        burn(60)
    finally:
        ended.append(name)

def stubborn():
    while True:
        try:
            burn(60)
        except Exception: pass

def items():
    for number in range(3): yield burn(0.01) + number
    spin("items")

async def aburn(seconds):
    await asyncio.sleep(0)
    return burn(seconds)

async def aspin():
    await asyncio.sleep(0)
    spin("aspin")

async def steps():
    try:
        while True:
            burn(0.01)
            await asyncio.sleep(0)
    finally:
        ended.append("steps")

async def aitems():
    yield 1
    spin("aitems")

def in_c():
    return sum(range(1 << 40))

def deaf():
    while True:
        try:
            burn(60)
        except BaseException: pass

def sleep(seconds):
    time.sleep(seconds)
    return seconds

def pid():
    return os.getpid()

def take():
    taken, ended[:] = ended[:], []
    return taken
"""


class TestProcessorTime(IntegrationTestBase):
    """One extension with a limit of a fraction of a second."""

    def _load(self) -> Extension[Any]:
        folder = self.create_extension("pack", CODE, limits={"cpu_seconds": 0.1}, restart={"policy": "on-failure"})
        return self.make_host().load(folder)

    def test_each_call_alone(self) -> None:
        """Calls of every kind end with a typed error where they are; earlier and sleeping ones do not count."""
        pack = self._load()
        assert pack.report is not None
        assert "cpu_seconds at most 0.1 for each call" in pack.report.sandbox.enforced
        first = pack.call.pid()
        assert [pack.call.burn(0.04) for _ in range(4)] == [0.04] * 4
        assert asyncio.run(pack.aio.aburn(0.04)) == 0.04
        assert pack.call.sleep(0.4) == 0.4
        calls: dict[str, Callable[[], Any]] = {
            "spin": pack.call.spin,
            "items": lambda: list(pack.call.items()),
            "aspin": lambda: asyncio.run(pack.aio.aspin()),
            "steps": lambda: asyncio.run(pack.aio.steps()),
            "aitems": lambda: list(pack.call.aitems()),
        }
        for name, call in calls.items():
            with pytest.raises(CpuLimitError, match=r"more than 0\.1 s"):
                call()
            assert pack.call.take() == [name]
        with pytest.raises(CpuLimitError):
            pack.call.stubborn()

        async def at_once() -> list[Any]:
            calls = [pack.aio.spin("a"), pack.aio.sleep(0.1), pack.aio.spin("b"), pack.aio.burn(0.01)]
            return await asyncio.gather(*calls, return_exceptions=True)

        assert [type(value) for value in asyncio.run(at_once())] == [CpuLimitError, float, CpuLimitError, float]
        with pytest.raises(CallTimeoutError):
            pack.call(timeout=0.1).sleep(1)
        assert pack.call.pid() == first

    @pytest.mark.parametrize("method", ["deaf", pytest.param("in_c", marks=pytest.mark.slow)])
    def test_what_does_not_end(self, method: str) -> None:
        """A call inside C code, or one that catches everything, ends the worker, which is started again."""
        pack = self._load()
        with pytest.raises(WorkerDiedError, match="did not end at its limit of processor time"):
            getattr(pack.call, method)()
        pack.when(State.READY, timeout=60)
        assert pack.call.burn(0.01) == 0.01
