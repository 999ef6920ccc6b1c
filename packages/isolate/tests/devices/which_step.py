"""Tells whether CUDA starts in a confined extension, and if not, what keeps it; for a machine with a GPU, run by hand.

    python tests/devices/which_step.py             within a minute
    python tests/devices/which_step.py --rehearse  without a GPU: /dev/null stands for a node, and no library starts

First an extension is loaded at each level, with and without a network, as a host does it: it opens the nodes, tries
each call that CUDA's library is known to make (`cuda_needs.py`), calls `cuInit` and counts the GPUs. What works outside
and is refused there is printed. If CUDA starts in all of them, that is all.

Otherwise each step of the confinement is taken alone, and all steps together but one, each time in a new process, which
then calls `cuInit`. Where it is Landlock, one more grant is tried at a time; where it is the filter, one call less.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_needs

from isolate import Host, Manifest, Policy, _sandbox
from isolate._manifest import Sandbox, Timeouts, read_manifest
from isolate._worker import confine, seccomp, supervisor

TASKS = "/proc/self/task"
FINE = "cuInit 0"


def confined(level: str, network: bool, outside: dict[str, str]) -> bool:
    """Load an extension as a host does it, print what it said, and return whether CUDA started there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(cuda_needs.__file__, folder / "main.py")
        sandbox = Sandbox(level=level, gpus=True, network=network)  # type: ignore[arg-type]
        policy = Policy(sandbox=level, allow_gpus=True)
        with Host(folder / "store", policy=policy) as host:
            extension = host.load(Manifest(name="cuda", directory=folder, sandbox=sandbox, timeouts=Timeouts(start=60)))
            said, nodes, there = extension.call.starts(), extension.call.nodes(), extension.call.tried()
            missing = extension.report.sandbox.missing
    print(f"{level}, {'a' if network else 'no'} network: {said}", flush=True)
    for line in missing:
        print(f"    the sandbox report names as missing: {line}")
    for path, why in nodes.items():
        print(f"    {why or 'opens':30} {path}")
    for need, why in there.items():
        if why and not outside[need]:
            print(f"    refused: {need}: {why}")
    return bool(said.startswith(FINE))


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
FAMILIES = {"Unix sockets of any kind": 1}


def steps(with_config: dict[str, Any], allowed: str = "") -> dict[str, Callable[[], object]]:
    """Return the steps in a worker's order; `allowed` is one call or family that the filter lets pass."""

    def filtered() -> None:
        seccomp._DENIED = {name: numbers for name, numbers in seccomp._DENIED.items() if name != allowed}
        if allowed in FAMILIES:
            seccomp._NETLINK = FAMILIES[allowed]
        if allowed == "datagram pairs":
            seccomp._DATAGRAM = 15
        seccomp.apply(with_config["network"], with_config["gpus"])

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
            said = cuda_needs.starts()
        except Exception as failure:
            said = f"{type(failure).__name__}: {failure}"
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as file:
        return file.read().decode() or "nothing"


def analyse() -> None:
    """Print a table of steps."""
    names = list(steps(config()))
    alone = [[], *([name] for name in names if name != "read-only mounts"), ["namespaces", "read-only mounts"]]
    but_one = [[name for name in names if name != without] for without in names if without != "namespaces"]
    found = {}
    for chosen in itertools.chain(alone, [names], but_one):
        found[tuple(chosen)] = outcome(chosen)
        print(f"{found[tuple(chosen)]:40} {', '.join(chosen) or 'nothing'}", flush=True)
    if not found[("landlock",)].startswith(FINE):
        for right, grant in itertools.product(("read", "write"), GRANTS):
            print(f"{outcome(['landlock'], grant, right):40} landlock, and {right} {grant}", flush=True)
    if not found[("system calls",)].startswith(FINE):
        for allowed in (*FAMILIES, "datagram pairs", *seccomp._DENIED):
            print(f"{outcome(['system calls'], allowed=allowed):40} system calls, and {allowed}", flush=True)


def main() -> None:
    """Say whether CUDA starts, and if not, which step keeps it."""
    began, outside = time.monotonic(), cuda_needs.tried()
    if "--rehearse" in sys.argv:
        _sandbox._GPU_NODES = ("null",)
    levels = [level for level, why in _sandbox.available().items() if level in ("landlock", "bwrap") and not why]
    fine = [confined(level, network, outside) for level in levels for network in (True, False)]
    print(
        f"CUDA starts in {sum(fine)} of {len(fine)} confined extensions; {time.monotonic() - began:.0f} s", flush=True
    )
    outcome_outside = outcome([])
    if all(fine):
        return
    if not outcome_outside.startswith(FINE):
        print(f"not confined either: {outcome_outside}; a step of the confinement does not show", flush=True)
        if "--rehearse" not in sys.argv:
            return
    analyse()


if __name__ == "__main__":
    main()
