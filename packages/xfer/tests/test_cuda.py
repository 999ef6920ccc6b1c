"""CUDA arrays between processes, streams and devices: on a GPU, or on the emulator, where work is as late as it may be.

Each synchronisation, event and lease that the code needs has a test here that fails without it.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import xfer
from xfer import errors
from xfer._doctor import examine
from xfer._shared import linger
from xfer._shared.cuda_closer import CLOSER

pytestmark = pytest.mark.cuda

# cuda: xfer._shared.cuda_ipc:* by emulator
# cuda: xfer._shared.cuda_closer:* by emulator
# cuda: xfer._convert.move:* by emulator
# cuda: xfer._doctor.examine:* by emulator

MIB = 1 << 20
READ = "import cupy\nwait_until = lambda t: [time.sleep(0.01) for _ in range(500) if not t()]\n"


@pytest.fixture
def cupy() -> Any:
    """CuPy, or what stands for it."""
    return importlib.import_module("cupy")


def until(condition: Callable[[], bool]) -> bool:
    """Wait at most a minute for a condition."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    return condition()


def tensor(on_gpu: bool, values: Any, dtype: torch.dtype) -> Any:
    """A tensor on the first device."""
    if on_gpu:
        return torch.tensor(values, dtype=dtype, device="cuda")
    return importlib.import_module("torch_standin").tensor(values, dtype)


@pytest.mark.parametrize("non_blocking", [False, True])
def test_an_array_arrives_whole_whatever_stream_it_was_written_on(
    cupy: Any, helper: Any, pool: xfer.Pool, non_blocking: bool
) -> None:
    """`put` waits for the device: work that is queued on a stream that is not current is part of the array."""
    array, stream = cupy.zeros(1000), cupy.cuda.Stream(non_blocking=non_blocking)
    cupy.cuda.Device().synchronize()
    with stream:
        array[...] = 7
    other = helper(READ + "say(xfer.get(bytes.fromhex(arg[0])).sum().item())", bytes(pool.put(array)).hex())
    assert other.line() == "7000.0"


@pytest.mark.parametrize("readers_stream", [False, True])
def test_a_named_stream_is_waited_for_by_the_reader(
    cupy: Any, helper: Any, pool: xfer.Pool, readers_stream: bool
) -> None:
    """With `stream`, the handle carries an event; the reader, or the stream that it names, waits for it."""
    array, stream = cupy.zeros(1000), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        array[...] = 7
    handle = pool.put(array, stream=stream)
    code = READ + "stream = cupy.cuda.Stream(non_blocking=True)\n"
    get = "xfer.get(bytes.fromhex(arg[0])"
    code += f"array = {get}, stream=stream)\n" if readers_stream else f"array = {get})\n"
    code += "stream.use(); say(array.sum().item())"
    assert helper(code, bytes(handle).hex()).line() == "7000.0"


def test_a_named_stream_is_waited_for_in_the_same_process(cupy: Any, pool: xfer.Pool) -> None:
    """CUDA refuses to open an event in its own process: the reader finds the event itself."""
    array, stream = cupy.zeros(10), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        array[...] = 7
    got = xfer.get(pool.put(array, stream=stream))
    with cupy.cuda.Stream(non_blocking=True):
        assert got.tolist() == [7] * 10


def test_a_copy_for_the_handle_follows_the_named_stream(cupy: Any, helper: Any, pool: xfer.Pool) -> None:
    """A strided array is copied behind the work of the stream, and the event is behind the copy."""
    array, stream = cupy.zeros((10, 10)), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        array[...] = 7
    handle = pool.put(array[:, ::2], stream=stream)
    other = helper(READ + "say(xfer.get(bytes.fromhex(arg[0])).sum().item())", bytes(handle).hex())
    assert other.line() == "350.0"
    with pytest.raises(TypeError, match="want a stream"):
        pool.put(array, stream="fast")


