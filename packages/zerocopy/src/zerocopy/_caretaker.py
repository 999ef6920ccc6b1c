"""Starts the process that removes this process's segments once their last reader has left, and sends it commands."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from zerocopy._lease import typed_errors

_PROGRAM = Path(__file__).with_name("_caretaker_process.py")


class Caretaker:
    """The publisher's end of the pipe to a caretaker process, which is started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: int | None = None
        self._charges: set[str] = set()
        self._starting: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether a caretaker process is connected."""
        return self._pipe is not None

    def take(self, path: Path) -> None:
        """Put a file in its charge. Call this before the file is made.

        Raises:
            ZerocopyError: No process can be started.
        """
        with self._lock, typed_errors(path.parent):
            if self._pipe is None:
                self._start()
                for charge in self._charges:  # of a caretaker that was killed
                    self._send(b"+", Path(charge))
            self._charges.add(str(path))
            self._send(b"+", path)

    def publisher_done(self, path: Path) -> None:
        """Say that the publisher has dropped its own lease on a file."""
        with self._lock:
            if str(path) not in self._charges:
                return
            if self._starting is not None:
                self._starting.wait()  # it forked long ago: this reaps the half that ended
                self._starting = None
            self._charges.discard(str(path))
            self._send(b"-", path)
            if not self._charges and self._pipe is not None:
                os.close(self._pipe)  # the process ends when the last reader of the last file has left
                self._pipe = None

    def after_fork_in_child(self) -> None:
        """Forget the parent's caretaker: it must see the end of the pipe when the parent ends, not the children."""
        self._lock = threading.Lock()  # another thread may have held the old one at the fork
        if self._pipe is not None:
            os.close(self._pipe)
        self._pipe, self._starting = None, None
        self._charges = set()

    def _start(self) -> None:
        read, self._pipe = os.pipe()
        command = [sys.executable, "-I", "-S", str(_PROGRAM)]
        try:
            self._starting = subprocess.Popen(
                command, stdin=read, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except BaseException:
            os.close(self._pipe)
            self._pipe = None
            raise
        finally:
            os.close(read)

    def _send(self, sign: bytes, path: Path) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, sign + os.fsencode(path) + b"\0")
        except BrokenPipeError:  # it was killed; a later publish removes what it would have removed
            os.close(self._pipe)
            self._pipe = None


caretaker = Caretaker()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=caretaker.after_fork_in_child)
