"""A coroutine that sends large arrays blocks no event loop, neither the host's nor the extension's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import numpy as np
import pytest
from integration_test_base import IntegrationTestBase

from isolate import Extension, Host, ProxiedSingleton
from isolate.errors import CallTimeoutError, LinkClosedError

LONGEST = 0.015
"""Processor time in seconds; these arrays take several times that."""
BYTES = 96 << 20

CODE = """
import asyncio, time
import numpy as np
longest = 0.0
original = asyncio.events.Handle._run
def timed(handle):
    global longest
    began = time.thread_time()
    original(handle)
    longest = max(longest, time.thread_time() - began)
asyncio.events.Handle._run = timed
kept = np.ones(BYTES, np.uint8)
class Extension:
    def __init__(self, host): self.host = host
    async def size(self, data): return len(data)
    async def fresh(self, text):
        kept[:] = 2
        self.kept = kept
        return bytes(memoryview(kept)[: BYTES // 4]) if text else kept
    async def items(self):
        for number in range(3):
            yield kept[: BYTES // 4] + number
    async def ask(self):
        return await self.host.aio.sizes.size(kept[: BYTES // 2])
    async def reset(self):
        global longest
        before, longest = longest, 0.0
        return before
""".replace("BYTES", str(BYTES))


class SizesSingleton(ProxiedSingleton):
    """Asked by the extension."""

    async def size(self, array: Any) -> int:
        """Return how many elements an array has."""
        return len(array)


class Longest:
    """The longest that one callback has used an event loop's thread."""

    value = 0.0


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> Longest:
    """Measure every callback of every event loop of this process."""
    found = Longest()
    original = asyncio.events.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        original(handle)
        found.value = max(found.value, time.thread_time() - began)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    return found


class TestCopies(IntegrationTestBase):
    """Arrays of a size that takes far longer to copy than a loop may be blocked."""

    def test_loops_are_not_blocked(self, longest: Longest) -> None:
        """Arguments, results, stream items and nested calls; arrays and bytes."""
        self.create_extension("big", CODE, dependencies=["numpy"])

        async def run() -> None:
            async with Host(self.store) as host:
                host.export(SizesSingleton)
                extension = await host.aload(self.root / "big")
                for _ in range(8):  # on a slow moment of the machine, or a collection of garbage, another try
                    seen = await self._used(extension, longest)
                    if all(max(both) < LONGEST for both in seen.values()):
                        return
                raise AssertionError(seen)

        asyncio.run(run())

    async def _used(self, extension: Extension[Any], longest: Longest) -> dict[str, tuple[float, float]]:
        """Send large values in every way; return the longest callback of each, here and in the extension."""
        data = np.ones(BYTES, np.uint8)
        text = bytes(BYTES // 4)
        await extension.aio.reset()
        seen: dict[str, tuple[float, float]] = {}

        async def measured(name: str, call: Any) -> Any:
            longest.value = 0.0
            value = await call
            here = longest.value
            seen[name] = (round(here, 4), round(await extension.aio.reset(), 4))
            return value

        assert await measured("array", extension.aio.size(data)) == BYTES
        data[:] = 3
        assert await measured("array again", extension.aio.size(data)) == BYTES
        assert await measured("bytes", extension.aio.size(text)) == len(text)
        fresh = extension.aio.fresh
        longest.value = 0.0
        assert len(await fresh(True)) == BYTES // 4
        seen["bytes as a result"] = (longest.value, 0.0)
        longest.value = 0.0
        assert (await fresh(False))[-1] == 2
        seen["array as a result"] = (longest.value, 0.0)
        longest.value = 0.0
        assert [int(item[0]) async for item in extension.aio.items()] == [2, 3, 4]
        seen["items"] = (longest.value, 0.0)
        await extension.aio.reset()
        assert await measured("nested", extension.aio.ask()) == BYTES // 2
        return seen

    def test_ends_while_an_array_is_copied(self) -> None:
        """A deadline, a cancellation and the end of the extension reach a call whose array is being copied."""
        self.create_extension("big", CODE, dependencies=["numpy"])

        async def run() -> None:
            async with Host(self.store) as host:
                extension = await host.aload(self.root / "big")
                data = np.ones(BYTES, np.uint8)
                with pytest.raises(CallTimeoutError):
                    await extension.aio(timeout=0.001).size(data)
                cancelled = asyncio.ensure_future(extension.aio.size(data))
                await asyncio.sleep(0.003)
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
                calls = [asyncio.ensure_future(extension.aio.size(np.ones(BYTES, np.uint8))) for _ in range(2)]
                assert await extension.aio.size([1]) == 1
                assert await asyncio.gather(*calls) == [BYTES, BYTES]
                last = asyncio.ensure_future(extension.aio.size(data))
                await asyncio.sleep(0)
                await extension.astop(drain=False)
                with contextlib.suppress(LinkClosedError, RuntimeError):
                    assert await last == BYTES

        asyncio.run(run())
