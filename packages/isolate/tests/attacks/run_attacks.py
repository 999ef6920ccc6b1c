"""Loads every escape as an extension of its own, confined, lets it try, and prints what came of each as JSON.

Run as `run_attacks.py LEVEL FOLDER`, as the user of the host; `LEVEL+gpus` has the extensions use
GPUs. The targets are files of that user, sockets that nothing uses, and this process; a success does no harm.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from isolate import Host, Manifest, Policy, _sandbox
from isolate._manifest import Sandbox

ESCAPES = Path(__file__).parent / "escapes"
EARLY = """import builtins, threading
def early():
    try: builtins.early = open({secret!r}).read()
    except OSError: builtins.early = None
    try: builtins.early_environ = b"ATTACK_SECRET" in open("/proc/{pid}/environ", "rb").read() or None
    except OSError: builtins.early_environ = None
thread = threading.Thread(target=early)
thread.start()
thread.join()
"""
SHADOW = """import builtins
try: builtins.shadowed = open({secret!r}).read()
except OSError: builtins.shadowed = None
raise ImportError("shadow")
"""


def targets(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Make what the attacks aim at."""
    outside = folder / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    secret, victim = outside / "secret", outside / "victim"
    for path in (secret, victim):
        path.write_text("the host's secret")
    in_home = Path.home() / f".isolate-attack-{secrets.token_hex(4)}"
    in_home.write_text("the host's secret")
    stack.callback(in_home.unlink, missing_ok=True)
    name = f"isolate-attack-{secrets.token_hex(8)}"
    found: dict[str, Any] = {}
    for key, family, kind, address in (
        ("unix", socket.AF_UNIX, socket.SOCK_STREAM, str(outside / "s")),
        ("datagram", socket.AF_UNIX, socket.SOCK_DGRAM, str(outside / "d")),
        ("packets", socket.AF_UNIX, socket.SOCK_SEQPACKET, str(outside / "p")),
        ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + name),
        ("abstract_packets", socket.AF_UNIX, socket.SOCK_SEQPACKET, "\0" + name + "p"),
        ("abstract_datagram", socket.AF_UNIX, socket.SOCK_DGRAM, "\0" + name + "d"),
        ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
    ):
        made = stack.enter_context(socket.socket(family, kind))
        made.bind(address)
        if kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            made.listen(100)
        found[key] = made.getsockname()[1] if family == socket.AF_INET else str(address).lstrip("\0")
    memory = ctypes.create_string_buffer(b"canary")
    stack.callback(lambda: memory)
    libc = ctypes.CDLL(None)
    shm = libc.shmget(0, 4096, 0o1600)
    stack.callback(libc.shmctl, shm, 0, None)
    queue = f"/{name}"
    descriptor = libc.mq_open(queue.encode(), os.O_CREAT | os.O_RDONLY, 0o666, None)
    if descriptor >= 0:  # the kernel may have none
        stack.callback(libc.mq_unlink, queue.encode())
        stack.callback(libc.mq_close, descriptor)
    key = secrets.randbelow(1 << 30) + 1
    messages = libc.msgget(key, 0o1666)
    stack.callback(libc.msgctl, messages, 0, None)
    ours, theirs = os.openpty()
    stack.callback(os.close, ours)
    stack.callback(os.close, theirs)
    cache = os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache" / "uv")
    return {
        **found,
        "secret": str(secret),
        "victim": str(victim),
        "home": str(Path.home()),
        "in_home": str(in_home),
        "neighbour": str(folder / "extensions" / "read_by_path" / "main.py"),
        "uv_cache": cache,
        "pid": os.getpid(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
        "address": ctypes.addressof(memory),
        "shm": shm,
        "queue": queue,
        "queue_key": key,
        "terminal": os.ttyname(theirs),
        "disk": os.stat("/").st_dev,
    }


def evidence(call: Any, aims: dict[str, Any]) -> str:
    """Let one attack try; return a text if it worked, and an empty one if not."""
    try:
        found = call(timeout=20).attack(aims)
    except Exception as failure:
        return f"the host failed: {failure}" if type(failure).__name__ == "WouldDeadlockError" else ""
    return repr(found)[:200] if found else ""


def main() -> None:
    """Try every escape."""
    (level, _, gpus), folder = sys.argv[1].partition("+"), Path(sys.argv[2])
    results = {}
    if gpus and not any(_sandbox._NODES.glob("nvidia*")):
        _sandbox._GPU_NODES = ("null",)  # stands for a GPU's node
    with ExitStack() as stack:
        aims = targets(folder, stack)
        (folder / "extensions").mkdir()
        for path in sorted(ESCAPES.glob("*.py")):
            place = folder / "extensions" / path.stem
            place.mkdir()
            shutil.copy(path, place / "main.py")
        host = stack.enter_context(Host(folder / "store", policy=Policy(sandbox=level, allow_gpus=bool(gpus))))
        plain = Manifest(name="plain", directory=folder / "extensions" / "read_by_path")
        packages = host.store.ensure(plain).site_packages
        (packages / "early.pth").write_text(f"exec({EARLY.format(**aims)!r})\n")
        for package in ("isolate_worker", "msgspec"):
            (packages / f"{package}.py").write_text(SHADOW.format(**aims))
        for path in sorted(ESCAPES.glob("*.py")):
            name = path.stem
            confined = Sandbox(level=level, network=False, gpus=bool(gpus))  # type: ignore[arg-type]
            extension = host.load(Manifest(name=name, directory=folder / "extensions" / name, sandbox=confined))
            assert extension.report is not None
            kind = re.search(r'^KIND = "(.*)"', path.read_text(), re.MULTILINE)
            results[name] = {
                "kind": kind[1] if kind else "",
                "evidence": evidence(extension.call, aims),
                "named": extension.report.sandbox.tried.get(kind[1] if kind else "", False),
                "missing": extension.report.sandbox.missing,
            }
            extension.stop()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
