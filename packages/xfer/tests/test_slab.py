"""Small arrays in slots of a channel's slab: the compiled core and the Python one, and each with the other."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xfer
from xfer import _compiled, errors
from xfer._channel.channel import Receiver
from xfer._channel.layout import CANNOT, FULL, RETURN_HEAD, RETURN_TAIL, SENT, UNKNOWN
from xfer._channel.ring import Ring
from xfer._channel.slab import RETURNS, slab_shape
from xfer._convert.interchange import tensor_interface

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="channels need Linux")
KINDS = (False, True)
both = pytest.mark.parametrize(("sending", "receiving"), [(a, b) for a in KINDS for b in KINDS])
compiled_only = pytest.mark.skipif(_compiled.module is None, reason=f"no compiled core here: {_compiled.why_not}")


@contextlib.contextmanager
def channel_of(capacity: int, pool: xfer.Pool, sending: bool, receiving: bool) -> Any:
    """Make a channel whose ends run the given cores."""
    if (sending or receiving) and _compiled.module is None:
        pytest.skip(f"no compiled core here: {_compiled.why_not}")
    with xfer.Channel(capacity, pool=pool, compiled=sending, spin=0) as channel:
        channel.receiver = Receiver(bytes(channel.receiver), 0, receiving)
        yield channel


def in_slab(pool: xfer.Pool) -> bool:
    """Tell whether nothing travels as an array of the pool's own."""
    return pool.stats().live == 0


ARRAYS = [
    np.arange(256, dtype=np.float32),
    np.array(7, np.int16),
    np.ones((3, 4, 5), ">f8"),
    np.arange(3000).reshape(60, 50),
    np.zeros(0),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(20)[::-2],
    np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
    np.array(["2020-01-01", "NaT"], "datetime64[D]"),
    np.array(["long", "er"]),
    np.ones(70_000, np.uint8),
    np.ones(64 << 10, np.uint8),
    np.array([True, False]),
    np.ones((1,) * 20, np.complex64),
]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, len(ARRAYS) - 1)),
        st.tuples(st.just("recv"), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("slice"), st.integers(0, 30)),
    ),
    max_size=40,
)


