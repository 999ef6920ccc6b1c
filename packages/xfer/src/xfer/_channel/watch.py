"""Watches the processes that hold, or are to attach, the other end of a channel, so that their end wakes a wait."""

from __future__ import annotations

import os
import select


class Watch:
    """The end of processes, as events of an epoll.

    Args:
        poll: Becomes readable when a watched process ends.
    """

    def __init__(self, poll: select.epoll) -> None:
        self._poll = poll
        self.holder = (0, 0)
        self.expected_ended = self.ended = False
        self.blind = False  # whether there was no descriptor left to watch a process by
        self._pidfd = self._expected = -1
        self._expected_pid = 0

    def follow(self, holder: tuple[int, int], expected: int) -> bool:
        """Watch a holder, or the process that is expected where there is none yet.

        Args:
            holder: Its process, or 0, and how many holders there were.
            expected: The process that is to attach, or 0.

        Returns:
            Whether it is a new holder.
        """
        is_new = holder != self.holder
        if is_new:
            self._expected = self._forget(self._expected)
            self._pidfd = self._forget(self._pidfd)
            self.holder, self.ended = holder, False
            if holder[0]:
                self._pidfd, self.blind = self._open(holder[0])
                self.ended = self._pidfd < 0 and not self.blind
        if not holder[0] and expected and expected != self._expected_pid:
            self._expected = self._forget(self._expected)
            self._expected_pid = expected
            self._expected, self.blind = self._open(expected)
            self.expected_ended = self._expected < 0 and not self.blind
        return is_new

    def sleep(self, seconds: float | None) -> None:
        """Wait until a watched process ends, another event of the epoll comes, or the time is up."""
        for fd, _ in self._poll.poll(seconds):
            self.ended |= fd == self._pidfd
            self.expected_ended |= fd == self._expected

    def close(self) -> None:
        """Close the descriptors only: in a forked child the epoll is the parent's as well."""
        for fd in (self._expected, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._expected = self._pidfd = -1

    def _open(self, pid: int) -> tuple[int, bool]:
        """Return a descriptor of a process or -1, and whether it cannot be watched although it may live."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return -1, False
        except (OSError, OverflowError):  # no descriptor is left, or the number makes no sense
            return -1, True
        self._poll.register(fd, select.EPOLLIN)
        return fd, False

    def _forget(self, fd: int) -> int:
        if fd >= 0:
            self._poll.unregister(fd)
            os.close(fd)
        return -1
