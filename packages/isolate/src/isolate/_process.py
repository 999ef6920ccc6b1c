"""One worker process: starts it, logs its output, notices its exit and kills it with all its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from isolate._guardian import MARKER, Guardian, kill_family

TAIL_LINES = 20
_LINE_LIMIT = 8192


class _Lines:
    """Turns what comes out of a pipe into log records, a line each; keeps the last ones."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._log = log
        self._rest = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        os.set_blocking(fd, False)
        loop.add_reader(fd, self.read)

    def read(self, limit: int = 65536) -> bool:
        """Take what is there; False at the end or when there is nothing."""
        if self._fd < 0:
            return False
        try:
            data = os.read(self._fd, limit)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_LIMIT:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._emit(line)
        return True

    def _emit(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")[:_LINE_LIMIT]
        self.tail.append(text)
        self._log(text)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            if self._rest:
                self._emit(self._rest)
                self._rest = b""


class WorkerProcess:
    """A running worker.

    Args:
        command: Interpreter and arguments; the socket's descriptor and our process id are added.
        sock: The worker's end of the connection; closed here once it is passed on.
        environment: The child's whole environment.
        cwd: The child's working folder.
        guardian: Marks the child and all its descendants, and is told of the process group.
        logger: Gets each line of stdout (info) and stderr (warning).
        on_exit: Called once on the loop when the process has ended and its output is read.
    """

    def __init__(
        self,
        command: Sequence[str],
        sock: socket.socket,
        environment: dict[str, str],
        cwd: Path,
        guardian: Guardian,
        logger: logging.Logger,
        on_exit: Callable[[], None],
        hidden_parent: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._mark = guardian.mark()
        self._guardian = guardian
        self._on_exit = on_exit
        self.exited: asyncio.Future[None] = self._loop.create_future()
        parent = 0 if hidden_parent else os.getpid()
        with sock:
            self._process = subprocess.Popen(
                [*command, str(sock.fileno()), str(parent)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(sock.fileno(),),
                env={**environment, MARKER: self._mark},
                cwd=cwd,
                start_new_session=True,
                bufsize=0,
            )
        self.pid = self._process.pid
        guardian.note("+", self.pid)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdout = _Lines(self._loop, os.dup(self._process.stdout.fileno()), logger.info)
        self._stderr = _Lines(self._loop, os.dup(self._process.stderr.fileno()), logger.warning)
        self._process.stdout.close()
        self._process.stderr.close()
        self._pidfd = -1
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(self.pid)
            self._loop.add_reader(self._pidfd, self._exited)
        else:
            threading.Thread(target=self._wait_elsewhere, daemon=True).start()

    @property
    def stderr_tail(self) -> tuple[str, ...]:
        """The last lines on stderr."""
        return tuple(self._stderr.tail)

    @property
    def status(self) -> tuple[int | None, int | None]:
        """Exit code and signal number; one of them is set once the process has ended."""
        code = self._process.returncode
        if code is None:
            return None, None
        return (code, None) if code >= 0 else (None, -code)

    def _wait_elsewhere(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._exited)

    def _exited(self) -> None:
        if self.exited.done():
            return
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        # Before the wait: until then the process id, and so the group's, cannot be given to anybody else.
        kill_family(self.pid, self._mark)
        self._process.wait()
        self._guardian.note("-", self.pid)
        for stream in (self._stdout, self._stderr):
            end = time.monotonic() + 0.2
            while stream.read() and time.monotonic() < end:
                pass
            stream.close()
        self.exited.set_result(None)
        self._on_exit()

    def kill(self) -> None:
        """End it and its descendants at once."""
        if not self.exited.done():
            kill_family(self.pid, self._mark)

    async def wait(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds."""
        await asyncio.wait([self.exited], timeout=timeout)
        return self.exited.done()