@both
@given(steps=STEPS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_interleaving_keeps_every_array(sending: bool, receiving: bool, steps: list[tuple[str, int]]) -> None:
    """Whatever is sent, taken, kept and dropped in whatever order: what is held never changes, order is kept."""
    with xfer.Pool("64MiB") as pool, channel_of(4, pool, sending, receiving) as channel:
        under_way: list[np.ndarray[Any, Any]] = []
        held: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        number = 0
        for what, choice in steps:
            if what == "send":
                number += 1
                array = ARRAYS[choice].copy(order="K")
                if array.dtype.kind in "fiu":
                    array += array.dtype.type(number % 100)
                if len(under_way) == 4:
                    with pytest.raises(errors.WaitTimeoutError):
                        channel.sender.send(array, timeout=0)
                else:
                    channel.sender.send(array, timeout=0)
                    under_way.append(array)
            elif what == "recv" and under_way:
                held.append((channel.receiver.recv(timeout=5), under_way.pop(0)))
            elif what == "recv":
                with pytest.raises(errors.WaitTimeoutError):
                    channel.receiver.recv(timeout=0)
            elif held and what == "drop":
                del held[choice % len(held)]
            elif held:  # keep a part only: the slot has to stay as long
                view, expected = held[choice % len(held)]
                if view.ndim and view.dtype.names is None:
                    held[choice % len(held)] = view[:2], expected[:2]
            for view, expected in held:
                assert view.dtype == expected.dtype
                np.testing.assert_array_equal(view, expected)
        while under_way:
            held.append((channel.receiver.recv(timeout=5), under_way.pop(0)))
        for view, expected in held:
            np.testing.assert_array_equal(view, expected)
            assert not view.flags.writeable
        held.clear()
        view = expected = None
    gc.collect()


@both
def test_small_arrays_go_in_slots(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """A stream of small arrays takes one piece of the pool, whatever passes, and all of it comes back."""
    with channel_of(4, pool, sending, receiving) as channel:
        for number in range(500):
            channel.sender.send(np.full(100, number), timeout=5)
            assert in_slab(pool)
            assert channel.receiver.recv(timeout=5)[99] == number
        assert pool.stats().reserved <= 8 << 20
    assert pool.stats().waiting_for_readers == 0
    pool.trim()
    assert pool.stats().reserved == 0


@both
def test_slots_in_use_are_never_filled_again(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """Holding more arrays than there are slots sends the others through the pool; none changes."""
    with channel_of(3, pool, sending, receiving) as channel:
        held = []
        for number in range(50):
            channel.sender.send(np.full(50, number), timeout=5)
            held.append(channel.receiver.recv(timeout=5))
        assert all((view == number).all() for number, view in enumerate(held))
        del held
        channel.sender.settle()
        channel.sender.send(np.zeros(50), timeout=5)
        assert in_slab(pool)
        channel.receiver.recv(timeout=5)


@both
def test_a_larger_array_gets_larger_slots(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """Growing arrays move to a new slab once the old one is taken; arrays of the old one stay whole."""
    with channel_of(4, pool, sending, receiving) as channel:
        held = []
        for size in (10, 3000, 10, 60_000, 10):
            channel.sender.send(np.full(size, size % 251, np.uint8), timeout=5)
            held.append(channel.receiver.recv(timeout=5))
            assert in_slab(pool)
        for size in (10, 9000):  # larger than its slots while others are under way: by the pool
            channel.sender.send(np.full(size, 5, np.uint16), timeout=5)
        assert [channel.receiver.recv(timeout=5).size for _ in range(2)] == [10, 9000]
        assert [int(view.max()) for view in held] == [10, 3000 % 251, 10, 60_000 % 251, 10]


@both
def test_ends_in_two_processes(helper: Callable[..., Any], sending: bool, receiving: bool) -> None:
    """Each core on one side of two real processes: everything arrives, in order, and comes back."""
    if _compiled.module is None and (sending or receiving):
        pytest.skip(f"no compiled core here: {_compiled.why_not}")
    code = """
rx = xfer.Receiver(bytes.fromhex(arg[0]), compiled=arg[2] == "1")
with xfer.Sender(bytes.fromhex(arg[1]), compiled=arg[2] == "1") as tx:
    for array in rx: tx.send(array)
"""
    with (
        xfer.Pool("64MiB") as pool,
        xfer.Channel(8, pool=pool, compiled=sending) as there,
        xfer.Channel(8, compiled=sending) as back,
    ):
        helper(code, bytes(there.receiver).hex(), bytes(back.sender).hex(), str(int(receiving)))
        for number in range(1000):
            there.sender.send(np.full(1 + number % 300, number), timeout=30)
            if number >= 4:
                assert (back.receiver.recv(timeout=30) == number - 4).all()
        there.sender.close()
        assert [int(array[0]) for array in back.receiver] == list(range(996, 1000))


@both
def test_fork_while_arrays_are_held(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """A child's inherited arrays stay whole though the parent drops its own and goes on receiving."""
    with channel_of(2, pool, sending, receiving) as channel:
        held = []
        for number in (1, 2, 3, 4):  # all the slots there are
            channel.sender.send(np.full(500, number), timeout=5)
            held.append(channel.receiver.recv(timeout=5))
        go = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.close(go[1])
                os.read(go[0], 1)
                first = held.pop(0)
                good = (first == 1).all()
                del first
                gc.collect()
                status = int(not (good and [int(view.min()) for view in held] == [2, 3, 4]))
            os._exit(status)
        os.close(go[0])
        del held
        for number in range(5, 60):
            channel.sender.send(np.full(500, number), timeout=5)
            assert (channel.receiver.recv(timeout=5) == number).all()
        assert in_slab(pool)  # a new slab has taken the place of the one that the child looks at
        assert pool.stats().waiting_for_readers == 1
        os.write(go[1], b"x")
        os.close(go[1])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pool.stats().waiting_for_readers == 0


@both
def test_a_killed_receiver_gives_the_slab_back(
    pool: xfer.Pool, helper: Callable[..., Any], sending: bool, receiving: bool
) -> None:
    """Kill -9 of a receiver that holds slots: the kernel ends its lease, and the whole slab is free."""
    if _compiled.module is None and (sending or receiving):
        pytest.skip(f"no compiled core here: {_compiled.why_not}")
    code = """
rx = xfer.Receiver(bytes.fromhex(arg[0]), compiled=arg[1] == "1")
held = [rx.recv(), rx.recv()]; say("held"); wait()
"""
    with xfer.Channel(4, pool=pool, compiled=sending) as channel:
        reader = helper(code, bytes(channel.receiver).hex(), str(int(receiving)))
        for number in (1, 2, 3):
            channel.sender.send(np.full(100, number))
        assert reader.line() == "held"
        threading.Timer(0.1, os.kill, (reader.pid, signal.SIGKILL)).start()
        with pytest.raises(errors.PeerDiedError):
            channel.sender.flush(timeout=30)
        with pytest.raises(errors.PeerDiedError):
            channel.sender.send(np.zeros(3))
        assert pool.stats().waiting_for_readers == 0
        pool.trim()
        assert pool.stats().reserved == 0


@both
def test_arrays_outlive_both_ends_and_the_pool(sending: bool, receiving: bool) -> None:
    """What was received stays readable after the channel, the sender's pool, and everything else is closed."""
    with xfer.Pool("8MiB") as pool:
        with channel_of(4, pool, sending, receiving) as channel:
            channel.sender.send(np.arange(300))
            view = channel.receiver.recv(timeout=5)
            channel.receiver.close()
        for number in range(20):
            pool.put(np.full(300, number))
    assert view.tolist() == list(range(300))


@both
def test_a_second_sender_after_a_death(
    pool: xfer.Pool, helper: Callable[..., Any], sending: bool, receiving: bool
) -> None:
    """What a killed sender left unread is a typed error or its own array, and the sender that follows is heard."""
    with channel_of(4, pool, sending, receiving) as channel:
        code = "tx = xfer.Sender.from_bytes(bytes.fromhex(arg[0])); tx.send(np.full(9, 1)); say('sent'); wait()"
        first = helper(code, bytes(channel.sender).hex())
        assert first.line() == "sent"
        first.kill()
        channel.sender.send(np.full(9, 2), timeout=5)
        with pytest.raises(errors.StaleHandleError, match="another one"):
            channel.receiver.recv(timeout=5)
        assert channel.receiver.recv(timeout=5)[0] == 2


def test_a_forgotten_sender_gives_its_slab_back(pool: xfer.Pool) -> None:
    """A sender that is dropped without being closed keeps nothing of its pool, even if the pool is busy just then."""
    channel = xfer.Channel(4, pool=pool)
    channel.sender.send(np.zeros(9))
    channel.receiver.recv(timeout=5)
    channel.receiver.close()
    with pool._lock:
        channel.sender._outgoing.drop_slab()  # as when it is collected while the pool's lock is held
    channel.close()
    assert pool.stats().waiting_for_readers == 0
    pool.trim()
    assert pool.stats().reserved == 0


@both
def test_a_closed_pool_is_replaced(sending: bool, receiving: bool) -> None:
    """A sender whose pool was closed goes on with the process's own."""
    with xfer.Pool("8MiB") as pool, channel_of(4, pool, sending, receiving) as channel:
        channel.sender.send(np.arange(3))
        channel.receiver.recv(timeout=5)
        pool.close()
        channel.sender.send(np.arange(4))
        assert channel.receiver.recv(timeout=5).tolist() == [0, 1, 2, 3]


@both
def test_a_budget_too_small_for_a_slab(sending: bool, receiving: bool) -> None:
    """With a budget that leaves no room for a slab, or spends it before, small arrays go through the pool."""
    with xfer.Pool(2000) as pool, channel_of(4, pool, sending, receiving) as channel:
        channel.sender.send(np.zeros(100))
        assert channel.receiver.recv(timeout=5).size == 100
    with xfer.Pool("1MiB") as pool, channel_of(4, pool, sending, receiving) as channel:
        kept = [pool.put(np.zeros(950_000, np.uint8)), pool.put(np.zeros(50_000, np.uint8))]
        channel.sender.send(np.zeros(200), timeout=5)
        assert channel.receiver.recv(timeout=5).size == 200
        assert len(kept) == 2


@both
def test_forged_returns_are_ignored(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """Slots that were not out, wrong slabs and impossible counts on the way back do no harm."""
    with channel_of(4, pool, sending, receiving) as channel:
        channel.sender.send(np.full(9, 1))
        view = channel.receiver.recv(timeout=5)
        words = channel.receiver._ring.words
        for value in (0, 1 << 32 | 7, 1 << 32 | 0xFFFF, 5 << 32, (1 << 64) - 1):
            head = words[RETURN_HEAD]
            words[RETURNS + (head & (channel.receiver._ring.returns - 1))] = value
            words[RETURN_HEAD] = head + 1
        for number in range(30):
            channel.sender.send(np.full(9, number), timeout=5)
            assert channel.receiver.recv(timeout=5)[0] == number
            assert (view == 1).all()
        words[RETURN_HEAD] += 1 << 40
        for number in range(30):
            channel.sender.send(np.full(9, number), timeout=5)
            assert channel.receiver.recv(timeout=5)[0] == number
        assert (view == 1).all()


@both
def test_a_slot_that_is_returned_twice_is_free_once(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """Returns that come a second time do not put two arrays into one slot."""
    with channel_of(4, pool, sending, receiving) as channel:
        for number in range(4):
            channel.sender.send(np.full(9, number), timeout=5)
            channel.receiver.recv(timeout=5)
        words, mask = channel.receiver._ring.words, channel.receiver._ring.returns - 1
        first, head = words[RETURN_TAIL], words[RETURN_HEAD]
        for place in range(head, head + 3):  # the sender looks at them once its other slots are used up
            words[RETURNS + (place & mask)] = words[RETURNS + (first & mask)]
        words[RETURN_HEAD] = head + 3
        held = []
        for number in range(20):
            channel.sender.send(np.full(9, number), timeout=5)
            held.append(channel.receiver.recv(timeout=5))
        assert [int(view[3]) for view in held] == list(range(20))
        assert all((view == view[0]).all() for view in held)


@both
def test_a_channel_takes_as_many_messages_as_its_capacity(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """One more would lie over the oldest one; arrays go in slots, by handle, and in turns."""
    with channel_of(3, pool, sending, receiving) as channel:
        for sizes in ((9, 9, 9), (100_000,) * 3, (9, 100_000, 9), (100_000, 9, 100_000)):
            for number, size in enumerate(sizes):
                channel.sender.send(np.full(size, number), timeout=5)
            for size in (9, 100_000):
                with pytest.raises(errors.WaitTimeoutError):
                    channel.sender.send(np.full(size, 9), timeout=0)
            assert [int(channel.receiver.recv(timeout=5)[-1]) for _ in sizes] == [0, 1, 2]


@both
def test_a_damaged_message_is_an_error(pool: xfer.Pool, sending: bool, receiving: bool) -> None:
    """An entry that points outside the slab, or describes no array, is a typed error, and the next one is fine."""
    with channel_of(4, pool, sending, receiving) as channel:
        for _ in range(3):
            channel.sender.send(np.arange(9))
        ring = channel.receiver
        ring.attach()
        start = ring._ring.start
        ring._ring.map[start + 4 : start + 8] = struct.pack("<I", 1000)
        with pytest.raises(errors.HandleError, match="damaged"):
            ring.recv(timeout=5)
        ring._ring.map[start + 640 + 24 + 8] ^= 0xFF
        with pytest.raises(errors.HandleError):
            ring.recv(timeout=5)
        assert ring.recv(timeout=5).tolist() == list(range(9))


def test_many_shapes_and_threads(pool: xfer.Pool) -> None:
    """More kinds of arrays than a core remembers, from four threads at once."""
    with xfer.Channel(16, pool=pool) as channel:

        def send(base: int) -> None:
            for number in range(200):
                channel.sender.send(np.full((1 + number % 20, base), base), timeout=30)

        threads = [threading.Thread(target=send, args=(base,), daemon=True) for base in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        counts = [0] * 5
        for _ in range(800):
            array = channel.receiver.recv(timeout=30)
            assert (array == array.shape[1]).all()
            counts[array.shape[1]] += 1
        for thread in threads:
            thread.join()
        assert counts == [0, 200, 200, 200, 200]


@pytest.mark.parametrize("compiled", KINDS)
def test_the_cores_say_what_they_cannot_do(pool: xfer.Pool, compiled: bool) -> None:
    """Both cores give the same answers, also to what they cannot take."""
    if compiled and _compiled.module is None:
        pytest.skip(f"no compiled core here: {_compiled.why_not}")
    with xfer.Channel(2, pool=pool, compiled=compiled) as channel:
        channel.sender.attach()
        core, ring = channel.sender._core, channel.sender._ring
        assert core is not None
        assert ring is not None
        array = np.arange(8)
        assert core.send(array, 0) == CANNOT
        core.use_slab(bytearray(1024), 0, 256, 3, 5)
        assert (core.stride, core.epoch, core.last) == (256, 5, 0)
        assert core.send(array, 0) == UNKNOWN
        core.learn(array.dtype, array.shape, b"meta")
        for wrong in ([1], np.arange(20)[::2], np.zeros(0), np.zeros(1000), memoryview(b"x")):
            assert core.send(wrong, 0) in (CANNOT, UNKNOWN)
        assert [core.send(array, 0) for _ in range(3)] == [SENT, SENT, FULL]
        assert core.last == 2
        assert ring.peek()[1:] == (64, 1, 5, b"meta")
        for number in range(2000):
            core.learn(array.dtype, (number,), b"other")
        core.drop_slab()
        assert core.send(array, 0) == CANNOT
        assert channel.sender._outgoing.give_back_slab is None
        ring.took(0)
        ring.took(1)


@compiled_only
def test_the_compiled_core_suits_every_python() -> None:
    """No format has a "#": what that calls depends on the Python compiled against, and one file serves them all."""
    sources = "".join(file.read_text() for file in (Path(xfer.__file__).parent / "_csrc").glob("*.c"))
    formats = re.findall(r'Py(?:Arg_|_Build)\w+\([^"]*"([^"]*)"', sources)
    assert formats
    assert not [text for text in formats if "#" in text]


def test_the_compiled_core_refuses_wrong_arguments(pool: xfer.Pool) -> None:
    """Memory that does not fit, and calls with wrong arguments, raise and never touch memory."""
    core = _compiled.module
    with xfer.Channel(2, pool=pool) as channel:
        ring = Ring(bytes(channel.sender), sending=True)
        for wrong in ((ring.map, 1 << 40, ring.start, 4), (ring.map, 2, 8, 4), (ring.map, 2, ring.start, 3)):
            with pytest.raises(ValueError, match="does not fit"):
                core.SenderCore(*wrong, ring.peer_bell, np.ndarray)
        with pytest.raises((BufferError, TypeError)):
            core.ReceiverCore(b"x", 2, ring.start, 4, ring.peer_bell, np.ndarray)
        sender = core.SenderCore(ring.map, 2, ring.start, 4, ring.peer_bell, np.ndarray)
        with pytest.raises(TypeError):
            sender.__init__(ring.map, 2, ring.start, 4, ring.peer_bell, np.ndarray)
        for call in (lambda: sender.send(1), lambda: sender.send(1, "x"), lambda: sender.learn(1, 2, 3)):
            with pytest.raises(TypeError):
                call()
        with pytest.raises(ValueError, match="slots"):
            sender.use_slab(bytearray(100), 0, 64, 2, 1)
        with pytest.raises(ValueError, match="too long"):
            sender.learn(np.dtype("f4"), (1,), b"x" * 1000)
        receiver = core.ReceiverCore(ring.map, 2, ring.start, 4, ring.peer_bell, np.ndarray)
        with pytest.raises(ValueError, match="slots"):
            receiver.use_slab(np.zeros(100, np.uint8), 64, 2, 1)
        with pytest.raises(ValueError, match="too long"):
            receiver.learn(b"x" * 1000, 1, (1,), np.dtype("f4"), 0)
        with pytest.raises(TypeError):
            receiver.recv("x")
        assert receiver.recv(0) is None
        sender.detach()
        receiver.detach()
        assert sender.send(np.zeros(1), 0) == CANNOT
        assert receiver.recv(0) is None
        ring.close()
        with pytest.raises(ValueError, match="do not fit"):
            core.copy(bytearray(10), 5, np.zeros(8))
        with pytest.raises(TypeError):
            core.copy(bytearray(10), 5)


@compiled_only
@pytest.mark.parametrize("whole_lines", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 63, 64, 4096])
def test_streaming_copy_is_exact(offset: int, whole_lines: bool) -> None:
    """A copy past the cache hits exactly its bytes, at any alignment, whichever stores the processor has."""
    source = np.random.default_rng(offset).integers(0, 255, (33 << 20) + 7, np.uint8)[offset % 5 :]
    target = bytearray(source.nbytes + 2 * 4096 + 1)
    before = _compiled.module.store_whole_lines(whole_lines)
    _compiled.module.copy(target, offset, source)
    _compiled.module.store_whole_lines(before)
    seen = np.frombuffer(target, np.uint8)
    assert not seen[:offset].any()
    assert not seen[offset + source.nbytes :].any()
    np.testing.assert_array_equal(seen[offset : offset + source.nbytes], source)


@compiled_only
@pytest.mark.parametrize("whole_lines", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2048])
def test_a_tree_past_the_cache_is_exact(shift: int, whole_lines: bool) -> None:
    """The parts of a large tree lie where they belong, whatever follows them, and nothing is written between them."""
    torch = pytest.importorskip("torch")
    interface = tensor_interface()
    if interface is None:
        pytest.skip("this torch has no DLPack exchange interface")
    memory = torch.randint(1, 255, (1 << 18,), dtype=torch.uint8)
    parts: list[Any] = []
    places, at = b"", 0
    for count in (1 << 14, 20_001, 0, 5, 65_536, 16_447, (1 << 14) + 63):
        parts.append(memory[at : at + count])
        places += struct.pack("<QQ", at + shift, count)
        at += count + 3
    parts.insert(3, np.zeros(2))  # the core passes over what is no tensor
    places = places[:48] + struct.pack("<QQ", 0, 0) + places[48:]
    target = bytearray(1 << 18)
    before = _compiled.module.store_whole_lines(whole_lines)
    _compiled.module.write(target, 0, places, parts, *interface, 1 << 40)
    _compiled.module.store_whole_lines(before)
    wanted = np.zeros(1 << 18, np.uint8)
    for index, (start, count) in enumerate(struct.iter_unpack("<QQ", places)):
        if index != 3:
            wanted[start : start + count] = parts[index].numpy()
    np.testing.assert_array_equal(np.frombuffer(target, np.uint8), wanted)


def test_python_cores_without_a_compiled_one() -> None:
    """An installation without the compiled part works and says why it is slower."""
    code = """
import sys; sys.modules["xfer._native"] = None
import numpy as np, xfer
from xfer._doctor.examine import examine
with xfer.Channel(2) as channel:
    channel.sender.send(np.arange(3)); assert channel.receiver.recv(timeout=5).tolist() == [0, 1, 2]
    print(type(channel.sender._core).__module__)
handle = xfer.put(np.ones((2 << 20) + 1)); assert xfer.get(handle).sum() == (2 << 20) + 1
print(next(f.detail for f in examine() if "compiled" in f.what))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("xfer._channel.slab\n")
    assert "Python" in done.stdout


def test_python_without_ordered_stores(pool: xfer.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors that reorder stores the Python cores ring for each message and never spin."""
    monkeypatch.setattr(importlib.import_module("xfer._channel.ring"), "ORDERED_STORES", False)
    with channel_of(2, pool, False, False) as channel:
        for number in range(20):
            channel.sender.send(np.full(9, number), timeout=5)
            assert channel.receiver.recv(timeout=5)[0] == number


def test_slab_shapes() -> None:
    """Slots are powers of two; few large ones or many small ones, within an eighth of the budget."""
    assert slab_shape(1, 4, 1 << 30) == (256, 8)
    assert slab_shape(4096, 256, 1 << 30) == (4096, 512)
    assert slab_shape(64 << 10, 256, 1 << 30) == (64 << 10, 64)
    assert slab_shape(64 << 10, 256, 1 << 20) == (64 << 10, 2)
    assert slab_shape(64 << 10, 256, 1 << 19) == (64 << 10, 0)


@compiled_only
def test_a_core_of_other_sources_is_refused(tmp_path: Path) -> None:
    """A core that was compiled before its sources changed is one clear error at import, and no core is none."""
    copy = tmp_path / "xfer"
    shutil.copytree(Path(xfer.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import xfer; print(xfer._compiled.module, xfer.__file__)"
    )

    def run() -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return done.returncode, done.stdout or done.stderr.splitlines()[-1]

    status, said = run()
    assert status == 0
    assert said.startswith("<module")
    assert str(copy) in said

    with (copy / "_csrc" / "tree.c").open("a") as file:
        file.write("/* changed */\n")
    status, said = run()
    assert status == 1
    assert said.startswith("xfer.errors.StaleCoreError: ")
    assert "_native.abi3.so was compiled from other sources" in said
    assert "install pentad-xfer again" in said

    shutil.rmtree(copy / "_csrc")  # as where an installation leaves the sources out
    assert run()[0] == 0
    (copy / "_native.abi3.so").unlink()
    status, said = run()
    assert status == 0
    assert said.startswith("None")


@compiled_only
def test_a_core_of_another_layout_is_refused(tmp_path: Path) -> None:
    """The core's numbers are compared where its sources are not installed; one from before there was a digest fails."""
    core = _compiled.module
    _compiled.check(core, tmp_path)
    _compiled.check(core, Path(xfer.__file__).with_name("_csrc"))
    other = SimpleNamespace(layout=lambda: core.layout() | {"entry": 704}, sources=core.sources, __file__="core.so")
    with pytest.raises(errors.StaleCoreError, match=r"core\.so"):
        _compiled.check(other, tmp_path)
    old = SimpleNamespace(layout=core.layout, __file__="core.so")
    with pytest.raises(errors.StaleCoreError, match="other sources"):
        _compiled.check(old, Path(xfer.__file__).with_name("_csrc"))
