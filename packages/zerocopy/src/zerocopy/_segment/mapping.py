"""Map segments and checkpoint files copy-on-write, and find the mapping that an address lies in."""

from __future__ import annotations

import _thread
import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zerocopy._lease import close, inherit, opened, typed
from zerocopy._segment.checking import open_segment, stamp, verify
from zerocopy._segment.format import Manifest, Placed
from zerocopy._segment.verified import is_verified, note_verified
from zerocopy.errors import CorruptSegmentError, SegmentGoneError

_GAP = 1 << 16  # bytes between two blocks that are read ahead along with them
MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap has no name for it
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Mapping(mmap.mmap):
    """A private copy-on-write view of a segment. The tensors over it keep it, and with it the lease, alive."""

    file: str  # its path; to make a Path of it costs a load several percent
    manifest: Manifest
    skeleton: bytes
    fd: int = -1
    address: int
    used: Sequence[Placed] = ()
    delta: Mapping | None = None

    def __del__(self) -> None:
        """Close the descriptor. The lease ends with the mapping, which has one of its own."""
        if self.fd >= 0:
            os.close(self.fd)

    @property
    def path(self) -> Path:
        """The mapped file."""
        return Path(self.file)

    def covers(self, address: int) -> bool:
        """Return whether an address lies in this view."""
        return self.address <= address < self.address + len(self)

    def manifest_names(self) -> set[str]:
        """Return the dotted names of all tensors of the model."""
        return {name for block in self.manifest.blocks for name in block.names}

    def read_ahead(self) -> None:
        """Map all pages from a thread, so that the first call does not spend a quarter of its time in page faults."""
        if _libc is not None:
            # The thread gets numbers instead of a reference, which would keep the lease alive. Once this mapping has
            # gone, populating whatever lies at the address is harmless.
            with suppress(RuntimeError):  # the process is ending, or may not start more threads
                _thread.start_new_thread(_read_ahead, (_libc, self._ranges()))  # returns before it runs

    def _ranges(self) -> list[tuple[int, int]]:
        """Return (address, length) of the parts that hold blocks: reading a hole would take memory."""
        page = mmap.PAGESIZE
        if self.used:
            first, last = self.used[0].offset, self.used[-1].offset + self.used[-1].nbytes
            if 0 <= last - first - sum([block.nbytes for block in self.used]) <= _GAP:  # in a row, as usual
                return [(self.address + first // page * page, last - first // page * page)]
        ranges: list[tuple[int, int]] = []
        for start, end in sorted((block.offset, block.offset + block.nbytes) for block in self.used):
            if ranges and start - sum(ranges[-1]) <= _GAP:
                ranges[-1] = ranges[-1][0], end - ranges[-1][0]
            else:
                ranges.append((start, end - start))
        return [(self.address + start // page * page, nbytes + start % page) for start, nbytes in ranges]


def _read_ahead(libc: ctypes.CDLL, ranges: list[tuple[int, int]]) -> None:
    # By ctypes, which releases the interpreter lock; mmap.madvise holds it.
    for address, nbytes in ranges:
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), MADV_POPULATE_READ)


# The mappings of this process, for reports: they tell which segment a tensor's address lies in.
_alive: weakref.WeakSet[Mapping] = weakref.WeakSet()


def mapping_at(address: int) -> Mapping | None:
    """Return the mapping of this process that an address lies in."""
    return next((mapping for mapping in list(_alive) if mapping.covers(address)), None)


def mappings_of(manifest: Manifest) -> list[Mapping]:
    """Return the mappings that one load made, which all have this manifest or hold blocks of it."""
    return [each for each in list(_alive) if (each.delta or each).manifest is manifest]


def map_segment(path: Path | str) -> Mapping:
    """Open, check and map a segment copy-on-write.

    Raises:
        SegmentGoneError: The file does not exist any more.
        CorruptSegmentError: It is truncated, altered or not a segment.
    """
    head = open_segment(path)
    try:
        mapping = _mapped(head.fd, path, head.manifest)
    except BaseException:
        close(head.fd)
        raise
    mapping.skeleton = head.skeleton
    if not head.untouched and not is_verified(head.fd, head.manifest):
        verify(mapping, mapping.manifest, mapping.path)
        note_verified(head.fd, head.manifest)
    return mapping


def map_file(manifest: Manifest, index: int, folder: Path) -> Mapping:
    """Map the checkpoint file that `manifest.bases[index]` is a stamp of, copy-on-write.

    Args:
        manifest: The manifest of the segment that needs it.
        index: Which base.
        folder: The segment's folder, in which the file is looked for if it is not where it was.

    Raises:
        SegmentGoneError: The file does not exist any more.
        CorruptSegmentError: Its bytes are not those that were published.
    """
    known = manifest.bases[index]
    path = Path(known["file"])
    if not path.exists() and (folder / path.name).exists():
        path = folder / path.name
    try:
        fd = opened(path, os.O_RDONLY, foreign=True)
    except FileNotFoundError as error:
        raise SegmentGoneError(f"{path} is gone, and the model was published in place: put it back") from error
    try:
        now = stamp(path)
        if now["size"] != known["size"]:
            raise CorruptSegmentError(f"{path} has {now['size']} bytes instead of {known['size']}")
        mapping = _mapped(fd, path, manifest)
    except BaseException:
        close(fd)
        raise
    if now != known and not is_verified(fd, manifest):
        verify(mapping, manifest, path, base=index)
        note_verified(fd, manifest)
    return mapping


def _mapped(fd: int, path: Path | str, manifest: Manifest) -> Mapping:
    try:
        mapping = Mapping(fd, 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise typed(error, path) from error
    mapping.address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    mapping.file, mapping.manifest = str(path), manifest
    inherit(fd)
    _alive.add(mapping)
    mapping.fd = fd  # last: until then the caller closes it if a signal's handler raises an error
    return mapping
