"""Shared by all tests: one store of environments per session, and checks that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import isolate
from isolate import Environment, EnvironmentStore
from isolate._worker.codec import Codec
from isolate._worker.incoming import Incoming
from isolate._worker.outgoing import Outgoing
from isolate._worker.wire import BUFFER

# The base class of the integration tests lies beside them; `importlib` mode leaves this folder off the path.
sys.path.append(str(Path(__file__).parent))

with contextlib.suppress(ImportError):  # tools/gpu_check.py also runs where hypothesis is not installed
    from hypothesis import HealthCheck, settings

    # An example that takes long on a busy machine is no failure. The same examples each time, so that a change is not
    # blamed for what another draw finds; FRESH_EXAMPLES=1 draws others, as the nightly tests do.
    settings.register_profile(
        "unhurried",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=os.environ.get("FRESH_EXAMPLES") != "1",
    )
    settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A store that all tests of a session share, across xdist workers too."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if hasattr(request.config, "workerinput") else base) / "store"


# Run by the interpreter of an environment as it starts; the measured files are the same ones that the host runs.
_MEASURED = (
    "import importlib.util as u, sys; s = u.spec_from_file_location('coverage', {file!r}); "
    "m = sys.modules['coverage'] = u.module_from_spec(s); s.loader.exec_module(m); "
    "c = m.Coverage(data_file={data!r}, data_suffix=True, include=[{worker!r}], config_file=False); "
    "c.set_option('run:patch', ['_exit']); c.start()"
)


@pytest.fixture(scope="session", autouse=True)
def coverage_of_workers() -> Iterator[None]:
    """When coverage is measured, measure it in the workers too: they see no variable and no package of the host."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if coverage is None or current is None:
        yield
        return
    worker = Path(isolate.__file__).parent / "_worker" / "*"
    data = str(Path(current.get_option("run:data_file")).absolute())
    line = _MEASURED.format(file=coverage.__file__, data=data, worker=str(worker))
    build = EnvironmentStore._build

    def measured(self: EnvironmentStore, *arguments: Any) -> Environment:
        environment = build(self, *arguments)
        (environment.site_packages / "measured.pth").write_text(line)
        return environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnvironmentStore, "_build", measured)
        yield


# Not every system has /proc.
_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of this package were skipped, and why: a sandbox that is not there is not tested."""
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "unknown"
        for report in terminalreporter.stats.get("skipped", [])
        if "isolate" in report.nodeid
    )
    if reasons:
        terminalreporter.section("isolate: skipped tests")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:>4}  {reason}")


def _settled(count: object, bound: int) -> int:
    value = count()  # type: ignore[operator]
    end = time.monotonic() + 30
    while value > bound and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
        value = count()  # type: ignore[operator]
    return int(value)


@pytest.fixture(autouse=True, scope="module")
def short_collections() -> Iterator[None]:
    """A collection looks only at what a module's tests made: with PyTorch loaded all the rest takes a second."""
    gc.collect(1)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No descriptor, child process or thread of isolate survives a test."""
    descriptors = len(os.listdir(_DESCRIPTORS))
    before = set(psutil.Process().children(recursive=True))  # another package's tests may have helpers
    yield
    children = [child for child in psutil.Process().children(recursive=True) if child not in before]
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"children left: {alive}"
    threads = lambda: sum(thread.name.startswith(("isolate", "extension")) for thread in threading.enumerate())  # noqa: E731
    assert _settled(threads, 0) == 0, [thread.name for thread in threading.enumerate()]
    left = _settled(lambda: len(os.listdir(_DESCRIPTORS)), descriptors)
    assert left <= descriptors, f"{left - descriptors} descriptors left"


@pytest.fixture
def travel() -> Iterator[Callable[[Any], Any]]:
    """Sends a value through both halves of a link, shared memory included, without a process."""
    incoming = Incoming(lambda: None)
    outgoing = Outgoing(lambda segment, _: incoming.arrived(segment.number, os.dup(segment.fd)), lambda: None)

    def special(value: Any, _made: object) -> tuple[int, bytes] | None:
        described = outgoing.describe(value)
        return None if described is None else (BUFFER, codec.encode(described))

    codec = Codec(special, lambda _, payload: incoming.restore(codec.decode(payload)), lambda *_: None)
    yield lambda value: codec.decode(codec.encode(value))
    outgoing.close()
    incoming.close()
