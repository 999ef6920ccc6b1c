"""Releases memory that holds unchanged parts of library files."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

MADV_DONTNEED = 4


def release_file_pages() -> int:
    """Drop this process's pages of shared libraries that nobody has written to; they are read again when needed.

    PyTorch's CUDA build touches over 100 MB of CUDA's libraries while it is imported, of which a CPU needs nothing.
    Only read-only private mappings without a single changed page are dropped, so nothing can be lost.

    Returns:
        Bytes of address space that were dropped; 0 on other systems than Linux.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    dropped = 0
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p .*\.so[.\d]*\n", mapping)
        if head and re.search(r"^Anonymous:\s+0 kB$", mapping, re.MULTILINE):
            start, end = int(head[1], 16), int(head[2], 16)
            if libc.madvise(start, end - start, MADV_DONTNEED) == 0:
                dropped += end - start
    return dropped
