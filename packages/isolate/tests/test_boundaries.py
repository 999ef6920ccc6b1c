"""What one extension may make its host hold or do, and what a fork, a cancelled build or an edited file may not."""

from __future__ import annotations

import asyncio
import functools
import io
import os
import resource
import selectors
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from integration_test_base import IntegrationTestBase

from isolate import EnvironmentStore, Host, Policy, ProxiedSingleton, Quotas, State, read_manifest
from isolate._counting import Counter
from isolate._worker.channel import Channel
from isolate._worker.codec import Codec
from isolate._worker.frames import frame
from isolate._worker.protocol import PONG
from isolate._worker.segments import taken
from isolate._worker.turns import Turns, Usage
from isolate._worker.wire import pack
from isolate.errors import (
    EnvironmentBuildError,
    HostClosedError,
    OverloadedError,
    UnsupportedTypeError,
    WorkerDiedError,
)


def codec(limit: int | None = 1 << 20) -> Codec:
    """Return a codec that does not trust the other side."""
    return Codec(lambda *_: None, lambda code, payload: None, lambda code, payload: None, limit)


def test_threads_that_take_what_ended_get_each_number_once() -> None:
    """Answers on several threads give segments back at the same time."""
    numbers = deque(range(100_000))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            got = [number for part in pool.map(lambda _: list(taken(numbers)), range(4)) for number in part]
    finally:
        sys.setswitchinterval(interval)
    assert sorted(got) == list(range(100_000))


# Lists: as sets they would take seconds to make.
COLLIDING: dict[str, list[Any]] = {
    "integers": [k * (2**61 - 1) for k in range(20_000)],
    "tuples": [tuple(-1 - (i >> bit & 1) for bit in range(15)) for i in range(20_000)],
}


@pytest.mark.parametrize("name", ["integers", "tuples"])
@pytest.mark.parametrize("form", ["set", "dict", "native map"])
def test_colliding_keys_are_refused_in_linear_time(name: str, form: str) -> None:
    """Keys of equal hash would make a set quadratic: they are an error within moments."""
    keys = COLLIDING[name]
    if form == "native map":
        body = b"".join(pack(key, lambda value: None) + b"\xc0" for key in keys)
        payload = b"\xdf" + len(keys).to_bytes(4, "big") + body
    else:
        inner = keys if form == "set" else [part for key in keys for part in (key, None)]
        listed = pack(inner, lambda value: None)
        payload = b"\xc9" + len(listed).to_bytes(4, "big") + bytes([3 if form == "set" else 5]) + listed
    began = time.thread_time()
    with pytest.raises((UnsupportedTypeError, ValueError)):
        codec(None).decode(payload) if form != "native map" else codec(1 << 30).decode(payload)
    assert time.thread_time() - began < 2  # of this thread's processor time: other programs do not count


def test_decoded_size_is_bounded() -> None:
    """16 MB of empty maps would become over a gigabyte."""
    maps = b"\xdd" + (16 << 20).to_bytes(4, "big") + b"\x80" * (16 << 20)
    before = psutil.Process().memory_info().rss
    with pytest.raises(OverloadedError):
        codec(128 << 20).decode(maps)
    assert psutil.Process().memory_info().rss - before < 300 << 20


def test_counting_goes_on_after_it_failed() -> None:
    """When no thread can be started, or one count fails, the next one still finds what exceeds its limit."""
    refused = [RuntimeError("can't start new thread"), MemoryError()]

    def submit(function: Callable[[], str]) -> Future[str]:
        done: Future[str] = Future()
        if len(refused) == 2:
            raise refused.pop(0)
        if refused:
            done.set_exception(refused.pop())
        else:
            done.set_result(function())
        return done

    async def count() -> str:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[str] = loop.create_future()
        Counter(loop, submit, os.getpid(), 0, {"processes": 0}, over.set_result)
        return await asyncio.wait_for(over, 100)

    with subprocess.Popen(["sleep", "200"]) as child:
        try:
            assert asyncio.run(count()) == "processes"
        finally:
            child.kill()


class Wiping:
    """A base with a method of its own."""

    def wipe(self) -> None:
        """Forget everything."""
        self.clear()  # type: ignore[attr-defined]  # of the dictionary


class StoreSingleton(dict, Wiping, ProxiedSingleton):  # type: ignore[type-arg]
    """A store that inherits far more than it means to export."""

    def size(self) -> int:
        """How many entries there are."""
        return len(self)


