"""Any bytes from an extension: no signal, no hang, no untyped error, bounded memory. Seeded.

The environment variable ISOLATE_FUZZ_SECONDS sets how long it runs, ISOLATE_FUZZ_SEED with which seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isolate._worker import failures
from isolate._worker.calls import checked_call
from isolate._worker.codec import Codec
from isolate._worker.errors import IsolateError
from isolate._worker.frames import HEADER, FrameReader
from isolate._worker.incoming import Incoming
from isolate._worker.wire import BUFFER, HANDLE, HANDLE_BACK, XFER, pack
from isolate.errors import OverloadedError, UnsupportedTypeError, WireError

TYPED = (WireError, OverloadedError, UnsupportedTypeError)
SECONDS = float(os.environ.get("ISOLATE_FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("ISOLATE_FUZZ_SEED", "20"))
LIMIT = 8 << 20


class Reader:
    """What a host does with the bytes of a worker, without the socket."""

    def __init__(self) -> None:
        self.incoming = Incoming(lambda: None, False, 1 << 20)
        self.codec = Codec(lambda *_: None, self.special, lambda code, payload: None, LIMIT)

    def special(self, code: int, payload: bytes) -> Any:
        """Decode what is not plain."""
        value = self.codec.decode(payload)
        if code == BUFFER:
            return self.incoming.restore(value)
        if code not in (HANDLE, HANDLE_BACK, XFER) or type(value) is not int:
            raise WireError(f"extension type {code} is not part of the protocol")
        return value

    def read(self, payload: bytes) -> None:
        """Decode a payload in every way that a frame's kind may ask for."""
        for use in (self.codec.numbers, lambda data: failures.revive(self.codec.weigh(data)[0]), self.call):
            with contextlib.suppress(TYPED):
                use(payload)

    def call(self, payload: bytes) -> None:
        """Decode a call."""
        checked_call(self.codec.weigh(payload)[0])


def value(rng: random.Random, depth: int = 0) -> Any:
    """Make a value of the format."""
    kind = rng.randrange(12 if depth < 4 else 7)
    if kind < 2:
        return rng.choice([None, True, 0, -1, 2**63, -(2**63), 2**64 - 1, 2**200, 1.5, float("nan"), float("inf")])
    if kind < 4:
        return rng.choice(["", "a", "é" * rng.randrange(50), "\ud800", "x" * rng.randrange(3000)])
    if kind < 6:
        return rng.randbytes(rng.randrange(100))
    if kind == 6:
        return ["numpy", rng.choice([b"12345678", [1, 0, 1, False]]), "<f8", [rng.choice([1, 2**40, -1])]]
    items = [value(rng, depth + 1) for _ in range(rng.randrange(6))]
    if kind == 7:
        return tuple(items)
    if kind == 8:
        return {f"k{number}": item for number, item in enumerate(items)}
    if kind == 9:
        return dict(enumerate(items))
    if kind == 10:
        return {rng.randrange(100) for _ in range(rng.randrange(20))}
    return items


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Damage some bytes."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(5)
        if what == 0 and out:
            out[at % len(out)] = rng.getrandbits(8)
        elif what == 1:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif what == 2:
            del out[at : at + rng.randrange(1, 9)]
        elif what == 3:  # a container or text that claims to be large
            tag = rng.choice(b"\xc6\xc9\xdb\xdd\xdf\xc5\xdc\xde")
            out[at:at] = bytes([tag]) + struct.pack(">I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
        else:
            out[at:at] = rng.choice([b"\x91", b"\x81\xa0", b"\x80", b"\xc7\x05\x02"]) * rng.choice([1, 50, 5000])
    return bytes(out)


def message(rng: random.Random) -> bytes:
    """Make a payload: from a value, and mostly damaged."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(200))
    if rng.random() < 0.02:  # small to send, large to hold
        one = rng.choice([b"\x80", b"\x90", b"\xc0", b"\xa0", b"\x91\xc0", b"\xc7\x00\x02"])
        return b"\xdd" + struct.pack(">I", 200_000 // len(one)) + one * (200_000 // len(one))
    data = pack([value(rng) for _ in range(rng.choice([1, 5]))], lambda part: None)
    if rng.random() < 0.3:
        data = bytes([0xC9]) + struct.pack(">IB", len(data), rng.randrange(20)) + data
    return mutated(rng, data) if rng.random() < 0.8 else data


def peak_megabytes() -> float:
    """Return the most memory that this program has had; getrusage would count what its parent had before it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def fuzz(seconds: float, seed: int) -> int:
    """Read until the time is over; return how many messages were read."""
    rng, reader, done = random.Random(seed), Reader(), 0
    frames = FrameReader(1 << 20)
    end = time.monotonic() + seconds
    while time.monotonic() < end or done <= 100:  # however slow the machine is
        payload = message(rng)
        began = time.process_time()
        reader.read(payload)
        data = (
            HEADER.pack(len(payload) if rng.random() < 0.9 else rng.getrandbits(32), rng.getrandbits(8), done) + payload
        )
        try:
            at = 0
            while at < len(data):
                room = frames.room
                count = min(len(room), len(data) - at)
                room[:count] = data[at : at + count]
                at += count
                frames.received(count, lambda kind, number, body: None)
        except WireError:
            frames = FrameReader(1 << 20)
        assert time.process_time() - began < 5, f"seed {seed}, message {done} of {len(payload)} bytes took too long"
        done += 1
    grown = peak_megabytes()
    assert grown < 400, f"{grown:.0f} MB"
    return done


def run(seconds: float, seed: int) -> int:
    """Fuzz in a process of its own, so that a signal is seen."""
    command = [sys.executable, __file__, str(seconds), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 200)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return int(done.stdout)


def test_any_bytes() -> None:
    """For a second."""
    assert issubclass(WireError, IsolateError)
    assert run(1, SEED) > 100


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 250)
def test_any_bytes_for_longer() -> None:
    """For 20 seconds, or as long as the variable says."""
    assert run(SECONDS, SEED + 1) > 100


if __name__ == "__main__":
    print(fuzz(float(sys.argv[1]), int(sys.argv[2])))
