"""Files and folders of the store: owner, type and mode are checked before a byte is read, and no other user may write.

Names are looked up from the root folder downwards. A component's parent is known to be out of other users' reach before
the component is looked at, so nobody else can replace it afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import secrets
import shutil
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from isolate.errors import UnsafeStoreError

if sys.platform != "win32":
    import fcntl
    import grp
    import pwd

_OTHERS_WRITE, _GROUP_WRITES = 0o002, 0o020
_LINKS_LIMIT = 40
_UNMAPPED = 65534
# ioctl(2) of Linux, by which chattr(1) works; both take a long.
_GET_FLAGS, _SET_FLAGS, _TOP = 0x80086601, 0x40086602, 0x00020000
# Arguments of renameat2(2).
_AT_FDCWD, _EXCHANGE = -100, 2
_NO_WAIT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
# A named pipe or a device that is opened to be read must not block either.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def private_folder(path: Path, *, create: bool = True) -> Path:
    """Return a folder, free of links, in which no other user can write or replace anything.

    Args:
        path: Where it is wanted. Links on the way are followed if they belong to this user or to root.
        create: Whether to create what does not exist, with mode 0700 whatever the umask.

    Raises:
        UnsafeStoreError: Another user could write to it, or replace one of the folders above it.
        FileNotFoundError: It does not exist, and is not to be created.
    """
    waiting = list(reversed(path.absolute().parts[1:]))
    place, links = Path(path.absolute().anchor), 0
    _check(place, os.lstat(place))
    while waiting:
        part = waiting.pop()
        if part == "..":
            place = place.parent
            continue
        there = place / part
        status = _look(there, create)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            if not _trusted(status.st_uid, there):
                raise UnsafeStoreError(
                    f"{there} is a link of {_user(status.st_uid)}; choose another store, or remove it"
                )
            target = Path(os.readlink(there))
            waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            place = Path(target.anchor) if target.is_absolute() else place
        else:
            _check(there, status)
            place = there
    return place


def _look(path: Path, create: bool) -> os.stat_result:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        if not create:
            raise
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700)  # an umask may have taken bits away
    return os.lstat(path)


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeStoreError(f"{path} is not a folder; choose another store, or remove it")
    if not _trusted(status.st_uid, path):
        raise UnsafeStoreError(
            f"{path} belongs to {_user(status.st_uid)}, who can replace what is in it; choose another store, or run: "
            f"chown {os.geteuid()} {path}"
        )
    writable = status.st_mode & _OTHERS_WRITE or (
        status.st_mode & _GROUP_WRITES and not _own_group(status.st_gid) and status.st_gid != 0
    )
    # In a sticky folder such as /tmp only the owner of an entry can replace it.
    if writable and not status.st_mode & stat.S_ISVTX:
        raise UnsafeStoreError(
            f"other users can write to {path} (mode {stat.S_IMODE(status.st_mode):04o}) and put their own code there; "
            f"choose another store, or look at what is in it and run: chmod go-w {path}"
        )


def _trusted(owner: int, path: Path) -> bool:
    if owner in (0, os.geteuid()):
        return True
    # In a user namespace that does not map root, the system's own folders seem to be nobody's.
    return owner == _UNMAPPED and len(path.parts) <= 2 and not _mapped(owner)


def _mapped(user: int) -> bool:
    try:
        ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return True
    return any(first <= user < first + count for first, _, count in ranges)


def _own_group(group: int) -> bool:
    """Whether this user is the only member of a group, as it is where every user has a group of the same name."""
    try:
        entry, name = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def open_private(path: Path, *, write: bool = False) -> int:
    """Open a regular file of the store; with `write`, for both, and create it with mode 0600 if needed.

    Nothing is followed, nothing blocks, and owner, type and mode are checked before a byte is read.

    Raises:
        UnsafeStoreError: It is a link or no regular file, or another user owns it or can write to it.
        OSError: It cannot be opened.
    """
    try:
        fd = os.open(path, (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | _NO_WAIT, 0o600)
    except OSError as failure:
        if failure.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UnsafeStoreError(f"{path} is not a regular file; remove it") from None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeStoreError(f"{path} is not a regular file; remove it")
        if not _trusted(status.st_uid, path) or status.st_mode & _OTHERS_WRITE:
            raise UnsafeStoreError(f"{path} belongs to {_user(status.st_uid)}, or others can write to it; remove it")
        if write and stat.S_IMODE(status.st_mode) != 0o600 and status.st_uid == os.geteuid():
            os.fchmod(fd, 0o600)  # an umask may have taken bits away
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_private(path: Path) -> bytes:
    """Return the content of a file of the store; see `open_private`."""
    with open(open_private(path), "rb") as file:
        return file.read()


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of a file that others may have made, such as an extension's; links are followed.

    Raises:
        ValueError: It is no regular file, or larger than the limit.
        OSError: It cannot be read.
    """
    fd = os.open(path, _READ)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} has too many bytes; the limit is {limit}")
    return data