class TestQuotas(IntegrationTestBase):
    """One extension beyond its quotas: an error for it, nothing for the host or its neighbour."""

    def test_an_extension_cannot_write_its_own_report(self) -> None:
        """What confines a worker is sent before code of the extension runs; what that says of it is not believed."""
        for kind in ("READY", "CONFINED"):
            self.create_extension(
                kind.lower(),
                f"""
                import os, struct, sys
                wire, protocol = (sys.modules[f"isolate_worker.{{name}}"] for name in ("wire", "protocol"))
                lie = {{"protocol": protocol.PROTOCOL, "python": "", "executable": "", "methods": {{}}}}
                lie |= {{"enforced": ["everything"], "missing": [], "tried": {{}}}}
                data = wire.pack(lie, lambda part: None)
                os.write(int(sys.argv[1]), struct.pack("<IBQ", len(data), protocol.{kind}, 0) + data)
                """,
                restart={"policy": "never"},
            )
        host = self.make_host()
        ready = host.load(self.root / "ready")
        assert ready.report is not None
        assert ready.report.sandbox.enforced == ("no new privileges (tried)",)
        with pytest.raises(WorkerDiedError, match="broke the protocol"):
            host.load(self.root / "confined")

    def test_inherited_methods_are_not_exported(self) -> None:
        """Only what the class itself defines is an API."""
        self.create_extension(
            "thief",
            """
            class Extension:
                def __init__(self, host): self.host = host
                def size(self): return self.host.call.store.size()
                def clear(self): self.host.call.store.clear()
                def wipe(self): self.host.call.store.wipe()
            """,
        )
        host = self.make_host()
        store = host.export(StoreSingleton)
        store["a"] = 1
        thief = host.load(self.root / "thief")
        assert thief.call.size() == 1
        for steal in (thief.call.clear, thief.call.wipe):
            with pytest.raises(AttributeError):
                steal()
        assert store == {"a": 1}

    def test_wishes_that_are_not_granted_are_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A manifest cannot set the host's rules."""
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        self.create_extension(
            "greedy",
            "import os\ndef env(): return sorted(os.environ)\ndef pid(): return os.getpid()",
            isolated=False,
            env=["AWS_SECRET_ACCESS_KEY"],
            sandbox={"level": "none", "read": ["/"], "write": ["/"]},
            timeouts={"stop": 9e6, "start": 9e6},
        )
        host, loaded = self.load_extensions()
        assert not loaded.errors
        report = host["greedy"].report
        assert report is not None
        keys = [line.split(":")[0] for line in report.refused]
        assert keys == ["isolated", "env", "sandbox.read", "sandbox.write", "timeouts.start", "timeouts.stop"]
        assert "AWS_SECRET_ACCESS_KEY" not in host["greedy"].call.env()
        assert host["greedy"].call.pid() != os.getpid()
        assert report.sandbox.requested == "limits"

    def test_ten_thousand_arrays_with_few_descriptors(self) -> None:
        """Arrays share segments, in both directions, and each descriptor is closed."""
        self.create_extension(
            "album",
            """
            import numpy
            def total(images): return sum(float(image[0]) for image in images)
            def make(n): return [numpy.full(5000, i, "f8") for i in range(n)]
            """,
            dependencies=["numpy"],
        )
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            host, loaded = self.load_extensions()
            assert not loaded.errors
            images = [np.full(5000, i, "f8") for i in range(10_000)]
            assert host["album"].call.total(images) == sum(range(10_000))
            made = host["album"].call.make(2_000)
            assert [int(image[-1]) for image in made] == list(range(2_000))
            assert len(os.listdir("/proc/self/fd")) < 150
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_arrays_beyond_the_quota(self) -> None:
        """What is alive in the host is bounded; the extension goes on."""
        self.create_extension("big", "import numpy\ndef make(n): return numpy.ones(n << 17)", dependencies=["numpy"])
        host, _ = self.load_extensions(policy=Policy(quotas=Quotas(array_bytes=40 << 20)))
        kept = host["big"].call.make(20)
        with pytest.raises(OverloadedError, match="alive"):
            host["big"].call.make(30)
        del kept
        assert host["big"].call.make(10).nbytes == 10 << 20

    def test_calls_that_never_end_wedge_nothing(self) -> None:
        """More timed-out blocking calls than there are threads, and the next call is answered."""
        self.create_extension("sleeper", "import time\ndef sleep(n): time.sleep(n)\ndef fine(): return 1")
        host, _ = self.load_extensions()

        async def many() -> list[Any]:
            calls = [host["sleeper"].aio(timeout=0.5).sleep(30) for _ in range(40)]
            return await asyncio.gather(*calls, return_exceptions=True)

        assert all(isinstance(result, TimeoutError) for result in asyncio.run(many()))
        assert host["sleeper"].call(timeout=60).fine() == 1

    def test_a_wedged_worker_is_replaced(self) -> None:
        """A worker whose loop is blocked is ended once a call was given up, and restarted."""
        self.create_extension(
            "wedged",
            "import time\nasync def block(): time.sleep(1000)\ndef fine(): return 1",
            restart={"backoff": 0.01},
        )
        host, _ = self.load_extensions(policy=Policy(wedged_seconds=1))
        with pytest.raises(TimeoutError):
            host["wedged"].call(timeout=0.3).block()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                assert host["wedged"].call(timeout=5).fine() == 1
                return
            except (OSError, RuntimeError):
                time.sleep(0.1)
        pytest.fail("the wedged worker was not replaced")

    def test_descendants_end_with_their_worker(self) -> None:
        """A child in a session of its own, with an emptied environment, outlives nothing."""
        self.create_extension(
            "parent",
            """
            import subprocess
            def spawn():
                child = subprocess.Popen(["sleep", "1000"], env={}, start_new_session=True)
                return child.pid
            """,
        )
        host, _ = self.load_extensions()
        pid = host["parent"].call.spawn()
        assert psutil.pid_exists(pid)
        host["parent"].stop()
        assert not psutil.pid_exists(pid)


