"""Arrays on a GPU: by a handle of pentad-xfer where the other side has been seen to open one, else by host memory.

A handle names memory of the device that both sides then use, so nothing is copied, and each sees what the other writes.
Whether the other side can open one depends on packages, drivers and confinement there, so it is asked to open the first
array of each library and device.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from .calls import CURRENT, Context
from .copies import STATE, CopyNeededError
from .errors import CallTimeoutError, UnsupportedTypeError, WireError
from .libraries import imported, library

TRY = "isolate:device"
"""The call by which the other side is asked to open an array."""
_TRIAL_SECONDS = 60.0
"""How long the other side may take to import its libraries and open the first array."""
_LIBRARIES = ("torch", "cupy")
_CONFINED = "confinement keeps an extension and its host from opening each other's handles"
_INSTALL = "a host installs pentad-isolate[xfer], an extension adds pentad-xfer and cupy to its dependencies"
_logger = logging.getLogger("isolate")


def device_array(value: Any) -> tuple[str, int] | None:
    """Return the library and the device's number of an array on a CUDA device; None for anything else."""
    kind = type(value)
    if kind is getattr(sys.modules.get("torch"), "Tensor", None):
        return ("torch", value.device.index) if value.is_cuda else None
    if kind is getattr(sys.modules.get("cupy"), "ndarray", None):
        return "cupy", value.device.id
    return None


class Devices:
    """What one link does with arrays on a GPU.

    Args:
        ask: Has the other side open an array; called with its library, the bytes of its handle and a time limit.
        give_back: Tells the other side that a handle of it is no longer needed; callable from any thread.
        name: What the other side is called in messages.
        allowed: Whether either side may open handles of the other.
    """

    def __init__(
        self, ask: Callable[[str, bytes, float], Any], give_back: Callable[[int], None], name: str, allowed: bool
    ) -> None:
        self._ask = ask
        self._give_back = give_back
        self._name = name
        self._allowed = allowed
        self._tried: dict[tuple[str, int], str] = {}
        self._logged: set[str] = set()
        self._numbers = itertools.count(1)
        self._lent: dict[int, tuple[Any, Any]] = {}
        self._counts = dict.fromkeys(("handles_sent", "handles_received", "device_copies"), 0)

    def stats(self) -> dict[str, int]:
        """Count the handles that went and came, and the arrays that went by host memory."""
        return dict(self._counts)

    # Sending

    def describe(self, value: Any) -> list[Any] | None:
        """Return the wire form of a device array that goes by handle; None for anything that does not.

        Raises:
            UnsupportedTypeError: It cannot go by handle, and host memory would change its type.
            CopyNeededError: The caller is an event loop, which must not wait for a device.
        """
        found = device_array(value)
        if found is None:
            return None
        if STATE.left is not None:
            raise CopyNeededError
        offered, why = self._offer(value, *found)
        if offered is not None:
            self._counts["handles_sent"] += 1
            return offered
        if found[0] != "torch":
            raise UnsupportedTypeError(f"it goes by a handle of pentad-xfer only, and {why}; send {_ON_HOST}")
        if why not in self._logged:
            self._logged.add(why)
            _logger.info("tensors of cuda:%d go to %s by host memory: %s", found[1], self._name, why)
        self._counts["device_copies"] += 1
        return None

    def explain(self, value: Any) -> str:
        """Return how a device array goes to the other side, and if not by handle, why; empty for anything else."""
        found = device_array(value)
        if found is None:
            return ""
        offered, why = self._offer(value, *found)
        if offered is not None:
            self.returned(offered[2])
            return "by a handle of pentad-xfer, without a copy"
        return f"by host memory: {why}" if found[0] == "torch" else f"not at all: {why}; send {_ON_HOST}"

    def _offer(self, value: Any, name: str, device: int) -> tuple[list[Any] | None, str]:
        """Return the wire form by handle, or why there is none."""
        why = self._tried.get((name, device)) if self._allowed else _CONFINED
        if why:
            return None, why
        try:
            xfer = imported("xfer", "a device array", _INSTALL)
            pool = xfer.default_pool()
            handle = pool.put(value)
        except Exception as failure:
            return None, f"no handle can be made here: {failure}"
        lease = -next(self._numbers)
        self._lent[lease] = pool, handle
        try:
            if why is None:
                why = self._tried[name, device] = self._try(name, bytes(handle))
        finally:
            if why != "":
                self.returned(lease)
        return (None, why) if why else (["device", name, lease, bytes(handle)], "")

    def _try(self, name: str, raw: bytes) -> str:
        """Have the other side open an array; return why it cannot."""
        own, deadline = time.monotonic() + _TRIAL_SECONDS, STATE.deadline
        # As a nested call, which no limit and no queue of outermost calls holds up.
        token = CURRENT.set(Context(own if deadline is None else min(own, deadline), 1))
        try:
            said = self._ask(name, raw, _TRIAL_SECONDS)
        except CallTimeoutError:
            if deadline is not None and deadline < own:
                raise
            return f"{self._name} opened none within {_TRIAL_SECONDS:g} s"
        finally:
            CURRENT.reset(token)
        return f"{self._name} cannot open one: {said}"[:1000] if said else ""

    def returned(self, lease: int) -> None:
        """Release an array that the other side has opened, or will not open.

        Raises:
            WireError: It is not lent.
        """
        try:
            pool, handle = self._lent.pop(lease)
        except KeyError:
            raise WireError(f"lease {lease} was returned and is not lent") from None
        with contextlib.suppress(Exception):  # its owner has closed the pool
            pool.release(handle)

    def close(self) -> None:
        """Release everything."""
        for lease in list(self._lent):
            with contextlib.suppress(WireError):  # it was returned meanwhile
                self.returned(lease)

    # Receiving

    def restore(self, parts: Any) -> Any:
        """The device array for a wire form."""
        if type(parts) is not list or len(parts) != 4 or type(parts[2]) is not int or parts[2] >= 0:
            raise WireError("a device array is not described by four parts")
        try:
            array = self._open(parts[1], parts[3])
        finally:
            self._give_back(parts[2])
        self._counts["handles_received"] += 1
        return array

    def try_to_open(self, name: Any, raw: Any) -> str:
        """Open an array of the other side and drop it; return why that does not work."""
        try:
            self._open(name, raw)
        except Exception as failure:
            return str(failure)[:800] or type(failure).__name__
        return ""

    def _open(self, name: Any, raw: Any) -> Any:
        if name not in _LIBRARIES or type(raw) is not bytes:
            raise WireError("a device array is of no known library, or its handle is not bytes")
        if not self._allowed:
            raise UnsupportedTypeError(_CONFINED)
        library(name, f"a device array of {name}")
        xfer = imported("xfer", "a device array", _INSTALL)
        try:
            array = xfer.get(xfer.Handle.from_bytes(raw), as_="torch" if name == "torch" else "numpy")
        except Exception as failure:
            raise UnsupportedTypeError(f"a device array came and cannot be opened here: {failure}") from failure
        found = device_array(array)
        if found is None or found[0] != name:
            raise UnsupportedTypeError(f"a device array of {name} came and is a {type(array).__name__} here")
        return array


_ON_HOST = "cupy.asnumpy(value)"
