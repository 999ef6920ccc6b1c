"""Makes a control group, moves itself to another, or names a program for the kernel to run."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    root = "/sys/fs/cgroup"
    with contextlib.suppress(OSError):
        os.mkdir(f"{root}/isolate-attack-{os.getpid()}")
        os.rmdir(f"{root}/isolate-attack-{os.getpid()}")
        return "made"
    for path in (
        glob.glob(f"{root}/cgroup.procs") + glob.glob(f"{root}/*/cgroup.procs") + glob.glob(f"{root}/*/release_agent")
    ):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY))
            return path
    return None
