"""One worker process: starts it, logs its output, notices its exit and kills it with all its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from isolate._cgroup import Group
from isolate._guardian import Guardian, kill_family
from isolate._output import OutputLines
from isolate._records import Records
from isolate._spares import Started


class WorkerProcess:
    """A running worker.

    Args:
        started: The process.
        guardian: Marks the child and all its descendants, and ends them if the host dies.
        logger: Gets each line of stdout (info) and stderr (warning), and what the extension logs.
        on_exit: Called once on the loop when the process has ended and its output is read.
        group: The control group for it and its descendants.
        log_bytes: Bytes of each of its output streams that are logged in a second.
    """

    def __init__(
        self,
        started: Started,
        guardian: Guardian,
        logger: logging.Logger,
        on_exit: Callable[[], None],
        *,
        group: Group,
        log_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._mark = started.mark
        self._guardian = guardian
        self._on_exit = on_exit
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self._process = started.process
        self.pid = self._process.pid
        self._group = group
        group.add(self.pid)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        records = Records(logger)
        self._stdout = OutputLines(self._loop, os.dup(self._process.stdout.fileno()), records.out, log_bytes)
        self._stderr = OutputLines(self._loop, os.dup(self._process.stderr.fileno()), records.err, log_bytes)
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
        # Before the wait: until then no other process can get this process id, and so the group's.
        self._kill_all()
        self._guardian.note("-", self.pid)
        self._process.wait()
        for stream in (self._stdout, self._stderr):
            end = time.monotonic() + 0.2
            while stream.read() and time.monotonic() < end:
                pass
            stream.close()
        self._remove_group(20)
        self.exited.set_result(None)
        self._on_exit()

    def _remove_group(self, tries: int) -> None:
        if not self._group.remove() and tries:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_later(0.05, self._remove_group, tries - 1)

    def kill(self) -> None:
        """End it and its descendants: its supervisor does so at once; if not, the kernel does half a second later."""
        if not self.exited.done():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)
                os.kill(self.pid, signal.SIGCONT)  # below `landlock` the extension can have stopped its supervisor
            self._loop.call_later(0.5, self._kill_late)

    def _kill_late(self) -> None:
        if not self.exited.done():
            self._kill_all()

    def _kill_all(self) -> None:
        self._group.kill()
        kill_family(self.pid, self._mark)

    async def wait(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds."""
        await asyncio.wait([self.exited], timeout=timeout)
        return self.exited.done()
