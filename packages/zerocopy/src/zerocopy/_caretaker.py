"""Starts the process that removes this process's segments once their last reader has left, and lists them for it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from zerocopy._caretaker_process import FORGET, GIVE_UP, LIST_HEADER, SHELL, TAKE
from zerocopy._lease import typed_errors

try:
    import fcntl
except ImportError:  # Windows, where nothing is published
    fcntl = None  # type: ignore[assignment]

_PROGRAM = Path(__file__).with_name("_caretaker_process.py")
_WAIT = Path(__file__).with_name("_caretaker_wait.sh")
_LARGE = 1 << 16  # bytes of a list below which nothing is gained by a shorter one


class _List:
    """The list of a caretaker's files, in a file without a name: records as `_caretaker_process` describes them."""

    def __init__(self) -> None:
        try:
            self.fd = os.memfd_create("zerocopy-charges")
        except (AttributeError, OSError):  # not Linux, or its kernel refuses
            with tempfile.TemporaryFile(buffering=0) as file:
                self.fd = os.dup(file.fileno())
        self._end = self._start_at(LIST_HEADER)
        self._next = _LARGE

    def append(self, sign: bytes, path: str) -> None:
        """Add a record."""
        self._end += os.pwrite(self.fd, sign + os.fsencode(path) + b"\0", self._end)

    def is_long(self) -> bool:
        """Return whether most of the list may be out of date."""
        return self._end > self._next

    def replace(self, records: list[tuple[bytes, str]]) -> None:
        """Make a shorter list. It is right at each moment, because this process may be killed at each."""
        content = b"".join(sign + os.fsencode(path) + b"\0" for sign, path in records)
        fcntl.lockf(self.fd, fcntl.LOCK_EX)  # the caretaker reads no list that is being moved
        try:
            os.pwrite(self.fd, content, self._end)
            self._start_at(self._end)
            os.pwrite(self.fd, content, LIST_HEADER)
            self._end = self._start_at(LIST_HEADER) + len(content)
            os.ftruncate(self.fd, self._end)
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
        self._next = max(_LARGE, 2 * self._end)

    def _start_at(self, offset: int) -> int:
        os.pwrite(self.fd, offset.to_bytes(LIST_HEADER, "little"), 0)
        return offset


class Caretaker:
    """The publisher's end of the pipe to a caretaker process, which is started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: int | None = None
        self._list: _List | None = None
        self._charges: set[str] = set()
        self._given_up: set[str] = set()  # and not known to be gone
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
            if self._pipe is None or _has_no_reader(self._pipe):  # there is none yet, or it was killed
                self._close()
                self._start()
            self._charges.add(str(path))
            self._note(TAKE, str(path))

    def publisher_done(self, path: Path) -> None:
        """Say that the publisher has dropped its own lease on a file."""
        with self._lock:
            if str(path) not in self._charges:
                return
            if self._starting is not None:
                self._starting.wait()  # it forked long ago: this reaps the half that ended
                self._starting = None
            self._charges.discard(str(path))
            if os.path.lexists(path):
                self._given_up.add(str(path))
                self._note(GIVE_UP, str(path))
                self._tell(b"look\n")
            else:
                self._note(FORGET, str(path))
            if not self._charges:
                if not self._left():
                    self._tell(b"done\n")
                self._close()  # the process ends when the last reader of the last file has left

    def after_fork_in_child(self) -> None:
        """Forget the parent's caretaker: it must see the end of the pipe when the parent ends, not the children."""
        self._lock = threading.Lock()  # another thread may have held the old one at the fork
        self._close()
        self._starting = None
        self._charges, self._given_up = set(), set()

    def _start(self) -> None:
        read, write = os.pipe()
        command = [sys.executable, "-I", "-S", str(_PROGRAM)]
        if os.access(SHELL, os.X_OK):
            command = [SHELL, str(_WAIT), sys.executable, str(_PROGRAM)]
        try:
            listed = _List()
            try:
                self._starting = subprocess.Popen(
                    command, stdin=read, stdout=listed.fd, stderr=subprocess.DEVNULL, start_new_session=True
                )
            except BaseException:
                os.close(listed.fd)
                raise
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        self._pipe, self._list = write, listed
        listed.replace(self._records())  # of a caretaker that was killed

    def _records(self) -> list[tuple[bytes, str]]:
        return [(TAKE, path) for path in self._charges] + [(GIVE_UP, path) for path in self._left()]

    def _left(self) -> set[str]:
        self._given_up = {path for path in self._given_up if os.path.lexists(path)}
        return self._given_up

    def _note(self, sign: bytes, path: str) -> None:
        if self._list is not None:
            self._list.append(sign, path)
            if self._list.is_long():
                self._list.replace(self._records())

    def _tell(self, line: bytes) -> None:
        if self._pipe is not None:
            with suppress(BrokenPipeError):  # it was killed: the next file starts another one
                os.write(self._pipe, line)

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
        if self._list is not None:
            os.close(self._list.fd)
        self._pipe = self._list = None


def _has_no_reader(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)  # an error is reported without being asked for
    return bool(poll.poll(0))


caretaker = Caretaker()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=caretaker.after_fork_in_child)
