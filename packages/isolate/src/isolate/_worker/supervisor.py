"""The first process of a worker: it sets the stage, starts the worker proper, and outlives it to end its descendants.

Started with `-I -S`, it runs nothing but the standard library and this package. Nothing of the environment (`site`,
`.pth` files, the extension and its dependencies) runs before the worker is confined, and then only in the worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from typing import Any

from . import confine, failures, probe
from .errors import WireError
from .frames import FRAME_LIMIT, HEADER, frame
from .protocol import CONFINED, FAILED, LOAD
from .wire import pack, unpack

_PR_SET_CHILD_SUBREAPER = 36
_SCRATCH, _SCRATCH_SHARE = "/dev/shm", "25%"
"""Where a confined worker's own files in memory are, and how much of the machine's memory they may take."""
_TASKS = "/proc/self/task"
_PROC = ["/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory"]
_PROC_FOR_GPUS = ["/proc/devices", "/proc/modules", "/proc/filesystems", "/proc/sys/vm/mmap_min_addr"]
"""What CUDA's library reads of /proc beside /proc/driver, where the worker has no /proc of its own."""


def _read(sock: socket.socket, count: int) -> bytes:
    out = bytearray()
    while len(out) < count:
        some = sock.recv(count - len(out))
        if not some:
            os._exit(0)  # the host is gone or has given up
        out += some
    return bytes(out)


def _no_special(code: int, _payload: Any) -> Any:
    raise WireError(f"extension type {code} in the first frame")


def read_config(sock: socket.socket) -> dict[str, Any]:
    """Read the first frame, which must be LOAD, and not a byte more."""
    length, kind, _ = HEADER.unpack(_read(sock, HEADER.size))
    if kind != LOAD or length > FRAME_LIMIT:
        raise WireError(f"the first frame is of kind {kind} and {length} bytes, not LOAD")
    config: dict[str, Any] = unpack(_read(sock, length), _no_special)
    return config


def _kill_descendants() -> None:
    """Kill and reap until there is no child left; orphans become children of this process."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            for task in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{task}/children") as file:
                    for child in file.read().split():
                        with contextlib.suppress(OSError):
                            os.kill(int(child), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _wait_for(child: int) -> int:
    """Reap children, adopted ones too, until that one ends; return its wait status."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            return status


def _end_like(status: int) -> None:
    """Exit as the worker did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(1)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _supervise(child: int) -> None:
    """Wait for the worker, then end what it left behind; never returns."""

    def stop(_number: int, _frame: Any) -> None:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    confine.die_with_parent(0, signal.SIGTERM)
    status = _wait_for(child)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _kill_descendants()
    _end_like(status)


def _be_init(report: int, private_proc: bool) -> None:
    """As the first process of a pid namespace: start the worker, reap, and report its status; returns in the worker."""
    confine.die_with_parent(0, signal.SIGKILL)
    child = os.fork()
    if not child:
        os.close(report)
        confine.die_with_parent(0, signal.SIGKILL)
        return
    _close_all_but(report)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        confine.no_new_privs()
        confine.drop_capabilities()
    os.write(report, _wait_for(child).to_bytes(4, "little"))
    os._exit(private_proc)


def _close_all_but(kept: int) -> None:
    """Close every descriptor but one and the standard ones, so that the other side sees the worker's end at once."""
    # Not by /proc/self/fd: in a pid namespace's mounts, /proc does not show its supervisor.
    if kept > 3:
        os.closerange(3, kept)
    os.closerange(max(kept + 1, 3), 1024)


def become_worker(sandbox: dict[str, Any], parent: int) -> list[str]:
    """Fork; return in the worker, with what is missing. The other process stays as the worker's supervisor."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    confine.die_with_parent(parent, signal.SIGTERM)
    # CUDA's socket has an abstract name: with no network, it shall take no name from the machine's other processes.
    if sandbox["namespaces"] and not confine.enter_namespaces(sandbox["network"] or not sandbox["gpus"]):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            sandbox["private_proc"] = confine.mount_proc()
            if sandbox["private_proc"]:  # else the mounts may be shared with the host's
                _give_scratch(sandbox)
                confine.make_read_only([*sandbox["write"], *(["/proc"] if sandbox["gpus"] else [])])
            _be_init(write, sandbox["private_proc"])
            return []
        os.close(write)
        _close_all_but(read)
        _supervise_namespace(child, read)
    me = os.getpid()
    child = os.fork()
    if child:
        _close_all_but(-1)
        _supervise(child)
    confine.die_with_parent(me, signal.SIGKILL)
    return []


def _give_scratch(sandbox: dict[str, Any]) -> None:
    """Give the worker a folder of its own for shared memory, locks and temporary files, where the host's would be."""
    if confine.mount_scratch(_SCRATCH, str(sandbox["limits"].get("memory", _SCRATCH_SHARE))):
        sandbox["write"].append(_SCRATCH)


