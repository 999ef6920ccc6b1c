"""What goes wrong: extensions that fail, bad configuration, many things at once, and what must not be left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import psutil
import pytest
from integration_test_base import DatabaseSingleton, IntegrationTestBase

from isolate import Host, Policy, State, WorkerDiedError, read_manifest
from isolate._environments import EnvironmentStore
from isolate._locks import Locks
from isolate.errors import (
    ContractMismatchError,
    EnvironmentBuildError,
    ExtensionDisabledError,
    ExtensionStartError,
    InvalidManifestError,
    InvalidRequirementError,
    IsolateError,
    LockOutOfDateError,
    NotReadyError,
    RemoteError,
    SandboxUnavailableError,
    UnknownMethodError,
)

CYCLES = """
import gc, json, sys, threading, psutil
from isolate import Host

def state():
    me = psutil.Process()
    return {"descriptors": me.num_fds(), "threads": threading.active_count(), "memory": me.memory_info().rss}

def cycle(host, folder):
    extension = host.load(folder)
    assert extension.call.echo(1) == 1
    assert extension.call.echo(b"x" * 1_000_000)
    extension.stop()
    gc.collect()  # what waits for the collector is no leak

folder, store = sys.argv[1:]
with Host(store) as host:
    for _ in range(50):
        cycle(host, folder)
    before = state()
    for _ in range(200):
        cycle(host, folder)
    print(json.dumps([before, state()]))
"""

LARGE = """
import json, sys, numpy, psutil
from isolate import Host

folder, store = sys.argv[1:]
with Host(store) as host:
    extension = host.load(folder)
    array, other = numpy.zeros(8 << 20), numpy.zeros(8 << 20)

    def state():
        host, worker = (psutil.Process(pid).memory_info().rss for pid in (None, extension.pid))
        return {"host": host, "worker": worker, "pool": extension.stats()["idle_bytes"]}

    def some(count):
        for number in range(count):
            other[0] = number
            assert extension.call.total(other) == number
            assert extension.call.total(array) == 0

    some(25)
    before = state()
    some(250)
    print(json.dumps([before, state()]))
"""

DYING = """
import ctypes, os, signal, sys, time
def fine(): return "fine"
def pid(): return os.getpid()
def leave(code):
    print("last words", file=sys.stderr, flush=True)
    os._exit(code)
def crash():
    print("about to crash", file=sys.stderr, flush=True)
    ctypes.string_at(0)
def eat():
    return len([bytearray(16 << 20) for _ in range(64)])  # a missing limit costs 1 GiB, and not the machine
def block(): time.sleep(120)
def spawn():
    import subprocess
    return subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(120)"]).pid
def environment(): return dict(os.environ)
def talk():
    print("on stdout", flush=True)
    print("on stderr", file=sys.stderr, flush=True)
"""


def alive(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers() -> set[int]:
    """The processes of workers that this one has started."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if any("_worker" in part for part in child.cmdline()):
                found.add(child.pid)
    return found


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold"
        time.sleep(0.01)


