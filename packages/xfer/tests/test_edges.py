"""The edges of the machine: no descriptor left, a small address space. Every refusal has a type of xfer."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xfer
from xfer._weak_methods import WeakMethods

SWEEP = Path(__file__).parent / "workers" / "descriptor_sweep.py"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and memfd")


@linux_only
def test_no_descriptor_left_is_a_typed_error_everywhere(helper: Callable[..., Any]) -> None:
    """Whatever is called when the descriptors run out raises an error of xfer, and works again when there are some."""
    peer = helper(
        "pool = xfer.Pool('8MiB'); channel = xfer.Channel(2); w = xfer.WritableArray(3)\n"
        "say(bytes(pool.put(np.ones(200_000))).hex(), bytes(channel.receiver).hex(), bytes(w).hex()); wait()"
    )
    command = [sys.executable, str(SWEEP), *peer.line().split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@linux_only
def test_no_address_space_left_is_a_typed_error(helper: Callable[..., Any]) -> None:
    """Where RLIMIT_AS leaves no room to map memory, putting and getting are BudgetExceededError, and go on later."""
    peer = helper("h = xfer.put(np.ones(16 << 20, np.uint8)); say(bytes(h).hex()); wait()")
    code = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
pool = xfer.Pool("1GiB"); data = np.ones(16 << 20, np.uint8)
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), hard))
for call in (lambda: xfer.get(bytes.fromhex(arg[0])), lambda: pool.put(data)):
    try: call(); say("done")
    except Exception as error: say(type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
say(xfer.get(bytes.fromhex(arg[0])).sum(), xfer.get(pool.put(data)).sum())
"""
    small = helper(code, peer.line())
    said = [small.line(), small.line()]
    assert set(said) == {"BudgetExceededError"}
    assert small.line() == f"{16 << 20} {16 << 20}"


@linux_only
def test_an_exit_by_an_exception_prints_that_exception_only() -> None:
    """Ends, pools and arrays that are alive when the interpreter exits end without a word."""
    code = """
import numpy as np, xfer
class Holder: pass
holder = Holder(); holder.itself = holder
holder.channel = xfer.Channel(4); holder.pool = xfer.Pool("16MiB"); holder.topic = xfer.Topic("edges-exit")
holder.reader = holder.topic.subscribe(); holder.topic.remove()
holder.channel.sender.send({"a": np.ones(50_000)}); holder.tree = holder.channel.receiver.recv()
raise KeyError("the only line")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'the only line'"
    assert "ignored" not in done.stderr


def test_methods_are_called_while_their_objects_live() -> None:
    """In the order in which they were added, from any thread; an object that died is left out, and so is its entry."""
    methods, called = WeakMethods(), []

    class One:
        def __init__(self, number: int) -> None:
            self.number = number

        def note(self) -> None:
            called.append(self.number)
            if self.number == 3:
                extra.append(One(99))
                methods.add(extra[-1].note)  # while the others are being called

    extra: list[One] = []
    ones = [One(number) for number in range(6)]
    for one in ones:
        methods.add(one.note)
    del ones[1], one
    methods()
    assert called == [0, 2, 3, 4, 5]
    extra.clear()
    ones[:] = [One(number) for number in range(400)]

    def add(part: list[One]) -> None:
        for one in part:
            methods.add(one.note)

    threads = [threading.Thread(target=add, args=(ones[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    called.clear()
    methods()
    assert sorted(set(called)) == [*range(400)]
    del threads, thread
    ones.clear()
    extra.clear()
    gc.collect()
    called.clear()
    methods()
    assert called == []


@linux_only
def test_memory_that_a_reader_keeps_for_reuse_makes_room_for_the_next_array(helper: Callable[..., Any]) -> None:
    """Where RLIMIT_AS leaves no room for one more private mapping, those that no array uses are given up."""
    code = """
import resource
from xfer._shared.reader import READER
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
pool = xfer.Pool("1GiB")
first, second = (bytes(pool.put(np.full(64 << 20, n, np.uint8))) for n in (1, 2))
array, _ = READER.array(first, private=True)
array[:] = 3
open_view = xfer.get(second)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
del array
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), hard))
array, _ = READER.array(second, private=True)
say(array[5], array[-1])
"""
    assert helper(code).line() == "2 2"


def test_what_is_kept_of_trees_that_keep_changing_is_bounded(pool: xfer.Pool) -> None:
    """A stream whose shapes are new each time does not fill the memory of either side, however large its texts are."""
    names = [f"{number}" * 2000 for number in range(40)]
    tracemalloc.start()
    try:
        for step in range(60):
            tree = {name: np.zeros(step + 1, np.uint8) for name in names}
            handle = pool.put(tree)
            assert len(xfer.get(handle)[names[7]]) == step + 1
            pool.release(handle)
        assert tracemalloc.get_traced_memory()[0] < 12 << 20
        first, second = (pool.put({"x": array}) for array in (np.ones(2), np.ones((1, 2))))  # known kinds still differ
        assert xfer.get(first)["x"].shape == (2,)
        assert xfer.get(second)["x"].shape == (1, 2)
    finally:
        tracemalloc.stop()
