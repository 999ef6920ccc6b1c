"""Finds files of our libraries in shared memory that no running program uses any more."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

NAMES = ("xfer", "zerocopy", "isolate", "ternary", "ttt")


def shared_files() -> set[Path]:
    """Return the files in shared memory whose names start with one of our libraries' names."""
    places = [place for place in Path("/dev/shm").glob("*") if place.name.startswith(NAMES) and not _of_others(place)]
    # Not rglob: a folder that another program removes meanwhile is an error to it.
    below = {Path(folder, name) for place in places for folder, _, names in os.walk(place) for name in names}
    return {file for file in below.union(places) if file.is_file()}


def _of_others(place: Path) -> bool:
    """Whether it is the folder that tests in another process publish into."""
    return place.name.startswith("zerocopy-tests-") and str(place) != os.environ.get("ZEROCOPY_DIRECTORY")


def leftovers(before: set[Path]) -> list[str]:
    """Return new files in shared memory that stay for a minute and that no other program uses.

    What other tests on this machine make goes within that time too.
    """
    end = time.monotonic() + 60
    while True:
        new = shared_files() - before
        left = sorted(str(file) for file in new if file.exists() and not _in_use_elsewhere(file))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)


def _in_use_elsewhere(file: Path) -> bool:
    names = {str(file), str(file.resolve())}  # a link is in use as long as its target is
    own = {process.pid for process in (psutil.Process(), *psutil.Process().children(recursive=True))}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with suppress(psutil.Error, OSError):
            mapped = (Path("/proc") / str(process.pid) / "maps").read_text()
            if any(name in mapped for name in names) or any(opened.path in names for opened in process.open_files()):
                return True
    return False
