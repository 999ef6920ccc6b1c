"""One array passes by handle through numpy, an isolated extension, a Ray worker and a device, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isolate
import xfer


class Worker:
    """A Ray actor that reads an array of another process and puts a new one."""

    def __init__(self) -> None:
        self.pool = xfer.Pool("64MiB")

    def negative(self, handle: bytes) -> bytes:
        """Return a handle of the negated array."""
        return bytes(self.pool.put(-xfer.get(handle)))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_any_to_any(environments: Path, wheels: Path, extension: Callable[..., Path], device: str) -> None:
    """Each hop has the right values, handles have at most 256 bytes, and `explain` announced every copy."""
    ray = pytest.importorskip("ray")
    start = np.random.default_rng(0).random((512, 2048), np.float32)
    with (
        isolate.Host(environments, policy=isolate.Policy(find_links=(str(wheels),))) as host,
        xfer.Pool("64MiB") as pool,
    ):
        arrays = host.load(extension("arrays", "pentad-xfer"))
        actor: Any = ray.remote(Worker).remote()
        first = bytes(pool.put(start))
        second = arrays.call.double(first)
        third = ray.get(actor.negative.remote(second))
        assert max(map(len, (first, second, third))) <= 256

        result = xfer.get(third)
        assert np.array_equal(result, -2 * start)
        assert not result.flags.writeable
        onto, back = on_device(result, device)
        assert np.array_equal(back, result)
        # One copy to a device; on the host, torch needs a copy because the array is read-only.
        assert [route.copies for route in onto] == [1, 0 if device == "cpu" else 1]
        del result
        ray.kill(actor)


def on_device(array: np.ndarray, device: str) -> tuple[list[xfer.Route], np.ndarray]:
    """Move the array to a torch tensor on the device and back; return the two routes and the result."""
    target = "torch" if device == "cpu" else f"{device}:0"
    down = xfer.explain(array, target)
    there = xfer.move(array, target)
    return [down, xfer.explain(there, "numpy")], xfer.move(there, "numpy")


def test_through_a_device_of_host_memory() -> None:
    """The same with a device in host memory: allocate, copy in, spill to the host, and read the same bits back."""
    start = np.random.default_rng(1).random(1 << 16)
    with xfer.GpuMemoryManager(xfer.HostAllocator(), budget="4MiB") as manager, xfer.Pool("4MiB") as pool:
        handle = pool.put(start)
        block = manager.allocate(start.nbytes, device="cuda:0", spillable=True)
        with block.use(start.shape, start.dtype) as there, xfer.open(handle) as here:
            there[:] = here
        del here, there  # a block stays on its device while a view of it lives
        manager.spill(block)
        assert block.place == "host"
        with block.use(start.shape, start.dtype) as again:
            assert np.array_equal(again, start)
        del again
        block.release()
        pool.release(handle)
