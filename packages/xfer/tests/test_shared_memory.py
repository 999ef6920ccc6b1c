"""Arrays through shared memory: every data type, every layout, handles, the pool, and the store of names."""

from __future__ import annotations

import contextlib
import pickle
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xfer
from xfer import errors
from xfer._shared import dtypes
from xfer._shared.handle import HEADER, Handle, signature
from xfer._shared.reader import READER
from xfer._sizes import format_size, parse_size, slot_size

RECORD = np.dtype([("time", "<M8[us]"), ("pair", [("a", "<i2"), ("b", ">f8", (2, 3))]), ("name", "<U5")], align=True)
ARRAYS = {
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(3.5),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(40).reshape(5, 8)[::2, 1::3],
    "negative stride": np.arange(10)[::-1],
    "broadcast": np.broadcast_to(np.arange(4), (3, 4)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False, True]),
    "float16": np.arange(5, dtype=np.float16),
    "longdouble": np.arange(5, dtype=np.longdouble) / 3,
    "complex": np.arange(4) * (1 + 2j),
    "complex64": (np.arange(4) * (1 + 2j)).astype(np.complex64),
    "datetime": np.array(["2024-02-29", "NaT"], "M8[D]"),
    "timedelta": np.array([1, 2], "m8[ns]"),
    "unicode": np.array(["é", "longer ☃"]),
    "bytes": np.array([b"a", b"bcd"]),
    "void": np.zeros(3, "V7"),
    "structured": np.zeros(3, RECORD),
    "titles": np.zeros(2, np.dtype({"names": ["x"], "formats": ["f4"], "titles": ["the x"], "itemsize": 16})),
    "bfloat16": np.arange(5).astype(ml_dtypes.bfloat16),
    "float8": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
    "float8 of kind f": np.arange(5).astype(ml_dtypes.float8_e5m2),
    "int4": np.arange(5).astype(ml_dtypes.int4),
    "structured of bfloat16": np.ones(2, np.dtype([("x", ml_dtypes.bfloat16), ("y", "i4")])),
    "eight dimensions": np.arange(256).reshape((2,) * 8),
    "thirty dimensions": np.ones((1,) * 30),
    "wide record": np.zeros(4, np.dtype([(f"a field with a long name, number {i}", "f8") for i in range(40)])),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_round_trip_keeps_values_and_type(pool: xfer.Pool, name: str) -> None:
    """Each kind of array comes back equal, of the same dtype and shape, and read-only."""
    array = ARRAYS[name]
    handle = pool.put(array)
    with xfer.open(bytes(handle)) as view:
        assert view.dtype == array.dtype
        assert view.dtype.fields == array.dtype.fields
        assert view.shape == array.shape
        assert not view.flags.writeable
        assert view.tobytes() == array.tobytes()
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            view.flags.writeable = True
    assert handle.shape == array.shape
    if array.ndim <= 8:
        assert len(bytes(handle)) <= 256


@pytest.mark.parametrize("name", ["structured", "bfloat16", "big-endian", "fortran", "wide record", "empty"])
def test_round_trip_in_another_process(pool: xfer.Pool, helper: Callable[..., Any], name: str) -> None:
    """An unrelated process that gets the bytes as hexadecimal text sees the same array."""
    array = ARRAYS[name]
    code = "v = xfer.get(bytes.fromhex(arg[0])); say(v.tobytes().hex() or '-', v.shape, v.dtype.itemsize)"
    other = helper(code, bytes(pool.put(array)).hex())
    assert other.line() == f"{array.tobytes().hex() or '-'} {array.shape} {array.dtype.itemsize}"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(array=hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0)))
def test_round_trip_of_any_array(pool: xfer.Pool, array: np.ndarray[Any, Any]) -> None:
    """Whatever array hypothesis thinks of comes back bit by bit."""
    handle = pool.put(array)
    view = xfer.get(pickle.loads(pickle.dumps(handle)))
    pool.release(handle)
    assert view.dtype == array.dtype
    assert view.shape == array.shape
    assert view.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.array([{}], dtype=[("x", "O")]), np.array(["a"], dtype=object)]
)
def test_objects_are_refused_before_a_byte_is_allocated(pool: xfer.Pool, array: np.ndarray[Any, Any]) -> None:
    """Python objects raise TypeError and the pool stays empty."""
    with pytest.raises(TypeError, match="pointers"):
        pool.put(array)
    assert pool.stats().reserved == 0


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 1 has no StringDType")
def test_variable_strings_are_refused(pool: xfer.Pool) -> None:
    """NumPy's variable-width strings hold pointers too."""
    with pytest.raises(errors.UnsupportedDtypeError):
        pool.put(np.array(["a", "b"], dtype=np.dtypes.StringDType()))