def test_a_lease_lasts_until_the_work_that_was_queued_is_done(cupy: Any, helper: Any, pool: xfer.Pool) -> None:
    """A reader that queues a kernel on a stream and drops the array gets the right result."""
    array = cupy.full(1000, 3.0)
    handle = pool.put(array)
    code = READ + (
        "result, stream = cupy.zeros(1000), cupy.cuda.Stream(non_blocking=True)\n"
        "cupy.cuda.Device().synchronize()\n"
        "array = xfer.get(bytes.fromhex(arg[0]))\n"
        "with stream: result += array\n"
        "del array; say('dropped'); wait()\n"
        "stream.synchronize(); say(result.sum().item())"
    )
    other = helper(code, bytes(handle).hex())
    assert other.line() == "dropped"
    del array
    pool.release(handle)
    assert until(lambda: pool.stats().device_bytes == 0)
    again = cupy.full(1000, 9.0)
    cupy.cuda.Device().synchronize()
    other.say()
    assert other.line() == "3000.0"
    assert again.tolist()[0] == 9.0


def test_a_lease_in_the_same_process_lasts_as_long(cupy: Any, pool: xfer.Pool) -> None:
    """Also here the memory is not used again while a kernel of another stream reads it."""
    handle = pool.put(cupy.full(1000, 3.0))
    result, stream = cupy.zeros(1000), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    array = xfer.get(handle)
    with stream:
        result += array
    pool.release(handle)
    del array
    assert until(lambda: pool.stats().device_bytes == 0)
    cupy.full(1000, 9.0)
    cupy.cuda.Device().synchronize()
    assert result.tolist() == [3.0] * 1000


def test_a_released_array_counts_in_full_and_goes_with_its_reader(cupy: Any, helper: Any, pool: xfer.Pool) -> None:
    """`device_bytes` counts what readers hold, and the device memory comes back without another call."""
    handle = pool.put(cupy.zeros(MIB, np.uint8))
    assert pool.stats().device_bytes == MIB
    other = helper(READ + "array = xfer.get(bytes.fromhex(arg[0])); say('got'); wait(); del array; say('gone'); wait()",
                   bytes(handle).hex())  # fmt: skip
    assert other.line() == "got"
    kept = next(live.keep for live in pool._live.values())
    watched = importlib.import_module("weakref").ref(kept.array)
    del kept
    pool.release(handle)
    stats = pool.stats()
    assert (stats.live, stats.waiting_for_readers, stats.device_bytes) == (0, 1, MIB)
    other.say()
    assert other.line() == "gone"
    assert until(lambda: watched() is None)  # no other call of the pool was needed
    assert pool.stats().device_bytes == 0


def test_close_keeps_what_readers_hold(cupy: Any, helper: Any) -> None:
    """A closed pool lets go of a device array when its reader does, not before."""
    pool = xfer.Pool("1MiB")
    handle = pool.put(cupy.full(100, 5))
    code = (
        READ + "array = xfer.get(bytes.fromhex(arg[0])); say('got'); wait(); say(int(array.sum())); del array; wait()"
    )
    other = helper(code, bytes(handle).hex())
    assert other.line() == "got"
    pool.close()
    cupy.full(100, 9)
    assert linger.lingering() == 1
    other.say()
    assert other.line() == "500"
    assert until(lambda: linger.lingering() == 0)


# Exit handlers run last in, first out: another library's finalizer may have come before xfer's.
ANOTHER_ORDER = (
    "import atexit; from xfer._shared.linger import _at_exit as end\natexit.unregister(end); atexit.register(end)"
)


@pytest.mark.parametrize("ending", ["", "pool.close()\n", "pool.release(handle)\n", "del pool\n", ANOTHER_ORDER])
def test_a_process_ends_after_the_readers_of_its_arrays(cupy: Any, helper: Any, ending: str) -> None:
    """A producer that reaches its end waits for its readers, whatever became of the pool."""
    code = READ + (
        "pool = xfer.Pool('1MiB'); handle = pool.put(cupy.full(100, 5)); say(bytes(handle).hex()); wait()\n" + ending
    )
    producer = helper(code)
    array = xfer.get(bytes.fromhex(producer.line()))
    producer.say()
    time.sleep(0.5)
    assert producer.process.poll() is None
    assert int(array.sum()) == 500
    del array
    assert producer.end() == 0


