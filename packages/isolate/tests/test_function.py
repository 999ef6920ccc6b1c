"""Functions in environments of their own: source, results, streams, errors, notebooks."""

from __future__ import annotations

import asyncio
import enum
import functools
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import packaging
import pytest

import isolate
from isolate import Host
from isolate._source import capture
from isolate.errors import FunctionSourceError

FACTOR = 3


class Size(enum.Enum):
    """An enum that travels with the functions that use it."""

    SMALL = "small"


@dataclass
class Order:
    """A dataclass that does."""

    item: str
    size: Size


def helper(x: int) -> int:
    """Comes along."""
    return FACTOR * x


def triple(x: int) -> int:
    """Uses a function, a constant and a module."""
    return json.loads(json.dumps(helper(x)))  # type: ignore[no-any-return]


def enlarge(order: Order, by: Size = Size.SMALL) -> Order:
    """Takes and returns classes of this module."""
    assert isinstance(order, Order)
    assert isinstance(by, Size)
    return Order(order.item * 2, by)


def versions() -> str:
    """The version that this environment has."""
    import packaging

    return packaging.__version__


def count(n: int) -> Iterator[int]:
    """A stream."""
    yield from range(n)


async def later(x: int) -> int:
    """A coroutine."""
    await asyncio.sleep(0)
    return x + 1


async def several(n: int) -> Any:
    """An asynchronous stream."""
    for i in range(n):
        yield i


def fail(x: int) -> float:
    """Raises."""
    return 1 / x


@pytest.fixture
def host(store: Path) -> Iterator[Host]:
    """An open host."""
    with Host(store) as host:
        yield host


def test_called_like_a_local_function(host: Host) -> None:
    """Values, classes, streams, coroutines, errors; two versions of a package; the process stays."""
    assert isolate.run(triple, 5, host=host) == 15
    assert isolate.run(triple, x=5, host=host) == 15
    assert len(host.extensions) == 1
    assert isolate.run(enlarge, Order("ab", Size.SMALL), host=host) == Order("abab", Size.SMALL)
    assert isolate.run(versions, dependencies=["packaging==23.2"], host=host) == "23.2" != packaging.__version__
    assert list(isolate.run(count, 3, host=host)) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError) as caught:
        isolate.run(fail, 0, host=host)
    assert "return 1 / x" in str(caught.value.__cause__)
    assert asyncio.run(isolate.run(later, 1, host=host)) == 2  # type: ignore[arg-type]

    async def collect() -> list[int]:
        return [item async for item in isolate.run(several, 3, host=host)]

    assert asyncio.run(collect()) == [0, 1, 2]


def test_decorator(host: Host) -> None:
    """The decorated function keeps its name and its local form, follows what it captures, and can be stopped."""
    amount = 4

    @isolate.function(host=host, timeout=100)
    def shift(x: int) -> int:
        """Adds a captured number."""
        return x + amount

    assert shift(1) == 5
    assert (shift.__name__, shift.__doc__, shift.local(1)) == ("shift", "Adds a captured number.", 5)
    before = shift.extension.pid
    amount = 5
    assert shift(1) == 6
    assert shift.extension.pid != before
    shift.stop()
    assert shift(1) == 6
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(shift(2))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1

    async def both() -> list[int]:
        return await asyncio.gather(shift.aio(1), shift.aio(1))

    assert asyncio.run(both()) == [shift(1)] * 2


def test_what_cannot_run_elsewhere() -> None:
    """Lambdas, exec and globals without a source are refused by name, before anything is built."""
    array = np.zeros(3)
    lock = threading.Lock()

    def uses_array() -> Any:
        return array.sum()

    def uses_lock() -> Any:
        return lock

    space: dict[str, Any] = {}
    exec("def made(): return 1", space)
    for function, message in (
        (uses_array, r"the global 'array' is a numpy\.ndarray.*pass it as an argument"),
        (uses_lock, "'lock'"),
        (lambda: 1, "lambda"),
        (space["made"], "not to be had"),
    ):
        with pytest.raises(FunctionSourceError, match=message):
            isolate.run(function)
    with pytest.raises(TypeError, match="no Python function"):
        isolate.run(len, [1])


@functools.lru_cache
def cached(x: int) -> int:
    """Decorated by something else."""
    return x + 1


@isolate.function
def inner(x: int) -> int:
    """Runs in the process of the function that uses it."""
    return cached(x)


def outer(x: int) -> int:
    """Uses decorated functions, and itself."""
    return inner(x) if x else outer(x + 1)


