"""What a worker does to itself while it has one thread and before any code of the environment runs."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Collection, Iterable
from typing import Any

from . import seccomp

if sys.platform != "win32":
    import resource

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAP_SYS_NICE, _CAP_SYS_RESOURCE = 23, 24
_CAPABILITY_VERSION = 0x20080522
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 8: 16}
_NEWEST_FS_BITS = 17
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_SOCKETS = 1 << 9 | 1 << 16  # to make a socket at a path, and to reach one there: granted nowhere
_NEW_NS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_MOUNT_SETATTR, _ATTR_RDONLY, _AT_FDCWD, _AT_RECURSIVE, _MS_BIND = 442, 1, -100, 0x8000, 1 << 12
_MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1 << 14, 1 << 18, 2, 4, 8


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def die_with_parent(parent: int, signal_number: int) -> bool:
    """Ask the kernel for a signal when this process's parent ends; return False where the kernel cannot."""
    try:
        done = bool(_libc().prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
    if parent and os.getppid() not in (parent, 0):  # it was gone before the request; 0: it is in another namespace
        os._exit(1)
    return done


def no_new_privs() -> bool:
    """Bar this process and its children from gaining privileges by exec."""
    try:
        return bool(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def enter_namespaces(network: bool = True) -> str:
    """Give this process's future children their own process ids, mounts and System V IPC.

    Args:
        network: Whether they keep the machine's network; else abstract Unix sockets are their own too.

    Returns:
        Why not; empty if it worked.
    """
    user, group = os.getuid(), os.getgid()
    libc, problem = _libc(), ""
    wanted = _NEW_PID | _NEW_NS | _NEW_IPC
    for flags in (wanted,) if network else (wanted | _NEW_NET, wanted):  # the kernel may allow no more networks
        if libc.unshare(_NEW_USER | flags) == 0:
            try:
                for name, text in (
                    ("setgroups", "deny"),
                    ("uid_map", f"{user} {user} 1"),
                    ("gid_map", f"{group} {group} 1"),
                ):
                    with open(f"/proc/self/{name}", "w") as file:
                        file.write(text)
            except OSError as failure:
                return f"user namespace: {failure}"
            return ""
        problem = str(_failed("namespaces"))
        if user == 0 and libc.unshare(flags) == 0:
            return ""
    return problem


def mount_proc() -> bool:
    """In the first process of a new pid namespace, show only the namespace's processes; return whether it worked."""
    libc = _libc()
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    return bool(libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None) == 0)


def mount_scratch(place: str, size: str) -> bool:
    """In a mount namespace, put an empty folder in memory at a place; it goes with the namespace.

    Args:
        place: An existing folder.
        size: The most that it may hold, as tmpfs takes it.

    Returns:
        Whether it worked.
    """
    options = f"size={size},mode=0700".encode()
    return bool(_libc().mount(b"none", os.fsencode(place), b"tmpfs", _MS_NOSUID | _MS_NODEV, options) == 0)


def make_read_only(writable: list[str]) -> bool:
    """In a mount namespace, make all file systems read-only but some folders; return whether it worked.

    Landlock does not restrict changes of modes, owners, times and attributes; a read-only mount does.
    """
    libc = _libc()
    read_only = struct.pack("=4Q", _ATTR_RDONLY, 0, 0, 0)
    if libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, read_only, len(read_only)) != 0:
        return False
    back = struct.pack("=4Q", 0, _ATTR_RDONLY, 0, 0)
    for path in writable:
        place = os.fsencode(path)
        if os.path.isdir(path) and libc.mount(place, place, None, _MS_BIND | _MS_REC, None) == 0:
            libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, place, _AT_RECURSIVE, back, len(back))
    return True


def drop_capabilities() -> None:
    """Give up every capability, for good.

    Raises:
        OSError: The kernel refused.
    """
    _give_up(range(64))


def _give_up(numbers: Iterable[int]) -> None:
    libc = _libc()
    bits = 0
    for number in numbers:
        bits |= 1 << number
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # without the right to drop there is nothing to drop
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    held = ctypes.create_string_buffer(24)  # of the lower 32, then of the upper: effective, permitted, inheritable
    if libc.capget(header, held) != 0:
        raise _failed("capabilities")
    lower, upper = ~bits & 0xFFFFFFFF, ~bits >> 32 & 0xFFFFFFFF
    kept = (word & mask for word, mask in zip(struct.unpack("=6I", held.raw), (lower,) * 3 + (upper,) * 3, strict=True))
    # What is not permitted is not ambient either.
    if libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *kept), 24)) != 0:
        raise _failed("capabilities")


