"""Runs each operation with room for 0, 1, 2 ... more descriptors and prints what was refused without a type of xfer.

Arguments: a handle, a channel's receiver and a writable array of another process, as hexadecimal text. The gaps among
the descriptors in use are filled first, so that the limit is what is left. With descriptors again, each must work.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys

import numpy as np

import xfer

raw, token, board = (bytes.fromhex(text) for text in sys.argv[1:])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
name = f"test {os.getppid()} edges {os.getpid()}"
loop = asyncio.new_event_loop()


def small() -> int:
    """Put and get a small array."""
    with xfer.Pool("1MiB") as pool:
        return int(xfer.get(pool.put(np.ones(9)))[8])


def large() -> int:
    """Put and get an array with a segment of its own."""
    with xfer.Pool("8MiB") as pool:
        return int(xfer.get(pool.put(np.ones(300_000)))[8])


def consumed() -> int:
    """Take an array over."""
    with xfer.Pool("1MiB") as pool:
        return int(xfer.get(pool.put(np.ones(9), consume=True))[8])


def named() -> int:
    """Put and get in a named pool."""
    with xfer.Pool("1MiB", backend="named") as pool:
        return int(xfer.get(pool.put(np.ones(9)))[8])


def foreign() -> int:
    """Get another process's array."""
    return int(xfer.get(raw)[1])


def private() -> int:
    """Get it with memory of one's own."""
    return int(xfer.get(raw).copy()[1])


def channel() -> int:
    """Send a small and a large array."""
    with xfer.Channel(2) as made:
        made.sender.send(np.ones(3), timeout=5)
        made.sender.send(np.ones(30_000), timeout=5)
        return int(made.receiver.recv(timeout=5)[0] * made.receiver.recv(timeout=5)[0])


def waits() -> int:
    """Wait at another process's channel."""
    with xfer.Receiver.from_bytes(token) as receiver:
        try:
            receiver.recv(timeout=0.02)
        except xfer.errors.WaitTimeoutError:
            return 1
    return 0


def awaits() -> int:
    """Wait there in an event loop."""

    async def run() -> int:
        with xfer.Receiver.from_bytes(token) as receiver:
            try:
                await receiver.arecv(timeout=0.02)
            except xfer.errors.WaitTimeoutError:
                return 1
        return 0

    return loop.run_until_complete(run())


def topic() -> int:
    """Publish and receive."""
    with xfer.Topic(name) as made, made.subscribe() as reader:
        made.publish(np.ones(3), timeout=5)
        return int(reader.recv(timeout=5)[0])


def store() -> int:
    """Create a name and look it up."""
    with xfer.SharedArrayStore() as made:
        made.create("a", np.ones(3))
        return int(made.get("a")[0])


def writable() -> int:
    """Make a writable array and attach to it."""
    with xfer.WritableArray(3) as made, xfer.WritableArray.from_bytes(bytes(made)) as other:
        other.array[:] = 1
        return int(made.array[2])


def attached() -> int:
    """Attach to another process's."""
    with xfer.WritableArray.from_bytes(board) as other:
        return int(other.array.sum()) + 1


def spilled() -> int:
    """Spill a block to disk."""
    with xfer.GpuMemoryManager(xfer.HostAllocator(), budget="8KiB", host_budget=1) as manager:
        block = manager.allocate(4096, spillable=True)
        manager.spill(block)
        with block.use((512,), np.float64) as view:
            return int(view.size > 0)


OPERATIONS = [
    small, large, consumed, named, foreign, private, channel, waits, awaits, topic, store, writable, attached, spilled,
]  # fmt: skip


def fill_gaps() -> list[int]:
    """Open descriptors until every number below the highest is in use."""
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] < max(map(int, os.listdir("/proc/self/fd"))) - 1:
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    return fillers


def main() -> None:
    """Run the sweep."""
    wrong: list[tuple[str, int, str]] = []
    for operation in OPERATIONS:
        refused, extra, done = 0, 0, ""
        while extra < 40 and done != "1":
            gc.collect()
            xfer.trim()
            xfer.default_pool().close()
            fillers = fill_gaps()
            resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + extra, hard))
            try:
                done = str(operation())
            except xfer.XferError:
                refused += 1
            except Exception as error:
                wrong.append((operation.__name__, extra, f"{type(error).__name__}: {error}"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
            extra += 1
        gc.collect()
        if not refused or operation() != 1:
            wrong.append((operation.__name__, extra, "was never refused, or does not work afterwards"))
    xfer.Topic(name).remove()
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
