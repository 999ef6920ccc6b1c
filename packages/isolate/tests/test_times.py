"""Times that make no sense are refused where they are given; the others mean what they say."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isolate import CallTimeoutError, Extension, Host, State, function


@pytest.fixture(scope="module")
def extension(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extension[Any]]:
    """An extension."""
    folder = tmp_path_factory.mktemp("times")
    (folder / "manifest.yaml").write_text("name: times\n")
    (folder / "main.py").write_text(
        "import time\ndef fine(): return 1\ndef slow(): time.sleep(60)\ndef many():\n    yield 1\n"
    )
    with Host(store) as host:
        yield host.load(folder)


@pytest.fixture
def no_leaks() -> None:
    """The extension is for all tests of this module."""


async def all_of(items: Any) -> list[Any]:
    """Return the items of an asynchronous stream."""
    return [item async for item in items]


WAYS: dict[str, Callable[[Extension[Any], Any], Any]] = {
    "call": lambda ext, seconds: ext.call(timeout=seconds).fine(),
    "within": lambda ext, seconds: ext.within(seconds).fine(),
    "aio": lambda ext, seconds: ext.aio(timeout=seconds).fine(),
    "stream": lambda ext, seconds: list(ext.call(timeout=seconds).many()),
    "astream": lambda ext, seconds: all_of(ext.aio(timeout=seconds).many()),
    "when": lambda ext, seconds: ext.when(State.FAILED, timeout=seconds),
    "awhen": lambda ext, seconds: ext.awhen(State.FAILED, timeout=seconds),
    "watch": lambda ext, seconds: ext.watch(seconds),
}


def finished(result: Any) -> Any:
    """Await what is to be awaited."""

    async def wait() -> Any:
        return await result

    return asyncio.run(wait()) if hasattr(result, "__await__") else result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("seconds", "error"), [(math.nan, ValueError), ("1", TypeError), ([], TypeError)])
def test_what_is_no_time_is_refused(extension: Extension[Any], way: str, seconds: Any, error: type[Exception]) -> None:
    """With NaN the time would never be over; nothing is begun."""
    with pytest.raises(error):
        finished(WAYS[way](extension, seconds))
    assert extension.stats()["pending"] == 0


@pytest.mark.parametrize("seconds", [0, -1, -math.inf, 1e-9, -(10**400)])
def test_a_time_that_is_over(extension: Extension[Any], seconds: float) -> None:
    """A call without time ends at once with the error of a time-out, in both ways to call."""
    for way in (extension.call(timeout=seconds).slow, lambda: finished(extension.aio(timeout=seconds).slow())):
        with pytest.raises(CallTimeoutError):
            way()
    for wait in ("when", "awhen"):
        with pytest.raises(TimeoutError):
            finished(WAYS[wait](extension, seconds))


@pytest.mark.parametrize("seconds", [math.inf, 1e300, 10**400, None, True, np.float32(60), np.int64(60)])
def test_a_time_without_end(extension: Extension[Any], seconds: Any) -> None:
    """Large times, and those of numpy, are times."""
    for way in ("call", "aio"):
        assert finished(WAYS[way](extension, seconds)) == 1
    for way in ("stream", "astream"):
        assert finished(WAYS[way](extension, seconds)) == [1]


def test_watching_without_a_pause_is_refused(extension: Extension[Any]) -> None:
    """It would use a processor."""
    for seconds in (0, -1):
        with pytest.raises(ValueError, match="more than 0"):
            extension.watch(seconds)


def test_a_function_with_a_time_that_is_none(store: Path) -> None:
    """The decorator passes its time on."""

    def one() -> int:
        return 1

    with Host(store) as host:
        assert function(one, host=host, timeout=math.inf)() == 1
        with pytest.raises(ValueError, match="timeout is nan"):
            function(one, host=host, timeout=math.nan)()