def test_masked_arrays_are_refused(pool: xfer.Pool) -> None:
    """A masked array would silently lose its mask."""
    with pytest.raises(errors.UnsupportedDtypeError, match="mask"):
        pool.put(np.ma.masked_array([1, 2], mask=[True, False]))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3).T,
        torch.arange(4).to(torch.bfloat16),
        torch.ones(3, requires_grad=True),
        torch.arange(4).to(torch.float8_e4m3fn),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
    ],
    ids=["transposed", "bfloat16", "with gradient", "float8", "bool", "conjugate"],
)
def test_torch_tensors_are_put(pool: xfer.Pool, tensor: torch.Tensor) -> None:
    """Tensors go in without importing torch, and come out with the same values."""
    view = xfer.get(pool.put(tensor))
    back = xfer.move(view, "torch")
    assert back.dtype == tensor.dtype
    assert torch.equal(back.float() if not back.is_complex() else back, _plain(tensor))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().resolve_conj()
    return tensor if tensor.is_complex() else tensor.float()


def test_other_array_libraries_are_put(pool: xfer.Pool) -> None:
    """Anything with DLPack, the array interface or `__array__` is taken, and lists too."""

    class Dlpack:
        def __init__(self, array: np.ndarray[Any, Any]) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    assert xfer.get(pool.put(Dlpack(np.arange(3)))).tolist() == [0, 1, 2]
    assert xfer.get(pool.put(np.float32(2.5))).dtype == np.float32
    assert xfer.get(pool.put([[1, 2], [3, 4]])).shape == (2, 2)
    assert xfer.get(pool.put(np.rec.array([(1, 2)], names="a,b")))["b"] == 2


