"""Device memory: blocks, pools, accounts, budget, spilling, lost blocks; on a host-memory device and on CUDA."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import xfer
from xfer import errors
from xfer._device.allocators import Allocator, default_allocator

MIB = 1 << 20

# cuda: xfer._device.allocators:* by emulator


def _allocator(kind: str) -> Allocator:
    return xfer.CupyAllocator() if kind == "cuda" else xfer.HostAllocator(2)


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.cuda)])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[xfer.GpuMemoryManager]:
    """A manager with 4 MiB per device that spills 1 MiB to the host and the rest to a folder."""
    with xfer.GpuMemoryManager(
        _allocator(request.param), budget="4MiB", host_budget="1MiB", spill_folder=tmp_path
    ) as made:
        yield made


def spilled_to(folder: Path) -> list[Path]:
    """The descriptors of this process's files in a folder that have something in them."""
    opened = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    there = [path for path in opened if path.exists() and os.readlink(path).startswith(f"{folder}{os.sep}")]
    return [path for path in there if path.stat().st_size]


def test_blocks_are_allocated_tracked_and_released(manager: xfer.GpuMemoryManager) -> None:
    """The account of a device follows each block, and released memory is used again."""
    block = manager.allocate("1MiB")
    stats = manager.stats()["cuda:0"]
    assert stats.in_use == stats.reserved == stats.peak == MIB
    assert block.place == "device"
    assert "1048576 bytes on cuda:0" in repr(block)
    block.release()
    with manager.allocate(MIB - 10) as again:
        assert again.nbytes == MIB - 10
        assert manager.stats()["cuda:0"].reused == 1
    stats = manager.stats()["cuda:0"]
    assert (stats.in_use, stats.reserved, stats.allocations) == (0, MIB, 2)
    assert manager.trim() == MIB
    assert manager.stats()["cuda:0"].reserved == 0


def test_arrays_lie_over_blocks(manager: xfer.GpuMemoryManager) -> None:
    """An array over a block has the wanted shape and dtype and shares the block's memory."""
    block = manager.allocate(4096)
    array = block.array((4, 8), np.float32)
    array[...] = 3
    assert float(block.array((4, 8), np.float32).sum()) == 96
    assert block.array().shape == (4096,)
    with pytest.raises(ValueError, match="the block has 4096"):
        block.array(5000)
    for shape in (-1, (-2, -3)):
        with pytest.raises(ValueError, match="want lengths"):
            block.array(shape)
    block.release()


def test_memory_waits_for_arrays_that_still_look_at_it(manager: xfer.GpuMemoryManager) -> None:
    """A released block's memory is not handed out while an array over it lives."""
    block = manager.allocate(MIB)
    part = block.array((4,), np.int64)[1:]
    part[...] = 7
    block.release()
    other = manager.allocate(MIB)
    other.array()[...] = 0
    assert part.tolist() == [7, 7, 7]
    assert manager.stats()["cuda:0"].in_use == 2 * MIB
    del part
    assert manager.stats()["cuda:0"].in_use == MIB
    other.release()


def test_lost_blocks_are_collected_into_the_pool(manager: xfer.GpuMemoryManager) -> None:
    """A block that is dropped without a release is reported once with its line, and its memory used again."""
    manager.allocate(MIB)
    gc.collect()
    (lost,) = manager.collect()
    assert lost.nbytes == MIB
    assert "test_gpu_memory_manager.py:" in lost.site
    assert manager.collect() == []
    assert manager.stats()["cuda:0"].in_use == 0
    manager.allocate(MIB).release()
    assert manager.stats()["cuda:0"].reused == 1


def test_leaks_are_reported_with_their_site(manager: xfer.GpuMemoryManager) -> None:
    """Blocks that were not released are listed, oldest first."""
    blocks = [manager.allocate(1000), manager.allocate(2000)]
    assert [leak.nbytes for leak in manager.leaks()] == [1000, 2000]
    assert all("test_gpu_memory_manager.py:" in leak.site for leak in manager.leaks())
    assert manager.leaks(older_than=100) == []
    for block in blocks:
        block.release()
    assert manager.leaks() == []


