"""Map segments and checkpoint files copy-on-write, and find the mapping that an address lies in."""

from __future__ import annotations

import _thread
import ctypes
import mmap
import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import torch

from zerocopy._segment.checking import open_segment, stamp, verify
from zerocopy._segment.format import Manifest
from zerocopy.errors import CorruptSegmentError, SegmentGoneError

MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap has no name for it
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Mapping(mmap.mmap):
    """A private copy-on-write view of a segment. The tensors over it keep it, and with it the lease, alive."""

    path: Path
    manifest: Manifest
    skeleton: bytes
    fd: int
    address: int
    delta: Mapping | None = None

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
                _thread.start_new_thread(_read_ahead, (_libc, self.address, len(self)))  # returns before it runs


def _read_ahead(libc: ctypes.CDLL, address: int, nbytes: int) -> None:
    # By ctypes, which releases the interpreter lock; mmap.madvise holds it.
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), MADV_POPULATE_READ)


# The mappings of this process, for reports: they tell which segment a tensor's address lies in.
_alive: weakref.WeakSet[Mapping] = weakref.WeakSet()


def mapping_at(address: int) -> Mapping | None:
    """Return the mapping of this process that an address lies in."""
    return next((mapping for mapping in list(_alive) if mapping.covers(address)), None)


def map_segment(path: Path) -> Mapping:
    """Open, check and map a segment copy-on-write.

    Raises:
        SegmentGoneError: The file does not exist any more.
        CorruptSegmentError: It is truncated, altered or not a segment.
    """
    opened = open_segment(path)
    try:
        mapping = _mapped(opened.fd, path, opened.manifest)
    except BaseException:
        os.close(opened.fd)
        raise
    mapping.skeleton = opened.skeleton
    if not opened.untouched:
        verify(mapping, mapping.manifest, path)
    return mapping


def map_file(manifest: Manifest, index: int) -> Mapping:
    """Map the checkpoint file that `manifest.bases[index]` is a stamp of, copy-on-write.

    Raises:
        SegmentGoneError: The file does not exist any more.
        CorruptSegmentError: Its bytes are not those that were published.
    """
    known = manifest.bases[index]
    path = Path(known["file"])
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SegmentGoneError(f"{path} is gone, and the model was published in place: put it back") from error
    try:
        now = stamp(path)
        if now["size"] != known["size"]:
            raise CorruptSegmentError(f"{path} has {now['size']} bytes instead of {known['size']}")
        mapping = _mapped(fd, path, manifest)
    except BaseException:
        os.close(fd)
        raise
    if now != known:
        verify(mapping, manifest, path, base=index)
    return mapping


def _mapped(fd: int, path: Path, manifest: Manifest) -> Mapping:
    mapping = Mapping(fd, 0, access=mmap.ACCESS_COPY)
    mapping.path, mapping.manifest, mapping.fd = path, manifest, fd
    weakref.finalize(mapping, os.close, fd).atexit = False
    mapping.address = torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr()
    _alive.add(mapping)
    return mapping