def test_flipped_bits_of_a_handle_are_found(pool: xfer.Pool) -> None:
    """Every single flipped bit of a handle is a typed error."""
    raw = bytes(pool.put(np.arange(100)))
    for position in range(8 * len(raw)):
        altered = bytearray(raw)
        altered[position // 8] ^= 1 << position % 8
        with pytest.raises(errors.HandleError):
            xfer.get(bytes(altered))
        with pytest.raises(errors.HandleError):
            Handle.from_bytes(altered)


def test_forged_handles_are_errors(pool: xfer.Pool) -> None:
    """Any altered byte behind a recomputed checksum still never yields data."""
    secret = pool.put(np.full(100, 7))
    raw = bytearray(bytes(pool.put(np.arange(100))))
    for position in range(2, len(raw) - 4):
        for change in (1, 0x10, 0xFF):
            altered = bytearray(raw)
            altered[position] ^= change
            altered[-4:] = struct.pack("<I", crc32(altered[:-4]))
            with pytest.raises((errors.HandleError, errors.StaleHandleError)):
                xfer.get(bytes(altered))
    assert xfer.get(secret)[0] == 7


@pytest.mark.parametrize("token", [b"O", b"|O", b"<f4,O", b"f4", b"object", b"int", b"<f4x", b"(2,)O", b"<M8[a b]"])
def test_descriptions_that_no_dtype_makes_are_refused(token: bytes) -> None:
    """NumPy reads more than xfer writes, such as objects, whose memory would be taken for pointers."""
    with pytest.raises(errors.HandleError, match="cannot be read"):
        dtypes.decode(token)


@pytest.mark.parametrize("raw", [b"", b"XF", bytes(80), b"hello" * 20], ids=["none", "short", "zeros", "text"])
def test_other_bytes_are_no_handles(raw: bytes) -> None:
    """Bytes that never were a handle raise HandleError, which is a ValueError."""
    with pytest.raises(ValueError, match="handle"):
        Handle.from_bytes(raw)


def test_a_handle_of_another_version_says_so(pool: xfer.Pool) -> None:
    """The message names both versions."""
    raw = bytearray(bytes(pool.put(np.zeros(1))))
    raw[2] = 9
    with pytest.raises(errors.HandleError, match="version 9, this xfer reads 1"):
        Handle.from_bytes(raw)


def test_handles_are_values(pool: xfer.Pool) -> None:
    """Handles compare, hash, pickle, and tell what they are."""
    handle = pool.put(np.zeros((2, 3), np.float32))
    again = Handle.from_bytes(bytes(handle))
    assert handle == again
    assert hash(handle) == hash(again)
    assert again.dtype == np.float32
    assert again.nbytes == 24
    assert again.pid == pool.pid
    assert "(2, 3) float32" in repr(again)
    assert handle != "something else"


def test_a_stale_handle_is_an_error_and_never_other_data(pool: xfer.Pool) -> None:
    """After release the handle fails, also when the slot holds a newer array of the same type."""
    old = pool.put(np.arange(10))
    pool.release(old)
    with pytest.raises(errors.StaleHandleError):
        xfer.get(old)
    new = old
    while new == old or new.fields.slot != old.fields.slot:
        new = pool.put(np.arange(10, 20))
        pool.release(new)
    new = pool.put(np.arange(10, 20))
    with pytest.raises(LookupError):
        xfer.get(old)
    assert xfer.get(new)[0] == 10


def test_releases_that_make_no_sense_are_errors(pool: xfer.Pool) -> None:
    """Double release and release into a foreign pool are told apart."""
    handle = pool.put(np.zeros(4))
    with xfer.Pool("1MiB") as other, pytest.raises(errors.ForeignHandleError):
        other.release(handle)
    pool.release(handle)
    with pytest.raises(errors.DoubleReleaseError):
        pool.release(handle)
    large = pool.put(np.zeros(1 << 20, np.uint8))
    pool.release(large)
    assert pool.trim() > 0
    with pytest.raises(errors.DoubleReleaseError):
        pool.release(large)


def test_a_leased_slot_is_never_reused(pool: xfer.Pool) -> None:
    """A released array that is still being looked at keeps its bytes, through any view of a view."""
    handle = pool.put(np.arange(1000))
    part = xfer.get(handle)[10:20][::2].view(np.uint64)
    pool.release(handle)
    for number in range(50):
        pool.release(pool.put(np.full(1000, number)))
    assert part.tolist() == [10, 12, 14, 16, 18]
    assert pool.stats().waiting_for_readers == 1
    del part
    assert pool.stats().waiting_for_readers == 0


def test_the_lease_follows_memoryviews_and_tensors(pool: xfer.Pool) -> None:
    """Objects of other libraries over the array hold the lease as well."""
    handle = pool.put(np.arange(4))
    holders = [memoryview(xfer.get(handle)), np.asarray(xfer.get(handle))[1:]]
    pool.release(handle)
    assert pool.stats().waiting_for_readers == 1
    holders.clear()
    assert pool.stats().waiting_for_readers == 0


def test_budget_is_a_typed_error_with_both_sizes(pool: xfer.Pool) -> None:
    """Too much asked names what was asked and what is left, and the next small request works."""
    with pytest.raises(errors.BudgetExceededError, match="budget") as caught:
        pool.put(np.zeros(100 << 20, np.uint8))
    assert caught.value.asked >= 100 << 20
    assert 0 < caught.value.available <= 64 << 20
    assert isinstance(caught.value, MemoryError)
    assert xfer.get(pool.put(np.arange(3))).tolist() == [0, 1, 2]


def test_budget_counts_what_is_reserved() -> None:
    """The reserved size never passes the budget, and idle memory of other sizes makes room."""
    with xfer.Pool("8MiB") as pool:
        handles = [pool.put(np.zeros(1 << 20, np.uint8)) for _ in range(6)]
        with pytest.raises(errors.BudgetExceededError):
            pool.put(np.zeros(4 << 20, np.uint8))
        for handle in handles:
            pool.release(handle)
        assert xfer.get(pool.put(np.ones(7 << 20, np.uint8))).all()
        assert pool.stats().reserved <= pool.budget


def test_put_waits_for_a_reader_if_asked_to() -> None:
    """With a timeout, put goes on as soon as the reader is done, and raises if it is not."""
    with xfer.Pool("1MiB") as pool:
        handle = pool.put(np.zeros(900_000, np.uint8))
        view = xfer.get(handle)
        pool.release(handle)
        with pytest.raises(errors.BudgetExceededError):
            pool.put(np.zeros(900_000, np.uint8), timeout=0.05)
        holder = [view]
        del view
        timer = threading.Timer(0.2, holder.clear)
        timer.start()
        assert xfer.get(pool.put(np.ones(900_000, np.uint8), timeout=20))[0] == 1
        timer.join()


def test_loan_is_filled_in_place(pool: xfer.Pool) -> None:
    """A loan becomes a handle when its block ends, and is read-only from then on."""
    loan = pool.loan((3, 4), np.float32)
    with pytest.raises(ValueError, match="no handle before"):
        _ = loan.handle
    with loan as array:
        array[:] = 5
    assert xfer.get(loan.handle).sum() == 60
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="once"), loan:
        pass
    with pool.loan(7) as array:
        assert array.shape == (7,)


