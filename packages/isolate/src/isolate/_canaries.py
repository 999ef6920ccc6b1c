"""What confined workers try to reach and must not: a file, sockets and memory of the host. None of it does anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any


class Canaries:
    """The targets of the workers' attempts; made with the first worker that is confined, one set for each host."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: str | None = None
        self._sockets: list[socket.socket] = []
        self._memory = ctypes.create_string_buffer(b"canary")
        self._targets: dict[str, Any] = {}

    def targets(self) -> dict[str, Any]:
        """Return where the canaries are, in wire types."""
        with self._lock:
            if not self._are_there():
                self._close()
                self._make()
            return dict(self._targets)

    def _are_there(self) -> bool:
        """Return whether none was removed, as programs do that clean /tmp: an attempt on nothing fails at any level."""
        return self._folder is not None and all(
            os.path.lexists(self._targets[name]) for name in ("canary", "unix", "datagram", "packets")
        )

    def _make(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="isolate-canary-")
        file, path = os.path.join(self._folder, "file"), os.path.join(self._folder, "socket")
        name = f"isolate-canary-{secrets.token_hex(8)}"
        try:
            Path(file).write_text("canary")
            tcp = self._listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
            udp = self._listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
            self._listen(socket.AF_UNIX, socket.SOCK_STREAM, path)
            self._listen(socket.AF_UNIX, socket.SOCK_DGRAM, path + "-datagram")
            self._listen(socket.AF_UNIX, socket.SOCK_SEQPACKET, path + "-packets")
            for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):  # each kind has its own names
                self._listen(socket.AF_UNIX, kind, "\0" + name)
        except OSError:
            self._close()
            raise
        self._targets = {
            "canary": file,
            "files": _private_files(),
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": path,
            "datagram": path + "-datagram",
            "packets": path + "-packets",
            "abstract": name,
            "pid": os.getpid(),
            "pid_namespace": os.readlink("/proc/self/ns/pid"),
            "address": ctypes.addressof(self._memory),
        }

    def _listen(self, family: int, kind: int, address: Any) -> socket.socket:
        made = socket.socket(family, kind)
        self._sockets.append(made)
        made.bind(address)
        if kind != socket.SOCK_DGRAM:
            made.listen(1024)  # nothing accepts; a connection in the backlog is a success of the attempt
        return made

    def _close(self) -> None:
        folder, self._folder = self._folder, None
        for made in self._sockets:
            made.close()
        self._sockets.clear()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove them."""
        with self._lock:
            self._close()


def _private_files() -> list[str]:
    """Return a few existing files that no extension has any business with."""
    found = ["/etc/shadow", "/etc/gshadow"]
    with contextlib.suppress(OSError, RuntimeError):
        home = Path.home()
        found += sorted(str(path) for path in home.iterdir() if path.is_file())[:3]
    return [path for path in found if os.access(path, os.R_OK)]
