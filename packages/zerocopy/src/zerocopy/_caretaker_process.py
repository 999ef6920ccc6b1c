"""The caretaker process: removes segment files once their publisher and last reader have left.

Runs as a file of its own with `python -I -S`, without site-packages, because it lives as long as the segments do and
has to stay small. It reads commands from standard input, each ended by a zero byte: `+P` puts the file P in its charge,
and `-P` says that the publisher gave P up. The end of the input gives up all files. For each file that was given up, a
thread waits for an exclusive lock, which the kernel grants when the last lease ends, and removes the file.
"""

from __future__ import annotations

import _thread
import fcntl
import os


def remove_when_free(path: bytes) -> None:
    """Wait until nobody holds a lease on a file, then remove it, and its name's link if that points to it."""
    opened = []
    try:
        fd = os.open(path, os.O_RDONLY)
        opened.append(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        mine, there = os.fstat(fd), os.stat(path)
        if (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev):
            os.unlink(path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        opened.append(folder)
        fcntl.flock(folder, fcntl.LOCK_EX)
        link = path.rsplit(b"@", 1)[0] + b"@current"
        if os.path.islink(link) and os.readlink(link) == os.path.basename(path):
            os.unlink(link)
    except OSError:
        pass  # the file, its folder or the link is gone already
    finally:
        for fd in opened:
            os.close(fd)


def in_thread(path: bytes) -> _thread.LockType:
    """Start a thread that removes a file, and return a lock that it releases at its end."""
    ended = _thread.allocate_lock()
    ended.acquire()

    def run() -> None:
        try:
            remove_when_free(path)
        finally:
            ended.release()

    _thread.start_new_thread(run, ())
    return ended


def main() -> None:
    """Serve commands until the input ends, then wait for the removal of every file."""
    if os.fork():
        os._exit(0)  # the parent ends at once: whoever stops the publisher's children spares this process
    os.chdir("/")  # keeps no folder busy
    charges: list[bytes] = []
    running = []
    rest = b""
    while data := os.read(0, 1 << 16):
        *commands, rest = (rest + data).split(b"\0")
        for command in commands:
            sign, path = command[:1], command[1:]
            if sign == b"+":
                charges.append(path)
            elif path in charges:
                charges.remove(path)
                running.append(in_thread(path))
    running.extend(in_thread(path) for path in charges)
    for ended in running:
        ended.acquire()


if __name__ == "__main__":
    main()
