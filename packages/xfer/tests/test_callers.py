"""What callers pass by mistake, how long they wait, and what happens around their calls."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xfer
from xfer import errors
from xfer._shared.tree import unpack
from xfer._sizes import parse_size

INTERRUPTS = Path(__file__).parent / "workers" / "interrupts.py"
LONG = [math.inf, 1e300, 30 * 86_400.0, 5_000_000, np.float32(1e6)]


@dataclasses.dataclass
class Half:
    """A dataclass one of whose fields is filled later."""

    one: Any
    two: Any = dataclasses.field(init=False)


def test_a_shape_of_true_changes_no_other_array(pool: xfer.Pool) -> None:
    """`True` equals 1, so that a cache takes the shape (True,) for (1,): the arrays put later are none the worse."""
    with pool.loan(True) as array:
        array[:] = 5
    with xfer.WritableArray(True) as writable:
        assert writable.array.shape == (1,)
    for shape in ((1,), (1, 1)):
        handle = pool.put(np.full(shape, 3.0))
        assert xfer.get(handle).tolist() == np.full(shape, 3.0).tolist()


def test_numbers_of_numpy_and_torch_are_numbers(pool: xfer.Pool) -> None:
    """A length, a capacity or a size that came out of an array serves like Python's own."""
    for three in (np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)):
        with pool.loan(three) as array:
            assert array.shape == (3,)
        with xfer.WritableArray((2, three)) as writable:
            assert writable.array.shape == (2, 3)
        with xfer.Channel(three, pool=pool) as channel:
            channel.sender.send(np.ones(2), timeout=5)
            assert channel.receiver.recv(timeout=np.float32(5)).sum() == 2
    with xfer.Pool(np.int64(1 << 20)) as other:
        assert other.put(np.ones(2)).nbytes == 16


@pytest.mark.parametrize("shape", [2.5, (2.7,), "ab", None, -1, (3, -1), [[1, 2]], object()], ids=repr)
def test_senseless_shapes_are_refused(pool: xfer.Pool, shape: Any) -> None:
    """A shape is not rounded: whatever is no whole number is a ValueError that shows it."""
    for take in (pool.loan, xfer.WritableArray):
        with pytest.raises(ValueError, match="got the shape"):
            take(shape)
    assert pool.stats().used == 0


def test_what_no_process_can_address_is_a_typed_error(pool: xfer.Pool) -> None:
    """A shape of more bytes than 64 bits count is BudgetExceededError, as one that does not fit the memory is."""
    for take in (pool.loan, xfer.WritableArray):
        with pytest.raises(errors.BudgetExceededError):
            take((1 << 40, 1 << 40))


@pytest.mark.parametrize("token", ["00ff", None, 5, 1.5, [1, 2], object(), np.arange(3)], ids=repr)
def test_what_is_no_handle_is_refused(pool: xfer.Pool, token: Any) -> None:
    """Every call that takes a handle or the bytes of an end says what it got, and what it wants."""
    for take in (
        xfer.get, xfer.open, pool.release, pool.retain, pool.release_later, xfer.Handle.from_bytes,
        xfer.WritableArray.from_bytes, xfer.SharedArrayStore.attach,
    ):  # fmt: skip
        with pytest.raises(errors.HandleError):
            take(token)
    if not isinstance(token, np.ndarray):
        with pytest.raises(errors.HandleError, match="want a Sender"):
            xfer.Sender.from_bytes(token)


def test_handles_travel_in_any_bytes(pool: xfer.Pool) -> None:
    """A handle that came in a bytearray, a memoryview or an array of bytes is a handle."""
    raw = bytes(pool.put(np.arange(3)))
    for token in (bytearray(raw), memoryview(raw), np.frombuffer(raw, np.uint8)):
        assert xfer.get(token).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "size", [None, "1e6", "9" * 400, math.inf, math.nan, b"5MB", "1.2.3", []], ids=lambda it: str(it)[:9]
)
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    """A budget that is no size is a ValueError at once."""
    with pytest.raises(ValueError, match=r"want a (positive )?size"):
        xfer.Pool(size)


def test_sizes_are_exact() -> None:
    """A size as text loses no byte, and a float counts as the whole number that it is."""
    assert parse_size("9007199254740993B") == 9007199254740993
    assert parse_size("2.5KiB") == 2560
    assert (parse_size(2e9), type(parse_size(2e9))) == (2_000_000_000, int)


