"""Extensions with their own versions of everything, calling their host and being called by it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration_test_base import BOUNDARY, NEW_NUMPY, OLD_NUMPY, DatabaseSingleton, IntegrationTestBase
from packaging.version import Version

from isolate import Host, Policy, ProxiedSingleton, RemoteError, WorkerDiedError, share
from isolate._environments import find_uv
from isolate.errors import DepthExceededError, ShareConflictError, UnknownMethodError, WouldDeadlockError

VERSIONS = """
import sys
import numpy as np
import packaging

class Extension:
    def __init__(self, host):
        self.host = host
    def versions(self):
        return {"numpy": np.__version__, "numpy_path": np.__file__, "packaging": packaging.__version__}
    def record(self, key):
        self.host.call.database.put(key, np.__version__)
    def loaded(self, name):
        return name in sys.modules
    def total(self, array):
        return float(array.sum())
    def echo(self, value):
        return value
    def writeable(self, array):
        return array.flags.writeable
    def kept(self, array):
        self.array = array
    def first_kept(self):
        return float(self.array.flat[0])
    def write(self, array):
        array[0] = 7
"""
OLD = {"dependencies": [OLD_NUMPY, "packaging==23.2"]}
NEW = {"dependencies": [NEW_NUMPY, "packaging==24.2"]}


class TestMultipleExtensionsWithConflictingDependencies(IntegrationTestBase):
    """Each extension sees its own versions, whatever the host and the others have."""

    def test_numpy_version_conflicts(self) -> None:
        """Numpy 1 and 2, and two versions of a second package, side by side under a host with numpy 2."""
        self.create_extension("old", VERSIONS, **OLD)
        self.create_extension("new", VERSIONS, **NEW)
        host, loaded = self.load_extensions(DatabaseSingleton)
        assert not loaded.errors
        old, new = host["old"].call.versions(), host["new"].call.versions()
        assert Version(old["numpy"]) < BOUNDARY <= Version(new["numpy"])
        assert (old["packaging"], new["packaging"]) == ("23.2", "24.2")
        for name, versions in (("old", old), ("new", new)):
            report = host[name].report
            assert report is not None
            assert report.environment is not None
            assert versions["numpy_path"].startswith(str(report.environment.path))
            assert f"numpy=={versions['numpy']}" in report.environment.packages
            host[name].call.record(name)
        assert np.__version__ == metadata.version("numpy")

    def test_hostile_python_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """PYTHONPATH and PYTHONHOME of the host's environment reach no extension."""
        (tmp_path / "bad" / "numpy").mkdir(parents=True)
        (tmp_path / "bad" / "numpy" / "__init__.py").write_text("raise RuntimeError('the wrong numpy')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bad"))
        self.create_extension("old", VERSIONS, **OLD)
        host, loaded = self.load_extensions(DatabaseSingleton)
        assert not loaded.errors
        assert Version(host["old"].call.versions()["numpy"]) < BOUNDARY

    def test_host_packages_are_out_of_sight(self) -> None:
        """Without the dependency there is no numpy, though the host has one; nor anything else of the host."""
        self.create_extension(
            "bare",
            """
            import importlib.util, sys
            def find(name): return importlib.util.find_spec(name) is not None
            def path(): return sys.path
            """,
        )
        host, _ = self.load_extensions()
        for name in ("numpy", "msgspec", "pytest", "yaml"):
            assert util.find_spec(name) is not None
            assert not host["bare"].call.find(name)
        assert not any("isolate/src" in entry for entry in host["bare"].call.path())

    def test_equal_requirements_share_an_environment(self) -> None:
        """Two extensions that ask for the same, in another order, use one environment."""
        self.create_extension("a", VERSIONS, dependencies=[OLD_NUMPY, "packaging==23.2"])
        self.create_extension("b", VERSIONS, dependencies=["packaging == 23.2", OLD_NUMPY.replace("numpy", "NumPy ")])
        host, loaded = self.load_extensions(DatabaseSingleton)
        assert not loaded.errors
        assert host["a"].report.environment.key == host["b"].report.environment.key  # type: ignore[union-attr]

    def test_arrays_between_numpy_versions(self) -> None:
        """Arrays of every shape and kind come back equal from numpy 1 and 2, small and large."""
        self.create_extension("old", VERSIONS, **OLD)
        self.create_extension("new", VERSIONS, **NEW)
        host, _ = self.load_extensions(DatabaseSingleton)
        arrays = [
            np.zeros((0, 3)),
            np.array(5),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(10)[::-2],
            np.array([True, False]),
            np.array(["a", "bcd"]),
            np.array([b"x", b"yz"]),
            np.array(["2020-01-01"], "M8[s]"),
            np.arange(3, dtype=">i4"),
            np.broadcast_to(1.5, (3, 3)),
            np.arange(300_000.0)[::-2],
            np.arange(100_000).reshape(100, 1000).T,
            np.ones(5, np.float16),
            np.ones((2, 2), np.complex128) * 1j,
        ]
        for name in ("old", "new"):
            for array in arrays:
                got = host[name].call.echo(array)
                assert (got.dtype, got.shape) == (array.dtype, array.shape)
                assert np.array_equal(got, array)
            nested = host[name].call.echo({"list": [np.ones(2), (np.arange(50_000),)]})
            assert np.array_equal(nested["list"][1][0], np.arange(50_000))
            blob = os.urandom(3_000_000)
            assert host[name].call.echo(blob) == blob
            with pytest.raises(TypeError, match="dtype object does not travel"):
                host[name].call.echo(np.array([object()]))

    def test_arrays_are_read_only_and_keep_their_lease(self) -> None:
        """A receiver cannot write, and an array that it keeps is not overwritten by later ones."""
        self.create_extension("old", VERSIONS, **OLD)
        host, _ = self.load_extensions(DatabaseSingleton)
        call = host["old"].call
        assert not call.writeable(np.ones(100_000))
        with pytest.raises(ValueError, match="read-only"):
            call.write(np.ones(100_000))
        call.kept(np.full(100_000, 3.0))
        for _ in range(5):
            call.total(np.zeros(100_000))
        assert call.first_kept() == 3.0

    def test_pool_is_flat(self) -> None:
        """Five hundred large arguments use a handful of segments."""
        self.create_extension("old", VERSIONS, **OLD)
        host, _ = self.load_extensions(DatabaseSingleton)
        array = np.ones(1 << 17)
        for _ in range(500):
            assert host["old"].call.total(array) == array.size
        stats = host["old"].stats()
        assert stats["idle"] + stats["lent"] <= 4

    def test_shared_array(self) -> None:
        """A shared array is seen by the extension as it is now, and written by it only if asked for."""
        self.create_extension("old", VERSIONS, **OLD)
        host, _ = self.load_extensions(DatabaseSingleton)
        call = host["old"].call
        array = share(np.ones((100, 1000)))
        assert call.total(array) == 100_000
        array[:] = 2
        assert call.total(array) == 200_000
        assert call.total(array[10:20]) == 20_000
        assert call.total(array[:, ::2]) == 100_000
        with pytest.raises(ValueError, match="read-only"):
            call.write(array)
        open_array = share(np.ones(10_000), writable=True)
        call.write(open_array)
        assert open_array[0] == 7


