"""An extension with its own numpy that exchanges arrays with its host by xfer handles."""

from __future__ import annotations

import os

import numpy

import xfer


class Extension:
    """Reads arrays by handle and makes new ones; handles travel as bytes."""

    def __init__(self):
        """Make a pool for the arrays of this side."""
        self.pool = xfer.Pool("256MiB")
        self.held = None

    def versions(self):
        """Return where this process imports numpy from, and its version."""
        return {"numpy": numpy.__version__, "pid": os.getpid()}

    def total(self, handle):
        """Return the sum of the host's array and the bytes of memory that reading it added to this process."""
        before = _own_memory()
        array = xfer.get(handle)
        total = float(array.sum(dtype=numpy.float64))
        return {"total": total, "writeable": bool(array.flags.writeable), "own": _own_memory() - before}

    def make(self, count):
        """Return a handle of 0, 1, 2 … count - 1 as float32, filled in place."""
        loan = self.pool.loan((count,), numpy.float32)
        with loan as array:
            array[:] = numpy.arange(count, dtype=numpy.float32)
        return bytes(loan.handle)

    def double(self, handle):
        """Return a handle of a new array with twice the values of the host's."""
        array = xfer.get(handle)
        loan = self.pool.loan(array.shape, array.dtype)
        with loan as out:
            numpy.multiply(array, 2, out=out)
        return bytes(loan.handle)

    def release(self, handle):
        """Release what `make` or `double` put."""
        self.pool.release(handle)

    def hold(self, handle):
        """Keep the host's array open until this process ends."""
        self.held = xfer.get(handle)

    def spin(self):
        """Never return."""
        while True:
            pass


def _own_memory():
    """Return the bytes of this process that no other process shares."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024
