"""A program or test that fails before it closes its host ends all the same, with nothing left."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

WAYS = {
    "a thread waits": "threading.Thread(target=extension.call.slow).start()",
    "a pool waits": "ThreadPoolExecutor(2).submit(extension.call.slow)",
    "a thread asks for more": "threading.Thread(target=lambda: [retry() for _ in range(3)]).start()",
    "nothing waits": "pass",
}
PROGRAM = """
import asyncio, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from isolate import Host
def retry():
    try:
        extension.call.slow()
    except Exception:
        pass
host = Host(sys.argv[1]).__enter__()
extension = host.load(sys.argv[2])
{way}
time.sleep(0.1)
print(extension.pid, flush=True)
assert False, "the test fails here"
"""
ASYNC = """
import asyncio, sys, threading, time
from isolate import Host
async def main():
    host = await Host(sys.argv[1]).__aenter__()
    extension = await host.aload(sys.argv[2])
    threading.Thread(target=extension.call.slow).start()
    await asyncio.sleep(0.1)
    print(extension.pid, flush=True)
    assert False, "the test fails here"
asyncio.run(main())
"""


@pytest.mark.parametrize("way", [*WAYS, "async"])
def test_a_host_that_is_left_open(way: str, store: Path, tmp_path: Path) -> None:
    """The process ends with its own error, and the worker with it."""
    (tmp_path / "manifest.yaml").write_text("name: a\ntimeouts: {stop: 0.5}\n")
    (tmp_path / "main.py").write_text("import time\ndef slow(): time.sleep(1000)\n")
    code = ASYNC if way == "async" else textwrap.dedent(PROGRAM).format(way=WAYS[way])
    command = [sys.executable, "-c", code, str(store), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "the test fails here" in done.stderr
    worker = int(done.stdout)
    end = time.monotonic() + 60
    while psutil.pid_exists(worker):
        assert time.monotonic() < end, "the worker goes on"
        time.sleep(0.02)