def test_decorated_functions_come_along(host: Host) -> None:
    """With their other decorators; an isolated one runs where its user runs."""
    assert isolate.run(outer, 0, host=host) == 2
    assert len(host.extensions) == 1


def test_source_is_that_of_the_definition(host: Host, tmp_path: Path) -> None:
    """A file that has changed since the function was defined changes nothing."""
    file = tmp_path / "changing.py"
    file.write_text("import isolate\n@isolate.function\ndef f(): return 1\n")
    spec = importlib.util.spec_from_file_location("changing", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file.write_text("import isolate\n\n\n\ndef g(): return 2\n@isolate.function\ndef f(): return 3\n")
    there = isolate.Function(module.f.local, host=host)
    there._text = module.f._text
    assert there() == 1


def test_source_has_what_is_used_and_nothing_more() -> None:
    """Imports, constants and definitions in an order that runs; names that are attributes only are left out."""
    text = capture(triple).text  # type: ignore[arg-type]
    space: dict[str, Any] = {"__name__": "alone"}
    exec(compile(text, "<captured>", "exec"), space)
    assert space["isolate_function"](2) == 6
    assert "Order" not in text
    assert "pytest" not in text


def test_spare_processes(store: Path) -> None:
    """A process that waits is used by the next start in the same environment; a dead one is not; none is left."""
    with Host(store, spares=1) as host:
        first = isolate.Function(triple, host=host)
        assert first(1) == 3

        def spare() -> int:
            end = time.monotonic() + 60
            while not host._spares._waiting:
                assert time.monotonic() < end
                time.sleep(0.02)
            return host._spares._waiting[0][1].process.pid

        waiting = spare()
        second = isolate.Function(later, host=host)
        assert asyncio.run(second(1)) == 2  # type: ignore[arg-type]
        assert second.extension._current.process.pid == waiting  # type: ignore[union-attr]
        dead = spare()
        assert dead != waiting
        os.kill(dead, 9)
        first.stop()
        assert first(2) == 6
        assert first.extension._current.process.pid != dead  # type: ignore[union-attr]

        # One that dies after it was taken: its end shows only when it is asked for the extension.
        dying, take = spare(), host._spares.take

        def taken(*wanted: object) -> object:
            started = take(*wanted)  # type: ignore[arg-type]
            if started is not None:
                os.kill(started.process.pid, 9)
            return started

        host._spares.take = taken  # type: ignore[method-assign, assignment]
        first.stop()
        try:
            assert first(3) == 9
        finally:
            host._spares.take = take  # type: ignore[method-assign]
        assert first.extension._current.process.pid != dying  # type: ignore[union-attr]
        spare()


NOTEBOOK = """
import linecache, sys, time
import isolate

def cell(number, source):
    name = f"<ipython-input-{number}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, "exec"), globals())

cell(1, "N = 2\\n@isolate.function\\ndef f(x):\\n    print('here')\\n    return N * x\\n")
assert f(4) == 8
first = f.extension.pid
cell(2, "@isolate.function\\ndef f(x):\\n    print('here')\\n    return N * x\\n")
assert f(4) == 8 and f.extension.pid == first
N = 3
assert f(4) == 12 and f.extension.pid != first
cell(3, "def f(x):\\n    return isolate.__name__, x\\n")
print(isolate.run(f, 1))
"""


def test_notebook_cells(tmp_path: Path) -> None:
    """A cell that is run again keeps its process, a changed one replaces it; prints are seen."""
    program = tmp_path / "notebook.py"
    program.write_text(textwrap.dedent(NOTEBOOK))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["here", "here", "here", "('isolate', 1)"]
    assert "creating the environment" in done.stderr


TABLE = {"scales": [1, 2]}
PAIR = ([1], 2)


def table() -> Any:
    """Returns constants that can change in place."""
    return TABLE["scales"], PAIR


def test_a_constant_that_changes_in_place(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call has the list, dictionary or tuple as it is then."""
    monkeypatch.setitem(TABLE, "scales", [1, 2])
    with Host(store) as host:
        assert isolate.run(table, host=host) == ([1, 2], ([1], 2))
        TABLE["scales"].append(3)
        assert isolate.run(table, host=host) == ([1, 2, 3], ([1], 2))
        PAIR[0].append(9)
        try:
            assert isolate.run(table, host=host) == ([1, 2, 3], ([1, 9], 2))
        finally:
            PAIR[0].pop()
        assert isolate.run(table, host=host) == ([1, 2, 3], ([1], 2))


def test_a_store_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    """For a function as for an extension: the message names the store."""
    with Host(Path("/proc/version/store")) as host, pytest.raises(isolate.IsolateError, match="/proc/version"):
        isolate.run(triple, 2, host=host)
