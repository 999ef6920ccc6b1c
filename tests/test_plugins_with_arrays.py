"""An extension with another numpy exchanges arrays with its host by handle; a killed process leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import isolate
import xfer

MIB = 1 << 20


@pytest.fixture
def host(environments: Path, wheels: Path) -> Iterator[isolate.Host]:
    """A host that offers our wheels to its extensions."""
    with isolate.Host(environments, policy=isolate.Policy(find_links=(str(wheels),))) as host:
        yield host


@pytest.mark.timeout(300)
def test_arrays_go_both_ways_without_a_copy(
    host: isolate.Host, extension: Callable[..., Path], device: str, own_numpy: bool
) -> None:
    """64 MiB go by handle to an extension and back; the private memory of neither side grows by a tenth of that."""
    import torch

    arrays = host.load(extension("arrays", "pentad-xfer"))
    assert (arrays.call.versions()["numpy"] != np.__version__) is own_numpy
    made = torch.arange(16 * MIB, dtype=torch.float32, device=device)
    way = xfer.explain(made, "numpy")
    assert way.copies == (0 if device == "cpu" else 1), way

    with xfer.Pool("256MiB") as pool:
        handle = pool.put(xfer.move(made, "numpy"))
        seen = arrays.call.total(bytes(handle))
        assert seen["total"] == float(made.sum(dtype=torch.float64))
        assert not seen["writeable"]
        assert seen["own"] < 6 * MIB

        before = psutil.Process().memory_full_info().uss
        answer = arrays.call.double(bytes(handle))
        with xfer.open(answer) as doubled:
            step = MIB // 16  # in pieces: the allocator may keep the memory of larger comparisons
            for at in range(0, 16 * MIB, step):
                assert np.array_equal(doubled[at : at + step], np.arange(2 * at, 2 * (at + step), 2, dtype=np.float32))
            assert not doubled.flags.writeable
            # What is left would be a copy of the array.
            assert psutil.Process().memory_full_info().uss - before < 6 * MIB
        del doubled
        arrays.call.release(answer)
        with pytest.raises(xfer.errors.StaleHandleError):
            xfer.get(answer)
        pool.release(handle)


ON_DEVICES = """
import gc, sys
import cupy, numpy
import isolate, xfer
environments, wheels, folder = sys.argv[1:]
policy = isolate.Policy(find_links=(wheels,), allow_env=("EMULAT*",))
with isolate.Host(environments, policy=policy) as host:
    call = host.load(folder).call
    for device in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(device):
            made = cupy.arange(1 << 18, dtype="float32")
            handle = xfer.put(made)
            kind, place, total, version = call.total(handle)
            assert (kind, place, total) == (type(made).__name__, device, float(made.sum().get()))
            assert version != numpy.__version__
            answer = call.double(handle)
            got = xfer.get(answer)
            assert isinstance(got, cupy.ndarray) and got.device.id == device
            assert (got.get() == numpy.arange(1 << 18, dtype="float32") * 2).all()
            del got
            gc.collect()
            call.release(answer)
            xfer.release(handle)
            del made
print("done")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_arrays_on_devices_stay_there(
    environments: Path, wheels: Path, extension: Callable[..., Path], tmp_path: Path
) -> None:
    """Device arrays go to an extension with another numpy and back by handle; on a GPU, or on the emulator."""
    folder = extension("devices", "pentad-xfer")
    with open(folder / "manifest.yaml", "a") as manifest:
        manifest.write("\nenv: [EMULATOR, EMULATED_CUDA]\n")
    finds = "import cupy; assert cupy.cuda.is_available()"
    variables = dict(os.environ)
    if subprocess.run([sys.executable, "-c", finds], capture_output=True).returncode:
        emulator = Path(__file__).parents[1] / "packages" / "xfer" / "tests" / "emulator"
        machine = tmp_path / "machine"
        machine.mkdir()
        variables |= {"EMULATOR": str(emulator), "EMULATED_CUDA": str(machine), "PYTHONPATH": str(emulator)}
    command = [sys.executable, "-c", ON_DEVICES, str(environments), str(wheels), str(folder)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
    assert not (tmp_path / "machine" / "violations").exists()


@pytest.mark.timeout(300)
def test_a_killed_extension_gives_back_what_it_held(host: isolate.Host, extension: Callable[..., Path]) -> None:
    """A killed extension's lease of the host's array ends; its own array stays valid while the host holds it."""
    arrays = host.load(extension("arrays", "pentad-xfer"))
    pid = arrays.call.versions()["pid"]
    with xfer.Pool("64MiB") as pool:
        handle = pool.put(np.ones(MIB, np.float32))
        arrays.call.hold(bytes(handle))
        pool.release(handle)
        assert pool.stats().waiting_for_readers == 1

        made = arrays.call.make(1000)
        mine = xfer.get(made)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while pool.stats().waiting_for_readers and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.stats().waiting_for_readers == 0
        assert np.array_equal(mine, np.arange(1000, dtype=np.float32))
        del mine
        # A process that has not seen that memory yet is told that its producer is gone.
        command = [sys.executable, "-c", "import sys, xfer; xfer.get(bytes.fromhex(sys.argv[1]))", made.hex()]
        late = subprocess.run(command, capture_output=True, text=True)
        assert "ProducerGoneError" in late.stderr


HOST = """
import json, sys
import numpy, isolate, xfer

store, plugin, wheels = sys.argv[1:]
pool = xfer.Pool("64MiB")
host = isolate.Host(store, policy=isolate.Policy(find_links=(wheels,))).__enter__()
arrays = host.load(plugin)
arrays.call.hold(bytes(pool.put(numpy.ones(1 << 20, numpy.float32))))
print(json.dumps(arrays.call.versions()["pid"]), flush=True)
arrays.call.spin()
"""


@pytest.mark.timeout(300)
def test_a_killed_host_leaves_nothing(environments: Path, wheels: Path, extension: Callable[..., Path]) -> None:
    """A host is killed while its extension spins with an array open: soon nothing of either is left."""
    plugin = extension("arrays", "pentad-xfer")
    command = [sys.executable, "-c", HOST, str(environments), str(plugin), str(wheels)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = psutil.Process(json.loads(process.stdout.readline()))
        family = psutil.Process(process.pid).children(recursive=True)
        assert worker in family
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