def test_budget_is_held(manager: xfer.GpuMemoryManager) -> None:
    """More than the budget is a typed error with both sizes, and the next small request works."""
    block = manager.allocate("3MiB")
    with pytest.raises(errors.BudgetExceededError) as caught:
        manager.allocate("2MiB")
    assert (caught.value.asked, caught.value.available) == (2 * MIB, MIB)
    manager.allocate(1000).release()
    block.release()
    manager.allocate("4MiB").release()


def test_senseless_calls_are_typed_errors(manager: xfer.GpuMemoryManager) -> None:
    """Double release, foreign blocks, unknown devices and sizes without sense raise."""
    block = manager.allocate(100)
    block.release()
    with pytest.raises(errors.DoubleReleaseError):
        block.release()
    with pytest.raises(errors.DoubleReleaseError):
        block.array()
    with pytest.raises(errors.DeviceUnavailableError, match="cuda:99"):
        manager.allocate(100, "cuda:99")
    with pytest.raises(ValueError, match="positive"):
        manager.allocate(0)
    other = xfer.GpuMemoryManager(xfer.HostAllocator())
    foreign = other.allocate(100)
    with pytest.raises(errors.ForeignHandleError):
        manager.release(foreign)
    other.close()


def test_devices_have_separate_accounts() -> None:
    """What one device spends does not count for another."""
    with xfer.GpuMemoryManager(xfer.HostAllocator(2), budget=MIB) as manager:
        assert manager.devices() == ("cuda:0", "cuda:1")
        first, second = manager.allocate(MIB, "cuda:0"), manager.allocate(MIB, "cuda:1")
        assert [stats.in_use for stats in manager.stats().values()] == [MIB, MIB]
        first.release()
        assert [stats.in_use for stats in manager.stats().values()] == [0, MIB]
        second.release()


def test_blocks_are_spilled_to_host_then_disk_and_come_back(manager: xfer.GpuMemoryManager, tmp_path: Path) -> None:
    """Under pressure the blocks used longest ago leave, first to the host, then to files, and return unchanged."""
    blocks = [manager.allocate(MIB, spillable=True) for _ in range(4)]
    for number, block in enumerate(blocks):
        with block.use() as array:
            array[...] = number
        del array
    more = [manager.allocate(MIB, spillable=True) for _ in range(2)]
    assert [block.place for block in blocks] == ["host", "disk", "device", "device"]
    assert manager.spilled_bytes == MIB
    assert len(spilled_to(tmp_path)) == 1
    assert os.listdir(tmp_path) == []
    for number, block in enumerate(blocks):
        with block.use() as array:
            assert int(array.min()) == int(array.max()) == number
            assert block.place == "device"
        del array
    for block in (*blocks, *more):
        block.release()
    assert spilled_to(tmp_path) == []
    assert manager.spilled_bytes == 0
    assert manager.stats()["cuda:0"].in_use == 0


def test_blocks_in_use_are_not_spilled(manager: xfer.GpuMemoryManager) -> None:
    """A block inside its `use` stays, and if all are, the request fails."""
    block = manager.allocate("4MiB", spillable=True)
    with block.use():
        with pytest.raises(errors.BudgetExceededError):
            manager.allocate("1MiB")
        with pytest.raises(ValueError, match="not in use"):
            manager.spill(block)
        with pytest.raises(ValueError, match="in use"):
            block.release()
    with pytest.raises(ValueError, match="may move away"):
        block.array()
    manager.spill(block)
    assert block.place == "disk"
    manager.spill(block)
    fixed = manager.allocate(10)
    with pytest.raises(ValueError, match="only a spillable"):
        manager.spill(fixed)
    fixed.release()
    block.release()


def test_a_block_stays_while_a_view_of_it_is_alive() -> None:
    """A view that outlives `use` keeps its block in place: a write through it never lands in another block."""
    with xfer.GpuMemoryManager(xfer.HostAllocator(), budget=MIB) as manager:
        block = manager.allocate(MIB, spillable=True)
        with block.use() as array:
            view = array[:10]
        del array
        with pytest.raises(ValueError, match="live array"):
            manager.spill(block)
        with pytest.raises(errors.BudgetExceededError, match="an array over them is alive"):
            manager.allocate(MIB)
        view[:] = 7
        del view
        other = manager.allocate(MIB)
        assert block.place == "host"
        other.release()
        with block.use() as array:
            assert (array[:10] == 7).all()
        late = array[:10]
        del array
        block.release()
        with pytest.raises(errors.BudgetExceededError):
            manager.allocate(MIB)
        del late
        manager.allocate(MIB).release()


