"""Trees of arrays and torch tensors: what goes in comes out, in one slot, and in-place operations never crash."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import gc
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xfer
from xfer import _compiled, errors
from xfer._convert import interchange


class Pair(NamedTuple):
    """A named tuple of a module."""

    left: Any
    right: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A frozen dataclass with slots."""

    images: Any
    step: int
    note: str = ""


arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.float32, np.int64, np.complex128, np.bool_, np.dtype(">f4"), np.dtype("U3")]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.complex_numbers()
)
keys = st.text(max_size=4) | st.integers() | st.booleans() | st.none()
trees = st.recursive(
    arrays | plain,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Compare trees exactly, types and NaN included."""
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return [(type(k), k) for k in left] == [(type(k), k) for k in right] and all(
            map(same, left.values(), right.values())
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(keys, trees, max_size=4))
def test_any_tree_comes_back(pool: xfer.Pool, tree: Any) -> None:
    """Types, keys, values, dtypes, shapes and bytes are what went in."""
    handle = pool.put(tree)
    try:
        assert same(tree, xfer.get(handle))
    finally:
        pool.release(handle)


def test_a_tree_is_one_message_and_one_slot(pool: xfer.Pool) -> None:
    """A batch goes through a channel as one array, with values that change from one to the next."""
    with xfer.Channel(4, pool=pool) as channel:
        for step in range(6):
            batch = {"x": np.full((4, 5), step, np.float32), "y": [torch.arange(3), step, step == 1, float(step)]}
            channel.sender.send(batch)
            assert pool.stats().live == 1
            got = channel.receiver.recv(timeout=5)
            assert got["x"].tolist() == batch["x"].tolist()
            assert [type(value) for value in got["y"][1:]] == [int, bool, float]
            assert got["y"][1:] == [step, step == 1, float(step)]
            assert not got["x"].flags.writeable
            del got


def test_classes_are_found_again_or_refused(pool: xfer.Pool) -> None:
    """Named tuples and dataclasses of a module come back; local classes are refused before a byte is put."""
    sys.modules["tree_classes"] = module = type(sys)("tree_classes")
    for kind in (Pair, Batch):
        kind.__module__ = "tree_classes"
        setattr(module, kind.__name__, kind)
    batch = xfer.get(pool.put(Batch(np.arange(3), 4, "x")))
    assert (type(batch), batch.images.tolist(), batch.step, batch.note) == (Batch, [0, 1, 2], 4, "x")
    assert xfer.get(pool.put(Pair(np.arange(3), None))).left.tolist() == [0, 1, 2]

    @dataclasses.dataclass
    class Local:
        array: Any

    used = pool.stats().used
    cyclic: list[Any] = [np.zeros(1)]
    cyclic.append(cyclic)
    for wrong in (Local(np.zeros(1)), {"a": object()}, {(1, 2): np.zeros(1)}, {"a": np.array([None])}, {"a": {1, 2}}):
        with pytest.raises(errors.UnsupportedDtypeError):
            pool.put(wrong)
    assert pool.stats().used == used


@dataclasses.dataclass
class Nothing:
    """A dataclass without fields."""


class Neither(NamedTuple):
    """A named tuple without fields."""


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    "value",
    [
        [], (), {}, collections.OrderedDict(), [[]], ([], ()), [{}, []], [[1, 2.5], []], {"boxes": [], "none": ()},
        Nothing(), Neither(), [Nothing(), Neither()],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_empty_comes_back_as_it_is(
    pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch, value: Any, library: Any
) -> None:
    """A list of arrays may be empty and is a list all the same, by handle and by channel; an empty array is one."""
    module = type(sys)("tree_classes")
    for kind in (Nothing, Neither):
        monkeypatch.setattr(kind, "__module__", "tree_classes")
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "tree_classes", module)
    with xfer.Channel(4, pool=pool) as channel:
        for _ in range(2):
            got = [xfer.get(pool.put(value), as_=library)]
            channel.sender.send(value, timeout=5)
            got.append(channel.receiver.recv(timeout=5, as_=library))
            for one in got:
                assert type(one) is type(value)
                assert one == value
                assert repr(one) == repr(value)
            assert xfer.get(pool.put(np.zeros((0, 4))), as_=library).shape == (0, 4)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_texts_come_as_they_are(pool: xfer.Pool, library: Any) -> None:
    """Texts and bytes of a tree are plain values, also those of NumPy, and keep the NULs that they end with."""
    texts = [b"", b"a\0", b"\0\0", "a\0", "", "\ud800", np.bytes_(b"b\0"), np.str_("c\0"), np.array(["row"])[0]]
    got = xfer.get(pool.put({"texts": texts, "x": np.ones(2)}), as_=library)
    assert got["texts"] == [b"", b"a\0", b"\0\0", "a\0", "", "\ud800", b"b\0", "c\0", "row"]
    assert {type(text) for text in got["texts"]} == {str, bytes}


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_numbers_of_numpy_come_as_arrays_without_dimensions(pool: xfer.Pool, library: Any) -> None:
    """Whatever their type and wherever they stand in a tree, with their dtype."""
    numbers = [np.float64(0.1), np.float32(-0.0), np.int8(-3), np.uint64(2**63), np.bool_(True), np.complex64(1 - 2j)]
    for value in (numbers, tuple(numbers), dict(zip("abcdef", numbers, strict=True)), [numbers[0], 1, torch.ones(2)]):
        got = xfer.get(pool.put(value), as_=library)
        assert type(got) is type(value)
        items = [got.values(), value.values()] if isinstance(value, dict) else [got, value]
        for one, want in zip(*items, strict=True):
            if isinstance(want, np.generic):
                assert one.shape == ()
                assert isinstance(one, np.ndarray if library == "numpy" else torch.Tensor)
                array = np.asarray(one)
                assert (array.dtype, array.tobytes()) == (want.dtype, want.tobytes())
    if library == "numpy":
        for other in (np.datetime64("2020-02-29", "us"), np.zeros(1, [("a", "i4"), ("b", "f8")])[0]):
            one = xfer.get(pool.put([other]))[0]
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, (), other.tobytes())


def test_torch_tensors_are_writable_and_private(pool: xfer.Pool) -> None:
    """In-place operations work, stay in the reader, and the next reader sees what was put."""
    for size in (0, 8, 1 << 20):
        handle = pool.put(torch.arange(size, dtype=torch.float32))
        for _ in range(2):
            tensor = xfer.get(handle, as_="torch")
            assert tensor.tolist()[:3] == [0.0, 1.0, 2.0][:size]
            tensor.add_(1).mul_(2)
            view = tensor[1:3]
            del tensor
            assert view.tolist() == [4.0, 6.0][: max(0, size - 1)]
        pool.release(handle)
        del view
        assert pool.stats().waiting_for_readers == 0


def test_torch_through_a_channel(pool: xfer.Pool) -> None:
    """Small and large tensors and trees of them are received as tensors that may be changed."""
    with xfer.Channel(4, pool=pool) as channel:
        for value in (torch.ones(8), torch.ones(100_000), {"w": torch.ones(50_000), "b": [torch.ones(2), 1]}):
            channel.sender.send(value)
            got = channel.receiver.recv(timeout=5, as_="torch")
            for tensor in [got] if isinstance(got, torch.Tensor) else [got["w"], got["b"][0]]:
                tensor.sub_(1)
                assert not tensor.any()
        with pytest.raises(ValueError, match="want 'numpy' or 'torch'"):
            channel.receiver.recv(timeout=0, as_="jax")  # type: ignore[arg-type]


SMALL: list[Callable[[], torch.Tensor]] = [
    lambda: torch.ones(8),
    lambda: torch.arange(6).reshape(2, 3),
    lambda: torch.ones(2, 3).t(),
    lambda: torch.arange(12, dtype=torch.int16).reshape(3, 4)[:, 1:3],
    lambda: torch.arange(9.0)[2:],
    lambda: torch.arange(9.0)[::2],
    lambda: torch.tensor(5.0),
    lambda: torch.ones(1, 1, 1),
    lambda: torch.zeros(0),
    lambda: torch.tensor([True, False]),
    lambda: torch.ones(3, dtype=torch.bfloat16),
    lambda: torch.ones(3, dtype=torch.float8_e4m3fn),
    lambda: torch.tensor([1 + 2j, 3 - 4j]).conj(),
    lambda: torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    lambda: torch.ones(3, requires_grad=True),
    lambda: torch.nn.Parameter(torch.ones(3)),
]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_small_tensors_of_every_kind_come_as_they_are(pool: xfer.Pool, compiled: bool) -> None:
    """Whatever their memory looks like, strided, conjugated, negated, with a gradient; also once they are known."""
    with xfer.Channel(4, pool=pool, compiled=compiled) as channel:
        for _ in range(3):
            for make in SMALL:
                tensor = make()
                channel.sender.send(tensor, timeout=5)
                got = channel.receiver.recv(timeout=5, as_="torch")
                want = tensor.detach().resolve_conj().resolve_neg()
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                assert got.tolist() == want.tolist() or torch.equal(got.float(), want.float())
                got.copy_(torch.zeros_like(got))
                channel.sender.send(tensor, timeout=5)
                again = channel.receiver.recv(timeout=5)
                assert again.tobytes() == xfer.move(want.contiguous(), "numpy").tobytes()
                del again
        for wrong in (torch.ones(8, device="meta"), torch.ones(8).to_sparse()):  # a dtype and shape that are known
            with pytest.raises(errors.UnsupportedDtypeError):
                channel.sender.send(wrong, timeout=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can pin memory")
def test_pinning_without_a_device_says_so_and_takes_nothing(pool: xfer.Pool) -> None:
    """Where torch finds no CUDA device the error says what to leave out, and the array can still be received."""
    handle = pool.put(np.arange(3))
    with xfer.Channel(2, pool=pool) as channel:
        channel.sender.send(np.arange(4))
        for call in (
            lambda: xfer.get(handle, as_="torch", pin=True),
            lambda: channel.receiver.recv(timeout=1, as_="torch", pin=True),
        ):
            with pytest.raises(errors.DeviceUnavailableError, match="leave `pin` out"):
                call()
        with pytest.raises(ValueError, match="as_='torch'"):
            channel.receiver.recv(timeout=1, pin=True)
        assert channel.receiver.recv(timeout=1).tolist() == [0, 1, 2, 3]


# cuda: xfer._convert.interchange:check_library by stand-in
def test_what_is_pinned_is_a_copy(pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device, memory is asked to be pinned, and a tensor in it is written without effect on the array."""
    asked = []
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: asked.append(pin_memory) or empty(*a, **k))
    handle = pool.put(np.arange(6.0).reshape(2, 3))
    got = xfer.get(handle, as_="torch", pin=True)
    assert asked == [True]
    assert got.tolist() == [[0, 1, 2], [3, 4, 5]]
    got.zero_()
    assert xfer.get(handle)[1, 2] == 5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; a stand-in is tried above")
