"""Arrays, tensors and large bytes that a peer sends; everything it claims about them is checked here before use."""

from __future__ import annotations

import math
import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from .errors import OverloadedError, UnsupportedTypeError, WireError
from .libraries import imported
from .segments import DTYPE, F_SEAL_FUTURE_WRITE, SHRINK_GROW, TENSOR_TYPES, Mapping, taken

if sys.platform != "win32":
    import fcntl


class Incoming:
    """The peer's segments of one link, and the views of them that are alive here.

    Args:
        freed_soon: Asks for `take_freed` to be called soon; callable from a finalizer.
        import_torch: Whether a tensor from the peer may make this process import torch.
        array_bytes: Most memory of the peer that is kept alive here; None trusts the peer.
        segment_limit: Most segments that are open here.

    Attributes:
        freed: What `take_freed` returns next.
    """

    def __init__(
        self,
        freed_soon: Callable[[], None],
        import_torch: bool = True,
        array_bytes: int | None = None,
        segment_limit: int = 4096,
    ) -> None:
        self._freed_soon = freed_soon
        self._import_torch = import_torch
        self._array_bytes = array_bytes
        self._segment_limit = segment_limit
        self._segments: dict[int, _Received] = {}
        self._leases: dict[int, Any] = {}
        self.freed: deque[int] = deque()
        self._alive: set[_Received] = set()

    def __len__(self) -> int:
        return len(self._segments)

    def arrived(self, number: int, fd: int) -> None:
        """Take the descriptor of a segment of the peer; refuse what could be truncated under a mapping."""
        try:
            if number in self._segments or len(self._segments) >= self._segment_limit:
                raise WireError(f"segment {number} was announced twice, or is one of more than {self._segment_limit}")
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
        self._segments[number] = _Received(fd, size, bool(seals & F_SEAL_FUTURE_WRITE))

    def dropped(self, number: int) -> None:
        """Forget a segment that the peer has given up; views of it live on."""
        entry = self._segments.pop(number, None)
        if entry is not None:
            entry.close()

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

    def _region(self, where: Any, nbytes: int) -> tuple[_Received, int, int, bool]:
        """Check an array's place; return its segment, offset, lease (0: not lent) and whether it is writable."""
        if type(where) is not list or len(where) != 4 or not all(type(part) in (int, bool) for part in where):
            raise WireError("an array's place is neither bytes nor four numbers")
        number, offset, lease, writable = where
        entry = self._segments.get(number)
        if entry is None:
            raise WireError(f"an array is in segment {number}, which was not announced")
        if offset < 0 or nbytes <= 0 or offset + nbytes > entry.size:
            raise WireError(
                f"an array of {nbytes} bytes at {offset} passes the end of its segment of {entry.size} bytes"
            )
        if lease and lease in self._leases:
            raise WireError(f"lease {lease} was sent twice without being returned")
        if self._array_bytes is not None:
            self._check_memory(entry, offset, nbytes, lease)
        return entry, offset, int(lease), bool(writable)

    def _check_memory(self, entry: _Received, offset: int, nbytes: int, lease: int) -> None:
        """Refuse memory that reading would first allocate, and more of it alive than the quota."""
        place = (offset, nbytes)
        if place not in entry.filled:
            if os.lseek(entry.fd, offset, os.SEEK_HOLE) < offset + nbytes:
                raise WireError(f"an array of {nbytes} bytes lies in memory that was never written")
            if entry.fixed and len(entry.filled) < 10_000:  # nobody can punch holes into it
                entry.filled.add(place)
        entry.allocated = os.fstat(entry.fd).st_blocks * 512
        alive = sum(known.allocated for known in self._alive.copy() | {entry})
        if alive > (self._array_bytes or 0):
            if lease:
                self.give_back(lease)
            raise OverloadedError(f"{alive} bytes of its arrays are alive here; the limit is {self._array_bytes}")

    def _map(self, entry: _Received, writable: bool) -> memoryview:
        view = entry.view()
        if view is None:
            self._alive.add(entry)

            def gone() -> None:
                self._alive.discard(entry)

            try:
                view = Mapping(entry.fd, entry.size, writable=writable, gone=gone).view
            except OSError as failure:
                self._alive.discard(entry)
                raise WireError(f"a segment cannot be mapped: {failure}") from None
            entry.keep(view)
        return view

    def give_back(self, lease: int) -> None:
        """Tell the peer that a lent block or handle is no longer used here; callable from a finalizer."""
        self.freed.append(lease)
        self._freed_soon()

    def _lease(self, lease: int, holder: Any) -> None:
        def gone(_: object) -> None:
            # Runs inside any thread's garbage collection: no lock may be taken here.
            self._leases.pop(lease, None)
            self.give_back(lease)

        self._leases[lease] = weakref.ref(holder, gone)

    def _bytes(self, where: Any, nbytes: int) -> bytes:
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came where {nbytes} were announced")
            return where
        entry, offset, lease, _ = self._region(where, nbytes)
        data = _read(entry.fd, nbytes, offset)
        if lease:
            self.give_back(lease)
        return data

    def _numpy(self, where: Any, dtype: Any, shape: list[int]) -> Any:
        if type(dtype) is not str or not DTYPE.match(dtype):
            raise WireError(f"an array has the dtype {dtype!r:.80}")
        np = imported("numpy", "an ndarray")
        try:
            kind = np.dtype(dtype)
        except TypeError as failure:
            raise WireError(f"an array has the dtype {dtype!r:.80}: {str(failure)[:200]}") from None
        count = math.prod(shape)
        nbytes = count * kind.itemsize
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came for an array of {nbytes}")
            return np.frombuffer(where, dtype=kind).reshape(shape) if nbytes else np.empty(shape, kind)
        entry, offset, lease, writable = self._region(where, nbytes)
        flat = np.frombuffer(self._map(entry, writable), dtype=kind, count=count, offset=offset)
        if lease:
            self._lease(lease, flat)
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
            torch = imported("torch", "a tensor")
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
        entry, offset, lease, writable = self._region(where, nbytes)
        # torch has no read-only tensors: a private mapping makes a write hit a copy of the page instead of a signal.
        gone: Callable[[], None] | None = (lambda: self.give_back(lease)) if lease else None
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            mapped = Mapping(
                entry.fd, offset - start + nbytes, start=start, writable=writable, private=not writable, gone=gone
            )
        except OSError as failure:
            raise WireError(f"a segment cannot be mapped: {failure}") from None
        return torch.frombuffer(mapped.view, dtype=kind, count=count, offset=offset - start).view(shape)

    def take_freed(self) -> list[int]:
        """Return the lent segments that nothing here views any more."""
        return list(taken(self.freed))

    def close(self) -> None:
        """Give up all segments; views that are still held live on."""
        for entry in self._segments.values():
            entry.close()
        self._segments.clear()


def _read(fd: int, nbytes: int, offset: int) -> bytes:
    """Copy memory of a segment; other threads go on meanwhile, unlike with a slice of a view."""
    data = os.pread(fd, nbytes, offset)
    while len(data) < nbytes:  # one system call reads 2 GiB
        data += os.pread(fd, nbytes - len(data), offset + len(data))
    return data


class _Received:
    """A segment of the peer, the owner of its descriptor.

    Args:
        fd: The descriptor.
        size: Its size.
        fixed: Whether the peer can write to it only through the mapping that it has, and so punch no holes.
    """

    def __init__(self, fd: int, size: int, fixed: bool) -> None:
        self.fd = fd
        self.size = size
        self.fixed = fixed
        self.allocated = 0
        self.filled: set[tuple[int, int]] = set()
        self._view: Any = None

    def keep(self, view: memoryview) -> None:
        """Remember the mapping as long as the segment is open."""
        self._view = view

    def view(self) -> memoryview | None:
        """Return the mapping, if there is one."""
        found: memoryview | None = self._view
        return found

    def close(self) -> None:
        """Close the descriptor; the mapping ends with its last view."""
        fd, self.fd = self.fd, -1
        self._view = None
        if fd >= 0:
            os.close(fd)