def test_a_loans_array_outlives_its_pool(helper: Callable[..., Any]) -> None:
    """The array of a loan stays readable after release and trim, and after the pool is closed: no crash."""
    code = """
pool = xfer.Pool("64MiB"); arrays = []
for size in (1000, 3 << 20):
    loan = pool.loan(size, np.uint8)
    with loan as array: array[:] = 1
    arrays.append(array); pool.release(loan.handle)
pool.trim(); say([int(array.sum()) for array in arrays])
loan = pool.loan(1000, np.uint8)
with loan as array: array[:] = 2
late = pool.loan(10)
pool.close(); gc.collect(); say(int(array.sum()), pool.stats().segments)
try: late.__enter__()
except xfer.errors.PoolClosedError: say("closed")
"""
    process = helper(code)
    assert process.line() == f"[1000, {3 << 20}]"
    assert process.line() == "2000 0"
    assert process.line() == "closed"
    assert process.end() == 0


def test_a_loan_that_fails_gives_its_slot_back(pool: xfer.Pool) -> None:
    """An exception in the block leaves no handle and no live array."""
    loan = pool.loan(10)
    with pytest.raises(KeyError), loan as array:
        raise KeyError
    assert pool.stats().live == 0
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1  # the slot may be another array's by now
    with pytest.raises(TypeError):
        pool.loan(3, object)
    with pytest.raises(ValueError, match="want lengths"):
        pool.loan((3, -1))


def test_a_view_context_is_used_once(pool: xfer.Pool) -> None:
    """A second `with` over the same view is an error, not an old array."""
    view = xfer.open(pool.put(np.arange(3)))
    with view as array:
        assert array[2] == 2
    with pytest.raises(errors.StaleHandleError), view:
        pass


def test_pool_reports_leaks_with_their_site(pool: xfer.Pool) -> None:
    """An array that was not released is listed with size, age, lease and the line that put it."""
    handle = pool.put(np.zeros(100, np.uint8))
    view = xfer.get(handle)
    (leak,) = pool.leaks()
    assert leak.nbytes == 100
    assert leak.leased
    assert "test_shared_memory.py:" in leak.site
    assert pool.leaks(older_than=1000) == []
    assert view.nbytes == 100
    assert "1 arrays" in repr(pool)


def test_a_closed_pool_says_so(pool: xfer.Pool) -> None:
    """Calls on a closed pool raise, handles are stale, and arrays that are held stay good."""
    handle = pool.put(np.arange(5))
    view = xfer.get(handle)
    pool.close()
    pool.close()
    assert view.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(errors.PoolClosedError, match="closed"):
        pool.put(np.zeros(1))
    with pytest.raises(errors.StaleHandleError):
        xfer.get(handle)
    assert "closed" in repr(pool)


def test_retained_arrays_need_one_more_release(pool: xfer.Pool) -> None:
    """Each retain is answered by one release."""
    handle = pool.put(np.zeros(3))
    pool.retain(handle)
    pool.release(handle)
    assert xfer.get(handle).shape == (3,)
    pool.release(handle)
    with pytest.raises(errors.DoubleReleaseError):
        pool.retain(handle)
    with xfer.Pool("1MiB") as other:
        foreign = other.put(np.zeros(3))
        with pytest.raises(errors.ForeignHandleError, match="another pool"):
            pool.retain(foreign)
    with pytest.raises(errors.PoolClosedError):
        other.retain(foreign)


def test_default_pool_puts_and_releases() -> None:
    """The module's own functions work on the process's own pool."""
    handle = xfer.put(np.arange(4))
    assert xfer.get(handle).sum() == 6
    xfer.release(handle)
    with pytest.raises(errors.StaleHandleError):
        xfer.get(handle)


def test_threads_share_a_pool(pool: xfer.Pool) -> None:
    """Many threads put, get and release at once, and each sees its own data."""

    def work(number: int) -> bool:
        good = True
        for _ in range(100):
            handle = pool.put(np.full(300, number))
            good &= bool((xfer.get(handle) == number).all())
            pool.release(handle)
        return good

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(work, range(8)))
    assert pool.stats().live == 0
    assert READER.stats()["leases"] == 0


