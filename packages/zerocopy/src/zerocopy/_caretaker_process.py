"""Remove segment files that nobody holds, and keep the links of their names right; run as a program, the caretaker.

The caretaker is this file run by `python -I -S`, without site-packages, because it has to stay small. It runs only
while there is something to remove: otherwise it is `_caretaker_wait.sh`, which waits for a line or the end of its
standard input, a pipe from the publisher. Standard output is the publisher's list, which starts with the offset of
the first record. A record is a sign, a path and a zero byte: `+` puts the file in the caretaker's charge, `-` says that
the publisher gave it up, `!` that there is nothing to remove. The last sign of a path counts. The publisher's end gives
up all files. Each file that was given up is removed as soon as the kernel grants an exclusive lock on it, which is when
the last lease has ended.

A name has two links beside its segments: `NAME@current` points to the current version's file, and `NAME@last` holds the
last version number that was given out.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import stat
import sys
import time

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".zc"
TEMPORARY = ".part"
CURRENT = "@current"
LAST = "@last"
PATIENCE = 30.0  # seconds to wait for a folder's lock, which is held for a few milliseconds
SHELL = "/bin/sh"
LIST_HEADER = 8  # bytes of the offset of the first record
TAKE, GIVE_UP, FORGET = b"+", b"-", b"!"
_MOST_THREADS = 200  # files in use that each have a waiting thread; further ones are looked at every second
_HEX = frozenset("0123456789abcdef")


def distrust(status: os.stat_result, *, folder: bool = False) -> str:
    """Return why a file or folder is not to be believed, or an empty text.

    It must be a plain file (or a folder) of this user or of root, which no other user can write. In a folder with the
    sticky bit, as /tmp, others can put files of their own, and change none; so it will do.
    """
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(status.st_mode):
        return f"is not a {'folder' if folder else 'plain file'}"
    if status.st_uid not in (me(), 0):
        return f"belongs to user {status.st_uid}"
    sticky = folder and status.st_mode & stat.S_ISVTX
    return "can be written by other users" if status.st_mode & 0o022 and not sticky else ""


def me() -> int:
    """Return the user whose files this process makes; 0 where the system has no users."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def open_trusted(path: str, flags: int, *, folder: bool = False, follow: bool = False, foreign: bool = False) -> int:
    """Open a file in a place that other users may write to, without waiting, and check it before a byte is read.

    Args:
        path: The file, or a folder.
        flags: As for `os.open`.
        folder: Whether a folder is wanted.
        follow: Whether the path may be a link.
        foreign: Whether it may be another user's, because what is read of it is verified.

    Raises:
        PermissionError: It is not to be believed; see `distrust`. Nothing of it was read.
    """
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    if folder:
        flags |= getattr(os, "O_DIRECTORY", 0)
    fd = os.open(path, flags, 0o600)
    try:
        status = os.fstat(fd)
        reason = distrust(status, folder=folder)
        if reason and not (foreign and stat.S_ISREG(status.st_mode)):
            raise PermissionError(f"{path} {reason}")
        if flags & os.O_CREAT and status.st_mode & 0o777 != 0o600 and status.st_uid == me():
            os.fchmod(fd, 0o600)  # whatever the umask
    except BaseException:
        os.close(fd)
        raise
    return fd


def lock_within(fd: int, seconds: float) -> bool:
    """Take an exclusive lock on an open file and return whether that was possible in time."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.001)


def parse(file: str) -> tuple[str, int] | None:
    """Return name and version of a segment's file name `NAME@VERSION-TOKEN.zc`, or None for any other file name."""
    name, at, rest = file.rpartition("@")
    version, dash, token = rest.removesuffix(SUFFIX).partition("-")
    well = at and dash and version.isdecimal() and len(token) == 8 and _HEX.issuperset(token) and rest.endswith(SUFFIX)
    return (name, int(version)) if well else None


def versions(folder: str, name: str) -> list[str]:
    """Return the segment files of a name, newest version first. Version 0 stands for models without a name."""
    found = []
    for file in os.listdir(folder):
        if file.startswith(name):
            parsed = parse(file)
            if parsed is not None and parsed[0] == name and parsed[1] > 0:
                found.append((parsed[1], file))
    return [file for _, file in sorted(found, reverse=True)]


def read_link(path: str) -> str | None:
    """Return the target of a link that this user or root made, or None without one."""
    try:
        return os.readlink(path) if os.lstat(path).st_uid in (me(), 0) else None
    except OSError:
        return None


