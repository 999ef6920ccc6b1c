"""Arrays, tensors and large bytes that a peer sends; everything it claims about them is checked here before use."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

from .errors import UnsupportedTypeError, WireError
from .segments import DTYPE, SEGMENT_LIMIT, SHRINK_GROW, TENSOR_TYPES


class Incoming:
    """The peer's segments of one link, and the views of them that are alive here.

    Args:
        freed_soon: Asks for `take_freed` to be called soon; callable from a finalizer.
        import_torch: Whether a tensor from the peer may make this process import torch.
    """

    def __init__(self, freed_soon: Callable[[], None], import_torch: bool = True) -> None:
        self._freed_soon = freed_soon
        self._import_torch = import_torch
        self._segments: dict[int, tuple[int, int, mmap.mmap | None]] = {}
        self._leases: dict[int, Any] = {}
        self._freed: list[int] = []

    def __len__(self) -> int:
        return len(self._segments)

    def arrived(self, number: int, fd: int) -> None:
        """Take the descriptor of a segment of the other side; refuses what could be truncated under a mapping."""
        try:
            if number in self._segments or len(self._segments) >= SEGMENT_LIMIT:
                raise WireError(f"segment {number} was announced twice, or is one of more than {SEGMENT_LIMIT}")
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError:
                seals = 0
            if seals & SHRINK_GROW != SHRINK_GROW:
                raise WireError(f"segment {number} is not sealed memory")
            size = os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise
        self._segments[number] = (fd, size, None)

    def dropped(self, number: int) -> None:
        """Forget a segment that the other side has given up; views of it live on."""
        entry = self._segments.pop(number, None)
        if entry is not None:
            os.close(entry[0])

    def restore(self, parts: Any) -> Any:
        """The array, tensor or bytes object for a wire form."""
        if type(parts) is not list or len(parts) != 4:
            raise WireError("an array is not described by four parts")
        form, where, dtype, shape = parts
        if type(shape) is not list or len(shape) > 64 or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
            raise WireError(f"an array has the shape {shape!r:.80}")
        if form == "bytes":
            return self._bytes(where, math.prod(shape))
        if form == "numpy":
            return self._numpy(where, dtype, shape)
        if form == "torch":
            return self._torch(where, dtype, shape)
        raise WireError(f"an array is of the unknown form {form!r:.80}")

    def _region(self, where: Any, nbytes: int) -> tuple[int, int, int, int, bool, bool]:
        if type(where) is not list or len(where) != 4 or not all(type(part) in (int, bool) for part in where):
            raise WireError("an array's place is neither bytes nor four numbers")
        number, offset, lent, writable = where
        entry = self._segments.get(number)
        if entry is None:
            raise WireError(f"an array is in segment {number}, which was not announced")
        if offset < 0 or nbytes <= 0 or offset + nbytes > entry[1]:
            raise WireError(f"an array of {nbytes} bytes at {offset} passes the end of its segment of {entry[1]} bytes")
        if lent and number in self._leases:
            raise WireError(f"segment {number} was sent twice without being returned")
        return number, entry[0], entry[1], offset, bool(lent), bool(writable)

    def _lease(self, number: int, holder: Any) -> None:
        def gone(_: object) -> None:
            # Runs inside any thread's garbage collection: no lock may be taken here.
            self._leases.pop(number, None)
            self._freed.append(number)
            self._freed_soon()

        self._leases[number] = weakref.ref(holder, gone)

    def _bytes(self, where: Any, nbytes: int) -> bytes:
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came where {nbytes} were announced")
            return where
        number, fd, size, offset, lent, _ = self._region(where, nbytes)
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
            data = mapped[offset : offset + nbytes]
        if lent:
            self._freed.append(number)
            self._freed_soon()
        return data

    def _numpy(self, where: Any, dtype: Any, shape: list[int]) -> Any:
        if type(dtype) is not str or not DTYPE.match(dtype):
            raise WireError(f"an array has the dtype {dtype!r:.80}")
        try:
            import numpy as np
        except ImportError:
            raise UnsupportedTypeError(
                "an ndarray came and numpy is not installed here; add it to the dependencies"
            ) from None
        try:
            kind = np.dtype(dtype)
        except TypeError as failure:
            raise WireError(f"an array has the dtype {dtype!r:.80}: {failure}") from None
        count = math.prod(shape)
        nbytes = count * kind.itemsize
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came for an array of {nbytes}")
            return np.frombuffer(where, dtype=kind).reshape(shape) if nbytes else np.empty(shape, kind)
        number, fd, size, offset, lent, writable = self._region(where, nbytes)
        mapped = self._segments[number][2]
        if mapped is None:
            try:
                mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ)
            except (OSError, ValueError) as failure:
                raise WireError(f"segment {number} cannot be mapped: {failure}") from None
            self._segments[number] = (fd, size, mapped)
        flat = np.frombuffer(mapped, dtype=kind, count=count, offset=offset)
        if lent:
            self._lease(number, flat)
        return flat.reshape(shape)

    def _torch(self, where: Any, name: Any, shape: list[int]) -> Any:
        if name not in TENSOR_TYPES:
            raise WireError(f"a tensor has the dtype {name!r:.80}")
        torch: Any = sys.modules.get("torch")
        if torch is None:
            if not self._import_torch:
                raise UnsupportedTypeError(
                    "a tensor came and torch is not imported here; import it, or set share_torch: true"
                )
            try:
                import torch
            except ImportError:
                raise UnsupportedTypeError(
                    "a tensor came and torch is not installed here; add it to the dependencies"
                ) from None
        kind = getattr(torch, name, None)
        if kind is None:
            raise UnsupportedTypeError(f"torch {torch.__version__} has no dtype {name}")
        count = math.prod(shape)
        nbytes = count * torch.empty((), dtype=kind).element_size()
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came for a tensor of {nbytes}")
            return (
                torch.frombuffer(bytearray(where), dtype=kind).view(shape) if nbytes else torch.empty(shape, dtype=kind)
            )
        number, fd, size, offset, lent, writable = self._region(where, nbytes)
        # torch has no read-only tensors: a private mapping makes a write hit a copy of the page instead of a signal.
        flags = mmap.MAP_SHARED if writable else mmap.MAP_PRIVATE
        try:
            mapped = mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError) as failure:
            raise WireError(f"segment {number} cannot be mapped: {failure}") from None
        if lent:
            self._lease(number, mapped)
        return torch.frombuffer(mapped, dtype=kind, count=count, offset=offset).view(shape)

    @property
    def has_freed(self) -> bool:
        """Whether `take_freed` has something to return."""
        return bool(self._freed)

    def take_freed(self) -> list[int]:
        """Return the lent segments that nothing here views any more."""
        freed, self._freed = self._freed, []
        return freed

    def close(self) -> None:
        """Give up all segments; views that are still held live on."""
        for fd, _, _ in self._segments.values():
            os.close(fd)
        self._segments.clear()
