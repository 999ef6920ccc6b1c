"""Models of three sizes, a way to publish that cleans up, and a check after each test that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
import torch
from torch import nn

import zerocopy
from zerocopy._directory import memory_folder

torch.set_num_threads(1)

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

# Names of the tests, in this process and all that it starts, meet no names of other programs of this user.
_SHARED = tempfile.mkdtemp(prefix="zerocopy-tests-", dir=memory_folder())
os.environ["ZEROCOPY_DIRECTORY"] = _SHARED


def pytest_unconfigure() -> None:
    """Remove the folder of these tests."""
    shutil.rmtree(_SHARED, ignore_errors=True)


class SmallTransformer(nn.Module):
    """An embedding, attention blocks and a head that is tied to the embedding."""

    def __init__(self, width: int = 64, blocks: int = 2, words: int = 100) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits for tokens."""
        return self.head(self.blocks(self.embed(tokens)) * self.scale)


@pytest.fixture
def simple_model() -> nn.Module:
    """A few linear layers and a batch norm."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()


@pytest.fixture
def large_model() -> nn.Module:
    """64 MiB of weights in four layers."""
    torch.manual_seed(2)
    return nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(4)]).eval()


@pytest.fixture
def transformer_model() -> nn.Module:
    """Attention blocks, a tied head and a non-persistent buffer."""
    torch.manual_seed(3)
    return SmallTransformer().eval()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device; CUDA skips where there is none, unless REQUIRE_CUDA=1 makes that a failure."""
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("REQUIRE_CUDA") == "1":
            pytest.fail("REQUIRE_CUDA=1, and torch sees no CUDA device")
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def publish() -> Iterator[Callable[..., zerocopy.ModelRef]]:
    """zerocopy.publish, undone at the end of the test."""
    refs: list[zerocopy.ModelRef] = []

    def _publish(model: Any, **options: Any) -> zerocopy.ModelRef:
        refs.append(zerocopy.publish(model, **options))
        return refs[-1]

    yield _publish
    from zerocopy._held import _published

    for ref in refs:
        if ref.path in _published:
            zerocopy.unpublish(ref)


@pytest.fixture
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Send the classes of the test module along with models: worker processes cannot import test files."""
    modules = [request.module, sys.modules[__name__]]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """One local Ray cluster for the whole session; None of its warnings are ours."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        for more_tries in (2, 1, 0):
            try:
                ray.init(
                    address="local",
                    num_cpus=4,
                    object_store_memory=100 << 20,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
                break
            except Exception:  # Ray gives its processes 30 s to start, whatever else the machine does
                ray.shutdown()
                if not more_tries:
                    raise
    yield ray
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older releases of Ray drop processes without waiting for them
        ray.shutdown()
        gc.collect()


@pytest.fixture
def ray(ray_cluster: Any, request: pytest.FixtureRequest, by_value: None) -> Iterator[Any]:
    """The session's Ray, with the test module's classes sent along."""
    ray_cluster.cloudpickle.register_pickle_by_value(request.module)
    ray_cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray_cluster
    zerocopy.forget()
    ray_cluster.cloudpickle.unregister_pickle_by_value(request.module)
    ray_cluster.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _uses_ray(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return "ray_cluster" in getattr(item, "fixturenames", ()) or parameters.get("mode") in ("task", "actor")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what uses the Ray cluster last, on one xdist worker, with the time that starting processes takes."""
    items.sort(key=_uses_ray)  # a process in which Ray runs is no place to fork from
    for item in filter(_uses_ray, items):
        item.add_marker(pytest.mark.xdist_group("ray"))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))


def run_python(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=280)
    if done.returncode != 0:
        raise AssertionError(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture
def fresh_run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a fresh interpreter with these arguments."""
    return run_python


@pytest.fixture
def fresh_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a process that has nothing of ours loaded."""
    return lambda code, *arguments: run_python("-c", code, *arguments)


@pytest.fixture
def fresh_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code as a script file, which spawned processes can import again."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(code)
        return run_python(str(script), *arguments)

    return run


def eventually(condition: Callable[[], bool], seconds: float = 120) -> bool:
    """Wait until a condition holds; whether it did."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., bool]:
    """Wait until a condition holds."""
    return eventually


def _held() -> set[str]:
    """Segment files that this process has open or mapped."""
    if not Path("/proc/self/fd").is_dir():
        return set()
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if ".zc" in target:
            found.add(f"{entry} {target}")
    maps = Path("/proc/self/maps").read_text().splitlines()
    return found | {line.split(" ", 1)[0] for line in maps if ".zc" in line}


def _children() -> set[int]:
    names = ("raylet", "gcs_server", "ray::", "log_monitor", "dashboard", "resource_tracker")
    found = set()
    for child in psutil.Process().children():
        try:
            line = " ".join(child.cmdline()) or child.name()
        except psutil.Error:
            continue
        if child.is_running() and not any(name in line for name in names) and "ray" not in line:
            found.add(child.pid)
    return found


@pytest.fixture(autouse=True, scope="module")
def short_collections() -> Iterator[None]:
    """A collection looks only at what a module's tests made: with PyTorch loaded all the rest takes a second."""
    gc.collect(1)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor, mapping, child process or segment file of this process survives a test."""
    from zerocopy._held import _published

    held, children, published = _held(), _children(), set(_published)
    yield
    leaked = set(_published) - published
    assert not leaked, f"still published: {leaked}"

    def let_go() -> bool:
        if _held() - held:
            gc.collect()
        return not _held() - held

    assert eventually(let_go), f"still open or mapped: {_held() - held}"
    assert eventually(lambda: not _children() - children), f"still running: {_children() - children}"
