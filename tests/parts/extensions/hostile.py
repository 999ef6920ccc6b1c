"""The fleet's plugin `counter`, which does what the last pixel of a photo says: crash, hang, flood, lie or grow."""

from __future__ import annotations

import os
import signal
import sys
import time

import counting

kept = []


class RudeError(Exception):
    """An error that cannot be shown."""

    def __str__(self):
        """Fail."""
        raise RuntimeError("no words")


def crash(photo):
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def leave(photo):
    """Exit in the middle of a call."""
    os._exit(3)


def hang(photo):
    """Outlast the caller's patience."""
    time.sleep(7)


def idle(photo):
    """Be slow, but answer."""
    time.sleep(0.5)
    return counting.Extension().question(photo)


def flood(photo):
    """Return more than a host reads."""
    return "x" * (80 << 20)


def lie(photo):
    """Return something that is no question."""
    return [{"prompt": None}] * 10


def chatter(photo):
    """Write a lot to the log, and then answer."""
    for _ in range(2000):
        print("x" * 1000, file=sys.stderr)
    return counting.Extension().question(photo)


def grow(photo):
    """Take far more memory than the limit, but not all of the machine's."""
    kept.extend(bytearray(b"x" * (16 << 20)) for _ in range(128))
    raise RudeError


def hoard(photo):
    """Open far more descriptors than the limit."""
    kept.extend(open("/dev/null") for _ in range(100_000))  # noqa: SIM115 - they stay open on purpose


def write(photo):
    """Try to change the photo of the host."""
    import xfer

    pixels = xfer.get(photo)
    pixels.flags.writeable = True
    pixels[:] = 7
    return "x"


def breed(photo):
    """Leave a process behind that ignores signals."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    return counting.Extension().question(photo)


def insult(photo):
    """Raise an error that cannot be shown."""
    raise RudeError


DEEDS = (None, crash, leave, hang, idle, flood, lie, chatter, grow, hoard, write, breed, insult)


class Extension(counting.Extension):
    """Counts, unless the last pixel says otherwise."""

    def question(self, photo):
        """Return the question, or misbehave."""
        import xfer

        with xfer.open(photo) as pixels:
            code = int(pixels[-1, -1]) % 255
        return DEEDS[code](photo) if code else super().question(photo)