def keep_limits() -> None:
    """Give up root's rights to raise this process's priority and limits again.

    Raises:
        OSError: The kernel refused.
    """
    _give_up((_CAP_SYS_NICE, _CAP_SYS_RESOURCE))
    lowest = 20 - os.getpriority(os.PRIO_PROCESS, 0)
    for number, most in ((resource.RLIMIT_NICE, lowest), (resource.RLIMIT_RTPRIO, 0)):
        hard = resource.getrlimit(number)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))


def landlock_version() -> int:
    """Return the kernel's landlock version; 0 where there is none."""
    try:
        return int(max(0, _libc().syscall(_CREATE, None, ctypes.c_size_t(0), 1)))
    except (OSError, AttributeError):
        return 0


class _Rule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


def landlock(read: list[str], write: list[str], network: bool, granted: Collection[str] = ()) -> None:
    """Restrict this thread, which must be the only one, and its children.

    Args:
        read: Folders and files that may be read and executed.
        write: Folders and files that may be written too.
        network: Whether TCP may be used.
        granted: Those of them in which other extensions may write, so that a link can come into the place of one.

    Raises:
        OSError: The kernel has no landlock, or refused a rule.
    """
    libc, version = _libc(), landlock_version()
    if not version:
        raise OSError("the kernel has no landlock")
    handled = (1 << _FS_BITS.get(version, _NEWEST_FS_BITS)) - 1
    net = 0 if network or version < 4 else 3
    scoped = 3 if version >= 6 else 0  # abstract Unix sockets and signals
    attributes = (ctypes.c_uint64 * 3)(handled, net, scoped)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise _failed("landlock refused the rules")
    try:
        for paths, rights in ((read, _EXECUTE | _READ_FILE | _READ_DIR), (write, handled & ~_SOCKETS)):
            for path in paths:
                _allow(libc, ruleset, path, rights & handled, follow=path not in granted)
        if libc.syscall(_RESTRICT, ruleset, 0) < 0:
            raise _failed("landlock refused to restrict this process")
    finally:
        os.close(ruleset)


def _allow(libc: Any, ruleset: int, path: str, rights: int, follow: bool) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not follow and os.readlink(f"/proc/self/fd/{fd}") != path:
            return
        rule = _Rule(rights if os.path.isdir(path) else rights & _FILE_RIGHTS, fd)
        if libc.syscall(_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0) < 0:
            raise _failed(f"landlock refused a rule for {path}")
    finally:
        os.close(fd)


def _limits(limits: dict[str, int], enforced: list[str], missing: list[str]) -> None:
    for name, number in (
        ("memory", resource.RLIMIT_DATA),
        ("open_files", resource.RLIMIT_NOFILE),
    ):
        value = limits.get(name)
        if value is None:
            continue
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError) as failure:
            missing.append(f"{name} at most {value}: {failure}")
            continue
        if name == "memory":
            enforced.append(f"memory at most {value}, private memory of each process")
        else:
            enforced.append(f"{name} at most {value}")
    if "cpu_seconds" in limits:
        enforced.append(f"cpu_seconds at most {limits['cpu_seconds']:g} for each call")
    for name in ("processes", "threads"):
        value = limits.get(name)
        if value is not None:
            enforced.append(f"{name} at most {value}, counted by the host")


def confine(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Apply the host's configuration.

    Args:
        config: See `worker_config` in the host's `_sandbox.py`.

    Returns:
        What was applied, and what was wanted and could not be applied, each as readable lines.
    """
    enforced: list[str] = []
    missing: list[str] = []
    _limits(config["limits"], enforced, missing)
    if sys.platform == "linux":
        try:
            keep_limits()
        except OSError as failure:
            missing.append(f"priority and limits can be raised: {failure}")
    level = config["level"]
    if level == "none":
        return enforced, missing
    if not no_new_privs():
        missing.append("no new privileges")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if level == "limits":
        return enforced, missing
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        missing.append(f"{threads} threads were running before the confinement, which binds only one")
    # In bwrap everything that is there may be read, and Landlock guards against writes only.
    read = ["/"] if level == "bwrap" else config["read"]
    for step in (
        drop_capabilities,
        lambda: landlock(read, config["write"], config["network"], config["granted"]),
        lambda: seccomp.apply(config["network"], config["gpus"]),
    ):
        try:
            step()
        except OSError as failure:
            missing.append(str(failure))
    return enforced, missing