def test_tensors_are_pinned(pool: xfer.Pool) -> None:
    """Arrays and trees, by handle and by channel, come as tensors in pinned memory that are written without effect."""
    value = {"x": torch.arange(12.0).reshape(3, 4).t(), "n": [torch.ones(50_000), 1]}
    handle = pool.put(value)
    with xfer.Channel(4, pool=pool) as channel:
        for _ in range(2):
            channel.sender.send(value)
            channel.sender.send(value["x"])
            got = [xfer.get(handle, as_="torch", pin=True), channel.receiver.recv(timeout=5, as_="torch", pin=True)]
            for one in got:
                assert one["x"].is_pinned()
                assert one["n"][0].is_pinned()
                assert torch.equal(one["x"], value["x"])
                one["x"].zero_()
            small = channel.receiver.recv(timeout=5, as_="torch", pin=True)
            assert small.is_pinned()
            assert torch.equal(small, value["x"])


def test_a_spawned_trainer_changes_its_batch_in_place(pool: xfer.Pool) -> None:
    """In another process: no signal, whatever is done in place."""
    handle = pool.put({"x": torch.zeros(300_000), "n": [torch.zeros(3, dtype=torch.bfloat16)]})
    code = """
import sys, torch, xfer
batch = xfer.get(bytes.fromhex(sys.argv[1]), as_="torch")
batch["x"].add_(1); batch["x"].requires_grad_(True).sum().backward(); batch["n"][0].fill_(2)
print(float(batch["x"].sum()), float(batch["n"][0].sum()))
"""
    done = subprocess.run([sys.executable, "-c", code, bytes(handle).hex()], capture_output=True, text=True)
    assert done.stdout.strip() == "300000.0 6.0", done.stderr
    assert not xfer.get(handle)["x"].any()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_a_state_dict_of_every_kind_of_tensor(pool: xfer.Pool, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that lie plainly beside ones that do not and NumPy's arrays; nothing is left after the last view."""
    if not compiled:
        monkeypatch.setattr(_compiled, "module", None)
    tree = {str(number): make() for number, make in enumerate(SMALL)} | {
        "large": torch.arange(300_000.0), "numpy": np.arange(5), "fortran": np.asfortranarray(np.ones((2, 3))),
        "swapped": np.ones(3, ">f4"), "nested": [torch.ones(2), (1, torch.zeros(3))], "wide": torch.ones(1).expand(9),
    }  # fmt: skip
    for _ in range(2):  # the second time its plan is known
        handle = pool.put(tree)
        for writes in range(2):
            got = xfer.get(handle, as_="torch")
            for name, value in tree.items():
                if not isinstance(value, list):
                    want = torch.from_numpy(value.astype(value.dtype.newbyteorder("="))) if name in NUMPY else value
                    want = want.detach().resolve_conj().resolve_neg()
                    assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape), name
                    assert torch.equal(got[name].cdouble(), want.cdouble()), (name, writes)
                    got[name].zero_()
            assert got["nested"][1][1].tolist() == [0, 0, 0]
        kept = got["large"][5:]
        del got
        kept.add_(1)
        assert float(kept.sum()) == 300_000 - 5
        assert xfer.get(handle)["large"][7] == 7
        pool.release(handle)
        del kept
        gc.collect()
        assert pool.stats().waiting_for_readers == 0


