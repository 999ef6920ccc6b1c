"""What CUDA's library asks of the system before a program can use a GPU, call by call. Each is tried without a GPU.

An extension of the tests, and a part of `which_step.py`. The list is of what others have seen the library do, with
`strace`, AppArmor or a sandbox of theirs: snapd's interface `opengl`, NVIDIA/OpenShell 710, 1486 and 1696,
intel/libva 575, nolabs-ai/nono 652 and 673, truefoundry/trueforge 466.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {"x86_64": (239, 238, 237), "aarch64": (236, 237, 235)}  # get_mempolicy, set_mempolicy, mbind
_RESERVED = 1 << 40
READ = (
    *("/proc/devices", "/proc/modules", "/proc/filesystems", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),
    *("/proc/self/status", "/proc/self/maps", "/proc/self/cgroup", "/proc/sys/vm/mmap_min_addr"),
    *("/proc/sys/vm/overcommit_memory", "/proc/driver", "/proc/driver/nvidia/params", "/proc/driver/nvidia/version"),
    *("/proc/driver/nvidia/gpus", "/proc/driver/nvidia/capabilities", "/proc/driver/nvidia-uvm"),
    *(
        "/sys/devices/system/memory/block_size_bytes",
        "/sys/devices/system/node",
        "/sys/devices/system/node/node0/cpumap",
    ),
    *("/sys/devices/system/cpu", "/sys/devices/system/cpu/online", "/sys/bus/pci/devices", "/sys/module"),
    *("/sys/module/nvidia/initstate", "/sys/module/nvidia_uvm", "/etc/ld.so.cache"),
)


def _call(name: str, *args: Any) -> int:
    number = _NUMBERS[os.uname().machine][("get_mempolicy", "set_mempolicy", "mbind").index(name)]
    done = int(_LIBC.syscall(number, *args))
    if done < 0:
        raise OSError(ctypes.get_errno(), name)
    return done


def announce() -> None:
    """Listen at the abstract name by which other processes find this one: a packet socket, `cuda-uvmfd-SPACE-PID`."""
    space = os.stat("/proc/self/ns/pid").st_ino
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        made.bind(f"\0cuda-uvmfd-{space}-{os.getpid()}")
        made.listen(1)


def name_thread() -> None:
    """Write the name of another thread of this process, as the library does for those that it starts."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with open(f"/proc/self/task/{thread.native_id}/comm", "w") as file:
            file.write("cuda-EvtHandlr")
    finally:
        done.set()
        thread.join()


def name_thread_of_child() -> None:
    """The same in a process that this one starts."""
    code = "open('/proc/thread-self/comm', 'w').write('cuda-EvtHandlr')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EACCES, done.stderr.strip().rpartition("\n")[2])


def memory_file() -> None:
    """Make a file in memory, with and without the right to run it."""
    os.close(os.memfd_create("cuda", 0))
    os.close(os.memfd_create("cuda", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))


def shared_memory() -> None:
    """Make and map a file `cuda.NUMBER` in shared memory."""
    path = f"/dev/shm/cuda.shm.{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        mmap.mmap(fd, mmap.PAGESIZE).close()
    finally:
        os.close(fd)
        os.unlink(path)


def memory_policy() -> None:
    """Ask for the policy of memory, and set the default one, for this thread and for a mapping."""
    with open("/proc/self/status") as file:
        nodes = "Mems_allowed" in file.read()
    if not nodes:
        raise FileNotFoundError(errno.ENOENT, "the kernel knows one node of memory")
    _call("get_mempolicy", None, None, 0, None, 0)
    _call("set_mempolicy", 0, None, 0)
    with mmap.mmap(-1, mmap.PAGESIZE) as made:
        place = ctypes.c_char.from_buffer(made)
        _call("mbind", ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(mmap.PAGESIZE), 0, None, 0, 0)
        del place


def lock_memory() -> None:
    """Keep a page in memory."""
    with mmap.mmap(-1, mmap.PAGESIZE) as made:
        place = ctypes.c_char.from_buffer(made)
        if _LIBC.mlock(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(mmap.PAGESIZE)):
            raise OSError(ctypes.get_errno(), "mlock")
        del place


def reserve_addresses() -> None:
    """Reserve a terabyte of addresses, without memory, for the address space that a GPU shares."""
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    place = _LIBC.mmap(None, _RESERVED, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
    if place == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    _LIBC.munmap(ctypes.c_void_p(place), ctypes.c_size_t(_RESERVED))


def events() -> None:
    """Make what its threads wait at: a descriptor for events, pipes, and one that watches others."""
    for fd in (os.eventfd(0), *os.pipe(), _LIBC.epoll_create1(0)):
        os.close(fd)


def child() -> None:
    """Start a process, as it starts nvidia-modprobe where a node is missing."""
    subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True, capture_output=True)


def _reads(path: str) -> Callable[[], None]:
    def read() -> None:
        if os.path.isdir(path):
            os.listdir(path)
            return
        with open(path, "rb") as file:
            file.read(4096)

    return read


NEEDS: dict[str, Callable[[], None]] = {
    "listen at an abstract name": announce,
    "name a thread": name_thread,
    "name a thread of a child process": name_thread_of_child,
    "file in memory": memory_file,
    "file in shared memory": shared_memory,
    "policy of memory": memory_policy,
    "page that stays in memory": lock_memory,
    "a terabyte of addresses": reserve_addresses,
    "events": events,
    "child process": child,
    **{f"read {path}": _reads(path) for path in READ},
}


def tried() -> dict[str, str]:
    """Try everything; return for each need why it failed, or an empty text."""
    found = {}
    for name, function in NEEDS.items():
        try:
            function()
            found[name] = ""
        except OSError as failure:
            found[name] = f"{errno.errorcode.get(failure.errno or 0, '?')} {failure}"
    return found


def nodes() -> dict[str, str]:
    """Open each node of a GPU in /dev; return for each why it failed, or an empty text."""
    found = {}
    for folder, pattern in (("/dev", "nvidia"), ("/dev/nvidia-caps", ""), ("/dev/nvidia-caps-imex-channels", "")):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for path in (os.path.join(folder, name) for name in names if name.startswith(pattern)):
            if os.path.isdir(path):
                continue
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                found[path] = ""
            except OSError as failure:
                found[path] = f"{errno.errorcode.get(failure.errno or 0, '?')} {failure}"
    return found


def starts() -> str:
    """Have the library start, and count the GPUs; return what it said."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as failure:
        return f"no library: {failure}"
    done, count = library.cuInit(0), ctypes.c_int(0)
    if not done:
        done = library.cuDeviceGetCount(ctypes.byref(count))
    return f"cuInit {done}, {count.value} GPUs"


def unix(kind: int, address: str) -> str:
    """Make a Unix socket and connect it; return the step that failed, or an empty text."""
    try:
        made = socket.socket(socket.AF_UNIX, kind)
    except OSError as failure:
        return f"socket: {errno.errorcode.get(failure.errno or 0, '?')}"
    with made:
        made.settimeout(10)
        try:
            made.connect(address)
        except OSError as failure:
            return f"connect: {errno.errorcode.get(failure.errno or 0, '?')}"
    return ""


def listens(address: str) -> str:
    """Have a packet socket listen at an address and take what comes; return the step that failed, or an empty text."""
    step = "socket"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
            step = "bind"
            made.bind(address)
            step = "listen"
            made.listen(1)
            step = "accept"
            made.setblocking(False)
            made.accept()
    except OSError as failure:
        return f"{step}: {errno.errorcode.get(failure.errno or 0, '?')}"
    return ""
