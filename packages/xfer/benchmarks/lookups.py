"""Names of a store, and looks at an empty channel: what one call costs in processor time.

Imported by bench.py; the store's reader is a spawned process.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np

NAMES = 10_000
_EACH = 500


def reader(token: bytes, control: Any) -> None:
    """Get every name once, in random order, and send the seconds for each."""
    import xfer

    with xfer.SharedArrayStore.attach(token) as store:
        names = store.list()
        random.Random(1).shuffle(names)
        for name in names[:_EACH]:
            store.get(name)
        times = []
        for first in range(0, len(names), _EACH):
            some = names[first : first + _EACH]
            start = time.thread_time()
            for name in some:
                store.get(name)
            times.append((time.thread_time() - start) / len(some))
        control.send(times)


def store(context: Any) -> tuple[list[float], list[float]]:
    """Return seconds for each `create` and for each `get` in another process, with 10,000 names."""
    import xfer

    created = []
    with xfer.Pool("256MiB") as pool, xfer.SharedArrayStore(pool) as made:
        array = np.zeros(16)
        for first in range(0, NAMES, _EACH):
            start = time.thread_time()
            for number in range(first, first + _EACH):
                made.create(f"layer.{number}.weight", array)
            created.append((time.thread_time() - start) / _EACH)
        ours, theirs = context.Pipe()
        process = context.Process(target=reader, args=(bytes(made), theirs), daemon=True)
        process.start()
        got = ours.recv()
        process.join(10)
    return created, got


def empty(rounds: int) -> list[float]:
    """Return seconds for each `recv(timeout=0)` at an empty channel."""
    import xfer

    times = []
    with xfer.Channel(4) as channel:
        channel.sender.attach()
        for _ in range(rounds):
            start = time.thread_time()
            for _ in range(_EACH):
                try:  # noqa: SIM105 - contextlib.suppress would be measured as well
                    channel.receiver.recv(timeout=0)
                except xfer.errors.WaitTimeoutError:
                    pass
            times.append((time.thread_time() - start) / _EACH)
    return times


def rows(make: Any, context: Any, quick: bool) -> list[Any]:
    """Return the rows of these measurements; `make` is bench.py's row()."""
    created, got = store(context)
    waits = empty(10 if quick else 50)
    return [
        make(f"store, get of one of {NAMES:,} names", "us", [value * 1e6 for value in got], None, None, 20.0),
        make(f"store, create up to {NAMES:,} names", "us", [value * 1e6 for value in created], None, None, 100.0),
        make("recv(timeout=0) at an empty channel", "us", [value * 1e6 for value in waits], None, None, 5.0),
    ]