def test_spilling_to_a_missing_folder_keeps_the_block(tmp_path: Path) -> None:
    """If a block cannot be written, the request fails with a typed error and the block is whole."""
    with xfer.GpuMemoryManager(
        xfer.HostAllocator(), budget=MIB, host_budget=1, spill_folder=tmp_path / "missing"
    ) as manager:
        block = manager.allocate(MIB, spillable=True)
        with block.use() as array:
            array[:] = 5
        del array
        with pytest.raises(errors.BudgetExceededError, match="cannot be spilled"):
            manager.allocate(MIB)
        with block.use() as array:
            assert (array == 5).all()


def test_a_spilled_file_that_was_cut_is_found(tmp_path: Path) -> None:
    """A truncated spill file is an error, not wrong data."""
    with xfer.GpuMemoryManager(xfer.HostAllocator(), host_budget=1, spill_folder=tmp_path) as manager:
        block = manager.allocate(1000, spillable=True)
        manager.spill(block)
        (path,) = spilled_to(tmp_path)
        os.truncate(path, 10)
        with pytest.raises(OSError, match="was cut"), block.use():
            pass


def test_a_full_disk_keeps_the_block(helper: Any, tmp_path: Path) -> None:
    """A block that the disk has no room for stays whole on its device, and what was spilled before can be read."""
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True  # Python would keep what it wrote of a module
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
manager = xfer.GpuMemoryManager(xfer.HostAllocator(), host_budget=1, spill_folder=arg[0])
blocks = [manager.allocate("2MiB", spillable=True) for _ in range(2)]
for number, block in enumerate(blocks):
    with block.use() as array: array[:] = number
    del array
manager.spill(blocks[0])
try: manager.spill(blocks[1])
except xfer.errors.BudgetExceededError: say(blocks[1].place)
for block in blocks:
    with block.use() as array: say(int(array.min()), int(array.max()))
    del array
manager.spill(blocks[1]); say(blocks[1].place)
manager.close()
"""
    process = helper(code, str(tmp_path))
    assert [process.line() for _ in range(4)] == ["device", "0 0", "1 1", "disk"]


def test_a_killed_process_leaves_no_spilled_block(helper: Any, tmp_path: Path) -> None:
    """What was spilled to disk has no name there, so it goes with its process."""
    code = """
manager = xfer.GpuMemoryManager(xfer.HostAllocator(), host_budget=1, spill_folder=arg[0])
block = manager.allocate(1000, spillable=True); manager.spill(block); say(block.place); wait()
"""
    process = helper(code, str(tmp_path))
    assert process.line() == "disk"
    process.kill()
    assert os.listdir(tmp_path) == []


def test_a_forked_process_spills_for_itself(helper: Any, tmp_path: Path) -> None:
    """After a fork neither side reads or overwrites what the other has on disk."""
    code = """
manager = xfer.GpuMemoryManager(xfer.HostAllocator(), host_budget=1, spill_folder=arg[0])
def spilled(value):
    block = manager.allocate(1000, spillable=True)
    with block.use() as array: array[:] = value
    del array
    manager.spill(block)
    return block
ours = spilled(1)
child = os.fork()
if not child:
    theirs = spilled(2)
    try:
        with ours.use(): pass
    except OSError as error: say(error)
    with theirs.use() as array: say(set(array.tolist()))
    manager.close(); sys.stdout.flush(); os._exit(0)
