"""A filter for system calls, applied by a worker to itself and inherited by its children.

It closes what Landlock does not cover: Unix sockets by path, UDP, namespaces and mounts, other processes' memory,
io_uring (whose requests pass no filter), keyrings, BPF, kernel modules.

Where a worker may use GPUs, one kind of Unix socket passes: CUDA's library makes a packet socket, gives it an abstract
name and listens at it, and does not start where it cannot. No filter can read the address that a call carries, so what
such a socket can connect to is bounded elsewhere: see `docs/security.md`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import NamedTuple

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone takes
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_DATAGRAM, _PACKETS, _KINDS = 2, 5, 0xF
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

# Numbers of (x86_64, aarch64); -1 where the machine does not have the call.
_DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "process_madvise": (440, 440),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
}


class _Machine(NamedTuple):
    column: int  # in _DENIED
    architecture: int
    clone: int
    clone3: int
    ioctl: int
    socket: int
    socketpair: int
    connections: tuple[int, ...]  # connect, accept, accept4


_MACHINES = {
    "x86_64": _Machine(0, 0xC000003E, 56, 435, 16, 41, 53, (42, 43, 288)),
    "aarch64": _Machine(1, 0xC00000B7, 220, 435, 29, 198, 199, (203, 202, 242)),
}


def _instruction(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)


def _refuse(number: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | number)


def _sockets(known: _Machine, network: bool, gpus: bool) -> list[bytes]:
    allow, refused = _instruction(_RETURN, _ALLOW), _refuse(errno.EACCES)
    made = [_instruction(_LOAD, 16)]
    for family in (_INET, _INET6, _NETLINK) if network else ():
        made += [_instruction(_JUMP_EQUAL, family, 0, 1), allow]
    if gpus:
        made += [_instruction(_JUMP_EQUAL, _UNIX, 0, 4), _instruction(_LOAD, 24), _instruction(_AND, _KINDS)]
        made += [_instruction(_JUMP_EQUAL, _PACKETS, 0, 1), allow]
    made += [refused]
    out = [_instruction(_JUMP_EQUAL, known.socket, 0, len(made)), *made]
    # One end of a pair of datagram sockets can send to any path.
    out += [_instruction(_JUMP_EQUAL, known.socketpair, 0, 5), _instruction(_LOAD, 24), _instruction(_AND, _KINDS)]
    out += [_instruction(_JUMP_EQUAL, _DATAGRAM, 0, 1), refused, allow]
    if gpus and not network:  # CUDA's socket listens, and nothing comes or goes by it
        for call in known.connections:
            out += [_instruction(_JUMP_EQUAL, call, 0, 1), refused]
    return out


def program(machine: str, network: bool, gpus: bool = False) -> bytes:
    """Return the filter's instructions.

    Args:
        machine: As `platform.machine()` returns it.
        network: Whether sockets of the internet families may be made.
        gpus: Whether the socket may be made by which CUDA's library is found by other processes.

    Raises:
        OSError: The machine's system calls are not known here.
    """
    known = _MACHINES.get(machine)
    if known is None:
        raise OSError(errno.ENOSYS, f"there is no filter for {machine}")
    allow, denied = _instruction(_RETURN, _ALLOW), _refuse(errno.EPERM)
    out = [_instruction(_LOAD, 4), _instruction(_JUMP_EQUAL, known.architecture, 1, 0), denied, _instruction(_LOAD, 0)]
    if machine == "x86_64":  # the x32 twins of all calls
        out += [_instruction(_JUMP_GREATER, 0x40000000, 0, 1), denied]
    for numbers in _DENIED.values():
        if numbers[known.column] >= 0:
            out += [_instruction(_JUMP_EQUAL, numbers[known.column], 0, 1), denied]
    # The flags of clone3 lie in memory, where no filter can look: without it, libraries fall back to clone.
    out += [_instruction(_JUMP_EQUAL, known.clone3, 0, 1), _refuse(errno.ENOSYS)]
    out += [_instruction(_JUMP_EQUAL, known.clone, 0, 4), _instruction(_LOAD, 16)]
    out += [_instruction(_JUMP_SET, _NAMESPACES, 0, 1), denied, allow]
    out += _sockets(known, network, gpus)
    out += [_instruction(_JUMP_EQUAL, known.ioctl, 0, 4), _instruction(_LOAD, 24)]
    out += [_instruction(_JUMP_EQUAL, _TIOCSTI, 1, 0), _instruction(_JUMP_EQUAL, _TIOCLINUX, 0, 1), denied]
    return b"".join([*out, allow])


def apply(network: bool, gpus: bool = False) -> None:
    """Filter this thread's system calls, and those of all threads and processes that it starts. Cannot be undone.

    Raises:
        OSError: The kernel or the machine has no filters.
    """
    code = program(platform.machine(), network, gpus)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    filled = Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filled), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel refused the filter: {os.strerror(number)}")