def test_shapes_orders_and_dtypes_arrive_as_they_were(cupy: Any, helper: Any, pool: xfer.Pool, on_gpu: bool) -> None:
    """0-d, empty, Fortran-ordered, strided and bfloat16 arrays arrive with shape, order, dtype and values."""
    arrays = {
        "0-d": cupy.asarray(np.float64(7)),
        "empty": cupy.zeros((0, 3), np.int8),
        "fortran": cupy.asarray(np.arange(6.0).reshape(2, 3), order="F"),
        "strided": cupy.asarray(np.arange(20).reshape(4, 5))[::2, ::-1],
        "bool": cupy.asarray(np.array([[True], [False]])),
    }
    if importlib.util.find_spec("ml_dtypes") is not None:
        bfloat16 = importlib.import_module("ml_dtypes").bfloat16
        arrays["bfloat16"] = cupy.asarray(np.array([1.5, -2], bfloat16))
    handles = [pool.put(array) for array in arrays.values()]
    code = READ + (
        "for raw in arg:\n"
        "    a = xfer.get(bytes.fromhex(raw)); say(a.shape, a.dtype, int(a.flags.f_contiguous), a.get().tolist())"
    )
    other = helper(code, *(bytes(handle).hex() for handle in handles))
    for name, array in arrays.items():
        copied = name == "strided"
        order = int(np.zeros(array.shape).flags.f_contiguous if copied else array.flags.f_contiguous)
        assert other.line() == f"{array.shape} {array.dtype} {order} {array.get().tolist()}", name
    assert [handle.shape for handle in handles] == [array.shape for array in arrays.values()]


def test_tensors_arrive_as_tensors(cupy: Any, pool: xfer.Pool, on_gpu: bool) -> None:
    """Torch in, torch out, in its dtype; conjugated and negated tensors arrive with their values."""
    special = (torch.bfloat16, torch.float8_e4m3fn) if importlib.util.find_spec("ml_dtypes") is not None else ()
    for dtype in (torch.float32, *special):
        got = xfer.get(pool.put(tensor(on_gpu, [1.5, -2], dtype)))
        assert (got.dtype, got.is_cuda, got.cpu().float().tolist()) == (dtype, True, [1.5, -2])
    conjugated = tensor(on_gpu, [1 + 2j, 3j], torch.complex64).conj()
    assert xfer.get(pool.put(conjugated)).cpu().tolist() == [1 - 2j, -3j]
    assert xfer.get(pool.put(conjugated.imag)).cpu().tolist() == [-2, -3]
    if on_gpu:  # a tensor over emulated memory cannot be sparse
        with pytest.raises(errors.UnsupportedDtypeError, match="its parts"):
            pool.put(tensor(on_gpu, [[1.0]], torch.float32).to_sparse())


