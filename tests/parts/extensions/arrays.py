"""An extension that exchanges arrays with its host by xfer's handles, with a numpy of its own."""

from __future__ import annotations

import os

import numpy

import xfer


class Extension:
    """Reads arrays behind handles, and makes some; a handle is bytes here."""

    def __init__(self):
        """Make room for what this side puts."""
        self.pool = xfer.Pool("256MiB")
        self.held = None

    def versions(self):
        """Where this process takes numpy from, and which it is."""
        return {"numpy": numpy.__version__, "pid": os.getpid()}

    def total(self, handle):
        """Sum of an array of the host's, and how much memory reading it added to this process, bytes."""
        before = _own_memory()
        array = xfer.get(handle)
        total = float(array.sum(dtype=numpy.float64))
        return {"total": total, "writeable": bool(array.flags.writeable), "own": _own_memory() - before}

    def make(self, count):
        """A handle of 0, 1, 2 … count - 1 as float32, filled in place."""
        loan = self.pool.loan((count,), numpy.float32)
        with loan as array:
            array[:] = numpy.arange(count, dtype=numpy.float32)
        return bytes(loan.handle)

    def double(self, handle):
        """A handle of this side's of twice the host's array."""
        array = xfer.get(handle)
        loan = self.pool.loan(array.shape, array.dtype)
        with loan as out:
            numpy.multiply(array, 2, out=out)
        return bytes(loan.handle)

    def release(self, handle):
        """Give up what `make` or `double` put."""
        self.pool.release(handle)

    def hold(self, handle):
        """Keep an array of the host's open, until this process ends."""
        self.held = xfer.get(handle)

    def spin(self):
        """Never return."""
        while True:
            pass


def _own_memory():
    """Bytes of this process that no other shares."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024
