"""What a host and its extensions do after, and while, the host is closed: a typed error or nothing, never a wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isolate import Extension, Host, NotReadyError, State, function
from isolate.errors import HostClosedError, HostRunningError, IsolateError, WouldDeadlockError


class Store:
    """An API."""

    def get(self) -> int:
        """Return a number."""
        return 1


def one() -> int:
    """Return a number."""
    return 1


async def all_of(items: Any) -> list[Any]:
    """Return the items of an asynchronous stream."""
    return [item async for item in items]


CLOSED: dict[str, Callable[[Host, Extension[Any], Path], Any]] = {
    "enter": lambda host, ext, folder: host.__enter__(),
    "enter async": lambda host, ext, folder: host.__aenter__(),
    "load": lambda host, ext, folder: host.load(folder),
    "aload": lambda host, ext, folder: host.aload(folder),
    "load_all": lambda host, ext, folder: host.load_all(folder.parent),
    "aload_all": lambda host, ext, folder: host.aload_all(folder.parent),
    "export": lambda host, ext, folder: host.export(Store(), methods=["get"]),
    "function": lambda host, ext, folder: function(one, host=host)(),
    "reload": lambda host, ext, folder: ext.reload(),
    "areload": lambda host, ext, folder: ext.areload(),
    "when": lambda host, ext, folder: ext.when(State.READY),
    "awhen": lambda host, ext, folder: ext.awhen(State.CRASHED),
    "watch": lambda host, ext, folder: ext.watch(),
}
STOPPED: dict[str, Callable[[Extension[Any]], Any]] = {
    "call": lambda ext: ext.call.fine(),
    "aio": lambda ext: ext.aio.fine(),
    "stream": lambda ext: list(ext.call.many()),
    "astream": lambda ext: all_of(ext.aio.many()),
    "explain": lambda ext: ext.explain(1),
}
NOTHING: dict[str, Callable[[Host, Extension[Any]], Any]] = {
    "close": lambda host, ext: host.close(),
    "aclose": lambda host, ext: host.aclose(),
    "stop": lambda host, ext: ext.stop(),
    "astop": lambda host, ext: ext.astop(),
    "when it is stopped": lambda host, ext: ext.when(State.STOPPED),
    "awhen it is stopped": lambda host, ext: ext.awhen(State.STOPPED),
    "stats": lambda host, ext: ext.stats(),
    "pid": lambda host, ext: ext.pid,
    "methods": lambda host, ext: ext.methods,
    "extensions": lambda host, ext: host.extensions["a"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small extension."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.yaml").write_text("name: a\n")
    (tmp_path / "a" / "main.py").write_text("def fine():\n    return 1\ndef many():\n    yield 1\n")
    return tmp_path / "a"


def closed_blocking(store: Path, folder: Path) -> tuple[Host, Extension[Any]]:
    """Return a host that was opened with `with`, and its extension."""
    with Host(store) as host:
        return host, host.load(folder)


def closed_async(store: Path, folder: Path) -> tuple[Host, Extension[Any]]:
    """Return one that was opened with `async with`."""

    async def run() -> tuple[Host, Extension[Any]]:
        async with Host(store) as host:
            return host, await host.aload(folder)

    return asyncio.run(run())


def finished(result: Any) -> Any:
    """Await what is to be awaited, on a loop of its own."""

    async def wait() -> Any:
        return await asyncio.wait_for(result, 60)

    return asyncio.run(wait()) if hasattr(result, "__await__") else result


async def here(act: Callable[..., Any], *args: Any) -> Any:
    """Await what is to be awaited, on the running loop."""
    found = act(*args)
    return await found if hasattr(found, "__await__") else found


@pytest.mark.parametrize("make", [closed_blocking, closed_async])
def test_every_public_method_after_close(
    make: Callable[..., Any], store: Path, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """What needs the host says that it is closed, calls say that the extension is stopped, the rest does nothing."""
    host, extension = make(store, folder)
    for name, act in CLOSED.items():
        with pytest.raises(HostClosedError, match="closed"):
            print(name, finished(act(host, extension, folder)))
    for name, call in STOPPED.items():
        with pytest.raises(NotReadyError, match="a is stopped"):
            print(name, finished(call(extension)))
    for same in NOTHING.values():
        finished(same(host, extension))
    assert extension.state is State.STOPPED
    assert not [warning for warning in recwarn if "was never awaited" in str(warning.message)]


def test_every_public_method_after_close_on_the_same_loop(store: Path, folder: Path) -> None:
    """A load after `aclose` would start a worker that nobody ends."""

    async def run() -> None:
        async with Host(store) as host:
            extension = await host.aload(folder)
            with pytest.raises(HostRunningError, match="already running"):
                await host.__aenter__()
        for name, act in CLOSED.items():
            with pytest.raises(HostClosedError):
                print(name, await here(act, host, extension, folder))
        for same in NOTHING.values():
            await here(same, host, extension)

    asyncio.run(run())


def test_a_host_that_was_never_opened(store: Path, folder: Path) -> None:
    """Closing it ends it too."""
    host = Host(store)
    host.close()
    for act in (host.__enter__, host.__aenter__, lambda: host.load(folder), lambda: host.aload(folder)):
        with pytest.raises(HostClosedError):
            finished(act())
    finished(Host(store).aclose())


def test_who_waits_while_the_host_is_closed_gets_an_error(store: Path, folder: Path) -> None:
    """Threads and other event loops that wait for a state do not wait for ever."""
    with Host(store) as host, ThreadPoolExecutor(4) as pool:
        extension = host.load(folder)
        waiting = [
            pool.submit(extension.when, State.CRASHED),
            pool.submit(lambda: finished(extension.awhen(State.FAILED))),
        ]
        while not all(future.running() for future in waiting):
            time.sleep(0.001)
        host.close()
        for future in waiting:
            with pytest.raises(HostClosedError):
                future.result(60)


def test_an_await_on_the_hosts_own_loop_gets_an_error(store: Path, folder: Path) -> None:
    """The same for `async with`."""

    async def run() -> None:
        async with Host(store) as host:
            extension = await host.aload(folder)
            waiting = asyncio.ensure_future(extension.awhen(State.CRASHED))
            await asyncio.sleep(0)
        with pytest.raises(HostClosedError):
            await asyncio.wait_for(waiting, 60)

    asyncio.run(run())


def test_many_threads_close_at_once(store: Path, folder: Path) -> None:
    """Each call returns, and then everything has ended."""
    for _ in range(3):
        host = Host(store).__enter__()
        extension = host.load(folder)
        begin = threading.Barrier(4)

        def close(host: Host = host, begin: threading.Barrier = begin, extension: Extension[Any] = extension) -> State:
            begin.wait()
            host.close()
            return extension.state

        with ThreadPoolExecutor(4) as pool:
            closing = [pool.submit(close) for _ in range(4)]
            assert [future.result(60) for future in closing] == [State.STOPPED] * 4


def test_close_on_the_hosts_own_loop_is_refused(store: Path) -> None:
    """It would wait for itself."""
    with Host(store) as host:

        class Api:
            """An API whose method runs on the loop."""

            async def close(self) -> str:
                """Try it."""
                with pytest.raises(WouldDeadlockError, match="aclose"):
                    host.close()
                return "refused"

        assert asyncio.run_coroutine_threadsafe(Api().close(), host._own_loop()).result(60) == "refused"


def test_reload_and_stop_from_another_loop(store: Path, folder: Path) -> None:
    """`with Host()` has a loop of its own; what is awaited on the caller's runs there."""

    async def run(extension: Extension[Any]) -> None:
        first = extension.pid
        await extension.areload()
        assert extension.pid != first
        assert await extension.aio.fine() == 1
        await extension.astop()
        assert extension.state is State.STOPPED

    with Host(store) as host:
        asyncio.run(run(host.load(folder)))


