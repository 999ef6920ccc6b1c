"""The default pool keeps within what this process may use, and is configured from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import xfer
from xfer._limits import memory_limit


def test_the_smallest_control_group_counts(tmp_path: Path) -> None:
    """Limits of the group and of those above it are read, of both versions, also where the path is not mounted."""
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    (mount / "a" / "b").mkdir(parents=True)
    (mount / "a" / "memory.max").write_text("419430400\n")
    (mount / "a" / "b" / "memory.max").write_text("max\n")
    groups.write_text("0::/a/b\n")
    limit = memory_limit(str(groups), str(mount))
    assert limit is not None
    assert limit.nbytes == 419430400
    assert limit.source.endswith("a/memory.max")
    groups.write_text("0::/../elsewhere\n")
    (mount / "memory.max").write_text("1000000\n")
    limit = memory_limit(str(groups), str(mount))
    assert limit is not None
    assert limit.nbytes == 1000000
    (mount / "memory" / "x").mkdir(parents=True)
    (mount / "memory" / "x" / "memory.limit_in_bytes").write_text("2000\n")
    groups.write_text("3:cpu,memory:/x\n")
    limit = memory_limit(str(groups), str(mount))
    assert limit is not None
    assert limit.nbytes == 2000


@pytest.mark.parametrize(
    ("setup", "budget"),
    [
        ("import os; os.environ['XFER_BUDGET'] = '48MiB'", 48 << 20),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))", 3 << 30),
    ],
    ids=["variable", "address space"],
)
def test_the_default_pool_obeys(setup: str, budget: int) -> None:
    """The environment variable decides, else half of the smallest limit."""
    code = f"{setup}; import xfer; print(xfer.default_pool().budget)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == budget


def test_doctor_says_what_limits() -> None:
    """The memory line names the limit, where it is from, and the default pool's budget."""
    from xfer._doctor.examine import examine

    (memory,) = [finding for finding in examine() if finding.what == "memory"]
    limit = memory_limit()
    assert limit is not None
    assert limit.source in memory.detail
    assert "XFER_BUDGET" in memory.detail


def test_a_pool_may_become_the_default() -> None:
    """`set_default_pool` is used by put and release."""
    before = xfer.default_pool()
    with xfer.Pool("1MiB") as pool:
        xfer.set_default_pool(pool)
        handle = xfer.put([1, 2])
        assert pool.stats().live == 1
        xfer.release(handle)
    xfer.set_default_pool(before)
