"""Every call is answered, whatever the exception, the cancelled task or the callable does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from isolate import Extension, Host
from isolate._worker import failures
from isolate._worker.calls import kind_of
from isolate.errors import RemoteError, UnsupportedTypeError

MAIN = """
import asyncio
import os
import sys

class NoText(Exception):
    def __str__(self): raise RuntimeError("no text")
    __repr__ = __str__

class Interrupts(Exception):
    def __str__(self): raise KeyboardInterrupt

def failure(name):
    return {"NoText": NoText, "Interrupts": Interrupts, "exit": SystemExit, "end": GeneratorExit,
            "interrupt": KeyboardInterrupt, "cancelled": asyncio.CancelledError}[name]()

def plain(name): raise failure(name)

async def awaited(name): raise failure(name)

def items(name):
    yield 1
    raise failure(name)

async def awaited_items(name):
    yield 1
    raise failure(name)

async def waits_for_a_cancelled_task():
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task

def calls(function): return function(1)

def makes_a_stream():
    def stream(n): yield n
    return stream

def many_digits(): raise ValueError(10 ** 5000)

def forks(how):
    child = os.fork()
    if child == 0:
        if how == "exits":
            sys.exit(3)
        if how == "fails":
            raise ValueError(how)
        return "the answer of the child"
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

async def forks_awaited(how): return forks(how)

def forks_items(how): yield forks(how)

async def forks_awaited_items(how): yield forks(how)

def many(n):
    for i in range(n): yield i
"""


@pytest.fixture
def extension(tmp_path: Path) -> Iterator[Extension]:
    """An extension whose methods fail in odd ways, and which must survive that."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("name: odd\n")
    (folder / "main.py").write_text(MAIN)
    with Host(tmp_path / "store") as host:
        loaded = host.load(folder)
        before = loaded.pid
        yield loaded
        assert loaded.pid == before


def test_a_method_that_fails_oddly_is_answered(extension: Extension) -> None:
    """What ends a loop, is no Exception or cannot be shown arrives as text, and the worker goes on."""
    methods = extension.call(timeout=60)
    for name, type_name in (
        ("NoText", "main.NoText"),
        ("Interrupts", "main.Interrupts"),
        ("exit", "SystemExit"),
        ("end", "GeneratorExit"),
        ("interrupt", "KeyboardInterrupt"),
        ("cancelled", "asyncio.exceptions.CancelledError"),
    ):
        for method in (methods.plain, methods.awaited, methods.items, methods.awaited_items):
            with pytest.raises(RemoteError) as caught:
                list(method(name))
            assert caught.value.type_name == type_name
    with pytest.raises(RemoteError, match="CancelledError"):  # the method itself was not cancelled
        methods.waits_for_a_cancelled_task()


def test_a_forked_child_does_not_answer_for_its_parent(extension: Extension) -> None:
    """A child that comes back from a method ends there: its parent answers, with what it says of the child."""
    methods = extension.call(timeout=60)
    for how, code in (("exits", 3), ("fails", 1), ("returns", 0)):
        for method in (methods.forks, methods.forks_awaited):
            assert method(how) == code
        for stream in (methods.forks_items, methods.forks_awaited_items):
            assert list(stream(how)) == [code]
    assert list(methods.many(3)) == [0, 1, 2]


def _cancelled(_: int) -> None:
    raise asyncio.CancelledError


async def _awaited_cancelled(_: int) -> None:
    raise asyncio.CancelledError


async def _awaited_exit(_: int) -> None:
    raise SystemExit(2)


async def _awaited_interrupt(_: int) -> None:
    raise KeyboardInterrupt


def test_odd_callables_of_the_host(extension: Extension) -> None:
    """The host's event loop survives what ends a loop, and an object with every attribute is called like a function."""
    calls = extension.call(timeout=60).calls
    for function in (_cancelled, _awaited_cancelled, _awaited_exit, _awaited_interrupt):
        with pytest.raises(RemoteError):
            calls(function)
    mock = Mock(return_value=3)
    assert kind_of(mock) == "sync"
    assert calls(mock) == 3
    mock.assert_called_once_with(1)


async def _stream(n: int) -> AsyncIterator[int]:
    yield n


def _items(n: int) -> Iterator[int]:
    yield n


def test_functions_with_yield_as_callables(extension: Extension) -> None:
    """Only methods stream: what such a callable returns is refused like other generators, and the link stays."""
    methods = extension.call(timeout=60)
    for function in (_items, _stream):
        with pytest.raises(UnsupportedTypeError, match="generator, which does not travel"):
            methods.calls(function)
    with pytest.raises(UnsupportedTypeError, match=r"generator, which does not travel; send list\(value\)"):
        methods.makes_a_stream()(1)


def test_an_exception_with_a_number_of_many_digits_can_be_shown(extension: Extension) -> None:
    """The host may log whatever arrives."""
    with pytest.raises(ValueError, match="str") as caught:
        extension.call(timeout=60).many_digits()
    assert "4300" in str(caught.value)
    forged = failures.revive(["ValueError", "ValueError", "text", [10**5000], ""])
    assert str(forged) == "text"


def test_a_stream_of_a_loop_that_was_closed(extension: Extension) -> None:
    """Items for an event loop that is gone harm no other call."""
    loop = asyncio.new_event_loop()
    stream = extension.aio.many(1000)
    assert loop.run_until_complete(anext(stream)) == 0
    loop.close()
    assert list(extension.call(timeout=60).many(300)) == list(range(300))


class _Text(str):
    """No plain text."""

    __slots__ = ()


class _Odd(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


class _NoArgumentsError(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        """Fail."""
        raise RuntimeError


class _NoCauseError(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


class _HalfMadeError(RemoteError):
    def __init__(self) -> None:
        pass


class _OddPath:
    def __str__(self) -> str:
        raise RuntimeError


def _as_built_in() -> BaseException:
    kind: Any = type("Named", (Exception,), {"__module__": "builtins"})
    kind.__qualname__ = _Text("Named")
    failure: BaseException = kind(_Text("text"))
    return failure


@pytest.mark.parametrize(
    "make",
    [
        lambda: _Odd("Own", (Exception,), {})("text"),
        lambda: type("Own", (Exception,), {"__str__": lambda _: _Text("text")})(),
        _as_built_in,
        _NoArgumentsError,
        _NoCauseError,
        _HalfMadeError,
        lambda: RemoteError(5, 6),  # type: ignore[arg-type]
        lambda: OSError(2, "text", _OddPath()),
        lambda: ValueError(*["x" * 200_000] * 100),
    ],
)
def test_every_exception_can_be_described(make: Callable[[], BaseException]) -> None:
    """Whatever an exception's class defines, it becomes plain values of bounded size, and an exception again."""
    name, dotted, message, args, text = failures.describe(make())
    assert type(dotted) is type(message) is type(text) is str
    assert name is None or type(name) is str
    assert len(dotted) + len(message) + len(text) + sum(len(arg) for arg in args or () if type(arg) is str) < 700_000
    assert isinstance(failures.revive([name, dotted, message, args, text]), Exception)
