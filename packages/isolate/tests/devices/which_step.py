"""Tells which step of the confinement keeps CUDA from starting; for a machine with a GPU, run by hand.

    python tests/devices/which_step.py

Each step is taken alone, and all steps together but one, each time in a new process, which then calls `cuInit`. Where
it is Landlock, one more grant is tried at a time; where it is the filter, one call less.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isolate import _sandbox
from isolate._manifest import read_manifest
from isolate._worker import confine, seccomp, supervisor

TASKS = "/proc/self/task"
FINE = "cuInit 0"


def config() -> dict[str, Any]:
    """Return what a worker with GPUs applies to itself at `landlock`."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = "name: x\nsandbox: {level: landlock, gpus: true, network: true}\n"
        Path(folder, "manifest.yaml").write_text(manifest)
        Path(folder, "main.py").write_text("")
        made = _sandbox.worker_config(read_manifest(folder), Path(sys.prefix), [], None, 0)
    made["read"] += ["/proc", *filter(os.path.exists, sys.path)]
    return made


GRANTS = ("/", "/proc", "/sys", "/dev", "/run", "/var", "/etc", "/tmp", "/opt", "/root", "/home")
FAMILIES = {"sockets by path": 1}


def steps(with_config: dict[str, Any], allowed: str = "") -> dict[str, Callable[[], object]]:
    """Return the steps in a worker's order; `allowed` is one call or family that the filter lets pass."""

    def filtered() -> None:
        seccomp._DENIED = {name: numbers for name, numbers in seccomp._DENIED.items() if name != allowed}
        if allowed in FAMILIES:
            seccomp._NETLINK = FAMILIES[allowed]
        if allowed == "socket pairs":
            seccomp._DATAGRAM = 15
        seccomp.apply(with_config["network"])

    def namespaces() -> None:
        if why := confine.enter_namespaces():
            raise OSError(why)
        if child := os.fork():
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def read_only() -> None:
        confine.mount_proc()
        supervisor._give_scratch(with_config)
        confine.make_read_only([*with_config["write"], "/proc"])

    def landlock() -> None:
        os.open(TASKS, os.O_RDONLY | os.O_DIRECTORY)
        confine.landlock(with_config["read"], [*with_config["write"], TASKS], with_config["network"])

    return {
        "namespaces": namespaces,
        "read-only mounts": read_only,
        "no new privileges": confine.no_new_privs,
        "no capabilities": confine.drop_capabilities,
        "landlock": landlock,
        "system calls": filtered,
    }


def outcome(chosen: list[str], grant: str = "", right: str = "read", allowed: str = "") -> str:
    """Take some steps in a new process, with one more grant or one more call, and return what `cuInit` said there."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            made = config()
            made[right] += [grant] if grant else []
            known = steps(made, allowed)
            for name in chosen:
                known[name]()
            said = f"cuInit {ctypes.CDLL('libcuda.so.1').cuInit(0)}"
        except Exception as failure:
            said = f"{type(failure).__name__}: {failure}"
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as file:
        return file.read().decode() or "nothing"


def main() -> None:
    """Print a table."""
    names = list(steps(config()))
    alone = [[], *([name] for name in names if name != "read-only mounts"), ["namespaces", "read-only mounts"]]
    but_one = [[name for name in names if name != without] for without in names if without != "namespaces"]
    found = {}
    for chosen in itertools.chain(alone, [names], but_one):
        found[tuple(chosen)] = outcome(chosen)
        print(f"{found[tuple(chosen)]:40} {', '.join(chosen) or 'nothing'}", flush=True)
    if found[tuple(names)] == FINE:
        return
    if found[("landlock",)] != FINE:
        for right, grant in itertools.product(("read", "write"), GRANTS):
            print(f"{outcome(['landlock'], grant, right):40} landlock, and {right} {grant}", flush=True)
    if found[("system calls",)] != FINE:
        for allowed in (*FAMILIES, "socket pairs", *seccomp._DENIED):
            print(f"{outcome(['system calls'], allowed=allowed):40} system calls, and {allowed}", flush=True)


if __name__ == "__main__":
    main()