@pytest.mark.parametrize("timeout", LONG, ids=str)
def test_a_timeout_may_be_longer_than_the_system_counts(pool: xfer.Pool, timeout: float) -> None:
    """Weeks and infinity end with what is waited for, at each kind of end."""
    with xfer.Channel(1, pool=pool, spin=0) as channel, xfer.Topic("callers-long", pool=pool) as topic:
        with topic.subscribe() as reader:

            def later(call: Callable[[], Any]) -> Callable[[], None]:
                timer = threading.Timer(0.02, call)
                timer.start()
                return timer.join

            done = later(lambda: channel.sender.send(np.ones(1)))
            assert xfer.wait([channel.receiver], timeout=timeout) == [channel.receiver]
            assert channel.receiver.recv(timeout=timeout).sum() == 1
            done()
            channel.sender.send(np.ones(1), timeout=timeout)
            done = later(channel.receiver.recv)
            channel.sender.send(np.ones(1), timeout=timeout)
            done()
            done = later(channel.receiver.recv)
            channel.sender.flush(timeout)
            done()
            done = later(lambda: topic.publish(np.ones(1), timeout=timeout))
            assert reader.recv(timeout=timeout).sum() == 1
            done()
        topic.remove()


def test_put_waits_for_ever_if_asked_to() -> None:
    """`timeout=None` means the same at a pool as at every other wait."""
    with xfer.Pool("1MiB") as pool:
        full = pool.put(np.ones(900_000, np.uint8))
        timer = threading.Timer(0.02, pool.release, [full])
        timer.start()
        assert pool.put(np.ones(900_000, np.uint8), timeout=None).nbytes == 900_000
        timer.join()


def test_wait_takes_a_list_of_ends(pool: xfer.Pool) -> None:
    """One receiver is not iterated over, which would take its arrays; nothing to wait for is no wait for ever."""
    with xfer.Channel(4, pool=pool) as channel:
        channel.sender.send(np.ones(2))
        for ends in (channel.receiver, channel.sender, [channel], [3]):
            with pytest.raises(ValueError, match="want"):
                xfer.wait(ends, timeout=5)  # type: ignore[type-var]
        with pytest.raises(ValueError, match="no ends"):
            xfer.wait([])
        assert xfer.wait([], timeout=0) == []
        assert channel.receiver.recv(timeout=0).sum() == 2


@pytest.mark.parametrize("spin", [-1, math.nan, math.inf, 1e10])
def test_senseless_spins_are_refused(spin: float) -> None:
    """A spin that is no time, or does not fit the core's clock, is refused where it is given."""
    with pytest.raises(ValueError, match="got spin"):
        xfer.Channel(spin=spin)


def test_names_are_text(pool: xfer.Pool) -> None:
    """A name of a topic or of an array that is no text is a ValueError, and takes no memory."""
    with xfer.SharedArrayStore(pool) as store:
        used = pool.stats().used
        for name in (5, None, b"x", ("a", 1)):
            for change in (store.create, store.replace):
                with pytest.raises(ValueError, match="want text"):
                    change(name, np.ones(2))  # type: ignore[arg-type]
        assert pool.stats().used == used
    with pytest.raises(ValueError, match="want text"):
        xfer.Topic(5)  # type: ignore[arg-type]


def test_what_a_tree_cannot_hold_is_refused_and_large_numbers_arrive(pool: xfer.Pool) -> None:
    """A field without a value, a key of thousands of digits and a list of parameters are refused; large values pass."""
    for value in (Half(np.ones(1)), {10**5000: np.ones(1)}, torch.nn.ParameterList([torch.ones(2)])):
        with pytest.raises(errors.UnsupportedDtypeError):
            pool.put(value)
    assert pool.stats().live == 0
    for number in (10**5000, -(10**5000), 2**1000, -1):
        assert xfer.get(pool.put({"n": number}))["n"] == number


@pytest.mark.parametrize("kind", [np.ndarray, np.float32, torch.Tensor, torch.nn.Parameter])
def test_a_class_is_no_array(pool: xfer.Pool, kind: type) -> None:
    """A class that was passed in place of its array is refused by type, although it has what its arrays have."""
    with xfer.Channel(2, pool=pool) as channel:
        for use in (pool.put, channel.sender.send, functools.partial(xfer.move, to="torch"), xfer.ops.sum):
            with pytest.raises(errors.UnsupportedDtypeError, match="class"):
                use(kind)
    for tree in ({"a": kind}, [np.ones(2), kind], [kind]):
        with pytest.raises(errors.UnsupportedDtypeError):
            pool.put(tree)
    assert pool.stats().live == 0