os.waitpid(child, 0)
with ours.use() as array: say(set(array.tolist()))
manager.close()
"""
    process = helper(code, str(tmp_path))
    assert "before this one was forked" in process.line()
    assert [process.line(), process.line()] == ["{2}", "{1}"]


def test_lost_spilled_blocks_give_the_disk_back(tmp_path: Path) -> None:
    """A block that is dropped while on disk takes its bytes with it, and close takes the file."""
    with xfer.GpuMemoryManager(xfer.HostAllocator(), host_budget=1, spill_folder=tmp_path) as manager:
        manager.spill(manager.allocate(1000, spillable=True))
        block = manager.allocate(1000, spillable=True)
        manager.spill(block)
        assert len(spilled_to(tmp_path)) == 1
        del block
        gc.collect()
        assert {lost.place for lost in manager.collect()} == {"disk"}
        assert spilled_to(tmp_path) == []
        block = manager.allocate(1000, spillable=True)
        manager.spill(block)
        assert len(spilled_to(tmp_path)) == 1
    assert spilled_to(tmp_path) == []


def test_the_devices_own_limit_frees_idle_memory_first() -> None:
    """When the device is full, idle buffers of other sizes are given back before the request fails."""
    with xfer.GpuMemoryManager(xfer.HostAllocator(1, capacity=2 * MIB)) as manager:
        manager.allocate("1.5MiB").release()
        manager.allocate("1MiB").release()
        with pytest.raises(errors.BudgetExceededError):
            manager.allocate("3MiB")


def test_close_releases_everything() -> None:
    """After close no block is usable and the device has all its memory back."""
    allocator = xfer.HostAllocator(1, capacity=MIB)
    manager = xfer.GpuMemoryManager(allocator)
    block = manager.allocate("1MiB", spillable=True)
    manager.close()
    assert block.place == "released"
    assert allocator.allocate(MIB, "cuda:0").nbytes == MIB


def test_without_cuda_the_error_names_the_way_out() -> None:
    """No CUDA is said so, whether CuPy is missing or only the device."""
    try:
        assert default_allocator().devices()
    except errors.DeviceUnavailableError as error:
        assert "HostAllocator" in str(error)  # noqa: PT017  # both outcomes are right, each on its machine


class Blocks(RuleBasedStateMachine):
    """Any order of allocating, writing, spilling, releasing and losing keeps contents and accounts right."""

    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.manager = xfer.GpuMemoryManager(xfer.HostAllocator(), budget=64 << 10, host_budget=32 << 10)
        self.content: dict[int, int] = {}

    @rule(target=blocks, size=st.integers(1, 8 << 10), value=st.integers(0, 255))
    def allocate(self, size: int, value: int) -> Any:
        """Allocate a block and fill it."""
        block = self.manager.allocate(size, spillable=True)
        with block.use() as array:
            array[:] = value
        self.content[id(block)] = value
        return block

    @rule(block=blocks)
    def check(self, block: Any) -> None:
        """A block holds what was written, wherever it has been."""
        with block.use() as array:
            assert (array == self.content[id(block)]).all()

    @rule(block=blocks)
    def spill(self, block: Any) -> None:
        """Send a block away."""
        self.manager.spill(block)

    @rule(block=consumes(blocks))
    def release(self, block: Any) -> None:
        """Release a block."""
        block.release()

    @invariant()
    def within_budget(self) -> None:
        """The device never holds more than its budget."""
        stats = self.manager.stats()["cuda:0"]
        assert 0 <= stats.in_use <= stats.reserved <= 64 << 10

    def teardown(self) -> None:
        """Give everything back."""
        self.manager.close()
        assert self.manager.spilled_bytes == 0


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def cuda_arange(library: str, on_gpu: bool) -> Callable[[int], Any]:
    """A function that makes 100 numbers on the device in a library."""
    if library == "cupy":
        return lambda n: importlib.import_module("cupy").arange(n, n + 100)
    if on_gpu:
        return lambda n: importlib.import_module("torch").arange(n, n + 100, device="cuda")
    return lambda n: importlib.import_module("torch_standin").tensor(range(n, n + 100))


@pytest.mark.cuda
@pytest.mark.parametrize("library", ["cupy", "torch"])
def test_cuda_arrays_go_to_another_process(library: str, helper: Any, pool: xfer.Pool, on_gpu: bool) -> None:
    """Two arrays of one allocation arrive each with its own values, by CUDA IPC with offsets; so does an empty one."""
    make = cuda_arange(library, on_gpu)
    arrays = [make(0), make(1000), make(0)[:0]]
    handles = [pool.put(array) for array in arrays]
    code = "import torch_standin\n" if library == "torch" and not on_gpu else ""
    code += "import torch\ntorch.utils.dlpack.from_dlpack = torch_standin.from_dlpack\n" if code else ""
    code += "for raw in arg: say(int(xfer.get(bytes.fromhex(raw)).sum()))"
    other = helper(code, *(bytes(handle).hex() for handle in handles))
    assert [other.line(), other.line()] == ["4950", "104950"]
    assert other.line() == "0"
    here = xfer.get(handles[1])
    assert int(here[0]) == 1000
