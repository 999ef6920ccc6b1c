"""The guardian outlives its host by a moment, to end the host's workers whatever ended the host."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path

from isolate._guardian_process import kill_group, kill_marked

MARKER = "ISOLATE_WORKER"
_PROGRAM = Path(__file__).with_name("_guardian_process.py")


class Guardian:
    """Starts the guardian's process with the host's first program or worker; one for each host."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(12)
        self._serials = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def mark(self) -> str:
        """Return a mark for one more worker; its descendants inherit it in their environment."""
        return f"{self._token}.{next(self._serials)}"

    def variables(self) -> dict[str, str]:
        """Return a variable for the environment of a program that must not outlive the host."""
        with self._lock, contextlib.suppress(OSError):
            self._start()
        return {MARKER: self.mark()}

    def note(self, operation: str, group: int) -> None:
        """Report a process group: `+` when it begins, `-` when it has ended."""
        with self._lock, contextlib.suppress(OSError):
            if self._process is None and operation == "-":
                return
            process = self._start()
            assert process.stdin is not None
            os.write(process.stdin.fileno(), f"{operation} {group}\n".encode())

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), f"{MARKER}={self._token}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.defpath},
                cwd="/",
                start_new_session=True,
            )
        return self._process

    def close(self) -> None:
        """Let it end; call this after the workers have ended."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def kill_family(group: int, mark: str) -> None:
    """Kill a process group, and every process that inherited the mark."""
    kill_group(group)
    kill_marked(f"{MARKER}={mark}\0".encode())