def test_an_array_that_stands_twice_arrives_as_two(pool: xfer.Pool) -> None:
    """A change of one tensor does not change the other, whatever they shared before."""
    tied = torch.zeros(3)
    found = xfer.get(pool.put({"a": tied, "b": tied}), as_="torch")
    found["a"].add_(1)
    assert (found["a"].tolist(), found["b"].tolist()) == ([1, 1, 1], [0, 0, 0])


def test_a_structured_dtype_may_have_no_fields(pool: xfer.Pool) -> None:
    """It comes back as it was, not as anonymous bytes."""
    array = np.empty(3, np.dtype([]))
    assert xfer.get(pool.put(array)).dtype == array.dtype


def test_arrays_pass_while_another_thread_imports_torch(pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """During an import the module is there already, and has nothing in it yet."""
    for name in ("torch", "numpy.ma"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    array = np.arange(6).reshape(2, 3)
    assert xfer.get(pool.put(array.view(np.recarray))).tolist() == array.tolist()
    assert xfer.get(pool.put({"a": array}))["a"].tolist() == array.tolist()
    with xfer.Channel(4, pool=pool) as channel:
        for size in (6, 60_000):
            channel.sender.send(np.arange(size), timeout=5)
            assert channel.receiver.recv(timeout=5).sum() == size * (size - 1) // 2
    assert xfer.explain(array, "numpy").copies == 0


def test_a_signal_handler_may_raise_at_any_moment() -> None:
    """Ctrl-C at each moment of put, get and release leaves no held lock and no slot that is filled twice."""
    done = subprocess.run([sys.executable, str(INTERRUPTS)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 10, "the tracer found no moments"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_the_command_line_works_without_an_output(closed: str) -> None:
    """A job whose standard output was closed gets the status, and no traceback."""
    shell = f'exec "{sys.executable}" -m xfer ls {closed}'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@dataclasses.dataclass
class Named(dict):  # type: ignore[type-arg]  # as outputs of transformers are
    """A mapping that is a dataclass as well."""

    hidden: Any = None
    pooled: Any = None


@dataclasses.dataclass
class Listed(list):  # type: ignore[type-arg]
    """A list with a field."""

    scale: Any = None


def test_a_container_with_fields_loses_none_of_them(pool: xfer.Pool) -> None:
    """What is sent of a container are its items: fields that are no items are refused by name."""
    array = np.arange(3)
    output = Named(hidden=array)
    output["hidden"] = array
    got = xfer.get(pool.put(output))
    assert type(got) is dict
    assert got["hidden"].tolist() == [0, 1, 2]
    assert xfer.get(pool.put(Named())) == {}
    listed = Listed(2.0)
    listed.append(array)
    live = pool.stats().live
    for wrong in (
        Named(hidden=array),
        Named(pooled=0),
        Listed(2.0),
        listed,
        [Named(hidden=array), array],
        {"a": listed},
    ):
        with pytest.raises(errors.UnsupportedDtypeError, match=r"not among its items \((hidden|pooled|scale)\)"):
            pool.put(wrong)
    assert pool.stats().live == live


def test_a_parameter_without_a_shape_yet_is_refused(pool: xfer.Pool) -> None:
    """By itself, in a tree, in a channel, and by `move`; the error names the remedy."""
    lazy = torch.nn.UninitializedParameter()
    with xfer.Channel(2, pool=pool) as channel:
        for take in (pool.put, lambda it: pool.put({"a": it}), channel.sender.send, lambda it: xfer.move(it, "numpy")):
            with pytest.raises(errors.UnsupportedDtypeError, match="call its lazy module first"):
                take(lazy)
    assert pool.stats().live == 0


def test_a_class_in_a_tree_is_refused_as_what_it_is(pool: xfer.Pool) -> None:
    """Also where its objects would be taken."""
    for kind in (Named, Listed, np.ndarray, int):
        with pytest.raises(errors.UnsupportedDtypeError, match="a tree may hold"):
            pool.put({"x": np.zeros(1), "kind": kind})


def test_a_tree_of_a_later_release_says_so() -> None:
    """A kind of container that this release does not know is an error of its own, not another container."""
    text = json.dumps([["z", "builtins:tuple", ["x"], 1], [["<f8", [3], 0, 0]]]).encode()
    head = struct.pack("<II", len(text), 0) + text
    block = np.frombuffer(head + bytes(-len(head) % 64) + np.arange(3.0).tobytes(), np.uint8)
    with pytest.raises(errors.HandleError, match="'z', which this release does not know"):
        unpack(block, "numpy")