def write_atomically(path: Path, data: bytes, *, private: bool = True) -> None:
    """Write a file beside its place and rename it; a reader sees the old content or the new one.

    Args:
        path: Its place.
        data: Its content.
        private: Whether its mode is 0600; else the umask decides.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_WAIT, 0o600 if private else 0o666)
    try:
        with open(fd, "wb") as file:
            if private:
                os.fchmod(fd, 0o600)  # an umask may have taken bits away
            file.write(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file of the store exclusively; `wait` is called between attempts, and ends them by raising."""
    with open(open_private(path, write=True), "rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait()
        yield


@contextlib.contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Hold a lock file of the store exclusively if nobody else holds it; whether it is held."""
    with open(open_private(path, write=True), "rb") as file:
        yield _try_lock(file.fileno())


@contextlib.contextmanager
def workplace(folder: Path, name: str = "") -> Iterator[Path]:
    """A new folder below that one, removed at the end; it is locked, so that `sweep` sees that it is in use.

    Args:
        folder: Where to make it.
        name: What its name begins with, if it should have the same name again whenever nobody uses that.
    """
    for number in itertools.count():
        path = folder / (f"{name}-{number}" if name else secrets.token_hex(8))
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        try:
            path.chmod(0o700)  # an umask may have taken bits away
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_WAIT)
        except FileNotFoundError:
            continue  # a sweep came between
        try:
            if not _try_lock(fd) or not _is_at(fd, path):
                continue  # a sweep came between, and another workplace may have the name now
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return
        finally:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def put_in_place(folder: Path, target: Path, aside: Path) -> None:
    """Rename a folder to a name; what has that name stays there until then, and is below `aside` or `folder` then.

    Where the kernel exchanges names, there is no moment at which others find nothing under the name.
    """
    if not _exchange(folder, target):
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, aside)
        os.rename(folder, target)


def _exchange(path: Path, other: Path) -> bool:
    """Exchange two names; return False if that cannot be, as where one of them does not exist."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0)


def size_below(folder: Path) -> int:
    """Return the bytes of all files below a folder, which others may remove meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def spread(folder: Path) -> None:
    """Let ext4 place each new folder below this one apart from the others, as `chattr +T` does; others ignore it.

    Without it, new files go where the last ones were removed. An ext4 without a journal does not use the numbers of
    removed files again for minutes, and looks at each of them whenever it creates one: a thousand files then take a
    second to create instead of 30 ms.
    """
    fd = os.open(folder, os.O_RDONLY | _NO_WAIT)
    try:
        with contextlib.suppress(OSError):
            flags = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, bytes(struct.calcsize("l"))))[0]
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags | _TOP))
    finally:
        os.close(fd)


def sweep(folder: Path) -> None:
    """Remove the workplaces below a folder whose makers are gone, on this machine or in any container on it."""
    try:
        found = list(folder.iterdir())
    except OSError:
        return  # the next one removes them
    for path in found:
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_WAIT)
        except OSError:
            continue  # gone, or nothing of ours
        try:
            if _try_lock(fd) and _is_at(fd, path):  # else the name is a new workplace's
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