def test_a_forked_child_gets_an_error_at_once(store: Path, tmp_path: Path) -> None:
    """Calls and `close` in a fork of the host's process do not hang."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("name: a\n")
    (folder / "main.py").write_text("def fine(): return 1\n")
    program = f"""
    import os, isolate
    from isolate.errors import ForkedError
    host = isolate.Host({str(store)!r}).__enter__()
    extension = host.load({str(folder)!r})
    child = os.fork()
    if not child:
        caught = 0
        for use in (extension.call.fine, host.close, extension.stop, lambda: host.load({str(folder)!r})):
            try:
                use()
            except ForkedError:
                caught += 1
        os._exit(caught)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), extension.call.fine())
    host.close()
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["4", "1"], done.stderr


def _slow_uv(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "uv"
    program.write_text("#!/bin/sh\nsleep 1000 &\nsleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setattr("isolate._environments.find_uv", lambda: str(program))


@pytest.mark.parametrize("how", ["cancel", "time"])
def test_builds_end_within_a_second(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is cancelled or takes too long leaves no process and no folder."""
    _slow_uv(tmp_path, monkeypatch)
    (tmp_path / "manifest.yaml").write_text("name: a\ndependencies: [packaging]\n")
    policy = Policy(build_seconds=0.5 if how == "time" else 100)
    building = EnvironmentStore(tmp_path / "store", policy)
    cancel = threading.Event()
    if how == "cancel":
        threading.Timer(0.5, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(EnvironmentBuildError):
        building.ensure(read_manifest(tmp_path), cancel=cancel)
    assert time.monotonic() - began < 20  # a few tenths of a second on a machine with nothing else to do
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


@pytest.mark.parametrize("stage", ["building", "starting"])
@pytest.mark.parametrize("load", ["load", "aload"])
def test_a_load_ends_when_its_host_is_closed(
    stage: str, load: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a host waits neither for a build nor for a start; who waits for the load gets `HostClosedError`."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.yaml").write_text(
        "name: a\ntimeouts: {start: 1000}\n" + "dependencies: [packaging]\n" * (stage == "building")
    )
    (folder / "main.py").write_text("import time\ntime.sleep(1000)\n")
    if stage == "building":
        _slow_uv(tmp_path, monkeypatch)
    host = Host(tmp_path / "store")
    host.__enter__()
    loading = host.load if load == "load" else lambda source: asyncio.run(host.aload(source))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(loading, folder)
        while "a" not in host.extensions or host.extensions["a"].state.value != stage:
            time.sleep(0.01)
        extension = host.extensions["a"]
        host.close()
        with pytest.raises(HostClosedError, match="while it started a"):
            future.result(60)
    assert extension.state is State.STOPPED
    if stage == "building":
        assert list((tmp_path / "store" / "tmp").iterdir()) == []


def test_a_reload_ends_when_its_host_is_closed(tmp_path: Path) -> None:
    """Its new worker would start for 1000 seconds; closing ends it, and the old worker as well."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("name: a\ntimeouts: {start: 1000}\n")
    (folder / "main.py").write_text("def fine():\n    return 1\n")
    host = Host(tmp_path / "store")
    with ThreadPoolExecutor(1) as pool:
        host.__enter__()
        extension = host.load(folder)
        old = psutil.Process(extension.pid or 0)
        begun = "import pathlib, time\npathlib.Path(__file__).with_name('begun').touch()\n"
        (folder / "main.py").write_text(begun + "time.sleep(1000)\n")
        future = pool.submit(extension.reload)
        while not (folder / "begun").exists():
            time.sleep(0.01)
        host.close()
        with pytest.raises(HostClosedError, match="while it started a"):
            future.result(60)
    assert extension.state is State.STOPPED
    old.wait(60)


@pytest.mark.parametrize("stage", ["building", "starting"])
def test_a_load_that_is_cancelled_ends_soon(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling a load in whatever stage ends it and its processes; the extension can be loaded after that."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("name: a\n" + "dependencies: [packaging]\n" * (stage == "building"))
    (folder / "main.py").write_text("import time\ntime.sleep(1000)\n")
    if stage == "building":
        _slow_uv(tmp_path, monkeypatch)

    async def cancel() -> float:
        async with Host(tmp_path / "store") as host:
            before = set(psutil.Process().children())
            loading = asyncio.create_task(host.aload(folder))
            while not [child for child in psutil.Process().children() if child not in before]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            began = time.monotonic()
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            took = time.monotonic() - began
            (folder / "main.py").write_text("def one(): return 1\n")
            (folder / "manifest.yaml").write_text("name: a\n")
            assert await (await host.aload(folder)).aio.one() == 1
            return took

    assert asyncio.run(cancel()) < 20  # a few tenths of a second on a machine with nothing else to do


def test_busy_connections_leave_the_loop_free_for_others() -> None:
    """Those that always have something to read use all of the loop, and a part beside one that needs little."""

    async def share(busy: int, light: Usage | None) -> float:
        loop = asyncio.get_running_loop()
        turns = Turns(loop)
        used = 0.0

        def turn(usage: Usage) -> None:
            nonlocal used
            began = time.perf_counter()
            while time.perf_counter() - began < 0.0005:
                pass
            now = time.perf_counter()
            used += now - began
            usage.add(began, now)
            turns.may_begin(usage, now)
            turns.wait(usage, functools.partial(turn, usage))

        for _ in range(busy):
            usage = Usage()
            turns.wait(usage, functools.partial(turn, usage))
        await asyncio.sleep(0.02)
        began, used = time.perf_counter(), 0.0
        while time.perf_counter() - began < 0.5:
            if light is not None:
                assert turns.may_begin(light, time.perf_counter())
            await asyncio.sleep(0.005)
        return used / (time.perf_counter() - began)

    # Where other programs want the processor too, a try can come out lower, and one that was put off counts as used.
    for busy in (1, 3):
        assert any(asyncio.run(share(busy, None)) > 0.7 for _ in range(20))
        assert any(asyncio.run(share(busy, Usage())) < 0.5 for _ in range(20))


class CountingSelector(selectors.DefaultSelector):
    """Counts how often the loop asks it."""

    asked = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Count, and wait."""
        self.asked += 1
        return super().select(timeout)


def test_the_loop_sleeps_while_a_busy_connection_waits_for_its_turn() -> None:
    """What the connection has not read yet must not wake the loop again and again: that would use a processor."""
    selector = CountingSelector()
    loop = asyncio.SelectorEventLoop(selector)

    async def run() -> None:
        turns = Turns(loop)
        ours, theirs = socket.socketpair()
        found: list[int] = []
        channel = Channel(ours, loop, lambda _, number, __: found.append(number), lambda _: None, turns=turns)
        now = time.perf_counter()
        turns.may_begin(Usage(), now)  # another one is served too
        for _ in range(10):
            channel._usage.add(now, now + 0.0003)
        turns._not_before = now + 0.3
        theirs.sendall(frame(PONG, 1, b""))
        before = selector.asked
        while found != [1]:
            await asyncio.sleep(0.02)
        assert selector.asked - before < 200
        theirs.sendall(frame(PONG, 2, b""))
        while found != [1, 2]:
            await asyncio.sleep(0.001)
        channel.close()
        theirs.close()

    try:
        loop.run_until_complete(asyncio.wait_for(run(), 60))
    finally:
        loop.close()


def test_builds_end_with_a_killed_host(tmp_path: Path) -> None:
    """A host that is killed leaves no program of a build behind."""
    program = tmp_path / "uv"
    program.write_text(f"#!/bin/sh\nsleep 1000 &\necho $$ $! > {tmp_path}/pids\nsleep 1000\n")
    program.chmod(0o755)
    (tmp_path / "manifest.yaml").write_text("name: a\ndependencies: [packaging]\n")
    code = f"""
    import isolate, isolate._environments
    isolate._environments.find_uv = lambda: {str(program)!r}
    isolate.Host({str(tmp_path / "store")!r}).__enter__().load({str(tmp_path)!r})
    """
    host = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    end = time.monotonic() + 120
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.02)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    building = [psutil.Process(pid) for pid in pids]
    host.kill()
    host.wait()
    _, alive = psutil.wait_procs(building, timeout=60)
    assert not alive


PRIORITY = """
import os, resource, subprocess

def attempts():
    limits = [(resource.RLIMIT_NICE, 40), (resource.RLIMIT_RTPRIO, 99), (resource.RLIMIT_DATA, 1 << 40)]
    tried = {
        "nice": lambda: os.nice(-1),
        "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 4),
        "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "its supervisor": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 0),
        "by a program": lambda: subprocess.run([os.sys.executable, "-c", "import os; os.nice(-1)"], check=True),
        **{f"limit {number}": lambda n=number, v=value: resource.setrlimit(n, (v, v)) for number, value in limits},
    }
    return [name for name, function in tried.items() if worked(function)]

def worked(function):
    try:
        function()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return False
    return True

def priority():
    return os.getpriority(os.PRIO_PROCESS, 0)
"""


class TestPriority(IntegrationTestBase):
    """What a worker starts with is the most that it gets."""

    @pytest.mark.parametrize("level", ["none", "limits"])
    def test_nobody_raises_a_priority_or_a_limit(self, level: str) -> None:
        """Nor does root, who has the right to, at the levels that leave root its other capabilities."""
        host = self.make_host(policy=Policy(nice=5, sandbox=level))
        limits = {"memory": 1 << 30}
        extension = host.load(self.create_extension("a", PRIORITY, sandbox={"level": level}, limits=limits))
        assert extension.call.priority() == min(os.nice(0) + 5, 19)
        assert extension.call.attempts() == []
        report = extension.report
        assert report is not None
        assert report.sandbox.missing == ()


class TestEnvironments(IntegrationTestBase):
    """Environments share no file with anything else."""

    def test_an_edit_changes_no_other_file(self) -> None:
        """No file of an environment is a hard link."""
        self.create_extension("a", "def fine(): return 1", dependencies=["packaging==23.2"])
        host, loaded = self.load_extensions()
        assert not loaded.errors
        report = host["a"].report
        assert report is not None
        assert report.environment is not None
        files = [path for path in report.environment.path.rglob("*") if path.is_file() and not path.is_symlink()]
        assert len(files) > 15
        assert {path.stat().st_nlink for path in files} == {1}

    def test_a_package_without_a_wheel_runs_nothing(self, tmp_path: Path) -> None:
        """Building from source would run its code while installing: an error says how to allow that."""
        canary, wheels = tmp_path / "ran", tmp_path / "wheels"
        wheels.mkdir()
        files = {
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
            "backend.py": f"open({str(canary)!r}, 'w')\n",
            "PKG-INFO": "Metadata-Version: 2.1\nName: sly\nVersion: 1.0\n",
        }
        with tarfile.open(wheels / "sly-1.0.tar.gz", "w:gz") as archive:
            for name, text in files.items():
                entry = tarfile.TarInfo(f"sly-1.0/{name}")
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
        folder = self.create_extension("sly", "", dependencies=["sly"])
        store = EnvironmentStore(tmp_path / "store", Policy(find_links=(str(wheels),)), offline=True)
        with pytest.raises(EnvironmentBuildError, match="allow_sdists"):
            store.ensure(read_manifest(folder))
        assert not canary.exists()