def test_a_dtype_that_cupy_lacks_is_named(cupy: Any, pool: xfer.Pool, on_gpu: bool, monkeypatch: Any) -> None:
    """Where there is no torch, an fp8 array is a typed error or itself, and never integers."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    handle = pool.put(tensor(on_gpu, [1.5, -2], torch.float8_e4m3fn))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        assert xfer.get(handle).dtype == ml_dtypes.float8_e4m3fn
    except errors.UnsupportedDtypeError as error:
        assert "as_='torch'" in str(error)  # noqa: PT017  # both outcomes are right, each with its CuPy


def test_as_torch_holds_the_lease(cupy: Any, pool: xfer.Pool) -> None:
    """A CuPy array that is received as a tensor is not freed under it."""
    handle = pool.put(cupy.full(1000, 3.0))
    got = xfer.get(handle, as_="torch")
    pool.release(handle)
    cupy.full(1000, 9.0)
    assert pool.stats().device_bytes == 8000
    assert got.cpu().tolist() == [3.0] * 1000


@pytest.mark.parametrize("kind", ["async", "managed", "expandable"])
def test_memory_without_a_handle_is_copied_and_said_so(
    cupy: Any, helper: Any, pool: xfer.Pool, kind: str, on_gpu: bool
) -> None:
    """Memory of cudaMallocAsync, managed memory and expandable segments are copied into memory that can be shared."""
    if kind == "expandable":
        if on_gpu:
            pytest.skip("CuPy makes no expandable segments")
        allocator = cupy.cuda.memory.malloc_expandable
    else:
        allocator = cupy.cuda.MemoryAsyncPool().malloc if kind == "async" else cupy.cuda.malloc_managed
    cupy.cuda.set_allocator(allocator)
    try:
        array = cupy.full((3, 4), 2.0)
    finally:
        cupy.cuda.set_allocator(cupy.cuda.MemoryPool().malloc)
    assert "has no CUDA IPC handle" in str(xfer.explain(array, "handle"))
    assert xfer.explain(cupy.zeros(3), "handle").copies == 0
    assert xfer.explain(cupy.zeros((3, 3))[:, ::2], "handle").copies == 1
    other = helper(READ + "say(xfer.get(bytes.fromhex(arg[0])).sum().item())", bytes(pool.put(array)).hex())
    assert other.line() == "24.0"


def test_a_copy_is_done_before_its_memory_may_go(cupy: Any, pool: xfer.Pool) -> None:
    """With a named stream too, `put` has made the copy when it returns: a release frees the copy at once."""
    cupy.cuda.set_allocator(cupy.cuda.malloc_managed)
    array = cupy.full(100, 2.0)
    cupy.cuda.set_allocator(cupy.cuda.MemoryPool().malloc)
    pool.release(pool.put(array, stream=cupy.cuda.Stream(non_blocking=True)))
    assert pool.stats().device_bytes == 0
    cupy.cuda.Device().synchronize()


def test_a_device_without_room_for_the_copy_is_a_typed_error(cupy: Any, pool: xfer.Pool, on_gpu: bool) -> None:
    """The copy that sharing needs counts: no room is `BudgetExceededError`."""
    if on_gpu:
        pytest.skip("fills the device")
    cupy.cuda.set_allocator(cupy.cuda.malloc_managed)
    array = cupy.zeros(40 * MIB, np.uint8)
    cupy.cuda.set_allocator(None)
    with pytest.raises(errors.BudgetExceededError, match="must be copied"):
        pool.put(array)


def two_devices(cupy: Any) -> None:
    """Skip where there is one device."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")


def test_memory_is_closed_on_the_device_that_opened_it(cupy: Any, helper: Any, pool: xfer.Pool) -> None:
    """The last array may go while another device is current, in another thread, or by the garbage collector."""
    two_devices(cupy)
    with cupy.cuda.Device(1):
        handle = pool.put(cupy.full(100, 5))
    code = READ + (
        "import threading\narray = xfer.get(bytes.fromhex(arg[0]))\n"
        "with array.device: say(array.device.id, int(array.sum()))\n"
        "held = [array]; del array; thread = threading.Thread(target=held.clear); thread.start(); thread.join()\n"
        "say(cupy.cuda.Device().id); wait()"
    )
    other = helper(code, bytes(handle).hex())
    assert [other.line(), other.line()] == ["1 500", "0"]
    pool.release(handle)
    assert until(lambda: pool.stats().device_bytes == 0)


def test_a_forked_child_is_told_and_leaves_the_parent_alone(cupy: Any, helper: Any, pool: xfer.Pool) -> None:
    """A child forked after the use of CUDA gets a typed error; it closes nothing, and it holds no lease."""
    handle = pool.put(cupy.full(100, 5))
    code = READ + (
        "import signal\narray = xfer.get(bytes.fromhex(arg[0])); child = os.fork()\n"
        "if not child:\n"
        "    for call in (lambda: xfer.get(bytes.fromhex(arg[0])), lambda: xfer.move(np.zeros(3), 'cuda')):\n"
        "        try: call()\n"
        "        except xfer.errors.DeviceUnavailableError as error: say('was forked' in str(error))\n"
        "    del array; say('dropped'); time.sleep(60); os._exit(0)\n"
        "wait(); say(int(array.sum())); del array; wait(); os.kill(child, signal.SIGKILL); os.waitpid(child, 0)"
    )
    other = helper(code, bytes(handle).hex())
    assert [other.line() for _ in range(3)] == ["True", "True", "dropped"]
    pool.release(handle)
    other.say()
    assert other.line() == "500"
    assert until(lambda: pool.stats().device_bytes == 0)  # the child lives
    other.say()
    assert other.end() == 0