def _use_scratch(sandbox: dict[str, Any]) -> None:
    """Have temporary files and caches go to a folder of the worker's own, unless the host has granted another."""
    place = "/tmp" if sandbox["contained"] else _SCRATCH
    if sandbox["level"] in ("landlock", "bwrap") and place in sandbox["write"]:
        if not _is_below(os.environ.get("TMPDIR", "/tmp"), sandbox["write"]):
            os.environ["TMPDIR"] = place
        os.environ.setdefault("HOME", place)


def _is_below(path: str, folders: list[str]) -> bool:
    return any(f"{os.path.realpath(path)}/".startswith(f"{os.path.realpath(folder)}/") for folder in folders)


def _supervise_namespace(child: int, report: int) -> None:
    """As `_supervise`, for a worker in a pid namespace, whose end takes all its processes with it; never returns."""

    def stop(_number: int, _frame: Any) -> None:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    confine.die_with_parent(0, signal.SIGTERM)
    status = _wait_for(child)
    told = os.read(report, 4)
    _kill_descendants()
    _end_like(int.from_bytes(told, "little") if len(told) == 4 else status)


def expected(config: dict[str, Any]) -> list[str]:
    """Return the attempts that must fail at a level."""
    if config["level"] == "none":
        return []
    if config["level"] == "limits":
        return ["new privileges"]
    possible = {"TCP", "UDP"} if config["network"] else set()
    if config["level"] == "landlock":
        possible.add("see files outside")
        if config["gpus"] and config["network"]:  # until Linux 7.1, whose Landlock knows the places of sockets
            possible.add("Unix packet socket by path")
    return [name for name in probe.ATTEMPTS if name not in possible]


def confine_and_try(config: dict[str, Any]) -> dict[str, Any]:
    """Confine this process, then try to break out; return the report for the host."""
    if config.get("private_proc"):
        config["read"].append("/proc")
    else:
        config["read"] += [*_PROC, *(_PROC_FOR_GPUS if config["gpus"] else ())]
    if config["gpus"]:
        # CUDA names its threads, and does not start where it cannot. Open, so that the kernel keeps the rule for it.
        os.open(_TASKS, os.O_RDONLY | os.O_DIRECTORY)
        config["write"].append(_TASKS)
    enforced, missing = confine.confine(config)
    wanted = expected(config)
    tried = probe.attempt(config["targets"]) if config["targets"] and config["level"] not in ("none", "limits") else {}
    if config["level"] == "limits":
        tried = {"new privileges": probe.privileges({})}
    missing += [f"{name}: tried, and it is possible" for name in wanted if tried.get(name, True)]
    enforced += [f"no {name} (tried)" for name in wanted if not tried.get(name, True)]
    return {"enforced": enforced, "missing": missing, "tried": tried}


def lower_priority(steps: int) -> None:
    """Lower this process's priority; also that of its session, by which some kernels share the processor."""
    os.nice(steps)
    if steps:
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
            file.write(str(os.getpriority(os.PRIO_PROCESS, 0)))


def main(fd: int, parent: int) -> None:
    """Run a worker.

    Args:
        fd: The inherited socket to the host.
        parent: The host's process id; 0 if another pid namespace hides it.
    """
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    from . import runtime  # of the standard library and this package only; a spare process has done it by now

    config = read_config(sock)
    os.chdir(config["directory"])
    sandbox = config["sandbox"]
    lower_priority(sandbox["nice"])
    if sandbox["contained"]:
        confine.die_with_parent(parent, signal.SIGKILL)
    else:
        become_worker(sandbox, parent)
    _use_scratch(sandbox)
    report = confine_and_try(sandbox)
    # Now: what the extension's process says later may be the extension's own words.
    sock.sendall(frame(CONFINED, 0, pack(report, lambda _: None)))
    if report["missing"] and sandbox["required"]:
        problem = PermissionError(f"the sandbox is required and not complete: {'; '.join(report['missing'])}")
        sock.sendall(frame(FAILED, 0, pack(failures.describe(problem), lambda _: None)))
        _read(sock, 1 << 30)  # until the host ends it
    import site

    site.main()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    runtime.run(sock, config)
