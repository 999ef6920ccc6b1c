"""Checks what this machine can do for xfer, and why not; each check is one real attempt."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from xfer import _compiled
from xfer._limits import memory_limit
from xfer._shared import names
from xfer._shared.default import default_budget
from xfer._sizes import format_size, parse_size
from xfer.errors import XferError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    works: bool
    detail: str


def examine() -> list[Finding]:
    """Try every mechanism and return what was found."""
    return [
        _nameless(),
        _named(),
        _other_process(),
        _channel(),
        _core(),
        _private_memory(),
        _memory(),
        _descriptors(),
        _dtypes(),
        _cuda(),
    ]


def _nameless() -> Finding:
    from xfer._shared.pool import Pool
    from xfer._shared.reader import READER, get

    what = "nameless sealed memory"
    try:
        with Pool("1MiB", backend="nameless") as pool:
            good = bool((get(pool.put(np.arange(10))) == np.arange(10)).all())
        READER.trim()
    except (XferError, OSError) as error:
        return Finding(
            what, False, f"{error}; Pool(backend='auto') uses named segments, which `xfer reap` removes after kill -9"
        )
    return Finding(
        what, good, f"memfd with seals on {platform.system()} {platform.release()}: nothing to clean up after a crash"
    )


def _named() -> Finding:
    from xfer._shared.pool import Pool

    what = f"named segments in {names.DIRECTORY}"
    try:
        with Pool("1MiB", backend="named") as pool:
            pool.put(np.arange(10))
        space = os.statvfs(names.DIRECTORY)
    except (XferError, OSError) as error:
        return Finding(what, False, str(error))
    detail = f"{format_size(space.f_bavail * space.f_frsize)} free; only used where memfd or /proc is closed"
    planted = names.strangers()
    if planted:
        detail += (
            f"; {len(planted)} files have this user's names and are not this user's, so they are not used: {planted[0]}"
        )
    return Finding(what, True, detail)


def _other_process() -> Finding:
    from xfer._shared.pool import Pool

    what = "handles as plain bytes between unrelated processes"
    try:
        with Pool("1MiB") as pool:
            handle = pool.put(np.arange(10))
            command = [sys.executable, "-m", "xfer._doctor.peer", "sum", bytes(handle).hex()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (XferError, OSError, subprocess.SubprocessError) as error:
        return Finding(what, False, str(error))
    if done.stdout.strip() != "45":
        said = done.stderr.strip().splitlines()[-1:] or ["a wrong array"]
        return Finding(what, False, f"another process got {said[0]}: use Pool(backend='named')")
    return Finding(what, True, "another process read an array from its handle")


def _channel() -> Finding:
    from xfer._channel.channel import Channel

    try:
        with Channel(1) as channel:
            channel.sender.send(np.arange(3), timeout=1)
            good = channel.receiver.recv(timeout=1).tolist() == [0, 1, 2]
    except (XferError, OSError) as error:
        return Finding("channels", False, str(error))
    cores = os.cpu_count() or 1
    return Finding(
        "channels", good, f"a pidfd reports when a peer dies; {'spins' if cores > 1 else 'sleeps'} on {cores} core(s)"
    )


def _core() -> Finding:
    what = "compiled core for channels and large copies"
    if _compiled.module is None:
        return Finding(
            what,
            False,
            f"plain Python does the same, slower ({_compiled.why_not}); reinstall where there is a C compiler",
        )
    return Finding(what, True, "small arrays are handed over without a system call")


def _private_memory() -> Finding:
    from xfer._shared.private import try_pages

    what = "memory of large tensors used again"
    why_not = "the system does not tell which pages were written"
    try:
        if try_pages():
            return Finding(what, True, "a tensor of `as_='torch'` gets the mapping of the slot's last one")
    except (XferError, OSError) as error:
        why_not = str(error)
    return Finding(what, False, f"{why_not}: each tensor's memory is mapped anew, which takes longer than its copy")


def _memory() -> Finding:
    limit = memory_limit()
    budget = format_size(parse_size(default_budget()))
    if limit is None:
        return Finding("memory", False, f"{sys.platform} does not report it; the default pool may take {budget}")
    return Finding(
        "memory",
        True,
        f"{format_size(limit.nbytes)} by {limit.source}; the default pool may take {budget} "
        "(set XFER_BUDGET or call xfer.set_default_pool to change that)",
    )


def _descriptors() -> Finding:
    try:
        import resource
    except ImportError:
        return Finding("descriptors", False, f"{sys.platform} has none to hand to another process")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        "descriptors", soft >= 64, f"{soft} (can be raised to {hard}); a pool takes one per 4 MiB of small arrays"
    )


def _dtypes() -> Finding:
    try:
        import ml_dtypes
    except ImportError:
        return Finding("bfloat16 and fp8", False, "install pentad-xfer[dtypes]")
    return Finding("bfloat16 and fp8", True, f"ml_dtypes {ml_dtypes.__version__}")


def _cuda() -> Finding:
    from xfer._convert.move import load_cupy

    try:
        cupy = load_cupy()
    except XferError as error:
        return Finding("CUDA", False, str(error))
    there = f"CuPy {cupy.__version__}, {cupy.cuda.runtime.getDeviceCount()} device(s)"
    why_not = _hand_over_on_device(cupy)
    if why_not:
        return Finding("CUDA", False, f"{there}, but another process cannot read a device array: {why_not}")
    return Finding("CUDA", True, f"{there}; another process read a device array from its handle")


def _hand_over_on_device(cupy: Any) -> str:
    """Return why another process cannot read a device array, or nothing; Tegra and WSL2 have no CUDA IPC."""
    from xfer._shared.pool import Pool

    try:
        with Pool("1MiB") as pool:
            handle = pool.put(cupy.arange(10))
            command = [sys.executable, "-m", "xfer._doctor.peer", "sum", bytes(handle).hex()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            pool.release(handle)
    except (XferError, OSError, subprocess.SubprocessError, cupy.cuda.runtime.CUDARuntimeError) as error:
        return str(error)
    if done.stdout.strip() == "45":
        return ""
    return (done.stderr.strip().splitlines()[-1:] or ["it got a wrong array"])[0]