def bubblewrap_fails() -> str:
    """Why bubblewrap cannot be used here; empty if it can."""
    program = shutil.which("bwrap")
    if program is None:
        return "bwrap is not installed"
    command = [program, "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"bwrap cannot be used here: {done.stderr.strip()}" if done.returncode else ""


class TestExtensionErrors(IntegrationTestBase):
    """Extensions that fail, each in its own way, and leave the others alone."""

    def test_failures_while_loading(self, caplog: pytest.LogCaptureFixture) -> None:
        """Missing dependency, syntax error, failing constructor, missing entry: each its own error."""
        self.create_extension("good", "def fine(): return 1")
        self.create_extension("missing", "import numpy")
        self.create_extension("syntax", "def broken(:")
        self.create_extension("raises", "class Extension:\n    def __init__(self): raise LookupError('no model')")
        self.create_extension("entry", "x = 1", entry="main:Absent")
        self.create_extension("exits", "import sys; sys.exit(3)")
        self.create_extension("dies", "import os; os._exit(4)")
        self.create_extension("nowhere", "x = 1", entry="elsewhere")
        self.create_extension("silent", "def _private(): return 1")
        host, loaded = self.load_extensions()
        assert set(loaded.extensions) == {"good", "silent"}
        assert host["good"].call.fine() == 1
        assert "silent has no public methods, so nothing of it can be called" in caplog.messages
        causes = {name: error.__cause__ for name, error in loaded.errors.items()}
        assert isinstance(causes["missing"], ModuleNotFoundError)
        assert "numpy" in str(loaded.errors["missing"])
        assert isinstance(causes["syntax"], SyntaxError)
        assert isinstance(causes["raises"], LookupError)
        assert "in __init__" in str(causes["raises"].__cause__)
        assert isinstance(causes["entry"], AttributeError)
        assert isinstance(causes["exits"], RemoteError)
        assert isinstance(loaded.errors["dies"], WorkerDiedError)
        assert loaded.errors["dies"].exit_code == 4
        assert isinstance(causes["nowhere"], ModuleNotFoundError)
        assert "there is no elsewhere.py in" in str(loaded.errors["nowhere"])
        assert "dependencies" not in str(loaded.errors["nowhere"])
        assert set(host.extensions) == {"good", "silent"}

    def test_runtime_errors(self) -> None:
        """Built-in exceptions arrive as themselves with their arguments, others as RemoteError."""
        self.create_extension(
            "raising",
            """
            class Own(ValueError): pass
            class Odd(Exception):
                def __str__(self): raise RuntimeError("no text")
            def go(which):
                if which == "key": raise KeyError("k", 2)
                if which == "os": open("/no/such/file")
                if which == "unicode": b"\\xff".decode()
                if which == "own": raise Own("mine")
                if which == "odd": raise Odd()
                if which == "stop": raise StopIteration(1)
                if which == "object": raise ValueError(object())
                if which == "group": raise ExceptionGroup("many", [ValueError(1)])
                if which == "exit": raise SystemExit(3)
                if which == "unsendable": return object()
            """,
        )
        host, _ = self.load_extensions()
        go = host["raising"].call.go
        with pytest.raises(KeyError) as caught:
            go("key")
        assert caught.value.args == ("k", 2)
        assert "main.py" in str(caught.value.__cause__)
        with pytest.raises(FileNotFoundError, match="/no/such/file") as missing:
            go("os")
        assert missing.value.filename == "/no/such/file"
        for which, name in (
            ("own", "main.Own"),
            ("odd", "main.Odd"),
            ("stop", "StopIteration"),
            ("exit", "SystemExit"),
        ):
            with pytest.raises(RemoteError) as remote:
                go(which)
            assert remote.value.type_name == name
            assert "Traceback" in remote.value.traceback
        with pytest.raises(ValueError, match="object object"):
            go("object")
        for which in ("unicode", "group"):
            with pytest.raises(UnicodeDecodeError if which == "unicode" else RemoteError):
                go(which)
        with pytest.raises(TypeError, match=r"value is a builtins\.object, which does not travel"):
            go("unsendable")
        with pytest.raises(TypeError, match=r"args\[0\] is a builtins\.object"):
            go(object())
        with pytest.raises(TypeError, match=r"kwargs\['which'\]\[2\] is a builtins\.object"):
            go(which=[1, 2, object()])
        with pytest.raises(TypeError):
            go()
        assert go("nothing") is None

    @pytest.mark.parametrize(("method", "code", "number"), [("leave", 3, None), ("crash", None, signal.SIGSEGV)])
    def test_death_fails_pending_calls(self, method: str, code: int | None, number: int | None) -> None:
        """Exit and segmentation fault: every pending call fails with code or signal; others go on."""
        self.create_extension("dying", DYING)
        self.create_extension("other", DYING)
        host, _ = self.load_extensions()
        dying, other = host["dying"], host["other"]
        failures: list[WorkerDiedError] = []

        def block() -> None:
            try:
                dying.call.block()
            except WorkerDiedError as failure:
                failures.append(failure)

        threads = [threading.Thread(target=block) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: dying.stats()["pending"] == 3)
        first = dying.pid
        began = time.monotonic()
        with pytest.raises(WorkerDiedError) as caught:
            dying.call.leave(3) if method == "leave" else dying.call.crash()
        assert dying._current is None or dying.pid != first  # who is told of the end finds no dead worker in its place
        for thread in threads:
            thread.join()
        # A second on a machine at rest; the bound is for one that is not.
        took = time.monotonic() - began
        print(f"{len(failures) + 1} pending calls failed within {took:.3f} s")
        assert took < 30
        assert len(failures) == 3
        assert (caught.value.exit_code, caught.value.signal) == (code, number)
        assert any("last words" in line or "about to crash" in line for line in caught.value.stderr)
        assert other.call.fine() == "fine"
        assert dying.when(State.READY, timeout=120) is State.READY
        assert dying.call.fine() == "fine"
        assert dying.pid != first
        assert not alive(first)

    def test_death_right_after_the_first_word(self) -> None:
        """A worker whose first word and end are heard together was not loaded, and the caller learns how it ended."""
        code = """
        import os, threading, time
        here = os.path.dirname(os.path.abspath(__file__))
        open(f"{here}/begun", "w").close()
        while not os.path.exists(f"{here}/go"): time.sleep(0.01)
        threading.Timer(0.3, os._exit, (4,)).start()
        def fine(): return 1
        """
        folder = self.create_extension("brief", code)
        host = self.make_host()

        def sleep_until_it_has_ended() -> None:
            (folder / "go").touch()  # nothing that it says from here on is heard before its end
            wait_for(lambda: not any(map(alive, found)))
            heard.set()

        outcome: list[object] = []
        heard = threading.Event()

        def load() -> None:
            try:
                outcome.append(host.load(folder))
            except WorkerDiedError as failure:
                outcome.append(failure)

        thread = threading.Thread(target=load)
        thread.start()
        wait_for((folder / "begun").exists)
        found = workers()
        assert found
        host._loop.call_soon_threadsafe(sleep_until_it_has_ended)  # type: ignore[union-attr]
        thread.join()
        assert heard.is_set()
        assert isinstance(outcome[0], WorkerDiedError)
        assert outcome[0].exit_code == 4
        assert not host.extensions

    def test_memory_limit(self) -> None:
        """A worker that reaches its memory limit is ended, and says so."""
        self.create_extension("hungry", DYING, limits={"memory": "300MB"}, restart={"policy": "never"})
        host, _ = self.load_extensions()
        lines = host["hungry"].report.sandbox.enforced  # type: ignore[union-attr]
        assert any(line.startswith("memory at most 300000000") for line in lines)
        with pytest.raises(WorkerDiedError, match="memory limit"):
            host["hungry"].call.eat()
        wait_for(lambda: host["hungry"].state is State.FAILED)

    @pytest.mark.parametrize("level", ["limits", "landlock", "bwrap"])
    @pytest.mark.parametrize("what", ["processes", "threads"])
    def test_limits_of_one_extension(self, what: str, level: str) -> None:
        """Processes and threads are counted for each extension alone, for root too; descriptors by the kernel."""
        if level == "bwrap" and (reason := bubblewrap_fails()):
            pytest.skip(reason)
        code = """
        import contextlib, os, signal, subprocess, threading, time
        def stop_its_parent():  # its supervisor, which must not be what counts
            with contextlib.suppress(OSError):
                os.kill(os.getppid(), signal.SIGSTOP)
        def file_limit():
            return [open('/dev/null') for _ in range(200)] and None
        def processes(count):
            kept = [subprocess.Popen(["sleep", "300"], start_new_session=True) for _ in range(count)]
            time.sleep(0.5 if count < 20 else 200)  # long enough for the host to count
            return len(kept)
        def threads(count):
            for _ in range(count): threading.Thread(target=time.sleep, args=(200,), daemon=True).start()
            time.sleep(0.5 if count < 20 else 200)
            return count
        """
        limits = {what: 20, "open_files": 100}
        self.create_extension("crowd", code, limits=limits, restart={"policy": "never"}, sandbox={"level": level})
        self.create_extension("neighbour", "def fine(): return 1")
        host, loaded = self.load_extensions()
        assert not loaded.errors
        report = host["crowd"].report.sandbox  # type: ignore[union-attr]
        assert f"{what} at most 20, counted by the host" in report.enforced
        assert not any("at most" in line for line in report.missing)
        assert "open_files at most 100" in report.enforced
        with pytest.raises(OSError, match="Too many open files"):
            host["crowd"].call.file_limit()
        assert getattr(host["crowd"].call, what)(3) == 3
        host["crowd"].call.stop_its_parent()
        with pytest.raises(WorkerDiedError, match=f"more than 20 {what}"):
            getattr(host["crowd"].call(timeout=150), what)(30)
        assert host["neighbour"].call.fine() == 1

    def test_restart_policy_gives_up(self) -> None:
        """After more crashes than the policy allows the extension is failed, and calls say why; a reload revives it."""
        self.create_extension("dying", DYING, restart={"limit": 2, "backoff": 0.01})
        host, _ = self.load_extensions()
        ext = host["dying"]
        for _ in range(3):
            ext.when(State.READY, timeout=120)
            with pytest.raises(WorkerDiedError):
                ext.call.leave(1)
        assert ext.when(State.FAILED, timeout=120) is State.FAILED
        with pytest.raises(NotReadyError, match=r"failed: .*exited with code 1"):
            ext.call.fine()
        with pytest.raises(NotReadyError):
            ext.when(State.READY)
        ext.reload()
        assert ext.call.fine() == "fine"

    @pytest.mark.parametrize("policy", ["on-failure", "never"])
    def test_death_during_a_reload(self, policy: str) -> None:
        """A worker that dies while its successor starts leaves one worker behind, whatever the restart policy is."""
        code = DYING + f"\nwhile os.path.exists({str(self.root / 'wait')!r}): time.sleep(0.01)\n"
        self.create_extension("dying", code, restart={"policy": policy, "backoff": 0.01})
        host, _ = self.load_extensions()
        ext = host["dying"]
        first = ext.pid or 0
        (self.root / "wait").touch()
        reload = threading.Thread(target=ext.reload)
        reload.start()
        wait_for(lambda: len(workers()) == 2)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: not alive(first))
        time.sleep(0.3)  # so that the host hears of it first
        (self.root / "wait").unlink()
        reload.join()
        assert ext.when(State.READY, timeout=120) is State.READY
        assert ext.call.fine() == "fine"
        time.sleep(1)  # what the restart policy had begun would have come to its end
        assert ext.state is State.READY
        wait_for(lambda: len(workers()) == 1)  # one that was forgotten stays

    def test_a_reload_that_is_cancelled_forgets_no_worker(self, tmp_path: Path) -> None:
        """The end of watching cancels one too: the old worker answers what it was asked and ends, whoever waits."""
        code = """
        import os, time
        def hold(path):
            while not os.path.exists(path): time.sleep(0.01)
            return 1
        """
        self.create_extension("holds", code, timeouts={"stop": 30})
        host, _ = self.load_extensions()
        ext = host["holds"]
        first = ext.pid
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(ext.call.hold, str(tmp_path / "end"))
            wait_for(lambda: ext.stats()["pending"] == 1)
            reloading = asyncio.run_coroutine_threadsafe(ext.areload(), host._own_loop())
            wait_for(lambda: ext.pid != first)
            reloading.cancel()
            (tmp_path / "end").touch()
            assert held.result(60) == 1
        wait_for(lambda: len(workers()) == 1)
        assert ext.state is State.READY

    def test_reloads_and_a_stop_at_once(self) -> None:
        """Whatever is asked for at the same time is done in turn: the last word counts and no worker is forgotten."""
        self.create_extension("dying", DYING)
        host, _ = self.load_extensions()
        ext = host["dying"]

        async def all_at_once() -> None:
            await asyncio.gather(ext.areload(), ext.astop(), ext.areload())

        host._run(all_at_once())
        assert ext.call.fine() == "fine"
        host._run(all_at_once())
        ext.stop()
        assert ext.state is State.STOPPED

    def test_output_goes_to_logging(self, caplog: pytest.LogCaptureFixture) -> None:
        """Stdout and stderr come line by line under the extension's name, and disturb no call."""
        self.create_extension("dying", DYING)
        host, _ = self.load_extensions()
        with caplog.at_level(logging.INFO, logger="isolate.dying"):
            host["dying"].call.talk()
            wait_for(lambda: len(caplog.records) == 2)
        found = {(record.levelname, record.getMessage()) for record in caplog.records}
        assert found == {("INFO", "on stdout"), ("WARNING", "on stderr")}

    def test_environment_variables_by_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The child sees a short list of variables, and those that its manifest names; no secrets of the host."""
        monkeypatch.setenv("MY_SECRET", "s")
        monkeypatch.setenv("MY_SETTING", "1")
        self.create_extension("dying", DYING, env=["MY_SETTING"])
        host, _ = self.load_extensions(policy=Policy(allow_env=("MY_*",)))
        seen = host["dying"].call.environment()
        assert seen["MY_SETTING"] == "1"
        assert "MY_SECRET" not in seen
        assert "HOME" not in seen


class Renderer(Protocol):
    """What a host may ask for."""

    def render(self, width: int, height: int) -> bytes:
        """An image."""
        ...

    def title(self) -> str:
        """A name."""
        ...


class Wide(Protocol):
    """Every kind of annotation that travels."""

    def plain(self, a: int, b: str, *, c: float = 1.0) -> dict[str, list[int | None]]:
        """Built-in types."""
        ...

    def typed(
        self,
        one: Literal["a", "b"],
        two: Annotated[bytes, "note"],
        three: Callable[[int], str],
        four: np.ndarray[Any, np.dtype[Any]],
        five: tuple[State, ...] = (),
        *rest: Any,
    ) -> Iterator[Path]:
        """Less plain ones."""
        ...


class Unsendable(Protocol):
    """One that does not travel."""

    def go(self, lock: list[threading.Thread]) -> None:
        """Takes threads."""
        ...


class TestConfigurationEdgeCases(IntegrationTestBase):
    """Manifests, requirements, contracts and locks that are wrong, off or out of date."""

    def test_disabled_extension(self) -> None:
        """A disabled extension is listed and not loaded; asking for it is an error."""
        folder = self.create_extension("off", "x = 1", enabled=False)
        host, loaded = self.load_extensions()
        assert loaded.disabled == ["off"]
        assert not loaded.extensions
        with pytest.raises(ExtensionDisabledError):
            host.load(folder)

    def test_malformed_manifests_leave_the_others(self) -> None:
        """Bad manifests and requirements each give their error while the others load."""
        self.create_extension("good", "def fine(): return 1")
        self.create_extension("requirement", "x = 1", dependencies=["numpy=>2"])
        self.create_extension("url", "x = 1", dependencies=["a @ https://example.invalid/a.whl"])
        self.create_extension("unresolvable", "x = 1", dependencies=["packaging==0.0.0.1"])
        for name, text in (("yaml", "name: [\n"), ("key", "name: key\nsandboxx: none\n"), ("bytes", b"\xff\xfe")):
            folder = self.root / name
            folder.mkdir()
            (folder / "manifest.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        _, loaded = self.load_extensions()
        assert list(loaded.extensions) == ["good"]
        kinds = {name: type(error) for name, error in loaded.errors.items()}
        assert kinds == {
            "requirement": InvalidRequirementError,
            "url": InvalidRequirementError,
            "unresolvable": EnvironmentBuildError,
            "yaml": InvalidManifestError,
            "key": InvalidManifestError,
            "bytes": InvalidManifestError,
        }
        assert "packaging==0.0.0.1" in str(loaded.errors["unresolvable"])

    def test_same_name_twice(self) -> None:
        """The second extension of a name is refused, and names such as a/b and a_b cannot meet."""
        self.create_extension("first", "x = 1")
        folder = self.create_extension("second", "x = 1")
        (folder / "manifest.yaml").write_text("name: first\n")
        _, loaded = self.load_extensions()
        assert len(loaded.extensions) == 1
        assert "is taken by" in str(next(iter(loaded.errors.values())))

    def test_contracts(self) -> None:
        """Missing methods, wrong arity and types, needs that the host lacks: a list of differences at load."""
        bad = "def render(width: int) -> str: ...\ndef titel() -> str: ..."
        self.create_extension("bad", bad, provides=["render", "close"])
        host = self.make_host(DatabaseSingleton)
        with pytest.raises(ContractMismatchError) as caught:
            host.load(self.root / "bad", contract=Renderer)
        text = "\n".join(caught.value.differences)
        assert "promises 'close'" in text
        assert "render: takes 1 arguments, and none for 'height'" in text
        assert "render: returns str, wanted bytes" in text
        assert "has no method 'title', which Renderer wants; did you mean 'titel'" in text
        good = "def render(w: int, h: int, dpi: int = 72) -> bytes: return b''\ndef title() -> 'str': return 't'"
        self.create_extension("good", good, needs={"database": ["get"]})
        assert host.load(self.root / "good", contract=Renderer).call.title() == "t"
        self.create_extension("needy", "x = 1", needs={"databse": ["get"], "database": ["git"]})
        with pytest.raises(ContractMismatchError, match="did you mean 'get'") as needy:
            host.load(self.root / "needy")
        assert any("did you mean 'database'" in line for line in needy.value.differences)

    def test_contracts_of_every_kind(self) -> None:
        """Optional, variable and keyword arguments and generic types agree however they are spelled, or are named."""
        good = """
        def plain(x: "int", y: str, extra=None, *, c: float = 2.0) -> dict: ...
        def typed(*args, **kwargs): yield from ()
        """
        bad = """
        def plain(a: int, b: bytes, needed, *, d: float): ...
        def typed(one): ...
        """
        for name, code in (("good", good), ("bad", bad)):
            self.create_extension(name, code)
        host = self.make_host()
        with pytest.raises(ContractMismatchError) as caught:
            host.load(self.root / "good", contract=Wide)
        assert caught.value.differences == ["plain: returns dict, wanted dict[str, list[int | None]]"]
        with pytest.raises(ContractMismatchError) as caught:
            host.load(self.root / "bad", contract=Wide)
        assert caught.value.differences == [
            "plain: takes 'b' as bytes, wanted str",
            "plain: takes no argument named 'c'",
            "plain: needs an argument 'needed' that the contract does not give",
            "plain: needs an argument 'd' that the contract does not give",
            *(f"typed: takes 1 arguments, and none for {name!r}" for name in ("two", "three", "four", "five")),
        ]
        with pytest.raises(ContractMismatchError, match="of 'lock' does not travel"):
            host.load(self.root / "good", contract=Unsendable)

    def test_needs_limit_what_is_seen(self) -> None:
        """An extension that declares its needs sees no other API and no other method, and can call none."""
        code = """
        class Extension:
            def __init__(self, host): self.host = host
            def see(self): return self.host.apis
            def put(self): self.host.call.database.put("k", 1)
            def put_past_the_list(self):
                self.host.apis["database"]["put"] = "sync"
                self.put()
        """
        self.create_extension("none", code, needs={})
        self.create_extension("some", code, needs={"database": ["get"]})
        self.create_extension("all", code)
        host = self.make_host(DatabaseSingleton)
        none, some, everything = (host.load(self.root / name).call for name in ("none", "some", "all"))
        assert none.see() == {}
        assert some.see() == {"database": {"get": "sync"}}
        assert set(everything.see()["database"]) == {"get", "keys", "put"}
        with pytest.raises(UnknownMethodError, match="declares no method 'put'"):
            some.put()
        with pytest.raises(UnknownMethodError, match="was not declared"):
            some.put_past_the_list()
        everything.put()

    def test_lock_files(self, tmp_path: Path) -> None:
        """A lock file pins with hashes, rebuilds offline exactly, and is refused when the manifest has moved on."""
        folder = self.create_extension(
            "locked", "import packaging\ndef version(): return packaging.__version__", dependencies=["packaging<24"]
        )
        store = EnvironmentStore(self.store)
        text = store.lock(read_manifest(folder))
        assert "packaging==23.2" in text
        assert "--hash=sha256:" in text
        assert "://" not in text
        first = EnvironmentStore(self.store).ensure(read_manifest(folder))
        again = EnvironmentStore(tmp_path / "other", offline=True).ensure(read_manifest(folder))
        assert (again.origin, again.packages, again.key) == ("built", first.packages, first.key)
        for policy in (Policy(find_links=(str(tmp_path),)), Policy(allow_sdists=True)):
            elsewhere = EnvironmentStore(tmp_path / "policy", policy, offline=True).ensure(read_manifest(folder))
            assert (elsewhere.packages, elsewhere.key == first.key) == (first.packages, False)
        with pytest.MonkeyPatch.context() as patch:  # another machine
            patch.setattr("platform.python_version", lambda: "3.11.99")
            patch.setattr("sysconfig.get_platform", lambda: "linux-riscv64")
            assert Locks(read_manifest(folder), Policy(), []).own == text.partition("\n")[2]
        (folder / "manifest.yaml").write_text("name: locked\ndependencies: [packaging>24]\n")
        with pytest.raises(LockOutOfDateError, match="isolate lock"):
            store.ensure(read_manifest(folder))

    def test_broken_environments_are_built_anew(self, tmp_path: Path) -> None:
        """An environment without its marker or interpreter is not used, and what a killed builder left is swept."""
        manifest = read_manifest(self.create_extension("plain", "x = 1"))
        store = EnvironmentStore(tmp_path / "store")
        built = store.ensure(manifest)
        assert store.ensure(manifest).origin == "ready"
        (built.path / ".isolate.json").unlink()
        left = tmp_path / "store" / "tmp" / "abc-999999999-1234"
        left.mkdir()
        assert store.ensure(manifest).origin == "built"
        assert not left.exists()
        (built.path / "bin" / "python").unlink()
        assert store.ensure(manifest).origin == "built"

    def test_gc(self, tmp_path: Path) -> None:
        """Unused environments go; those in use or still wanted stay."""
        used = self.create_extension("used", "def fine(): return 1")
        host = self.make_host(store=tmp_path / "store")
        host.load(used)
        other = read_manifest(self.create_extension("other", "x = 1", dependencies=["packaging==23.2"]))
        key = host.store.ensure(other).key
        assert host.store.gc({key}) == []
        assert [item[0] for item in host.store.gc(set(), dry_run=True)] == [key]
        removed = host.store.gc(set())
        assert [item[0] for item in removed] == [key]
        assert removed[0][1] > 10_000
        assert host["used"].call.fine() == 1
        host["used"].stop()
        assert len(host.store.gc(set())) == 1

    def test_required_sandbox_fails_closed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without bwrap no code of an extension that requires it runs; where it is not required, the report says so."""
        monkeypatch.setenv("PATH", "/nonexistent")
        ran = tmp_path / "ran"
        self.create_extension("strict", f"open({str(ran)!r}, 'w')", sandbox={"level": "bwrap", "required": True})
        self.create_extension("loose", "x = 1", sandbox={"level": "bwrap", "network": False})
        host, loaded = self.load_extensions()
        assert isinstance(loaded.errors["strict"], SandboxUnavailableError)
        assert not ran.exists()
        report = host["loose"].report.sandbox  # type: ignore[union-attr]
        assert "no new privileges (tried)" in report.enforced
        assert any("bwrap is not installed" in line for line in report.missing)

    def test_landlock(self, tmp_path: Path) -> None:
        """With landlock an extension reads its own files and the system's, and writes where it may; nothing else."""
        from isolate._sandbox import available

        if available()["landlock"]:
            pytest.skip(available()["landlock"])
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "out").mkdir()
        self.create_extension(
            "caged",
            """
            import pathlib, socket, subprocess, ssl, tempfile
            def read(path): return pathlib.Path(path).read_text()
            def write(path): pathlib.Path(path).write_text("x")
            def own(): return pathlib.Path(__file__).read_text()[:7]
            def connect(port): socket.create_connection(("127.0.0.1", port), 1)
            """,
            sandbox={"level": "landlock", "write": [str(tmp_path / "out")], "network": True, "required": True},
        )
        host, loaded = self.load_extensions(policy=Policy(allow_write=(str(tmp_path),)))
        assert not loaded.errors
        call = host["caged"].call
        tried = host["caged"].report.sandbox.tried  # type: ignore[union-attr]
        assert [name for name, possible in tried.items() if possible] == ["see files outside", "TCP", "UDP"]
        with pytest.raises(PermissionError):
            call.read(str(tmp_path / "secret"))
        with pytest.raises(OSError, match=r"Permission denied|Read-only"):
            call.write(str(tmp_path / "new"))
        call.write(str(tmp_path / "out" / "file"))
        assert (tmp_path / "out" / "file").read_text() == "x"
        assert call.own()

    def test_bubblewrap(self, tmp_path: Path) -> None:
        """Under bwrap an extension has its own process ids, no network, a read-only system, and writes where it may."""
        reason = bubblewrap_fails()
        if reason:
            pytest.skip(reason)
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "out").mkdir()
        self.create_extension(
            "caged",
            """
            import os, pathlib, socket
            def read(path): return pathlib.Path(path).read_text()
            def write(path): pathlib.Path(path).write_text("x")
            def pids(): return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
            def interfaces(): return [name for _, name in socket.if_nameindex()]
            def die(): os._exit(9)
            """,
            sandbox={"level": "bwrap", "write": [str(tmp_path / "out")], "network": False, "required": True},
            restart={"policy": "never"},
        )
        host, loaded = self.load_extensions(policy=Policy(allow_write=(str(tmp_path),)))
        assert not loaded.errors
        caged = host["caged"]
        report = caged.report.sandbox  # type: ignore[union-attr]
        assert set(report.tried.values()) == {False}
        assert not report.missing
        assert os.getpid() not in caged.call.pids()
        assert len(caged.call.pids()) <= 3
        with pytest.raises(PermissionError):
            caged.call.interfaces()
        with pytest.raises(FileNotFoundError):
            caged.call.read(str(tmp_path / "secret"))
        with pytest.raises(OSError, match="Read-only"):
            caged.call.write("/usr/isolate-was-here")
        caged.call.write(str(tmp_path / "out" / "file"))
        assert (tmp_path / "out" / "file").read_text() == "x"
        pid = caged.pid
        with pytest.raises(WorkerDiedError) as caught:
            caged.call.die()
        assert caught.value.exit_code == 9
        wait_for(lambda: not alive(pid or 0))

    def test_exports_must_be_declared(self) -> None:
        """An object without declared methods, a bad name, a missing or private method: an error each."""
        host = self.make_host()
        for arguments, message in (
            ({"api": object()}, "no ProxiedSingleton"),
            ({"api": dict, "methods": ["get"]}, "export an instance"),
            ({"api": {}, "methods": ["fetch"], "name": "d"}, "no method 'fetch'"),
            ({"api": {}, "methods": ["__len__"], "name": "d"}, "underscore"),
            ({"api": {}, "methods": ["get"], "name": "a.b"}, "not a name for an API"),
        ):
            with pytest.raises((TypeError, AttributeError, ValueError), match=message):
                host.export(**arguments)  # type: ignore[arg-type]
        first = host.export(DatabaseSingleton)
        assert isinstance(first, DatabaseSingleton)
        with pytest.raises(ValueError, match="already exported"):
            host.export(DatabaseSingleton)


