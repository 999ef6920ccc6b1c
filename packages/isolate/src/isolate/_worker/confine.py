"""What a worker does to itself before it runs an extension; reports only what the kernel granted."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> bool:
    """Ask the kernel to kill this process when its parent's thread ends; False where the kernel cannot."""
    try:
        done = bool(_libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
    if parent and os.getppid() not in (parent, 0):  # the parent was gone before the request; 0 is another pid namespace
        os._exit(1)
    return done


def no_new_privs() -> bool:
    """Bar this process and its children from gaining privileges by exec."""
    try:
        return bool(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def landlock_version() -> int:
    """The kernel's landlock version; 0 where there is none."""
    try:
        return int(max(0, _libc().syscall(_CREATE, None, ctypes.c_size_t(0), 1)))
    except (OSError, AttributeError):
        return 0


def _landlock(read: list[str], write: list[str], network: bool) -> list[str]:
    libc, version = _libc(), landlock_version()
    if not version:
        raise OSError("the kernel has no landlock")
    handled = (1 << _FS_BITS.get(version, 16)) - 1
    net = 0 if network or version < 4 else 3
    attributes = (ctypes.c_uint64 * 3)(handled, net, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock refused the rules")

    class Rule(ctypes.Structure):
        _pack_ = 1
        _layout_ = "ms"
        _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))

    try:
        for paths, rights in ((read, _EXECUTE | _READ_FILE | _READ_DIR), (write, handled)):
            for path in paths:
                try:
                    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except OSError:
                    continue
                try:
                    own = rights if os.path.isdir(path) else rights & _FILE_RIGHTS & handled
                    rule = Rule(own & handled, fd)
                    if libc.syscall(_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0) < 0:
                        raise OSError(ctypes.get_errno(), f"landlock refused a rule for {path}")
                finally:
                    os.close(fd)
        if libc.syscall(_RESTRICT, ruleset, 0) < 0:
            raise OSError(ctypes.get_errno(), "landlock refused to restrict this process")
    finally:
        os.close(ruleset)
    done = [f"landlock {version}: reads {len(read)} places, writes {len(write)}"]
    if net:
        done.append("landlock: no TCP")
    return done


def confine(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Apply what the host asks for.

    Returns:
        What is enforced, and what was asked for and is not, each as readable lines.
    """
    enforced: list[str] = []
    missing: list[str] = []
    limits = config.get("limits") or {}
    for name, number in (
        ("memory", resource.RLIMIT_DATA),
        ("cpu_seconds", resource.RLIMIT_CPU),
        ("processes", getattr(resource, "RLIMIT_NPROC", -1)),
        ("open_files", resource.RLIMIT_NOFILE),
    ):
        value = limits.get(name)
        if value is None:
            continue
        try:
            # A second more until the kill that cannot be told from others: SIGXCPU says why.
            resource.setrlimit(number, (value, value + 1 if name == "cpu_seconds" else value))
            enforced.append(f"{name} at most {value}")
        except (OSError, ValueError) as failure:
            missing.append(f"{name} at most {value}: {failure}")
        else:
            if name == "processes" and os.geteuid() == 0:
                enforced.pop()
                missing.append(f"processes at most {value}: the kernel does not count the processes of root")
    level = config.get("level", "none")
    if level != "none":
        (enforced if no_new_privs() else missing).append("no new privileges")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if level == "landlock":
        try:
            enforced += _landlock(config.get("read", []), config.get("write", []), bool(config.get("network", True)))
        except OSError as failure:
            missing.append(f"landlock: {failure}")
        else:
            if not config.get("network", True):
                missing.append("no network: landlock bars TCP only, not UDP")
    return enforced, missing
