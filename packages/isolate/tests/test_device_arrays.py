"""Device arrays travel by handle where both sides can, else by host memory or not at all; on a GPU, or the emulator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isolate._policy import Quotas
from isolate._worker.devices import Devices
from isolate._worker_handle import _link_limits
from isolate.errors import UnsupportedTypeError

PROGRAM = Path(__file__).parent / "devices" / "run_devices.py"
EMULATOR = Path(__file__).parents[2] / "xfer" / "tests" / "emulator"
SCENARIOS = re.findall(r"^@scenario\ndef (\w+)", PROGRAM.read_text(), re.MULTILINE)
FINDS = """
import importlib.util, xfer, cupy
assert cupy.cuda.is_available()
print("cupy")
if importlib.util.find_spec("torch"):
    import torch
    if torch.cuda.is_available():
        print("torch")
"""

# cuda: isolate._worker.devices:* by emulator


def run(folder: Path, variables: dict[str, str], *wanted: str) -> dict[str, str]:
    """Run scenarios in a new process and return their failures."""
    folder.mkdir()
    command = [sys.executable, str(PROGRAM), str(folder), *wanted]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        return dict.fromkeys(wanted, done.stderr)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outcome of each scenario: on a GPU in processes side by side, on the emulator in one."""
    folder = tmp_path_factory.mktemp("devices")
    libraries = subprocess.run([sys.executable, "-c", FINDS], capture_output=True, text=True).stdout.split()
    if libraries:
        jobs = [f"{library}/{name}" for library in libraries for name in SCENARIOS]
        with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
            done = pool.map(lambda job: run(folder / job.replace("/", "-"), {}, job), jobs)
        return {name: text for found in done for name, text in found.items()}
    if os.environ.get("REQUIRE_CUDA") == "1":
        pytest.fail("REQUIRE_CUDA=1, and CuPy finds no CUDA device")
    if not EMULATOR.is_dir():
        pytest.skip("the emulator of pentad-xfer is not beside this package")
    pytest.importorskip("xfer")
    machine = folder / "machine"
    machine.mkdir()
    paths = os.pathsep.join(filter(None, [str(EMULATOR), os.environ.get("PYTHONPATH")]))
    found = run(
        folder / "cupy", {"EMULATOR": str(EMULATOR), "EMULATED_CUDA": str(machine), "PYTHONPATH": paths}, "cupy"
    )
    violations = machine / "violations"
    assert not violations.exists(), violations.read_text()
    return found


@pytest.mark.cuda
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("devices")
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(outcomes: dict[str, Any], name: str) -> None:
    """One scenario of `devices/run_devices.py`, for each library."""
    for library in {job.partition("/")[0] for job in outcomes}:
        assert outcomes[f"{library}/{name}"] == "", outcomes[f"{library}/{name}"]


@pytest.mark.parametrize("level", ["landlock", "bwrap"])
def test_a_forged_handle(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handles of a confined extension are not opened in the host: they might name another process's memory."""
    monkeypatch.setitem(sys.modules, "xfer", None)  # whatever uses it fails
    given_back: list[int] = []
    allowed = _link_limits(Quotas(), level).device_handles
    devices = Devices(lambda *_: "", given_back.append, "the extension", allowed)
    with pytest.raises(UnsupportedTypeError, match="confinement"):
        devices.restore(["device", "torch", -1, b"handle"])
    assert given_back == [-1]
    assert "confinement" in devices.try_to_open("torch", b"handle")