def test_a_host_whose_loop_has_ended(store: Path, folder: Path) -> None:
    """`async with` was left by the end of its loop: the error says so."""
    host = Host(store)

    async def run() -> Iterator[Any]:
        await host.__aenter__()
        return iter(())

    asyncio.run(run())
    for act in (lambda: host.load(folder), lambda: host.aload(folder), lambda: host.load_all(folder.parent)):
        with pytest.raises(IsolateError, match="the event loop of this host has ended"):
            finished(act())
    host._finish()


def test_what_an_extension_says_at_its_exit_arrives(
    store: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Functions registered with `atexit` run, the last one first; one that fails does not keep the others from it."""
    (folder / "main.py").write_text(
        "import atexit, logging, multiprocessing.util, sys\n"
        "atexit.register(lambda: logging.getLogger('mine').warning('logged'))\n"
        "atexit.register(lambda: 1 / 0)\n"
        "atexit.register(print, 'printed')\n"
        "def fine(): return 1\n"
        "def on_stop(): print('stopped')\n"
    )
    with caplog.at_level("INFO", logger="isolate.a"), Host(store) as host:
        host.load(folder)
    said = [record.getMessage() for record in caplog.records]
    expected = ["stopped", "printed", "logged"]
    assert [line for line in said if line in expected] == expected
    assert any("ZeroDivisionError" in line for line in said)


def test_an_exit_function_that_never_ends_is_ended(store: Path, folder: Path) -> None:
    """The time to stop bounds it."""
    (folder / "manifest.yaml").write_text("name: a\ntimeouts: {stop: 0.2}\n")
    (folder / "main.py").write_text("import atexit, time\natexit.register(time.sleep, 1000)\ndef fine(): return 1\n")
    with Host(store) as host:
        host.load(folder)