def write_link(path: str, target: str) -> None:
    """Point a link at a target in one step. The caller holds the folder's lock.

    Raises:
        FileExistsError: Something else than a link of this package is there.
    """
    temporary = path + TEMPORARY
    for each in (path, temporary):
        if os.path.lexists(each) and read_link(each) is None:
            raise FileExistsError(errno.EEXIST, f"{each} is in the way of a link of this name: remove it")
    if os.path.lexists(temporary):  # left by a process that was killed here
        os.unlink(temporary)
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def settle(folder: str, name: str) -> None:
    """Make a name's link point to its newest version that exists, and remove the links of a name without files."""
    current, last = os.path.join(folder, name + CURRENT), os.path.join(folder, name + LAST)
    if read_link(current) is None and read_link(last) is None:
        return  # a model without a name, or the folder is gone
    try:
        fd = open_trusted(folder, os.O_RDONLY, folder=True, follow=True)
    except OSError:
        return
    try:
        if not lock_within(fd, PATIENCE):
            return
        target = read_link(current)
        if target is not None and os.path.exists(os.path.join(folder, target)):
            return
        left = versions(folder, name)
        if left:
            write_link(current, left[0])
            return
        if target is not None:
            os.unlink(current)
        unfinished = any(
            file.startswith(name + "@") and file.endswith(SUFFIX + TEMPORARY) for file in os.listdir(folder)
        )
        if not unfinished and read_link(last) is not None:
            os.unlink(last)
    except OSError:
        pass  # the file system refuses: the links stay, and readers skip a link whose file is gone
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile has the descriptor too
        os.close(fd)


def remove_if_free(path: str, *, wait: bool = False) -> bool:
    """Remove a file that has no lease, settle its name, and return whether nothing is left to do about it.

    A file of another user, or of another kind, is left alone.

    Args:
        path: The file.
        wait: Wait until the last lease ends.
    """
    try:
        fd = open_trusted(path, os.O_RDONLY)
    except OSError:
        gone = True  # or its folder is gone, or it is not ours
    else:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine, there = os.fstat(fd), os.lstat(path)
            if (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev):  # else another file is at the path now
                os.unlink(path)
            gone = True
        except FileNotFoundError:
            gone = True
        except OSError:
            gone = False
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # as in `settle`
            os.close(fd)
    if gone:
        folder, file = os.path.split(path)
        settle(folder, file.rpartition("@")[0])
    return gone


def read_list(fd: int) -> dict[str, bytes]:
    """Return the last sign of each file in the publisher's list."""
    fcntl.lockf(fd, fcntl.LOCK_EX)  # the publisher moves it under this lock, which is between processes
    try:
        start = int.from_bytes(os.pread(fd, LIST_HEADER, 0), "little")
        data = os.pread(fd, os.fstat(fd).st_size - start, start)
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)
    *records, _unfinished = data.split(b"\0")
    return {os.fsdecode(record[1:]): record[:1] for record in records}


class Charges:
    """The files in the caretaker's charge, and the removals that wait for a last lease."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.running: dict[str, _thread.LockType] = {}
        self.waiting: set[str] = set()

    def update(self, signs: dict[str, bytes]) -> None:
        """Take over the publisher's list, give up what it gives up, and try again what has no thread."""
        self.held = [path for path, sign in signs.items() if sign == TAKE]
        self.running = {path: ended for path, ended in self.running.items() if ended.locked()}
        given_up = {path for path, sign in signs.items() if sign == GIVE_UP} | self.waiting
        self.waiting = set()
        for path in given_up - self.running.keys():
            self.give_up(path)

    def give_up(self, path: str) -> None:
        """Remove a file now, or from a thread when its last lease ends."""
        if remove_if_free(path):
            return
        if len(self.running) >= _MOST_THREADS:
            self.waiting.add(path)
            return
        ended = _thread.allocate_lock()
        ended.acquire()

        def run() -> None:
            try:
                remove_if_free(path, wait=True)
            finally:
                ended.release()

        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:  # no more threads
            self.waiting.add(path)
        else:
            self.running[path] = ended

    def busy(self) -> bool:
        """Return whether a removal is left to do."""
        return bool(self.waiting) or any(ended.locked() for ended in self.running.values())

    def finish(self) -> None:
        """Give up every file and wait for all removals."""
        for path in self.held:
            self.give_up(path)
        while self.waiting:
            waiting, self.waiting = self.waiting, set()
            for path in waiting:
                self.give_up(path)
            time.sleep(1)
        for ended in self.running.values():
            ended.acquire()


def main() -> None:
    """Remove files until the publisher has ended and the last of them is gone; wait as the shell script in between."""
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    if not script and os.fork():
        os._exit(0)  # the parent ends at once: a process that stops the publisher's children spares this one
    os.chdir("/")  # keeps no folder busy
    _thread.stack_size(1 << 17)
    charges = Charges()
    wait: float | None = 0
    while True:
        if select.select([0], [], [], wait)[0] and not os.read(0, 1 << 16):
            break
        charges.update(read_list(1))  # after the pipe is empty, as its lines are written after the list
        if script and not charges.busy():
            os.execv(SHELL, [SHELL, script, sys.executable, __file__])
        wait = 1.0 if charges.busy() else None
    charges.update(read_list(1))
    charges.finish()


if __name__ == "__main__":
    main()