def test_reader_statistics_and_trim(pool: xfer.Pool) -> None:
    """The reader counts mappings and leases, and unmaps what nobody looks at."""

    def given_back() -> int:
        view = xfer.get(pool.put(np.arange(3)))
        assert READER.stats()["leases"] == 1
        assert READER.trim() == 0
        del view
        assert READER.stats()["leases"] == 0
        return xfer.trim()

    assert any(given_back() > 0 for _ in range(20))  # a slow moment, and the mapping has gone by itself
    assert READER.stats()["mapped_bytes"] == 0


@pytest.mark.parametrize(("text", "size"), [("1KiB", 1024), ("2 GB", 2 * 10**9), ("1.5MiB", 3 << 19), (7, 7), ("9", 9)])
def test_sizes_are_read(text: str | int, size: int) -> None:
    """Sizes are numbers, or text with decimal or binary units."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-3", "5 apples", 0])
def test_senseless_sizes_are_refused(text: str | int) -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match="want a"):
        parse_size(text)


@given(st.integers(0, 1 << 40))
def test_slot_sizes_waste_little(nbytes: int) -> None:
    """A slot fits, is aligned to a cache line, and wastes at most an eighth of a large request."""
    size = slot_size(nbytes)
    assert size >= nbytes
    assert size % 64 == 0
    assert nbytes <= 256 << 10 or size <= nbytes * 1.125 + 4096
    assert slot_size(size) == size


def test_sizes_are_written() -> None:
    """Sizes are shown with binary units."""
    assert [format_size(n) for n in (5, 2048, 3 << 30)] == ["5 B", "2.0 KiB", "3.0 GiB"]


def test_handle_budget_for_eight_dimensions() -> None:
    """The longest inline dtype still leaves a handle of eight dimensions within 256 bytes."""
    for length in range(1, 300, 7):
        dtype = np.dtype([("x" * length, "f4")])
        assert HEADER.size + len(signature(dtype, (1,) * 8, False).meta) + 4 <= 256


def test_store_holds_arrays_by_name(pool: xfer.Pool) -> None:
    """Create, get, list, remove and clear do what they say."""
    with xfer.SharedArrayStore(pool) as store:
        store.create("weights", np.arange(6).reshape(2, 3))
        store.create("bias", np.ones(3, np.float32))
        assert store.list() == ["bias", "weights"]
        assert store.get("weights").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert "bias" in store
        assert len(store) == 2
        with pytest.raises(errors.NameTakenError):
            store.create("bias", np.zeros(1))
        store.remove("bias")
        with pytest.raises(KeyError, match="holds no 'bias'"):
            store.get("bias")
        with pytest.raises(errors.NameMissingError):
            store.remove("bias")
        with pytest.raises(TypeError):
            store.create("bad", np.array([None]))
        assert store.list() == ["weights"]
        store.clear()
        assert store.list() == []
    assert pool.stats().live == 0


def test_store_is_attached_elsewhere(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """Another process reads the store, sees later changes, and may not make any."""
    with xfer.SharedArrayStore(pool) as store:
        store.create("x", np.arange(3))
        code = """
store = xfer.SharedArrayStore.attach(bytes.fromhex(arg[0]))
say(store.list(), store.get("x").tolist())
wait()
say(store.list())
try: store.create("y", np.zeros(1))
except xfer.errors.ReadOnlyStoreError: say("read-only")
"""
        other = helper(code, bytes(store).hex())
        assert other.line() == "['x'] [0, 1, 2]"
        store.create("later", np.zeros(2))
        other.say()
        assert other.line() == "['later', 'x']"
        assert other.line() == "read-only"
        attached = pickle.loads(pickle.dumps(store))
        assert attached.list() == ["later", "x"]
        attached.close()


def test_store_is_read_while_it_changes(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """A reader that never stops sees each snapshot whole while the writer keeps changing names."""
    with xfer.SharedArrayStore(pool) as store:
        store.create("fixed", np.full(1000, 3))
        code = """
store = xfer.SharedArrayStore.attach(bytes.fromhex(arg[0])); say("ready")
rounds = 0
while rounds < 300:
    assert (store.get("fixed") == 3).all(); rounds += 1
