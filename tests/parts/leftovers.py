"""What lies in shared memory under our libraries' names, and whether it is a leftover or somebody's at work."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

NAMES = ("xfer", "zerocopy", "isolate", "ternary", "ttt")


def shared_files() -> set[Path]:
    """Files in shared memory under names that our libraries give."""
    places = [place for place in Path("/dev/shm").glob("*") if place.name.startswith(NAMES)]
    return {file for place in places for file in (place, *place.rglob("*")) if file.is_file()}


def leftovers(before: set[Path]) -> list[str]:
    """New files in shared memory that stay for two seconds, without those of other programs on this machine."""
    end = time.monotonic() + 2
    while True:
        new = shared_files() - before
        left = sorted(str(file) for file in new if file.exists() and not _in_use_elsewhere(file))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)


def _in_use_elsewhere(file: Path) -> bool:
    names = {str(file), str(file.resolve())}  # a link is in use as long as what it leads to
    own = {process.pid for process in (psutil.Process(), *psutil.Process().children(recursive=True))}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with suppress(psutil.Error, OSError):
            mapped = (Path("/proc") / str(process.pid) / "maps").read_text()
            if any(name in mapped for name in names) or any(opened.path in names for opened in process.open_files()):
                return True
    return False
