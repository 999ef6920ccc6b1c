"""Hold the descriptor of device memory while any process uses it; run as a program, the keeper.

There is one keeper per GPU and segment. It uses no CUDA, so it takes no memory of the GPU. It is this file run by
`python -I -S`, because it has to stay small. Standard input is a socket, from which it takes the facts about the
memory, the memory's descriptor, that of a folder and that of the lock file. It listens in this folder under the name in
its first argument and sends facts and descriptor to each process of its user that connects. A connection is a lease:
the kernel closes it however its process ends. After the last one the keeper ends, and with it the last reference to the
memory. To a process that sends `holders` it sends the numbers of the other ones, for a report.

Processes connect while they hold the lock file `NAME.gate.part`, and the keeper ends only while it holds it. So no
process connects to a keeper that is about to end.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows, where nothing is published
    fcntl = None  # type: ignore[assignment]

GATE = ".gate.part"
HOLDERS = b"holders"  # asks for the processes that have a lease
MOST_FACTS = 1 << 16  # bytes
MOST_HOLDERS = 8000  # whose numbers fit into as many bytes
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_RETRY = 50  # milliseconds between two tries to take the lock


def user_of(connection: socket.socket) -> int:
    """Return the user at the other end of a socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def pid_of(connection: socket.socket) -> int:
    """Return the process that made the other end of a socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[0])


def listen(folder: int, name: str) -> socket.socket:
    """Listen in a folder, in place of a keeper that was killed. Whoever started this process holds the lock."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    os.umask(0o077)
    listener.bind(f"/proc/self/fd/{folder}/{name}")  # a path of its own may be too long for a socket
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def try_gate(folder: int, name: str) -> int | None:
    """Take the lock if it is free, and return its descriptor."""
    try:
        gate = os.open(name + GATE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except FileNotFoundError:  # the folder was removed: nobody can connect
        return -1
    try:
        fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(gate)
        return None
    if os.fstat(gate).st_nlink == 0:  # its last holder removed it
        os.close(gate)
        return None
    return gate


def leave_gate(folder: int, name: str, gate: int) -> None:
    """Release the lock."""
    with suppress(FileNotFoundError):
        os.unlink(name + GATE, dir_fd=folder)
    fcntl.flock(gate, fcntl.LOCK_UN)  # the process that took it may not have closed it yet
    os.close(gate)


class Keeper:
    """The memory's descriptor, and the processes that use it.

    Args:
        listener: The socket that processes connect to.
        facts: What it sends them about the memory.
        memory: Its descriptor.
    """

    def __init__(self, listener: socket.socket, facts: bytes, memory: int) -> None:
        self._listener, self._facts, self._memory = listener, facts, memory
        self._users: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    @property
    def used(self) -> bool:
        """Whether any process has a lease."""
        return bool(self._users)

    def add(self, user: socket.socket) -> None:
        """Note a lease."""
        self._users[user.fileno()] = user
        self._poll.register(user, select.POLLIN)

    def step(self, milliseconds: int | None) -> None:
        """Wait for a process that connects or leaves, and answer it."""
        for fd, _ in self._poll.poll(milliseconds):
            if fd == self._listener.fileno():
                self._answer()
            elif not self._asked(self._users[fd]):
                self._poll.unregister(fd)
                self._users.pop(fd).close()

    def _asked(self, user: socket.socket) -> bool:
        """Answer a process that asks for the holders; return False for one that has left."""
        try:
            if user.recv(len(HOLDERS)) != HOLDERS:
                return False
            holders = [pid_of(other) for other in self._users.values() if other is not user]
            user.send(" ".join(map(str, holders[:MOST_HOLDERS])).encode() or b" ")
        except OSError:
            return False
        return True

    def _answer(self) -> None:
        try:
            user, _ = self._listener.accept()
        except OSError:  # it left already, or no descriptor is free: others wait until one is
            return
        try:
            if user_of(user) not in (os.geteuid(), 0):
                raise PermissionError(errno.EPERM, "another user")
            user.settimeout(1)
            socket.send_fds(user, [self._facts], [self._memory])
        except OSError:
            user.close()
        else:
            self.add(user)


def main() -> None:
    """Take over the memory, and keep it until no process uses it."""
    name = sys.argv[1]
    first = socket.socket(fileno=0)
    os.chdir("/")  # keeps no folder busy
    if os.fork():
        os._exit(0)  # the parent ends at once: a process that stops its children spares this one
    facts, fds, _, _ = socket.recv_fds(first, MOST_FACTS, 3)
    if len(fds) != 3:  # the process that started this one has ended, or made no copy
        return
    memory, folder, held = fds
    keeper = Keeper(listen(folder, name), facts, memory)
    mine = os.stat(name, dir_fd=folder).st_ino
    keeper.add(first)
    leave_gate(folder, name, held)
    while True:
        while keeper.used:
            keeper.step(None)
        gate = try_gate(folder, name)
        if gate is not None:
            keeper.step(0)  # a process may have connected before this one had the lock
            if not keeper.used:
                break
            if gate >= 0:
                leave_gate(folder, name, gate)
        else:
            keeper.step(_RETRY)
    if gate >= 0:
        with suppress(FileNotFoundError):
            if os.stat(name, dir_fd=folder).st_ino == mine:  # else it was removed, and another keeper listens
                os.unlink(name, dir_fd=folder)
        os.unlink(name + GATE, dir_fd=folder)


if __name__ == "__main__":
    main()
