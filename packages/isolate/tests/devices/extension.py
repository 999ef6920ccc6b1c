"""An extension that exchanges device arrays with its host; its libraries are those of the host."""

from __future__ import annotations

import os
import sys

sys.path += os.environ["ADDED_PATHS"].split(os.pathsep)
for missing in os.environ.get("LACKS", "").split():
    sys.modules[missing] = None


class Extension:
    """Takes device arrays, makes and returns them."""

    def __init__(self, host):
        self.host = host
        self.kept = None

    def facts(self, array):
        """Type, device and values of what came."""
        values = array.tolist() if hasattr(array, "tolist") else array
        return [
            type(array).__name__,
            str(getattr(array.device, "id", array.device)),
            str(array.dtype),
            list(array.shape),
            values,
        ]

    def same(self, array):
        """Return it."""
        return array

    async def asame(self, array):
        """Return it, on the event loop."""
        return array

    def double(self, array):
        """Return a new array."""
        return array * 2

    def make(self, library, count):
        """Return a new array."""
        return self._filled(library, count)

    def total(self, library, count):
        """Compute on the device, and return a number."""
        return float(self._filled(library, count).sum())

    def tried(self):
        """What CUDA's library asks of the system, and what of it is refused here."""
        import cuda_needs

        return cuda_needs.tried()

    def open_ones(self, paths):
        """The device nodes that can be opened."""
        found = []
        for path in paths:
            try:
                os.close(os.open(path, os.O_RDWR))
            except OSError:
                continue
            found.append(path)
        return found

    def _filled(self, library, count):
        if library == "torch":
            import torch

            return torch.arange(count, dtype=torch.float32, device="cuda")
        import cupy

        return cupy.arange(count, dtype="float32")

    def several(self, library, count):
        """Yield new arrays."""
        for number in range(count):
            yield self._filled(library, 4 + number)

    def keep(self, array):
        """Hold an array."""
        self.kept = array

    def kept_values(self):
        """Return what is in it now."""
        return self.kept.tolist()

    def write(self, array, value):
        """Write to the host's array."""
        array[:] = value
        if sys.modules.get("cupy") is not None:
            sys.modules["cupy"].cuda.Device().synchronize()

    def back(self, array):
        """Give the host an array within a call of it."""
        return self.host.call.desk.take(array)

    def bytes_of(self, count):
        """Return bytes."""
        return bytes(count)

    def live(self):
        """How many arrays this side has put and not released."""
        import gc

        import xfer

        self.kept = None
        gc.collect()
        return xfer.default_pool().stats().live

    def stop(self):
        """Exit."""
        os._exit(3)
