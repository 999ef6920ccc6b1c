"""The caretaker process: what it costs while it waits, and what happens when it is killed or its list grows long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy._caretaker import Caretaker, _List
from zerocopy._caretaker_process import FORGET, GIVE_UP, TAKE, read_list

Publish = Callable[..., ModelRef]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def _caretakers(token: str) -> list[psutil.Process]:
    """The caretaker processes whose list names a path, without the half that forks and ends: it leads the session."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "_caretaker_process.py" in " ".join(process.info["cmdline"] or ()):
                if os.getsid(process.pid) == process.pid:
                    continue
                with open(f"/proc/{process.pid}/fd/1", "rb") as listed:
                    if token.encode() in listed.read():
                        found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


def test_it_is_no_interpreter_while_it_waits(publish: Publish, tmp_path: Path, eventually: Any) -> None:
    """An idle caretaker takes less than half a megabyte; it is a Python process only while a reader holds a version."""
    first = publish(nn.Linear(4, 4), name="m", directory=tmp_path)

    def idle() -> bool:
        try:
            programs = [os.readlink(f"/proc/{process.pid}/exe") for process in _caretakers(str(tmp_path))]
        except OSError:  # it has just ended
            return False
        return len(programs) == 1 and "python" not in programs[0]

    assert eventually(idle)
    (process,) = _caretakers(str(tmp_path))
    assert process.memory_full_info().uss < 1 << 19
    reader = first.load(cached=False)
    second = publish(nn.Linear(4, 4), name="m", directory=tmp_path)
    assert eventually(lambda: not idle())
    assert Path(first.path).exists()
    del reader
    assert eventually(lambda: not Path(first.path).exists())
    assert eventually(idle)
    assert Path(second.path).exists()


@pytest.mark.slow
def test_one_that_was_killed_is_replaced(tmp_path: Path, eventually: Any) -> None:
    """The next publish starts another, which has the earlier files in its charge too."""
    code = """
import os, signal, sys, torch, zerocopy
first = zerocopy.publish(torch.nn.Linear(2, 2), directory=sys.argv[1])
print("published", flush=True)
os.kill(int(input()), signal.SIGKILL)
input()
second = zerocopy.publish(torch.nn.Linear(2, 2), directory=sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "published\n"
        assert eventually(lambda: len(_caretakers(str(tmp_path))) == 1)
        (process,) = _caretakers(str(tmp_path))
        publisher.stdin.write(f"{process.pid}\n")
        publisher.stdin.flush()
        assert eventually(lambda: _caretakers(str(tmp_path)) == [])
        publisher.stdin.write("\n")
        publisher.stdin.close()
        assert publisher.wait() == -signal.SIGKILL
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_a_list_that_is_moved_is_read_whole() -> None:
    """While a publisher shortens its list again and again, a caretaker reads no half of one."""
    listed = _List()
    for index in range(100):
        listed.append(TAKE, f"/held/{index}")
    listed.append(GIVE_UP, "/given")
    wanted = {f"/held/{index}" for index in range(100)}
    child = os.fork()  # the lock is between processes
    if child == 0:
        right = False
        try:
            reads = [read_list(listed.fd) for _ in range(300)]
            held = [{path for path, sign in signs.items() if sign == TAKE} - {"/temporary"} for signs in reads]
            right = all(each == wanted for each in held) and all(signs["/given"] == GIVE_UP for signs in reads)
        finally:
            os._exit(0 if right else 1)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        listed.append(TAKE, "/temporary")
        listed.append(FORGET, "/temporary")
        listed.replace([(TAKE, path) for path in wanted] + [(GIVE_UP, "/given")])
    assert status == 0
    assert os.fstat(listed.fd).st_size < 1 << 14
    os.close(listed.fd)


def test_a_list_does_not_grow_with_what_was_published(tmp_path: Path) -> None:
    """After thousands of short publications, the list holds the files that are in charge."""
    caretaker = Caretaker()
    caretaker.take(tmp_path / "stays")
    listed = caretaker._list
    assert listed is not None
    for index in range(3000):
        path = tmp_path / f"{'x' * 100}{index}"
        caretaker.take(path)
        caretaker.publisher_done(path)
    assert os.fstat(listed.fd).st_size < 1 << 17
    assert {path for path, sign in read_list(listed.fd).items() if sign == TAKE} == {str(tmp_path / "stays")}
    caretaker.publisher_done(tmp_path / "stays")
    assert not caretaker.running


def test_systems_without_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    """Where /bin/sh is missing, the caretaker is a Python process from the start and keeps its promise."""
    monkeypatch.setattr("zerocopy._caretaker.SHELL", str(tmp_path / "nothing"))
    caretaker = Caretaker()
    monkeypatch.setattr("zerocopy._publish.caretaker", caretaker)
    monkeypatch.setattr("zerocopy._held.caretaker", caretaker)
    first = zerocopy.publish(nn.Linear(2, 2), name="m", directory=tmp_path / "segments")
    reader = first.load(cached=False)
    second = zerocopy.publish(nn.Linear(2, 2), name="m", directory=tmp_path / "segments")
    assert torch.equal(reader.weight, first.load(cached=False).weight)
    del reader
    assert eventually(lambda: not Path(first.path).exists())
    zerocopy.unpublish(second)
    assert eventually(lambda: list((tmp_path / "segments").iterdir()) == [])
