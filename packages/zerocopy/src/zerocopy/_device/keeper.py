"""Ask the keeper of device memory for it, or start the keeper of new memory. See `keeper_process.py`."""

from __future__ import annotations

import _thread
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from zerocopy._caretaker_process import me
from zerocopy._device.keeper_process import GATE, HOLDERS, MOST_FACTS, user_of
from zerocopy._directory import prepare, require_trust, why_distrusted
from zerocopy._lease import close, leave_gate, opened, take_gate, typed_errors
from zerocopy.errors import DeviceUnavailableError, UntrustedPathError

_PROGRAM = Path(__file__).with_name("keeper_process.py")
_PATIENCE = 30.0  # seconds for an answer, which takes a millisecond
_GLANCE = 1.0  # seconds for an answer to a report

_guard = threading.RLock()  # held across a fork, so that no lease is open and not yet listed
_leases: set[socket.socket] = set()


class Lease:
    """A connection to the keeper: the memory stays until it is closed or its process ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        with _guard:
            _leases.add(connection)

    def holders(self) -> tuple[int, ...]:
        """Return the other processes that have a lease."""
        self._connection.send(HOLDERS)
        return tuple(pid for pid in map(int, self._connection.recv(MOST_FACTS).split()) if pid)

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


class Turn:
    """The right to look for the keeper of one GPU's copy and to start one.

    Args:
        path: Where the keeper listens.
        gate: The descriptor of the lock file.
    """

    def __init__(self, path: Path, gate: int) -> None:
        self.path, self.gate = path, gate
        self.passed_on = False  # to the keeper, which ends the turn when it listens


@contextmanager
def turn(name: str) -> Iterator[Turn]:
    """Hold the lock of one GPU's copy during the block, among all processes of this user.

    Raises:
        UntrustedPathError: Another user can write the folder.
    """
    folder = prepare(None) / "devices"
    with typed_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    require_trust(folder)
    file = folder / f"{name}{GATE}"
    fd = take_gate(file)
    assert fd is not None  # it waited
    mine = Turn(folder / name, fd)
    try:
        yield mine
    finally:
        if mine.passed_on:
            close(fd)
        else:
            leave_gate(file, fd)


@dataclass(frozen=True, slots=True)
class Kept:
    """Device memory that a keeper has.

    Args:
        device: The device's UUID, in hex.
        nbytes: The number of bytes.
        model: Name and version of the model that was first loaded there.
        holders: The processes that use it.
    """

    device: str
    nbytes: int
    model: str
    holders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Silent:
    """A place where a keeper listens that did not say what it has.

    Args:
        name: Its file name.
        reason: Why.
    """

    name: str
    reason: str


def kept(default: Path) -> tuple[list[Kept], list[Silent]]:
    """Return what the keepers of this user have, and those that did not say it within a second.

    Args:
        default: The default segment directory, in which keepers listen whichever directory a segment lies in.
    """
    folder = default / "devices"
    try:
        paths = sorted(folder.iterdir())
        if why_distrusted(folder):
            return [], []
    except OSError:  # nothing was kept, or the folder is another user's
        return [], []
    found, silent = [], []
    for path in paths:
        if path.name.endswith(GATE):
            continue
        try:
            answer = _asked(path)
            if answer is not None:
                found.append(answer)
        except ConnectionError:  # it ended meanwhile
            continue
        except (DeviceUnavailableError, UntrustedPathError, OSError) as error:
            silent.append(Silent(path.name, str(error)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            silent.append(Silent(path.name, f"the process that listens there says something else ({error!r}): end it"))
    return found, silent


def _asked(path: Path) -> Kept | None:
    answer = find(path, patience=_GLANCE)
    if answer is None:
        return None
    facts, fd, lease = answer
    os.close(fd)
    try:
        device, nbytes, model = UUID(hex=facts["device"]).hex, int(facts["nbytes"]), str(facts["model"])
        return Kept(device, nbytes, model, lease.holders())
    except TimeoutError as error:
        raise _silent(path, _GLANCE) from error
    finally:
        lease.close()


def _silent(path: Path, patience: float) -> DeviceUnavailableError:
    return DeviceUnavailableError(
        f"the process that listens at {path} does not answer within {patience:g} s: end it if it goes on"
    )


def find(path: Path, patience: float = _PATIENCE) -> tuple[dict[str, Any], int, Lease] | None:
    """Return the facts about kept memory, its descriptor and a lease, or None if no keeper listens.

    Raises:
        UntrustedPathError: Another user listens there.
        DeviceUnavailableError: The keeper does not answer, or not as a keeper does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = opened(path.parent, os.O_RDONLY, folder=True)
    try:
        connection.settimeout(patience)
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        if user_of(connection) != me():
            raise UntrustedPathError(f"user {user_of(connection)} listens at {path}: remove it")
        facts, fds, _, _ = socket.recv_fds(connection, MOST_FACTS, 1)
    except TimeoutError as error:
        connection.close()
        raise _silent(path, patience) from error
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
    try:
        known = json.loads(facts)
    except ValueError as error:
        connection.close()
        os.close(fds[0])
        raise DeviceUnavailableError(f"the process that listens at {path} says something else: end it") from error
    return known, fds[0], Lease(connection)


class Starting:
    """A keeper that has no memory yet.

    Args:
        turn: The turn in which it is started.
        folder: The descriptor of the folder in which it will listen.
    """

    def __init__(self, turn: Turn, folder: int) -> None:
        self._turn, self._folder = turn, folder
        with _guard:
            self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._lease = Lease(self._here)
        self._here.settimeout(_PATIENCE)
        self._failed: OSError | None = None
        try:
            _thread.start_new_thread(self._run, (there,))
        except RuntimeError:  # the process may not start more threads
            self._run(there)

    def _run(self, there: socket.socket) -> None:
        try:
            with there:
                program = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_PROGRAM), self._turn.path.name],
                    stdin=there.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            program.wait()  # it forks and ends
        except OSError as error:
            self._failed = error

    def take(self, facts: dict[str, Any], memory: int) -> Lease:
        """Hand over memory and return this process's lease. The caller closes the descriptor.

        The keeper ends the turn once it listens, and this does not wait for that.

        Raises:
            DeviceUnavailableError: No keeper can be started.
        """
        try:
            if self._failed is not None:
                raise self._failed
            socket.send_fds(self._here, [json.dumps(facts).encode()], [memory, self._folder, self._turn.gate])
        except OSError as error:
            raise DeviceUnavailableError(
                f"no process can be started that keeps the device's memory: {error}"
            ) from error
        self._turn.passed_on = True
        return self._lease

    def end(self) -> None:
        """End a keeper that took no memory."""
        if not self._turn.passed_on:
            self._lease.close()


@contextmanager
def starting(turn: Turn) -> Iterator[Starting]:
    """Start a keeper, which takes some time, beside the block, and end it after the block if it took no memory."""
    folder = opened(turn.path.parent, os.O_RDONLY, folder=True)
    try:
        keeper = Starting(turn, folder)
        try:
            yield keeper
        finally:
            keeper.end()
    finally:
        close(folder)
