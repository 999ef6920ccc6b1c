"""A host that runs out of descriptors: typed errors, no leak, and it goes on when there are some again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import collections, gc, json, os, resource, sys, time
import numpy as np
import isolate
from isolate.errors import IsolateError
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
count = lambda: len(os.listdir("/proc/self/fd"))
outcomes = collections.Counter()

def attempt(what):
    try:
        what()
        outcomes["worked"] += 1
    except IsolateError as failure:
        outcomes[type(failure).__name__] += 1
    except Exception as failure:
        outcomes["untyped " + repr(failure)] += 1

with isolate.Host(sys.argv[1]) as host:
    stats = host.load(sys.argv[2])
    host.load(sys.argv[3]).stop()
    stats.call.first(np.ones(100_000))  # imports what it needs
    before = count()
    kept = []
    for free in range(0, 34, 2):
        # A limit counts from the lowest number, so the gaps below the highest one do not matter.
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + free, hard))
        attempt(lambda: host.load(sys.argv[3]))
        attempt(lambda: kept.append(isolate.share(np.ones(1000))))
        attempt(lambda: stats.call.first(np.full(100_000, free, "f8")))
        attempt(lambda: host.store.gc(set(host.store.all_keys())))
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
        if "other" in host.extensions:
            host["other"].stop()
        assert stats.call.first(np.full(100_000, free, "f8")) == free
        kept.clear()
    assert host.load(sys.argv[3]).call.fine() == 1
    host["other"].stop()
    gc.collect()
    end = time.monotonic() + 60
    while count() > before + 2 and time.monotonic() < end:
        time.sleep(0.05)
    outcomes["left"] = count() - before
print(json.dumps(outcomes))
"""


def test_a_host_without_descriptors(store: Path, tmp_path: Path) -> None:
    """For any number of free descriptors, each operation works or raises an error of ours; none is left open."""
    for name, code in (("stats", "def first(array): return float(array[0])"), ("other", "def fine(): return 1")):
        folder = tmp_path / name
        folder.mkdir()
        dependencies = "['numpy']" if name == "stats" else "[]"
        (folder / "manifest.yaml").write_text(f"name: {name}\ndependencies: {dependencies}\n")
        (folder / "main.py").write_text(code + "\n")
    command = [sys.executable, "-c", PROGRAM, str(store), str(tmp_path / "stats"), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert not [name for name in outcomes if name.startswith("untyped")], outcomes
    assert outcomes["worked"] > 10, outcomes
    assert outcomes["ExtensionStartError"] > 1, outcomes
    assert outcomes["left"] <= 2, outcomes
