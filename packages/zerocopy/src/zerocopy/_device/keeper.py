"""Ask the keeper of device memory for it, or start the keeper of new memory. See `keeper_process.py`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zerocopy._caretaker_process import me
from zerocopy._device.keeper_process import GATE, MOST_FACTS, READY, user_of
from zerocopy._directory import prepare, require_trust
from zerocopy._lease import close, gate, opened, typed_errors
from zerocopy.errors import DeviceUnavailableError, UntrustedPathError

_PROGRAM = Path(__file__).with_name("keeper_process.py")
_PATIENCE = 30.0  # seconds for an answer, which takes a millisecond

_guard = threading.RLock()  # held across a fork, so that no lease is open and not yet listed
_leases: set[socket.socket] = set()


class Lease:
    """A connection to the keeper: the memory stays until it is closed or its process ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        with _guard:
            _leases.add(connection)

    def close(self) -> None:
        """End the lease."""
        with _guard:
            _leases.discard(self._connection)
            self._connection.close()


def _close_in_child() -> None:
    for connection in _leases:  # a forked child cannot use CUDA, so it does not keep the parent's memory
        connection.close()
    _leases.clear()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)


@contextmanager
def turn(name: str) -> Iterator[Path]:
    """Hold the lock of one GPU's copy during the block, among all processes of this user.

    Yields:
        The path at which its keeper listens.

    Raises:
        UntrustedPathError: Another user can write the folder.
    """
    folder = prepare(None) / "devices"
    with typed_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    require_trust(folder)
    with gate(folder / f"{name}{GATE}"):
        yield folder / name


def find(path: Path) -> tuple[dict[str, Any], int, Lease] | None:
    """Return the facts about kept memory, its descriptor and a lease, or None if no keeper listens.

    Raises:
        UntrustedPathError: Another user listens there.
        DeviceUnavailableError: The keeper does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = opened(path.parent, os.O_RDONLY, folder=True)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        if user_of(connection) != me():
            raise UntrustedPathError(f"user {user_of(connection)} listens at {path}: remove it")
        facts, fds, _, _ = socket.recv_fds(connection, MOST_FACTS, 1)
    except TimeoutError as error:
        connection.close()
        raise DeviceUnavailableError(f"the process that listens at {path} does not answer: end it") from error
    except (FileNotFoundError, ConnectionError):  # none, or it was killed
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    finally:
        close(folder)
    if not fds:
        connection.close()
        return None
    return json.loads(facts), fds[0], Lease(connection)


def start(path: Path, facts: dict[str, Any], memory: int) -> Lease:
    """Start a keeper for memory and return this process's lease. The caller holds the lock and closes the descriptor.

    Raises:
        DeviceUnavailableError: No keeper can be started.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = opened(path.parent, os.O_RDONLY, folder=True)
    try:
        with there:
            program = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), path.name],
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        here.settimeout(_PATIENCE)
        socket.send_fds(here, [json.dumps(facts).encode()], [memory, folder])
        program.wait(_PATIENCE)  # it forks and ends
        if here.recv(len(READY)) != READY:
            raise ConnectionError("it ended")
    except (OSError, subprocess.TimeoutExpired) as error:
        here.close()
        raise DeviceUnavailableError(f"no process can be started that keeps the device's memory: {error}") from error
    finally:
        close(folder)
    return Lease(here)