NUMPY = {"numpy", "fortran", "swapped"}


def test_the_last_tensor_of_a_tree_may_die_in_any_thread(pool: xfer.Pool) -> None:
    """The lease ends with the last tensor, whichever thread drops it, and no sooner."""
    handle = pool.put({str(number): torch.full((50_000,), float(number)) for number in range(20)})
    tensors = list(xfer.get(handle, as_="torch").values())
    pool.release(handle)
    threads = [
        threading.Thread(target=lambda part: [part.pop().mul_(2) for _ in range(4)], args=(tensors[n::4],))
        for n in range(4)
    ]
    last = tensors[7][3:]
    del tensors
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del threads, thread
    gc.collect()
    assert last[0] in (7.0, 14.0)
    assert pool.stats().waiting_for_readers == 1
    ends = threading.Thread(target=lambda held: held.clear(), args=([last],))
    del last
    ends.start()
    ends.join()
    del ends
    assert pool.stats().waiting_for_readers == 0


def test_an_interface_of_another_version_is_not_used(pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later torch whose interface the core does not know sends and receives all the same."""
    later = (ctypes.c_uint64 * 8)(2)  # version 2.0
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new(ctypes.addressof(later), b"dlpack_exchange_api", None)
    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", capsule, raising=False)
    assert interchange.tensor_interface() is None
    with xfer.Channel(4, pool=pool) as channel:
        for value in (torch.arange(3.0), {"a": torch.arange(3.0), "b": [torch.ones(50_000)]}):
            for _ in range(2):
                channel.sender.send(value, timeout=5)
                got = channel.receiver.recv(timeout=5, as_="torch")
                assert (got["a"] if isinstance(got, dict) else got).tolist() == [0, 1, 2]


@pytest.mark.skipif(_compiled.module is None, reason="no compiled core here")
def test_the_core_refuses_what_does_not_fit() -> None:
    """Descriptions from outside never lead beyond their block, and wrong arguments are errors."""
    core, (kind, interface) = _compiled.module, interchange.tensor_interface()  # type: ignore[misc]  # torch is here
    floats = interchange.dlpack_kind(np.dtype("f4"))
    block = np.zeros(256, np.uint8)
    wrong: list[tuple[int, int, tuple[int, ...]]] = [
        (1, 0, (65,)), (1, 256, (1,)), (1, 1 << 63, (1,)), (1, 0, (-1,)), (1, 0, (1 << 62,)),
        (2, 0, (1 << 40, 1 << 40)), (2, 0, (0, 1 << 62)), (1, (1 << 64) - 8, (2,)), (65, 0, (1,) * 65), (3, 0, (1,)),
    ]  # fmt: skip
    for ndim, offset, shape in wrong:
        with pytest.raises(ValueError, match=r"outside its block|cut off"):
            core.tensors(block, 0, struct.pack(f"<IIQ{len(shape)}q", floats, ndim, offset, *shape), interface)
    with pytest.raises(ValueError, match="outside its block"):
        core.tensors(block, 1 << 63, struct.pack("<IIQq", floats, 1, 0, 1), interface)
    with pytest.raises(RuntimeError):
        core.tensors(block, 0, struct.pack("<IIQq", 99 | 32 << 8 | 1 << 16, 1, 0, 1), interface)
    with pytest.raises((BufferError, ValueError)):
        core.tensors(b"x" * 256, 0, struct.pack("<IIQq", floats, 1, 0, 1), interface)
    assert sys.getrefcount(block) == 2

    leaf = torch.ones(4)
    fits = struct.pack("<QQ", 0, 16)
    beyond, short = struct.pack("<QQ", 241, 16), struct.pack("<QQ", 0, 12)
    for start, places in ((241, fits), (0, beyond), (0, short), (300, fits), (0, b"")):
        with pytest.raises(ValueError, match=r"resized|fit|extent"):
            core.write(memoryview(block), start, places, [leaf], kind, interface, 16)
    assert not block.any()
    core.write(memoryview(block), 240, fits, [leaf], kind, interface, 16)
    assert block[240:].view(np.float32).tolist() == [1, 1, 1, 1]
    with pytest.raises(TypeError):
        core.look((leaf,), kind, interface)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, dtype=torch.complex32),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.zeros(3, 3).to_sparse(),
        lambda: torch.zeros(3, 3).to_sparse_csr(),
        lambda: torch._efficientzerotensor(3),
    ],
    ids=["complex32", "quantized", "nested", "meta", "sparse", "csr", "zero"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_memory_are_refused(pool: xfer.Pool, make: Any) -> None:
    """Each says what it is and what to do, by itself, in a tree, and in a channel."""
    with xfer.Channel(2, pool=pool) as channel:
        for put in (
            pool.put,
            lambda value: pool.put({"a": value}),
            lambda value: channel.sender.send(value, timeout=1),
        ):
            with pytest.raises(errors.UnsupportedDtypeError):
                put(make())
    assert pool.stats().live == 0


class Tokens(collections.UserDict):  # type: ignore[type-arg]  # as tokenizers return
    """A mapping that is no dict."""


def test_any_mapping_arrives_as_a_dict_of_its_values(pool: xfer.Pool) -> None:
    """Never as an array of its keys, which is what NumPy makes of one."""
    ids = np.arange(3)
    for value in (Tokens(ids=ids), collections.ChainMap({"ids": ids}), collections.defaultdict(list, ids=ids)):
        for put in (value, [value], {"inside": value}):
            got = xfer.get(pool.put(put))
            got = got[0] if isinstance(put, list) else got.get("inside", got)
            assert type(got) is dict
            assert got.keys() == {"ids"}
            np.testing.assert_array_equal(got["ids"], ids)


@pytest.mark.parametrize(
    "value",
    [
        [1, "a"], [["a"], [b"a"]], ("a", 1.5), [[1], [2, 3]], None, object(), {1, 2}, iter([1]), print,
        torch.nn.ParameterDict({"a": torch.ones(1)}), torch.nn.Linear(1, 1), 2**70,
        b"a\0", "a\0", [b"a", b"b\0"], [["\0"], ["a"]], np.bytes_(b"a\0"), np.str_("a\0"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_array_is_refused(pool: xfer.Pool, value: Any) -> None:
    """NumPy would turn some of these into an array of something else."""
    for take in (pool.put, lambda it: xfer.move(it, "numpy")):
        with pytest.raises(errors.UnsupportedDtypeError):
            take(value)
    assert pool.stats().live == 0


def nested(make: Callable[[Any], Any], levels: int) -> Any:
    """Return a container in a container, so many levels deep."""
    value: Any = make(np.ones(1))
    for _ in range(levels):
        value = make(value)
    return value


@pytest.mark.parametrize("make", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: Batch(v, 1)])
def test_what_is_nested_too_deep_is_refused(pool: xfer.Pool, make: Callable[[Any], Any]) -> None:
    """The error is typed however deep the nesting is, and nothing is taken."""
    with pytest.raises(errors.UnsupportedDtypeError, match="100 levels deep"):
        pool.put(nested(make, 20_000))
    assert pool.stats().live == 0


def test_what_contains_itself_is_refused(pool: xfer.Pool) -> None:
    """Likewise, with and without arrays."""
    a_list: list[Any] = []
    a_dict: dict[str, Any] = {"x": np.ones(1)}
    a_list.append((a_list,))
    a_dict["self"] = [a_dict]
    for value in (a_list, a_dict):
        with pytest.raises(errors.UnsupportedDtypeError, match="contains itself"):
            pool.put(value)


@pytest.mark.slow  # torch takes seconds to import what these need
def test_tensors_of_a_transformation_are_refused(pool: xfer.Pool) -> None:
    """Inside `vmap` and `grad` a tensor stands for another one and has no memory."""

    def put(tensor: torch.Tensor) -> torch.Tensor:
        for value in (tensor, {"a": tensor}):
            with pytest.raises(errors.UnsupportedDtypeError, match="cannot view this tensor"):
                pool.put(value)
        return tensor.sum()

    torch.func.vmap(put)(torch.ones(3, 2))
    torch.func.grad(put)(torch.ones(3, 2))
