"""Tells which step of the confinement keeps CUDA from starting; for a machine with a GPU, run by hand.

    python tests/devices/which_step.py

Each step is taken alone, and all steps together but one, each time in a new process, which then calls `cuInit`.
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


def config() -> dict[str, Any]:
    """Return what a worker with GPUs applies to itself at `landlock`."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = "name: x\nsandbox: {level: landlock, gpus: true, network: true}\n"
        Path(folder, "manifest.yaml").write_text(manifest)
        Path(folder, "main.py").write_text("")
        made = _sandbox.worker_config(read_manifest(folder), Path(sys.prefix), [], None, 0)
    made["read"] += ["/proc", *filter(os.path.exists, sys.path)]
    return made


def steps(with_config: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Return the steps in a worker's order."""

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
        "system calls": lambda: seccomp.apply(with_config["network"]),
    }


def outcome(chosen: list[str]) -> str:
    """Take some steps in a new process and return what `cuInit` said there."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            known = steps(config())
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
    for chosen in itertools.chain(alone, [names], but_one):
        print(f"{outcome(chosen):40} {', '.join(chosen) or 'nothing'}", flush=True)


if __name__ == "__main__":
    main()
