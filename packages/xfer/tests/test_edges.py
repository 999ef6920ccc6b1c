"""The edges of the machine: no descriptor left, a small address space. Every refusal has a type of xfer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SWEEP = Path(__file__).parent / "workers" / "descriptor_sweep.py"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and memfd")


@linux_only
def test_no_descriptor_left_is_a_typed_error_everywhere(helper: Callable[..., Any]) -> None:
    """Whatever is called when the descriptors run out raises an error of xfer, and works again when there are some."""
    peer = helper(
        "pool = xfer.Pool('8MiB'); channel = xfer.Channel(2); w = xfer.WritableArray(3)\n"
        "say(bytes(pool.put(np.ones(200_000))).hex(), bytes(channel.receiver).hex(), bytes(w).hex()); wait()"
    )
    command = [sys.executable, str(SWEEP), *peer.line().split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@linux_only
def test_no_address_space_left_is_a_typed_error(helper: Callable[..., Any]) -> None:
    """Where RLIMIT_AS leaves no room to map memory, putting and getting are BudgetExceededError, and go on later."""
    peer = helper("h = xfer.put(np.ones(16 << 20, np.uint8)); say(bytes(h).hex()); wait()")
    code = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
pool = xfer.Pool("1GiB"); data = np.ones(16 << 20, np.uint8)
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), hard))
for call in (lambda: xfer.get(bytes.fromhex(arg[0])), lambda: pool.put(data)):
    try: call(); say("done")
    except Exception as error: say(type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
say(xfer.get(bytes.fromhex(arg[0])).sum(), xfer.get(pool.put(data)).sum())
"""
    small = helper(code, peer.line())
    said = [small.line(), small.line()]
    assert set(said) == {"BudgetExceededError"}
    assert small.line() == f"{16 << 20} {16 << 20}"
