"""A quick measurement of hand-offs on this machine, for `xfer bench`; the comparison with peers is in benchmarks/."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np

from xfer._channel.channel import Channel
from xfer._shared.pool import Pool
from xfer._sizes import parse_size


def measure(size: int | str, count: int) -> dict[str, float]:
    """Send arrays to a new process, which answers each with a small one; return microseconds and MB/s.

    Args:
        size: Bytes per array.
        count: How many arrays.

    Raises:
        ValueError: The size or the count makes no sense.
    """
    nbytes = parse_size(size)
    if count < 1:
        raise ValueError(f"got count {count}, want at least 1")
    array, times = np.ones(nbytes, np.uint8), []
    with Pool(max(8 * nbytes, 64 << 20)) as pool, Channel(4, pool=pool) as there, Channel(4) as back:
        ends = [bytes(there.receiver).hex(), bytes(back.sender).hex()]
        process = subprocess.Popen([sys.executable, "-m", "xfer._doctor.peer", "answer", *ends])
        try:
            for _ in range(count + 5):
                start = time.perf_counter()
                there.sender.send(array, timeout=30)
                back.receiver.recv(timeout=30)
                times.append(time.perf_counter() - start)
            there.sender.close(timeout=30)
        finally:
            back.receiver.close()
            process.kill()
            process.wait()
    middle = statistics.median(times[5:])
    return {
        "there and back, median us": middle * 1e6,
        "there and back, 99th percentile us": float(np.percentile(times[5:], 99)) * 1e6,
        "rate MB/s": nbytes / middle / 1e6,
    }