class TestConcurrentOperations(IntegrationTestBase):
    """Many callers, many extensions, many hosts."""

    def test_thousand_concurrent_calls(self) -> None:
        """A thousand calls at once from asyncio, and as many from threads, each with its own answer."""
        self.create_extension("echo", "def echo(x): return x\nasync def aecho(x): return x")
        host, _ = self.load_extensions()
        ext = host["echo"]

        async def gather(method: Any) -> list[int]:
            return await asyncio.gather(*(method(i) for i in range(1000)))

        assert asyncio.run(gather(ext.aio.echo)) == list(range(1000))
        assert asyncio.run(gather(ext.aio.aecho)) == list(range(1000))
        wrong: list[int] = []

        def many(offset: int) -> None:
            wrong.extend(i for i in range(offset, offset + 125) if ext.call.echo([i]) != [i])

        threads = [threading.Thread(target=many, args=(1000 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert ext.stats()["pending"] == 0

    def test_large_frames_both_ways_at_once(self) -> None:
        """Big plain values cross in both directions at the same time without blocking each other for ever."""
        self.create_extension("echo", "def echo(x): return x")
        host, _ = self.load_extensions()
        value = ["x" * 1000] * 3000

        async def gather() -> list[Any]:
            return await asyncio.gather(*(host["echo"].aio.echo(value) for _ in range(8)))

        assert asyncio.run(gather()) == [value] * 8

    def test_two_hosts_build_once(self, tmp_path: Path) -> None:
        """Two processes that need one environment at the same time build it once."""
        folder = self.create_extension("plain", "x = 1", dependencies=["packaging==23.2"])
        code = (
            "import isolate\n"
            f"store = isolate.EnvironmentStore({str(tmp_path / 'store')!r})\n"
            f"print(store.ensure(isolate.read_manifest({str(folder)!r})).origin)\n"
        )
        running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
        origins = sorted(process.communicate()[0].strip() for process in running)
        assert origins == ["built", "ready", "ready"]

    def test_first_environments_side_by_side(self) -> None:
        """The first use of uv by several threads at once, as `load_all` makes it, finds it in each of them."""
        code = """if True:
            import sys, threading
            from isolate._environments import find_uv
            sys.setswitchinterval(1e-6)
            failures, together = [], threading.Barrier(8)

            def ask():
                together.wait()
                try:
                    find_uv()
                except Exception as failure:
                    failures.append(repr(failure))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sys.exit(chr(10).join(failures) or 0)
        """
        for _ in range(3):
            subprocess.run([sys.executable, "-c", code], check=True)

    def test_host_calls_from_many_threads_of_extensions(self) -> None:
        """Concurrent calls into the host's database keep every value."""
        self.create_extension(
            "writer",
            "class Extension:\n    def __init__(self, host): self.host = host\n"
            "    def put(self, i): self.host.call.database.put(str(i), i)",
        )
        host = self.make_host()
        database = host.export(DatabaseSingleton)
        ext = host.load(self.root / "writer")

        async def gather() -> None:
            await asyncio.gather(*(ext.aio.put(i) for i in range(200)))

        asyncio.run(gather())
        assert sorted(database.values.values()) == list(range(200))


HOST_THAT_IS_KILLED = """
import sys, threading, isolate
host = isolate.Host(sys.argv[1]).__enter__()
ext = host.load(sys.argv[2])
print(ext.pid, ext.call.spawn(), flush=True)
threading.Thread(target=lambda: ext.call.spin()).start()
ext.call.spin()
"""


class TestResourceManagement(IntegrationTestBase):
    """What is started is ended, what is taken is given back."""

    def test_a_relative_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The store may be a path relative to where the host was started."""
        monkeypatch.chdir(self.root)
        self.create_extension(
            "relative",
            "import packaging\nclass Extension:\n    def version(self): return packaging.__version__",
            dependencies=["packaging==23.2"],
        )
        with Host("a-store") as host:
            assert host.load("relative").call.version() == "23.2"

    def test_what_is_not_sent_is_given_back(self) -> None:
        """Arrays and callables of a message that fails on a later part of it are not held for the other side."""
        self.create_extension("echo", "def echo(*values): return len(values)")
        host, _ = self.load_extensions()
        ext = host["echo"]
        link = ext._current.link  # type: ignore[union-attr]
        for number in range(3):
            with pytest.raises(TypeError, match="does not travel"):
                ext.call.echo(np.full(100_000, number), lambda: None, bytes(100_000), object())
            assert ext.stats()["lent"] == 0
            assert not link.values.callables
        assert ext.call.echo(bytes(100_000)) == 1
        wait_for(lambda: ext.stats()["lent"] == 0)
        assert ext.stats()["idle"] == 2

    def test_stop_is_idempotent_and_in_reverse_order(self) -> None:
        """Extensions stop last loaded first, their on_stop runs once, and stopping twice is nothing."""
        order: list[str] = []

        class Log:
            def add(self, name: str) -> None:
                order.append(name)

        code = (
            "class Extension:\n    def __init__(self, host): self.host = host\n    def fine(self): return 1\n"
            "    def on_stop(self): self.host.call.log.add(self.host.name)"
        )
        host = self.make_host()
        host.export(Log(), methods=["add"])
        for name in ("a", "b", "c"):
            self.create_extension(name, code)
            host.load(self.root / name)
        host["b"].stop()
        host["b"].stop()
        with pytest.raises(NotReadyError, match="b is stopped"):
            host["b"].call.fine()
        pids = [host[name].pid for name in ("a", "c")]
        host.close()
        host.close()
        assert order == ["b", "c", "a"]
        assert not any(alive(pid) for pid in pids if pid)
        with pytest.raises(RuntimeError, match="closed"):
            host.load(self.root / "a")

    def test_stubborn_worker_is_forced(self) -> None:
        """A worker that ignores everything is killed after its grace, with its daemonised children."""
        self.create_extension(
            "stubborn",
            DYING
            + "\nimport signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef on_stop():\n    time.sleep(120)\n",
            timeouts={"stop": 0.3},
        )
        host, _ = self.load_extensions()
        worker, child = host["stubborn"].pid, host["stubborn"].call.spawn()
        host.close()
        assert not alive(worker or 0)
        wait_for(lambda: not alive(child))

    def test_slow_start_times_out(self) -> None:
        """An extension that is not ready in time is ended and reported."""
        self.create_extension("slow", "import time; time.sleep(60)", timeouts={"start": 0.5})
        _, loaded = self.load_extensions()
        assert isinstance(loaded.errors["slow"], ExtensionStartError)
        assert "not ready within 0.5 s" in str(loaded.errors["slow"])

    def test_killed_host_leaves_nothing(self, tmp_path: Path) -> None:
        """`kill -9` of the host while an extension spins: worker and grandchildren end, nothing stays."""
        spinning = DYING + "\ndef spin():\n    while True: pass\n"
        folder = self.create_extension("spinning", spinning)
        script = tmp_path / "host.py"
        script.write_text(HOST_THAT_IS_KILLED)
        # A store of its own: other tests build in the one that they share.
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "store"), str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        worker, grandchild = map(int, process.stdout.readline().split())
        assert alive(worker)
        assert alive(grandchild)
        time.sleep(0.2)
        process.kill()
        began = time.monotonic()
        process.wait()
        process.stdout.close()
        # Two seconds on a machine at rest; the bound is for one that is not.
        wait_for(lambda: not alive(worker) and not alive(grandchild))
        print(f"worker and grandchild were gone {time.monotonic() - began:.3f} s after their host")
        assert not list((tmp_path / "store" / "tmp").glob("*"))

    def test_worker_killed_from_outside(self) -> None:
        """A worker killed with its daemonised child running is reported with the signal, and the child goes too."""
        self.create_extension("dying", DYING, restart={"policy": "never"})
        host, _ = self.load_extensions()
        child = host["dying"].call.spawn()
        os.kill(host["dying"].pid or 0, signal.SIGKILL)
        host["dying"].when(State.FAILED, timeout=120)
        assert isinstance(host["dying"].failure, WorkerDiedError)
        assert host["dying"].failure.signal == signal.SIGKILL
        wait_for(lambda: not alive(child))

    @pytest.mark.slow
    @pytest.mark.timeout(200)
    def test_two_hundred_cycles(self) -> None:
        """Load, call and stop two hundred times: descriptors, threads and memory stay flat."""
        self.create_extension("echo", "def echo(x): return x")
        # In a process of its own: what other tests left to the allocator must not count.
        command = [sys.executable, "-c", CYCLES, str(self.root / "echo"), str(self.store)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, after = json.loads(done.stdout)
        assert after["descriptors"] <= before["descriptors"]
        assert after["threads"] <= before["threads"]
        assert after["memory"] - before["memory"] < 8 << 20

    @pytest.mark.slow
    @pytest.mark.timeout(200)
    def test_memory_is_flat_over_large_arguments(self) -> None:
        """Five hundred arguments of 64 MB, changed and unchanged in turn: host and worker do not grow."""
        self.create_extension("total", "def total(x): return float(x[0] + x[-1])", dependencies=["numpy>=2"])
        command = [sys.executable, "-c", LARGE, str(self.root / "total"), str(self.store)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, after = json.loads(done.stdout)
        for kind, size in after.items():
            print(kind, before[kind], size)
            assert size - before[kind] < 16 << 20, kind

    def test_base_error(self) -> None:
        """Everything that isolate raises on purpose is an IsolateError."""
        with pytest.raises(IsolateError):
            read_manifest(self.root)
