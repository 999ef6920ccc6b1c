"""Receive, write, drop and send again under a limit of the system, and compare every array with a plain copy.

Run as `python private_churn.py LIMIT`; prints how many arrays were checked and how many calls a typed error refused.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from typing import Any

import numpy as np

import xfer
from xfer._shared import private
from xfer._shared.reader import READER

STEPS = 150
REFUSED = (xfer.errors.BudgetExceededError, xfer.errors.TooManyOpenFilesError, MemoryError)


def limit(name: str) -> None:
    """Set the limit."""
    if name == "memory":
        with open("/proc/self/statm") as file:
            bound = int(file.read().split()[0]) * private.PAGE + (12 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    elif name == "descriptors":
        bound = len(os.listdir("/proc/self/fd")) + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (bound, bound))
    elif name == "user":  # after which /proc/self/pagemap is root's
        os.setgid(65534)
        os.setuid(65534)


def churn(pool: xfer.Pool) -> tuple[int, int]:
    """Return how many arrays were compared, and how many calls were refused."""
    draw = random.Random(0)
    live: list[tuple[xfer.Handle, Any]] = []
    held: list[list[Any]] = []
    checked = refused = 0
    for step in range(STEPS):
        try:
            choice = draw.random()
            if choice < 0.3 or not live:
                values = np.arange(draw.choice([20_000, 300_000, 300_001]), dtype=np.int32) * 3 + step
                live.append((pool.put(values), values))
            elif choice < 0.65:
                handle, values = draw.choice(live)
                array: Any = READER.array(bytes(handle), private=True)[0].view(np.int32)
                assert np.array_equal(array, values), f"a new array is wrong in step {step}"
                checked += 1
                held.append([array, values.copy()])
            elif choice < 0.8 and held:
                start, stride = draw.randrange(20_000), draw.choice([1, 1024, 100_000])
                for each in draw.choice(held):
                    each[start::stride] = -step
            elif held:
                array, values = held.pop(draw.randrange(len(held)))
                assert np.array_equal(array, values), f"a kept array is wrong in step {step}"
                checked += 1
                del array
            else:
                pool.release(live.pop(0)[0])
        except REFUSED:
            refused += 1
            held.clear()
            while len(live) > 1:
                pool.release(live.pop()[0])
        del held[4:]
        while len(live) > 4:
            pool.release(live.pop(0)[0])
    return checked, refused


if __name__ == "__main__":
    known = private.pages_are_told()
    limit(sys.argv[1])
    with xfer.Pool("64MiB") as pool:
        print(*churn(pool), known)
