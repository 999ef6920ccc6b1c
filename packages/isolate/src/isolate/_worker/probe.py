"""A confined worker's attempts to do what it must not be able to do. Their results are the sandbox report.

Every attempt is harmless where it succeeds: it reads a canary, connects to a listener of the host that does nothing,
sends signal 0, or undoes what it did.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

_NEW_USER = 0x10000000
_MNT_DETACH = 2
_SETTINGS = ("/etc/passwd", "/etc/hosts", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/power/state")


def _opens(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _connects(family: int, kind: int, address: Any) -> bool:
    try:
        with socket.socket(family, kind) as made:
            made.settimeout(0.2)
            made.connect(address)
            if kind == socket.SOCK_DGRAM:
                made.send(b"")
    except OSError:
        return False
    return True


def read_outside(targets: dict[str, Any]) -> bool:
    """Read the host's canary file, list its folder, or open a file of the user's home or of the system's secrets."""
    try:
        os.listdir(os.path.dirname(targets["canary"]))
    except OSError:
        return any(_opens(path, os.O_RDONLY) for path in (targets["canary"], *targets["files"]))
    return True


def write_outside(targets: dict[str, Any]) -> bool:
    """Write beside the host's canary file, into the environment, the interpreter, or the system."""
    if _opens(targets["canary"], os.O_WRONLY):
        return True
    beside = targets["canary"] + f".{os.getpid()}"
    if _opens(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        os.unlink(beside)
        return True
    return any(_opens(path, os.O_WRONLY) for path in (targets["environment"], os.__file__, *_SETTINGS))


def see_outside(targets: dict[str, Any]) -> bool:
    """See the size and times of the host's canary file."""
    os.stat(targets["canary"])
    return True


def change_outside(targets: dict[str, Any]) -> bool:
    """Change the mode of the host's canary file."""
    os.chmod(targets["canary"], 0o644)
    return True


def tcp(targets: dict[str, Any]) -> bool:
    """Connect to the host's TCP listener."""
    return _connects(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", targets["tcp"]))


def udp(targets: dict[str, Any]) -> bool:
    """Send a datagram to the host's UDP socket."""
    return _connects(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", targets["udp"]))


def unix_path(targets: dict[str, Any]) -> bool:
    """Connect to the host's Unix socket by its path, or send to it from one end of a pair, which is no new socket."""
    if _connects(socket.AF_UNIX, socket.SOCK_STREAM, targets["unix"]):
        return True
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"", targets["datagram"])
    return True


def unix_packets(targets: dict[str, Any]) -> bool:
    """Connect to the host's Unix socket for packets, which is what CUDA's library needs to make, by its path."""
    return _connects(socket.AF_UNIX, socket.SOCK_SEQPACKET, targets["packets"])


def unix_abstract(targets: dict[str, Any]) -> bool:
    """Connect to the host's Unix sockets by their abstract names."""
    return any(
        _connects(socket.AF_UNIX, kind, "\0" + targets["abstract"])
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    )


def mount(targets: dict[str, Any]) -> bool:
    """Mount an empty file system over the extension's folder."""
    libc = ctypes.CDLL(None)
    place = os.fsencode(targets["directory"])
    if libc.mount(b"none", place, b"tmpfs", 0, None) != 0:
        return False
    libc.umount2(place, _MNT_DETACH)
    return True


def _shares_process_ids(targets: dict[str, Any]) -> bool:
    try:
        return os.readlink("/proc/self/ns/pid") == str(targets["pid_namespace"])
    except OSError:
        return True


def signals(targets: dict[str, Any]) -> bool:
    """Send signal 0 to the host."""
    if not _shares_process_ids(targets):
        return False  # the host has no number here
    try:
        os.kill(targets["pid"], 0)
    except OSError:
        return False
    return True


def environ(targets: dict[str, Any]) -> bool:
    """Read the environment variables or the command line of the host."""
    if not _shares_process_ids(targets) and os.readlink("/proc/self") == str(os.getpid()):
        return False  # /proc shows this namespace, where the host has no number
    return any(_opens(f"/proc/{targets['pid']}/{name}", os.O_RDONLY) for name in ("environ", "cmdline"))


def memory(targets: dict[str, Any]) -> bool:
    """Read a byte of the host's memory."""
    if not _shares_process_ids(targets):
        return False
    buffer = ctypes.create_string_buffer(1)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 1)
    remote = (ctypes.c_size_t * 2)(targets["address"], 1)
    return bool(ctypes.CDLL(None).process_vm_readv(targets["pid"], local, 1, remote, 1, 0) == 1)


def devices(_targets: dict[str, Any]) -> bool:
    """Open a disk or the machine's memory, by the node in /dev or by a node of its own."""
    paths = ["/dev/mem", "/dev/kmsg", "/dev/port"]
    with contextlib.suppress(OSError):
        paths += [entry.path for entry in os.scandir("/dev") if stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode)]
    return any(_opens(path, os.O_RDONLY) for path in paths)


def status() -> dict[str, str]:
    """Return what the kernel says of this process."""
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def capabilities(_targets: dict[str, Any]) -> bool:
    """Have any capability, or be able to gain one."""
    found = status()
    return any(int(found.get(name, "0"), 16) for name in ("CapEff", "CapPrm", "CapAmb", "CapInh")) or (
        int(found.get("CapBnd", "0"), 16) != 0 and found.get("NoNewPrivs") != "1"
    )


def privileges(_targets: dict[str, Any]) -> bool:
    """Gain privileges by exec."""
    return status().get("NoNewPrivs") != "1"


def user_namespace(_targets: dict[str, Any]) -> bool:
    """Make a user namespace, in which the kernel offers far more of itself."""
    child = os.fork()
    if not child:
        os._exit(0 if ctypes.CDLL(None).unshare(_NEW_USER) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0


def threads(_targets: dict[str, Any]) -> bool:
    """Have a second thread, which the confinement would not bind."""
    return len(os.listdir("/proc/self/task")) != 1


ATTEMPTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "read outside": read_outside,
    "write outside": write_outside,
    "see files outside": see_outside,
    "change modes outside": change_outside,
    "Unix socket by path": unix_path,
    "Unix packet socket by path": unix_packets,
    "Unix socket by abstract name": unix_abstract,
    "TCP": tcp,
    "UDP": udp,
    "mount": mount,
    "signal the host": signals,
    "host's environment variables": environ,
    "host's memory": memory,
    "raw devices": devices,
    "capabilities": capabilities,
    "new privileges": privileges,
    "user namespaces": user_namespace,
    "second thread": threads,
}


def attempt(targets: dict[str, Any]) -> dict[str, bool]:
    """Try everything; return for each attempt whether it succeeded."""
    tried = {}
    for name, function in ATTEMPTS.items():
        try:
            tried[name] = function(targets)
        except OSError:  # what the attempt needs is not there, a fork for one
            tried[name] = False
    return tried