def test_a_device_that_is_not_visible_here_can_be_read(
    cupy: Any, helper: Any, pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose CUDA_VISIBLE_DEVICES has another device opens the memory on its own."""
    two_devices(cupy)
    handle = pool.put(cupy.full(100, 5))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    code = READ + "array = xfer.get(bytes.fromhex(arg[0])); say(array.device.id, int(array.sum()))"
    assert helper(code, bytes(handle).hex()).line() == "0 500"


def test_a_device_is_asked_for_its_uuid_once(cupy: Any, pool: xfer.Pool, on_gpu: bool) -> None:
    """The properties of a device are a slow question."""
    if on_gpu:
        pytest.skip("counts calls of the emulator")
    machine = importlib.import_module("cupy._machine").machine
    for _ in range(5):
        pool.put(cupy.zeros(1))
    assert machine.calls["getDeviceProperties"] <= 1


def test_an_array_goes_between_devices_in_order(cupy: Any) -> None:
    """The copy waits for the source's stream, and the source's memory is not used again before the copy is done."""
    two_devices(cupy)
    source = cupy.zeros(1000)
    cupy.cuda.Device().synchronize()
    source[...] = 7
    copy = xfer.move(source, "cuda:1")
    del source
    cupy.zeros(1000)
    cupy.cuda.Device(0).synchronize()
    assert copy.device.id == 1
    assert copy.tolist() == [7] * 1000
    strided = cupy.asarray(np.arange(20).reshape(4, 5))[:, ::2]
    assert xfer.move(strided, "cuda:1").tolist() == strided.tolist()


def test_torch_sees_the_work_of_the_arrays_device(cupy: Any, on_gpu: bool) -> None:
    """Torch waits for CuPy's current stream of the device that the array is on, not of the current device."""
    two_devices(cupy)
    with cupy.cuda.Device(1):
        array = cupy.zeros(10)
        cupy.cuda.Device().synchronize()
        stream = cupy.cuda.Stream(non_blocking=True).use()
        array[...] = 7
    try:
        assert xfer.move(array, "torch").cpu().tolist() == [7] * 10
    finally:
        with cupy.cuda.Device(1):
            cupy.cuda.Stream.null.use()
            stream.synchronize()


def test_operations_work_on_the_device_of_their_operands(cupy: Any) -> None:
    """The current device need not be the one where the work is done."""
    two_devices(cupy)
    with cupy.cuda.Device(1):
        there = cupy.full(10, 3.0)
    result = xfer.ops.add(there, 1)
    assert (result.device.id, result.tolist(), cupy.cuda.Device().id) == (1, [4.0] * 10, 0)
    assert xfer.ops.apply(lambda x: x * 2, there).tolist() == [6.0] * 10


def test_a_block_is_not_handed_out_while_queued_work_uses_it(cupy: Any) -> None:
    """A kernel that reads a released block on another stream still sees the block's bytes."""
    with xfer.GpuMemoryManager(xfer.CupyAllocator(), budget="1MiB") as manager:
        block = manager.allocate(MIB)
        array = block.array()
        array[...] = 3
        result, stream = cupy.zeros(MIB, np.uint8), cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            result += array
        del array
        block.release()
        again = manager.allocate(MIB).array()
        with cupy.cuda.Stream(non_blocking=True) as other:
            again[...] = 9
            other.synchronize()
        stream.synchronize()
        assert int(result.max()) == int(result.min()) == 3
        del again


@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_block_is_spilled_with_what_was_queued(cupy: Any, place: str) -> None:
    """Work of another stream is part of what goes to the host; and what comes back is there for every stream."""
    budget = "1MiB" if place == "host" else 1
    with xfer.GpuMemoryManager(xfer.CupyAllocator(), budget="1MiB", host_budget=budget) as manager:
        block = manager.allocate(MIB, spillable=True)
        with block.use() as array:
            array[...] = 0
            cupy.cuda.Device().synchronize()
            with cupy.cuda.Stream(non_blocking=True):
                array[...] = 7
        del array
        manager.spill(block)
        assert block.place == place
        other = manager.allocate(MIB)
        other.array()[...] = 1  # in the memory that the block gets again
        other.release()
        with block.use() as array, cupy.cuda.Stream(non_blocking=True):
            assert int(array.min()) == int(array.max()) == 7
        del array


def test_trim_waits_for_queued_work(cupy: Any) -> None:
    """Memory goes back to the device after the kernels that use it."""
    with xfer.GpuMemoryManager(xfer.CupyAllocator()) as manager:
        block = manager.allocate(MIB)
        array = block.array()
        array[...] = 3
        result, stream = cupy.zeros(MIB, np.uint8), cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            result += array
        del array
        block.release()
        manager.trim()
        cupy.zeros(MIB, np.uint8)
        cupy.cuda.Device().synchronize()
        assert int(result.min()) == 3


def test_page_locked_memory_keeps_within_the_host_budget(cupy: Any, on_gpu: bool) -> None:
    """What goes on to disk is not page-locked, and page-locked memory is freed with its block."""
    if on_gpu:
        pytest.skip("looks into the emulator")
    machine = importlib.import_module("cupy._machine").machine
    with xfer.GpuMemoryManager(xfer.CupyAllocator(), host_budget="1MiB") as manager:
        blocks = [manager.allocate(MIB, spillable=True) for _ in range(3)]
        for block in blocks:
            manager.spill(block)
        assert [block.place for block in blocks] == ["host", "disk", "disk"]
        assert sum(data.nbytes for data in machine.pinned.values()) == machine.pinned_peak == MIB
        blocks[0].release()
        gc.collect()
        assert not machine.pinned


def test_device_arrays_go_through_channels(cupy: Any, helper: Any) -> None:
    """A channel carries device arrays, one of a consuming reader too, and a tree brings them to the host."""
    with xfer.Channel(4) as channel:
        sender = channel.sender
        code = READ + (
            "with xfer.Receiver.from_bytes(bytes.fromhex(arg[0])) as receiver:\n"
            "    for array in receiver:\n"
            "        say(type(array).__name__, int(array['x'].sum() if isinstance(array, dict) else array.sum()))\n"
            "        del array"
        )
        other = helper(code, bytes(channel.receiver).hex())
        for value in range(3):
            sender.send(cupy.full(100, value))
        sender.send({"x": cupy.full(100, 4)})
        assert [other.line() for _ in range(4)] == ["ndarray 0", "ndarray 100", "ndarray 200", "dict 400"]
        sender.close()
        assert other.end() == 0


def test_a_consumed_array_comes_back_by_itself(cupy: Any, helper: Any, pool: xfer.Pool) -> None:
    """`consume=True` works for device arrays."""
    handle = pool.put(cupy.full(100, 5), consume=True)
    other = helper(READ + "say(int(xfer.get(bytes.fromhex(arg[0])).sum())); wait()", bytes(handle).hex())
    assert other.line() == "500"
    assert until(lambda: (stats := pool.stats()).live == 0 and stats.device_bytes == 0)


def test_without_cuda_ipc_the_error_and_the_doctor_say_so(
    cupy: Any, pool: xfer.Pool, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Tegra and WSL2 there is no CUDA IPC: a typed error names the way by the host, and `doctor` has tried it."""
    found = examine._cuda()
    assert found.works, found.detail
    if on_gpu:
        return
    machine = importlib.import_module("cupy._machine").machine
    monkeypatch.setattr(machine, "ipc", False)
    array = cupy.zeros(3)
    with pytest.raises(errors.DeviceUnavailableError, match="on the host"):
        pool.put(array)
    found = examine._cuda()
    assert not found.works
    assert "cannot read a device array" in found.detail


def test_a_killed_producer_is_gone(cupy: Any, helper: Any) -> None:
    """A handle of a killed producer is a typed error."""
    producer = helper(READ + "handle = xfer.put(cupy.zeros(3)); say(bytes(handle).hex()); wait()")
    raw = bytes.fromhex(producer.line())
    producer.kill()
    with pytest.raises(errors.ProducerGoneError):
        xfer.get(raw)
    assert CLOSER.settle()


def test_a_new_thread_puts(cupy: Any, pool: xfer.Pool) -> None:
    """A thread that has not used CUDA yet puts an array of another thread."""
    made = cupy.arange(5)
    with ThreadPoolExecutor(1) as thread:
        handle = thread.submit(pool.put, made).result()
    assert (xfer.get(handle) == made).all()
    pool.release(handle)
