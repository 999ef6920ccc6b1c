"""Processes that have started and imported this package, and wait for the extension that they will run."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isolate._guardian import MARKER, Guardian, kill_family


@dataclass(slots=True)
class Started:
    """A worker's process before it knows its extension.

    Attributes:
        process: The process.
        sock: Our end of the connection.
        mark: The guardian's mark on it and its descendants.
    """

    process: subprocess.Popen[bytes]
    sock: socket.socket
    mark: str

    def end(self, guardian: Guardian) -> None:
        """Kill it with its descendants and wait for it."""
        self.sock.close()
        kill_family(self.process.pid, self.mark)
        # Before the wait: afterwards another process can get the number, and the guardian would end that one's group.
        guardian.note("-", self.process.pid)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    guardian: Guardian,
    hidden_parent: bool = False,
    stdin: int | socket.socket = subprocess.DEVNULL,
) -> Started:
    """Start a worker's process.

    Args:
        command: Interpreter and arguments; the socket's descriptor and our process id are added.
        environment: The child's whole environment.
        cwd: The child's working folder.
        guardian: Marks the child and all its descendants, and ends them if the host dies.
        hidden_parent: Whether the child is in another pid namespace, where our process id means nothing.
        stdin: The child's standard input.
    """
    mark = guardian.mark()
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(0 if hidden_parent else os.getpid())],
                stdin=stdin if isinstance(stdin, int) else stdin.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={**environment, MARKER: mark},
                cwd=cwd,
                start_new_session=True,
                bufsize=0,
            )
    except BaseException:
        ours.close()
        raise
    guardian.note("+", process.pid)
    return Started(process, ours, mark)


class Spares:
    """Keeps a few started processes for extensions to come.

    Args:
        count: How many at most.
        guardian: Ends them if the host dies.
    """

    def __init__(self, count: int, guardian: Guardian) -> None:
        self._count = count
        self._guardian = guardian
        self._lock = threading.Lock()
        self._waiting: list[tuple[tuple[object, ...], Started]] = []

    def take(self, command: Sequence[str], environment: Mapping[str, str]) -> Started | None:
        """Return a process that was started so and still waits; None if there is none."""
        key = _key(command, environment)
        with self._lock:
            found = next((entry for entry in self._waiting if entry[0] == key), None)
            if found is None:
                return None
            self._waiting.remove(found)
        if found[1].process.poll() is None:
            return found[1]
        found[1].end(self._guardian)
        return None

    def prepare(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start one, in place of the oldest if there are enough, unless one waits already."""
        key = _key(command, environment)
        with self._lock:
            if not self._count or any(known == key for known, _ in self._waiting):
                return
            with contextlib.suppress(OSError):  # it would only have saved time
                self._waiting.append((key, start(command, environment, Path("/"), self._guardian)))
            while len(self._waiting) > self._count:
                self._waiting.pop(0)[1].end(self._guardian)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._count = 0
            while self._waiting:
                self._waiting.pop()[1].end(self._guardian)


def _key(command: Sequence[str], environment: Mapping[str, str]) -> tuple[object, ...]:
    return tuple(command), tuple(sorted(environment.items()))
