"""The guardian's program, run by path: waits until its host is gone, then kills what is left of the host's workers.

It reads lines from stdin, `+ GROUP` when a worker's process group begins and `- GROUP` when it has ended. The end of
stdin means that the host is gone, whatever ended it. Standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable


def kill_marked(mark: bytes) -> None:
    """Kill every process whose environment contains `mark`, also those that left their process group."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                found = mark in file.read()
            if found:
                os.kill(int(name), signal.SIGKILL)
        except OSError:  # it has ended, or belongs to another user
            continue


def kill_group(group: int) -> None:
    """Kill a process group; no error if it is gone."""
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        return


def watch(lines: Iterable[str], mark: bytes) -> None:
    """Follow the host's lines to their end, then kill."""
    groups: set[int] = set()
    for line in lines:
        operation, _, number = line.partition(" ")
        (groups.add if operation == "+" else groups.discard)(int(number))
    for _ in range(2):  # a process may have forked while the first round was under way
        for group in groups:
            kill_group(group)
        kill_marked(mark)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    watch(sys.stdin, sys.argv[1].encode())