say("good")
"""
        other = helper(code, bytes(store).hex())
        assert other.line() == "ready"
        number = 0
        end = time.monotonic() + 30
        while number < 10 or (other.process.poll() is None and time.monotonic() < end and number < 3000):
            store.create(f"moving{number}", np.zeros(10))
            store.remove(f"moving{number}")
            number += 1
        assert other.line() == "good"
        assert number > 0


def test_store_gives_up_arrays_though_the_budget_is_spent() -> None:
    """Removing, clearing and closing need no memory that is not there, and each array's memory comes back."""
    with xfer.Pool("1MiB") as pool:
        store = xfer.SharedArrayStore(pool)
        with contextlib.suppress(errors.BudgetExceededError):
            for number in range(1000):
                store.create(f"a{number}", np.zeros(5000 * (1 + number % 7), np.uint8))
        names = store.list()
        assert pool.budget - pool.stats().reserved < 5000 * 7
        assert len(names) > 10
        other = xfer.SharedArrayStore.attach(bytes(store))
        for count, name in enumerate(names[:-2], 1):
            store.remove(name)
            assert other.list() == names[count:]
        assert pool.stats().live == 2 + 2  # the two that are left, the page and the register
        store.clear()
        assert other.list() == []
        store.close()
        assert pool.stats().live == 0
        other.close()


def test_a_closed_store_says_so(pool: xfer.Pool) -> None:
    """After close each call says that the store is closed; closing twice, or after the pool, is nothing."""
    store, late = xfer.SharedArrayStore(pool), xfer.SharedArrayStore(pool)
    store.create("x", np.zeros(3))
    attached = xfer.SharedArrayStore.attach(bytes(store))
    store.close()
    store.close()
    with pytest.raises(errors.StaleHandleError, match="its process has closed it"):
        attached.list()
    attached.close()
    for call in (store.list, lambda: store.get("x"), lambda: store.create("y", np.zeros(1)), store.clear):
        with pytest.raises(errors.StaleHandleError, match="this store is closed"):
            call()
    pool.close()
    late.close()


def test_move_and_explain_on_the_host() -> None:
    """Ways between NumPy and torch say whether they copy, and do just that."""
    array = np.arange(6.0)
    assert xfer.explain(array, "torch").copies == 0
    tensor = xfer.move(array, "torch")
    tensor[0] = 9
    assert array[0] == 9
    assert xfer.move(tensor, "numpy")[0] == 9
    assert xfer.explain(tensor, "cpu").steps == ()
    assert xfer.explain(array, "numpy").copies == 0
    assert xfer.explain([1, 2], "numpy").copies == 1
    for lazy in (torch.ones(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.complex64).conj().imag):
        assert xfer.explain(lazy, "numpy").copies == 1
        assert not np.shares_memory(xfer.move(lazy, "numpy"), xfer.move(lazy.resolve_conj(), "numpy"))
    assert str(xfer.explain(array, "torch")) == "numpy on cpu -> torch: 0 copies\n  view: torch views NumPy's memory"


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.arange(4)[::-1], "negative stride"),
        (np.arange(4, dtype=">f4"), "byte order"),
        (np.broadcast_to(np.float32(3), (4,)), "read-only"),
    ],
)
def test_torch_gets_a_copy_of_what_it_cannot_express(array: np.ndarray[Any, Any], why: str) -> None:
    """Negative strides (which abort the process by DLPack), foreign byte order and read-only arrays are copied."""
    route = xfer.explain(array, "torch")
    assert route.copies == 1
    assert why in str(route)
    assert xfer.move(array, "torch").tolist() == array.tolist()


def test_move_refuses_what_it_cannot_do() -> None:
    """Unknown targets are ValueErrors, absent dtypes TypeErrors, absent devices say so."""
    with pytest.raises(ValueError, match="want 'numpy'"):
        xfer.move(np.zeros(1), "tpu")
    with pytest.raises(TypeError, match="torch has no"):
        xfer.move(np.zeros(1, "M8[s]"), "torch")
    with pytest.raises(TypeError, match="torch has no"):
        xfer.move(np.zeros(1, ml_dtypes.float8_e3m4), "torch")
    with pytest.raises(errors.DeviceUnavailableError):
        xfer.move(np.zeros(1), "cuda:63")
    with pytest.raises(errors.DeviceUnavailableError):
        xfer.move(torch.zeros(1), "cuda:63")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.complex64, np.bool_, np.float16])
def test_move_to_torch_and_back_keeps_the_type(dtype: Any) -> None:
    """Types that NumPy itself does not have survive the way to torch and back."""
    array = np.array([0, 1, 1], dtype)
    back = xfer.move(xfer.move(array, "torch"), "numpy")
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
