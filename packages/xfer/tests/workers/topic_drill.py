"""Kills writers and readers of a topic at random moments and starts them again: topic_drill.py NAME KILLS SEED.

Prints how many were killed, how many publications were received, and the longest wait for one. A reader that sees a
wrong array ends with 3, and so does this program. The workers are forked from it, which makes a restart take a few
milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import numpy as np

import xfer

KEEP = 4
SIZES = (50, 9_000, 60_000)


def write(name: str, seed: int) -> None:
    """Publish arrays whose elements are all alike."""
    chance = random.Random(seed)
    with xfer.Pool("32MiB") as pool:
        topic = xfer.Topic(name, keep=KEEP, pool=pool)
        while True:
            topic.publish(np.full(chance.choice(SIZES), os.getpid() + chance.random()), timeout=20)


def read(name: str, seed: int) -> None:
    """Check every array that comes."""
    with xfer.Topic(name, keep=KEEP).subscribe(every=seed % 2 == 0) as reader:
        for array in reader:
            if not (array == array[0]).all():
                os._exit(3)
            del array


def start(work: Callable[[str, int], None], name: str, seed: int) -> int:
    """Fork a worker; return its process number."""
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with this program, however this program ends
        run(work, name, seed)
    return child


def run(work: Callable[[str, int], None], name: str, seed: int) -> NoReturn:
    """Work until killed."""
    try:
        work(name, seed)
    except BaseException as error:
        print(f"{work.__name__} {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(4)


def main(name: str, kills: int, seed: int) -> None:
    """Run the drill."""
    chance = random.Random(seed)
    kinds: list[Callable[[str, int], None]] = [write, write, read, read]
    workers = [start(kind, name, number) for number, kind in enumerate(kinds)]
    longest, received = 0.0, 0
    try:
        with xfer.Topic(name, keep=KEEP).subscribe() as mine:
            for number in range(kills):
                time.sleep(chance.random() * 0.01)
                index = chance.randrange(4)
                ended, status = os.waitpid(workers[index], os.WNOHANG)
                if ended:
                    raise SystemExit(f"{kinds[index].__name__} ended by itself: {os.waitstatus_to_exitcode(status)}")
                os.kill(workers[index], signal.SIGKILL)
                os.waitpid(workers[index], 0)
                workers[index] = start(kinds[index], name, number + 4)
                begin = time.monotonic()
                array = mine.recv(timeout=20)
                longest = max(longest, time.monotonic() - begin)
                if not (array == array[0]).all():
                    raise SystemExit("the drill itself received a wrong array")
                received += 1
                del array
                if received % 1000 == 0:
                    print(f"{received} kills, longest wait {longest:.3f} s", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        xfer.Topic(name, keep=KEEP).remove()
    print(json.dumps({"kills": kills, "received": received, "longest": longest}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
