"""Fixtures of the suite, and the checks that no test leaves something behind."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ternary

SIMPLE = """
model Simple(inputs: int = 16, classes: int = 4) {
  first = Linear(inputs, 32)
  hidden = ternary Linear(32, 32)
  head = Linear(32, classes)
  forward(x: float[N, inputs]) -> float[N, classes] {
    return head(relu(hidden(relu(first(x)))))
  }
}
"""
torch.set_num_threads(1)
# torch 2.8 starts a pool of compilers at the first compilation, and it stays. Read when inductor is imported.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

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


def beside(name: str) -> ModuleType:
    """Load a file of this folder: without packages it cannot be imported by name."""
    alias = f"ternary_suite_{name}"
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(alias, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        spec.loader.exec_module(module)
    return sys.modules[alias]


@pytest.fixture(scope="session")
def utils() -> ModuleType:
    """The helpers of test_utils.py."""
    return beside("test_utils")


@pytest.fixture(scope="session")
def adapters() -> ModuleType:
    """The wrappers of test_adapters.py."""
    return beside("test_adapters")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device; CUDA is skipped where there is none, unless REQUIRE_CUDA=1."""
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("REQUIRE_CUDA") == "1":
            pytest.fail("REQUIRE_CUDA=1 and there is no CUDA device")
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def temp_dir(tmp_path: Path) -> Path:
    """A directory that goes away."""
    return tmp_path


@pytest.fixture(scope="session")
def simple_source() -> str:
    """The source of a small network."""
    return SIMPLE


@pytest.fixture
def compiled_simple_model() -> nn.Module:
    """A small network from source."""
    torch.manual_seed(0)
    return ternary.compile(SIMPLE)()


@pytest.fixture
def reference_pytorch_model() -> nn.Module:
    """The same network written by hand, without ternary layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def mock_dataloader() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Batches of a small problem that can be learned."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator)
    y = (x @ torch.randn(16, 4, generator=generator)).argmax(1)
    return DataLoader(TensorDataset(x, y), batch_size=32)


@dataclass(frozen=True)
class BenchmarkConfig:
    """How often to measure."""

    warmup: int = 1
    repeat: int = 3
    batches: tuple[int, ...] = (1, 4)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add `--benchmark-warmup`, unless a plugin such as pytest-benchmark has it."""
    if pluginmanager.has_plugin("benchmark"):  # some releases of pytest find the conflict only when they parse
        return
    with contextlib.suppress(ValueError, argparse.ArgumentError):
        parser.addoption("--benchmark-warmup", type=int, default=1, help="calls before those that are measured")


@pytest.fixture
def benchmark_config(request: pytest.FixtureRequest) -> BenchmarkConfig:
    """A configuration for what is measured in tests; no test fails for being slow."""
    warmup = request.config.getoption("--benchmark-warmup", default=1)
    return BenchmarkConfig(warmup=warmup if isinstance(warmup, int) else 1)


@pytest.fixture(autouse=True, scope="module")
def short_collections() -> Iterator[None]:
    """A collection looks only at what a module's tests made: with PyTorch loaded all the rest takes a second."""
    gc.collect(1)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(1234)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a child process or a file descriptor."""
    process = psutil.Process()
    before = _open_files(process)
    children = set(process.children())
    yield
    end = time.monotonic() + 120
    while not _open_files(process) <= before and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    assert _open_files(process) <= before
    _, alive = psutil.wait_procs(set(process.children()) - children, timeout=120)
    assert not alive


def _open_files(process: psutil.Process) -> set[str]:
    """The files that a process holds open; matplotlib keeps its fonts open for good."""
    return {f.path for f in process.open_files() if not f.path.endswith(".ttf")}
