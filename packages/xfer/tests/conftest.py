"""Shared fixtures: a pool per test, helper processes, and the check that no test leaves anything behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest

import xfer
from xfer._shared import names
from xfer._shared.cuda_closer import CLOSER
from xfer._shared.reader import READER

if sys.platform == "linux":
    resource_tracker.ensure_running()  # its pipe stays open for the whole run
REQUIRE_CUDA = os.environ.get("REQUIRE_CUDA") == "1"

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


def cuda_is_there() -> bool:
    """Tell whether CuPy is installed and finds a device."""
    return _cuda_is_there


def _find_cuda() -> bool:
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


_cuda_is_there = _find_cuda()


EMULATOR = Path(__file__).parent / "emulator"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a CUDA test without CUDA where it is required; else it runs on the emulator."""
    if item.get_closest_marker("cuda") and REQUIRE_CUDA and not cuda_is_there():
        pytest.fail("REQUIRE_CUDA=1, but CuPy finds no CUDA device")


@pytest.fixture
def on_gpu() -> bool:
    """Whether CUDA tests run on a GPU; they run on the emulator where there is none."""
    return cuda_is_there()


@pytest.fixture(autouse=True)
def cuda(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let a CUDA test and its helper processes find a GPU, or the emulator, whose rules they may not break."""
    if request.node.get_closest_marker("cuda") is None:
        yield
        return
    if cuda_is_there():
        _open_device()
        yield
        return
    folder = tmp_path_factory.mktemp("emulated-cuda")
    inherited = os.environ.get("PYTHONPATH")
    # Not the fixture `monkeypatch`: what a test patches is undone before the check of what it left behind.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMULATED_CUDA", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(EMULATOR), *([inherited] if inherited else [])]))
        patch.syspath_prepend(EMULATOR)
        patch.setattr("xfer._convert.move._cuda_process", 0)
        for name in [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupyx", "cupy_backends")]:
            patch.delitem(sys.modules, name)  # CuPy itself, installed on a machine without a GPU
        import cupy
        import torch_standin

        torch_standin.install(patch)
        yield
        gc.collect()
        CLOSER.settle()
        sys.modules["cupy.cuda"].remove()
        del cupy, torch_standin
        for name in [name for name in sys.modules if name.split(".")[0] in ("cupy", "torch_standin")]:
            del sys.modules[name]
    broken = folder / "violations"
    assert not broken.exists(), broken.read_text()


@cache
def _open_device() -> None:
    """Make the device's context before descriptors are counted: it keeps pipes and files for the process's life."""
    import cupy

    cupy.zeros(1).sum()
    cupy.cuda.Device().synchronize()


_OURS = {os.getpid()}  # process numbers of this run; other programs make files with names of xfer as well


def _is_ours(name: str) -> bool:
    """Return whether a file in shared memory was made by this run's processes, or for one of its tests."""
    parts = name.split("-")
    if name.startswith("xfer-topic-"):
        return f"test%20{os.getpid()}%20" in name
    return name.startswith("xfer-") and len(parts) > 2 and parts[2].isdigit() and int(parts[2]) in _OURS


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if not target.startswith(("anon_inode", "/proc", "/dev/pts", "/dev/null")):
            found.add((fd, target))
    return found


@pytest.fixture(autouse=True, scope="module")
def short_collections() -> Iterator[None]:
    """A collection looks only at what a module's tests made: with PyTorch loaded all the rest takes a second."""
    gc.collect(1)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left_behind(cuda: None) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a child process, a lease or a named segment."""
    if sys.platform != "linux":
        yield
        return
    gc.collect()
    before, shared = _descriptors(), set(os.listdir("/dev/shm"))
    others = set(psutil.Process().children())  # another package's tests may have helpers
    yield
    deadline = time.monotonic() + 30
    while True:
        gc.collect()
        CLOSER.settle()
        READER.trim()
        if xfer.default_pool().stats().live == 0:
            xfer.default_pool().close()
        children = [p for p in psutil.Process().children() if p not in others and "resource_tracker" not in _command(p)]
        _OURS.update(child.pid for child in children)
        extra = {target for _, target in _descriptors() - before if "memfd:xfer" in target or "pipe:" in target}
        named = {name for name in set(os.listdir("/dev/shm")) - shared if _is_ours(name)}
        if not (children or extra or named) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for child in children:  # a test that failed half-way must not keep the run from ending
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert not children, f"children left, and killed now: {children}"
    assert not extra, f"descriptors left: {extra}"
    assert not named, f"named segments left: {named}"


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def own_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for this test's named segments and topics: other programs of this user remove what the dead left."""
    folder = tempfile.mkdtemp(prefix="names-", dir=names.DIRECTORY)
    monkeypatch.setattr(names, "DIRECTORY", folder)
    yield
    shutil.rmtree(folder)


@pytest.fixture
def pool() -> Iterator[xfer.Pool]:
    """A pool of 64 MiB."""
    with xfer.Pool("64MiB", trace=True) as made:
        yield made


class Helper:
    """A real process that runs a snippet; its stdin and stdout are lines of text."""

    def __init__(self, code: str, *args: str) -> None:
        prelude = "import sys, os, time, gc, numpy as np, xfer\narg = sys.argv[1:]\n"
        if sys.platform == "linux":  # it ends with this process, however this process ends
            prelude += "import ctypes; ctypes.CDLL(None).prctl(1, 9)\n"
        prelude += f"import xfer._shared.names; xfer._shared.names.DIRECTORY = {names.DIRECTORY!r}\n"
        prelude += "def say(*words): print(*words, flush=True)\ndef wait(): return sys.stdin.readline().strip()\n"
        command = [sys.executable, "-c", prelude + code, *args]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        _OURS.add(self.pid)

    def say(self, text: str = "") -> None:
        """Write a line to the process."""
        assert self.process.stdin
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill it with signal 9 and wait for the end."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Close its input, wait for it, and return its exit status."""
        assert self.process.stdin
        assert self.process.stdout
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.stdout.read()
        status = self.process.wait(timeout=120)
        self.process.stdout.close()
        return status


@pytest.fixture
def helper() -> Iterator[Callable[..., Helper]]:
    """Start helper processes that are gone after the test."""
    started: list[Helper] = []

    def start(code: str, *args: str) -> Helper:
        started.append(Helper(code, *args))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        for stream in (one.process.stdin, one.process.stdout):
            if stream and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@pytest.fixture
def examples() -> Path:
    """The package's folder."""
    return Path(__file__).parent.parent