TENSORS = """
import sys
class Extension:
    def loaded(self): return "torch" in sys.modules
    def version(self):
        import torch
        return str(torch.__version__), torch.__file__
    def echo(self, value): return value
    def total(self, value): return float(value.float().sum())
    def fill(self, value):
        value.zero_()
        return float(value.float().sum())
    def numpy_version(self):
        import numpy
        return numpy.__version__
"""


def torch_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uv take torch from the folder that pip is configured with, if there is one."""
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    if links:
        monkeypatch.setenv("UV_FIND_LINKS", links)


class TestShareTorchConfiguration(IntegrationTestBase):
    """torch from the host, from the extension's own environment, or not at all."""

    def test_share_torch_false(self) -> None:
        """Without share_torch nobody imports torch: not the extension, and not the host for its sake."""
        self.create_extension("plain", VERSIONS, share_torch=False, **OLD)
        code = (
            "import sys, isolate\n"
            f"with isolate.Host({str(self.store)!r}) as host:\n"
            f"    ext = host.load({str(self.root / 'plain')!r})\n"
            "    print(ext.call.loaded('torch'), 'torch' in sys.modules, ext.call.versions()['numpy'])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        theirs, ours, version = done.stdout.split()
        assert (theirs, ours) == ("False", "False")
        assert Version(version) < BOUNDARY

    def test_tensors_in_the_hosts_process(self) -> None:
        """Tensors of every dtype, small, large, strided and passed again; what cannot travel is named."""
        torch = pytest.importorskip("torch")
        self.create_extension("inside", TENSORS, isolated=False)
        host, loaded = self.load_extensions(policy=Policy(allow_in_process=True))
        assert not loaded.errors
        call = host["inside"].call
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
            for count in (0, 7, 50_000):
                tensor = torch.arange(count).to(dtype)
                assert torch.equal(call.echo(tensor), tensor)
        assert torch.equal(call.echo(torch.eye(300)[::2].T), torch.eye(300)[::2].T)
        large = torch.ones(3 << 20, dtype=torch.bfloat16)
        for value in (1, 1, 1, 2, 2, 3):
            large[-1] = value
            assert float(call.echo(large)[-1]) == value
        assert call.fill(large) == 0
        assert float(large[0]) == 1
        with pytest.raises(TypeError, match="sparse"):
            call.echo(torch.eye(3).to_sparse())

    @pytest.mark.slow
    @pytest.mark.timeout(240)
    def test_share_torch_true(self) -> None:
        """The host's torch lies below the extension's own packages: torch of the host, numpy of its own."""
        torch = pytest.importorskip("torch")
        self.create_extension("shared", TENSORS, share_torch=True, dependencies=["numpy>=2", "packaging==23.2"])
        host, loaded = self.load_extensions()
        assert not loaded.errors
        call = host["shared"].call
        assert not call.loaded()
        version, path = call.version()
        assert (version, path) == (str(torch.__version__), torch.__file__)
        environment = host["shared"].report.environment  # type: ignore[union-attr]
        assert not any(package.startswith("torch==") for package in environment.packages)  # type: ignore[union-attr]
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            for count in (0, 7, 100_000):
                tensor = torch.arange(count).to(dtype)
                got = call.echo(tensor)
                assert got.dtype == dtype
                assert torch.equal(got, tensor)
        large = torch.ones(1000, 100, dtype=torch.bfloat16)
        assert call.fill(large) == 0
        assert call.total(large) == 100_000

    @pytest.mark.slow
    @pytest.mark.parametrize("hostile", [False, True], ids=["clean", "hostile PYTHONPATH"])
    def test_share_torch_with_another_numpy(
        self, hostile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An older numpy beside the host's torch: the extension's own numpy wins, whatever PYTHONPATH says."""
        torch = pytest.importorskip("torch")
        if hostile:
            for name in ("numpy", "torch", "sympy"):
                (tmp_path / "bad" / name).mkdir(parents=True)
                (tmp_path / "bad" / name / "__init__.py").write_text(f"raise RuntimeError('the wrong {name}')")
            monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bad"))
        self.create_extension("shared", TENSORS, share_torch=True, dependencies=[OLD_NUMPY])
        host, loaded = self.load_extensions()
        assert not loaded.errors
        assert Version(host["shared"].call.numpy_version()) < BOUNDARY
        assert host["shared"].call.version() == (str(torch.__version__), torch.__file__)

    def test_share_torch_conflict(self) -> None:
        """An extension that asks for another torch than the host's is refused with both versions."""
        pytest.importorskip("torch")
        self.create_extension("older", TENSORS, share_torch=True, dependencies=["torch<1"])
        self.create_extension("python", TENSORS, share_torch=True, python=f"3.{sys.version_info[1] + 1}")
        _, loaded = self.load_extensions()
        assert isinstance(loaded.errors["older"], ShareConflictError)
        assert metadata.version("torch") in str(loaded.errors["older"])
        assert isinstance(loaded.errors["python"], ShareConflictError)

    @pytest.mark.slow
    @pytest.mark.timeout(240)
    def test_own_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A torch of the extension's own, and bfloat16 tensors between it and the host's."""
        torch = pytest.importorskip("torch")
        torch_links(monkeypatch)
        self.create_extension("own", TENSORS, dependencies=["torch", OLD_NUMPY], timeouts={"start": 120})
        host, loaded = self.load_extensions()
        assert not loaded.errors
        version, path = host["own"].call.version()
        assert path != torch.__file__
        assert path.startswith(str(self.store))
        for count in (5, 200_000):
            tensor = torch.randn(count).to(torch.bfloat16)
            assert torch.equal(host["own"].call.echo(tensor), tensor), version
        assert Version(host["own"].call.numpy_version()) < BOUNDARY


CALLER = """
import asyncio, time
from dataclasses import dataclass
from enum import Enum

@dataclass
class Job:
    name: str
    size: int
    inner: "Job | None" = None

class Colour(Enum):
    RED = "red"

class Extension:
    def __init__(self, host):
        self.host = host
        self.log = []
    def add(self, a, b=1, *, c=0):
        return a + b + c
    async def slow_add(self, a, b):
        await asyncio.sleep(0.01)
        return a + b
    def store(self, key, value):
        self.host.call.database.put(key, value)
        return self.host.call.database.get(key)
    async def store_async(self, key, value):
        await self.host.aio.database.put(key, value)
        return await self.host.aio.database.keys()
    def apply(self, function, *values):
        return [function(value) for value in values]
    async def apply_async(self, function, value):
        return await function.aio(value)
    def make_adder(self, n):
        return lambda x: x + n
    def same(self, function):
        return function
    def job(self, job: Job, colours: list[Colour]):
        assert type(job) is Job and all(type(c) is Colour for c in colours)
        return job.name * job.size, job.inner.size if job.inner else None, colours[0].name
    def count(self, n):
        try:
            for i in range(n):
                self.last = i
                yield i
        finally:
            self.log.append("closed")
    async def acount(self, n):
        try:
            for i in range(n):
                self.last = i
                yield i
        finally:
            self.log.append("aclosed")
    def fail_late(self):
        yield 1
        raise LookupError("late")
    def state(self):
        return self.log, getattr(self, "last", None)
    def _private(self):
        return 1
    def block(self):
        self.log.append("block began")
        try:
            while True:
                time.sleep(0.01)
        finally:
            self.log.append("blocked call ended")
    async def wait(self):
        self.log.append("wait began")
        try:
            await asyncio.sleep(60)
        finally:
            self.log.append("awaited call ended")
    async def sync_on_loop(self):
        return self.host.call.database.get("x")
    def probe(self, api, method):
        return getattr(getattr(self.host.call, api), method)()
"""


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Poll until a condition holds."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold"
        time.sleep(0.01)


class TestHostExtensionInteraction(IntegrationTestBase):
    """Calls in both directions, of every kind."""

    def load(self) -> Any:
        """One extension that can do everything."""
        self.create_extension("caller", CALLER)
        host, loaded = self.load_extensions(DatabaseSingleton)
        assert not loaded.errors, loaded.errors
        return host["caller"]

    def test_calling_extension_functions(self) -> None:
        """Positional, default and keyword arguments; sync and async methods."""
        call = self.load().call
        assert call.add(1) == 2
        assert call.add(1, 2, c=3) == 6
        assert call.slow_add(1, 2) == 3

    def test_calling_host_functions(self) -> None:
        """The extension stores values in the host's one database, from a thread and from a coroutine."""
        call = self.load().call
        for value in ({"a": (1, 2)}, {3: {4}}, 2**100, float("inf"), None):
            assert call.store("k", value) == value
        assert call.store_async("j", 1) == ["j", "k"]

    def test_only_declared_methods(self) -> None:
        """Undeclared names and attributes cannot be reached, nor private ones of the extension."""
        ext = self.load()
        for name in ("_secret", "values", "nothing"):
            with pytest.raises(AttributeError):
                ext.call.probe("database", name)
        with pytest.raises(AttributeError, match="exports no API"):
            ext.call.probe("os", "system")
        with pytest.raises(UnknownMethodError, match="did you mean 'add'"):
            ext.call.addd(1)
        with pytest.raises(UnknownMethodError):
            ext.call._private()

    def test_callbacks(self) -> None:
        """Functions travel as arguments and results, both ways, and are released with their last reference."""
        ext = self.load()
        assert ext.call.apply(lambda x: x * 2, 1, 2) == [2, 4]
        assert ext.call.apply_async(lambda x: x + 1, 1) == 2

        async def asynchronous(x: int) -> int:
            return x + 10

        assert ext.call.apply(asynchronous, 1) == [11]
        adder = ext.call.make_adder(5)
        assert adder(1) == 6
        assert ext.call.apply(adder, 1) == [6]
        function = lambda: 1  # noqa: E731 - compared by identity
        assert ext.call.same(function) is function
        wait_for(lambda: not ext._current.link.values.callables)
        del adder
        with pytest.raises(ZeroDivisionError):
            ext.call.apply(lambda x: 1 / x, 0)

    def test_declared_dataclasses_and_enums(self) -> None:
        """The extension's annotations turn plain values into its own classes; a wrong field is named."""
        call = self.load().call
        job = {"name": "ab", "size": 2, "inner": {"name": "c", "size": 3}}
        assert call.job(job, ["red"]) == ("abab", 3, "RED")
        with pytest.raises(TypeError, match=r"job\.inner\.size is a str, wanted int"):
            call.job({"name": "a", "size": 1, "inner": {"name": "c", "size": "3"}}, [])
        with pytest.raises(TypeError, match=r"colour.*does not have"):
            call.job({"name": "a", "size": 1, "colour": 1}, [])
        with pytest.raises(ValueError, match=r"colours\[0\] is 'blue', wanted a Colour: 'red'"):
            call.job(job, ["blue"])

    def test_streams(self) -> None:
        """Generators arrive item by item; a consumer that stops early closes them; back-pressure holds."""
        ext = self.load()
        assert list(ext.call.count(100)) == list(range(100))
        assert list(ext.call.acount(100)) == list(range(100))
        for name, mark in (("count", "closed"), ("acount", "aclosed")):
            stream = getattr(ext.call, name)(1_000_000)
            assert next(stream) == 0
            assert ext.call.state()[1] < 100
            stream.close()
            wait_for(lambda mark=mark: ext.call.state()[0].count(mark) == 2)
        stream = ext.call.fail_late()
        assert next(stream) == 1
        with pytest.raises(LookupError, match="late"):
            next(stream)

    def test_streams_from_asyncio(self) -> None:
        """The same from another event loop, and from the host's own."""
        ext = self.load()

        async def consume() -> list[int]:
            return [item async for item in ext.aio.count(40)] + [item async for item in ext.aio.acount(40)]

        assert asyncio.run(consume()) == [*range(40), *range(40)]

        async def inside() -> list[int]:
            async with Host(self.store) as host:
                host.export(DatabaseSingleton)
                own = await host.aload(self.root / "caller")
                assert await own.aio.slow_add(1, 2) == 3
                with pytest.raises(WouldDeadlockError):
                    own.call.add(1)
                with pytest.raises(WouldDeadlockError):
                    host.load(self.root / "caller")
                assert await asyncio.to_thread(own.call.add, 1) == 2
                return [item async for item in own.aio.acount(40)]

        assert asyncio.run(inside()) == list(range(40))

    def test_blocking_call_on_the_loop_is_refused(self) -> None:
        """In the extension too: an async method that blocks gets an error, not a deadlock."""
        with pytest.raises(WouldDeadlockError, match="await it"):
            self.load().call.sync_on_loop()

    def test_deadline_and_cancellation_reach_the_callee(self) -> None:
        """A deadline passes: the caller gets a TimeoutError, the callee's finally runs; other calls are answered."""
        ext = self.load()
        for name, mark in (("block", "blocked call ended"), ("wait", "awaited call ended")):
            for seconds in (0.2, 2, 20):  # on a busy machine a call may not have begun when its time is over
                with pytest.raises(TimeoutError):
                    getattr(ext.call(timeout=seconds), name)()
                if f"{name} began" in ext.call.state()[0]:
                    break
            wait_for(lambda mark=mark: mark in ext.call.state()[0])
        assert ext.call.add(1) == 2

        async def cancelled() -> None:
            task = asyncio.ensure_future(ext.aio.wait())
            while (await ext.aio.state())[0].count("wait began") < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                await ext.aio(timeout=0.1).wait()

        asyncio.run(cancelled())
        wait_for(
            lambda: ext.call.state()[0].count("awaited call ended") == ext.call.state()[0].count("wait began") >= 2
        )

    def test_blocked_call_leaves_others_alone(self) -> None:
        """While one call blocks for long, others are answered."""
        ext = self.load()
        failures: list[BaseException] = []

        def block() -> None:
            try:
                ext.call.block()
            except WorkerDiedError as failure:
                failures.append(failure)

        thread = threading.Thread(target=block)
        thread.start()
        wait_for(lambda: ext.stats()["pending"] == 1)
        assert [ext.call.add(i) for i in range(20)] == [i + 1 for i in range(20)]
        ext.context.loop.call_soon_threadsafe(ext._current.process.kill)
        thread.join()
        assert len(failures) == 1


RECURSIVE = """
class Extension:
    def __init__(self, host):
        self.host = host
    def down(self, n):
        return ["ext"] if n == 0 else ["ext", *self.host.call.bouncer.down(n - 1)]
    async def adown(self, n):
        return ["ext"] if n == 0 else ["ext", *await self.host.aio.bouncer.adown(n - 1)]
    def fail(self, n):
        if n == 0:
            raise CustomError("at the bottom")
        return self.host.call.bouncer.fail(n - 1)
    def slow(self, n):
        import time
        if n == 0:
            time.sleep(30)
        return self.host.call.bouncer.slow(n - 1)

class CustomError(Exception):
    pass
"""


class Bouncer(ProxiedSingleton):
    """Sends each call back to the extension."""

    extension: Any = None

    def down(self, n: int) -> list[str]:
        """Blocking recursion."""
        return ["host"] if n == 0 else ["host", *self.extension.call.down(n - 1)]

    async def adown(self, n: int) -> list[str]:
        """Awaited recursion."""
        return ["host"] if n == 0 else ["host", *await self.extension.aio.adown(n - 1)]

    def fail(self, n: int) -> None:
        """Fails at the bottom."""
        return self.extension.call.fail(n)

    def slow(self, n: int) -> None:
        """Sleeps at the bottom."""
        return self.extension.call.slow(n)


class TestRecursiveCalling(IntegrationTestBase):
    """Host calls extension calls host calls extension."""

    def load(self) -> tuple[Any, Any]:
        """The extension and the host's end of the recursion."""
        self.create_extension("bouncing", RECURSIVE)
        host = self.make_host()
        bouncer = host.export(Bouncer())
        bouncer.extension = host.load(self.root / "bouncing")
        return host, bouncer.extension

    def test_host_extension_host_extension(self) -> None:
        """Ten levels, blocking and awaited, each level in its place."""
        _, ext = self.load()
        expected = ["ext" if i % 2 == 0 else "host" for i in range(11)]
        assert ext.call.down(10) == expected
        assert ext.call.adown(10) == expected

    def test_many_recursions_at_once(self) -> None:
        """More recursions than threads, side by side, end without a deadlock."""
        _, ext = self.load()

        async def gather() -> list[list[str]]:
            return await asyncio.gather(*(ext.aio.down(9) for _ in range(50)))

        assert all(len(result) == 10 for result in asyncio.run(gather()))

    def test_depth_limit(self) -> None:
        """Endless recursion ends with an error that names the limit, and the extension goes on."""
        _, ext = self.load()
        with pytest.raises(DepthExceededError, match="limit is 64"):
            ext.call.down(1000)
        assert ext.call.down(0) == ["ext"]

    def test_error_through_every_hop(self) -> None:
        """An exception comes back through all levels with the traceback of each."""
        _, ext = self.load()
        with pytest.raises(Exception, match="at the bottom") as caught:
            ext.call.fail(2)
        assert caught.value.type_name.endswith("CustomError")  # type: ignore[attr-defined]
        text = str(caught.value.__cause__)
        assert text.count("in fail") >= 4
        assert "raise CustomError" in text

    def test_deadline_is_inherited(self) -> None:
        """The outer call's deadline ends the inner ones."""
        _, ext = self.load()
        with pytest.raises(TimeoutError):
            ext.call(timeout=0.3).slow(2)
        wait_for(lambda: ext._current.link.serving.count == 0)


class TestComplexIntegrationScenarios(IntegrationTestBase):
    """Several features at once."""

    def test_pipeline_across_extensions(self) -> None:
        """Numpy 1 makes data, numpy 2 works on it, both record in the host's database."""
        self.create_extension("old", VERSIONS, **OLD)
        self.create_extension("new", VERSIONS, **NEW)
        self.create_extension("caller", CALLER)
        database = DatabaseSingleton()
        host2 = self.make_host()
        host2.export(database)
        old, new = host2.load(self.root / "old"), host2.load(self.root / "new")
        for _ in range(3):
            array = old.call.echo(np.arange(20_000.0))
            array = new.call.echo(array * 2)
        assert new.call.total(array) == np.arange(20_000.0).sum() * 2
        old.call.record("old")
        new.call.record("new")
        assert Version(database.get("old")) < Version(database.get("new"))

    def test_extension_calls_extension_through_the_host(self) -> None:
        """A loaded extension's methods can be exported to the next ones."""
        self.create_extension("caller", CALLER)
        self.create_extension(
            "user",
            """
            class Extension:
                def __init__(self, host): self.host = host
                def go(self): return self.host.call.math.add(2, 3)
            """,
        )
        host = self.make_host(DatabaseSingleton)
        caller = host.load(self.root / "caller")
        host.export(caller.call, name="math", methods=["add"])
        assert host.load(self.root / "user").call.go() == 5

    def test_isolated_false_gives_the_same_results(self) -> None:
        """In the host's process: the same values, errors, streams, deadlines and callbacks."""
        self.create_extension("caller", CALLER, isolated=False)
        self.create_extension("second", CALLER, isolated=False)
        host, loaded = self.load_extensions(DatabaseSingleton, policy=Policy(allow_in_process=True))
        assert not loaded.errors
        ext = host["caller"]
        assert ext.pid is None
        assert ext.report.environment is None
        assert ext.call.add(1, 2, c=3) == 6
        assert ext.call.store("k", (1, {2})) == (1, {2})
        assert list(ext.call.count(40)) == list(range(40))
        assert ext.call.apply(lambda x: x * 2, 1, 2) == [2, 4]
        with pytest.raises(TimeoutError):
            ext.call(timeout=0.1).wait()
        with pytest.raises(TypeError):
            ext.call.add()
        assert host["second"].call.state() == ([], None)
        ext.reload()
        assert ext.call.state() == ([], None)

    def test_reload_with_calls_in_flight(self) -> None:
        """A reload picks up new code; calls that run when it begins are answered by the old."""
        folder = self.create_extension(
            "live", "import time\ndef version(): return 1\ndef slow():\n    time.sleep(0.5)\n    return 1\n"
        )
        host, _ = self.load_extensions()
        ext = host["live"]
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(ext.call.slow()))
        thread.start()
        wait_for(lambda: ext.stats()["pending"] == 1)
        (folder / "main.py").write_text("def version(): return 2\n")
        before = ext.pid
        ext.reload()
        thread.join()
        assert results == [1]
        assert ext.call.version() == 2
        assert ext.pid != before


HANDLES = """
import numpy
class Extension:
    def __init__(self, host): self.host = host
    def numpy_version(self): return numpy.__version__
    def echo(self, value): return value
    def total(self, handle):
        import xfer
        with xfer.open(handle) as array:
            return float(array.sum()), type(handle).__name__
    def made(self, n):
        import xfer
        return xfer.put(numpy.arange(n))
    def release(self, handle):
        import xfer
        xfer.release(handle)
"""


class TestHandlesOfXfer(IntegrationTestBase):
    """With pentad-xfer on both sides its handles are values, and the arrays behind them stay where they are."""

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Any:
        """The host's xfer, with the descriptors that a process which has read a handle keeps for its life."""
        xfer = pytest.importorskip("xfer", reason="pentad-xfer is not installed")
        with xfer.Pool("16MiB") as pool:
            xfer.get(pool.put(np.arange(3)))
        return xfer

    @pytest.fixture
    def xfer(self, opened: Any) -> Iterator[Any]:
        """The host's xfer; the mappings that it keeps are given back after the test."""
        yield opened
        opened.trim()

    @pytest.fixture(scope="class")
    @classmethod
    def xfer_wheel(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A wheel of pentad-xfer for the extension, from the folder beside this package."""
        source = Path(__file__).parents[2] / "xfer"
        if not (source / "pyproject.toml").is_file():
            pytest.skip("pentad-xfer's source is not beside this package, so no extension can install it")
        folder = tmp_path_factory.mktemp("wheel")
        command = [find_uv(), "build", "--quiet", "--wheel", "--out-dir", str(folder), str(source)]
        subprocess.run(command, check=True, cwd=folder)
        return next(folder.glob("*.whl"))

    def test_handles_in_both_directions(self, xfer: Any, xfer_wheel: Path) -> None:
        """A host and an extension with different numpy open each other's handles without a copy."""
        dependencies = [OLD_NUMPY, f"pentad-xfer @ {xfer_wheel.as_uri()}"]
        self.create_extension("reader", HANDLES, dependencies=dependencies)
        host = self.make_host(policy=Policy(allow_paths=True))
        call = host.load(self.root / "reader").call
        assert Version(call.numpy_version()) < BOUNDARY <= Version(np.__version__)
        with xfer.Pool("16MiB") as pool:
            handle = pool.put(np.arange(100_000.0))
            assert call.total(handle) == (np.arange(100_000.0).sum(), "Handle")
            back = call.echo({"nested": [handle]})["nested"][0]
            assert isinstance(back, xfer.Handle)
            assert back == handle
            assert xfer.get(back)[7] == 7
            pool.release(handle)
            with pytest.raises(RemoteError, match="StaleHandleError"):
                call.total(handle)
        theirs = call.made(50_000)
        assert theirs.pid == host["reader"].pid
        array = xfer.get(theirs)
        assert array.sum() == np.arange(50_000).sum()
        assert not array.flags.writeable
        del array
        call.release(theirs)

    def test_without_xfer_in_the_extension(self, xfer: Any) -> None:
        """A handle for an extension that lacks pentad-xfer is an error that says what to install."""
        self.create_extension("bare", "def echo(value): return value")
        host, _ = self.load_extensions()
        with xfer.Pool("1MiB") as pool:
            handle = pool.put(np.arange(3))
            with pytest.raises(TypeError, match="pentad-xfer to its dependencies"):
                host["bare"].call.echo(handle)
            pool.release(handle)
        assert host["bare"].call.echo(1) == 1

    def test_without_xfer_in_the_host(self, xfer_wheel: Path) -> None:
        """A host without pentad-xfer gets an error that names the extra, and imports nothing at start."""
        self.create_extension("maker", HANDLES, dependencies=["numpy", f"pentad-xfer @ {xfer_wheel.as_uri()}"])
        code = (
            "import sys, isolate\n"
            "assert 'xfer' not in sys.modules\n"
            "sys.modules['xfer'] = None  # as if it were not installed\n"
            f"with isolate.Host({str(self.store)!r}, policy=isolate.Policy(allow_paths=True)) as host:\n"
            f"    ext = host.load({str(self.root / 'maker')!r})\n"
            "    try:\n"
            "        ext.call.made(3)\n"
            "    except TypeError as failure:\n"
            "        print(failure)\n"
            "    print(ext.call.numpy_version())\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "pentad-isolate[xfer]" in done.stdout
        assert len(done.stdout.splitlines()) == 2
