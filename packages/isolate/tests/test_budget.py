"""Idle shared memory stays within a part of what the machine, or the container, has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from isolate._worker import outgoing
from isolate._worker.budget import memory_limit
from isolate._worker.outgoing import Outgoing

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1000\n"}, 1000),  # the one above counts too
        ("0::/a/b\n", {"a/b/memory.max": "500\n", "a/memory.max": "1000\n"}, 500),
        ("0::/\n", {"memory.max": "700\n"}, 700),  # in a container with a namespace of its own
        ("4:cpu,memory:/docker/1\n0::/\n", {"memory/memory.limit_in_bytes": "600\n"}, 600),  # named as it is outside
        ("4:memory:/x:y\n", {"memory/x:y/memory.limit_in_bytes": "600\n"}, 600),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),  # none
        ("", {}, MACHINE),
        ("nonsense\n", {}, MACHINE),
    ],
)
def test_the_least_limit_counts(groups: str, files: dict[str, str], limit: int, tmp_path: Path) -> None:
    """Both versions of control groups, with and without namespaces."""
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(str(tmp_path / "groups"), str(tmp_path)) == limit
    assert memory_limit(str(tmp_path / "missing"), str(tmp_path)) == MACHINE


def test_idle_memory_in_a_small_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of ever other sizes leave a quarter of the memory behind, over all pools, and not their sum."""
    monkeypatch.setattr(outgoing, "memory_limit", lambda: 64 * MIB)
    pools = [Outgoing(lambda *_: None, lambda: None) for _ in range(2)]
    try:
        for size in (1, 2, 3, 4, 6, 5):
            for pool in pools:
                described = pool.describe(np.ones(size * MIB, "u1"))
                assert described is not None
                pool.returned(described[1][2])
        assert 0 < sum(pool.stats()["idle_bytes"] for pool in pools) <= 16 * MIB
    finally:
        for pool in pools:
            pool.close()
