"""`breakpoint()` and pdb in a worker: the debugger talks to the host's terminal over a socket that the worker inherits.

A worker opens nothing for it, so it works at every sandbox level. Where the host does not allow it, `breakpoint()` and
pdb raise `DebuggerUnavailableError`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from .errors import DebuggerUnavailableError

HEADER = struct.Struct("<cI")
"""The kind of a message, and the length of its text in bytes."""
SHOW, ASK, LINE, END = b"S", b"A", b"L", b"E"
"""Worker to host: show this; show this and read a line. Host to worker: the line; there are no more lines."""
LIMIT = 1 << 20
"""Bytes of one message."""
_OWN = "isolate_worker*"
_REMEDY = (
    "the host has no debugger for this extension: run it with `isolate debug FOLDER METHOD`, or let the host allow it: "
    "Policy(allow_debugger=True)"
)


def send(sock: socket.socket, kind: bytes, text: str) -> None:
    """Send one message."""
    data = text.encode("utf-8", "replace")[:LIMIT]
    sock.sendall(HEADER.pack(kind, len(data)) + data)


def receive(sock: socket.socket) -> tuple[bytes, str]:
    """Return the next message.

    Raises:
        EOFError: The other side has closed the socket.
        ValueError: The message is too long.
    """
    kind, length = HEADER.unpack(_read(sock, HEADER.size))
    if length > LIMIT:
        raise ValueError(f"a debugger's message of {length} bytes; the limit is {LIMIT}")
    return kind, _read(sock, length).decode("utf-8", "replace")


def _read(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        some = sock.recv(count - len(data))
        if not some:
            raise EOFError
        data += some
    return bytes(data)


class _Terminal:
    """The host's terminal as the debugger's input and output."""

    encoding = "utf-8"

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._prompt = ""

    def write(self, text: str) -> int:
        """Show a text; what has no line end yet is the prompt of the next line that is read."""
        self._prompt += text
        if "\n" in text:
            self.flush_lines()
        return len(text)

    def flush_lines(self) -> None:
        """Send all complete lines."""
        lines, end, self._prompt = self._prompt.rpartition("\n")
        with contextlib.suppress(OSError):
            send(self._sock, SHOW, lines + end)

    def flush(self) -> None:
        """Do nothing: a prompt waits for the line that it asks for."""

    def readline(self) -> str:
        """Return the next line that the user types; empty at the end of the host's input."""
        prompt, self._prompt = self._prompt, ""
        try:
            send(self._sock, ASK, prompt)
            kind, text = receive(self._sock)
        except (OSError, EOFError):
            return ""
        return text if kind == LINE else ""


def _refuse(*_args: Any, **_keywords: Any) -> None:
    raise DebuggerUnavailableError(_REMEDY)


def refuse() -> None:
    """Make `breakpoint()` raise an error that says what to do, unless the environment names another debugger."""
    if "PYTHONBREAKPOINT" not in os.environ:
        sys.breakpointhook = _refuse


def explained(failure: BaseException) -> BaseException:
    """Return the error to report for one of a method: pdb without a terminal ends as if the user had ended it."""
    if type(failure).__module__ != "bdb" or sys.breakpointhook is not _refuse:
        return failure
    error = DebuggerUnavailableError(_REMEDY)
    error.__cause__ = failure
    return error


def install(fd: int, name: str) -> Callable[[Callable[..., Any], str], Callable[..., Any]]:
    """Let pdb and `breakpoint()` use the terminal behind a descriptor.

    Args:
        fd: The socket. The standard input becomes empty in its place.
        name: The extension's, for the prompt.

    Returns:
        What makes a method stop at its first line, given its kind.
    """
    import pdb

    sock = socket.socket(fileno=os.dup(fd))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, fd)
    os.close(nothing)
    terminal, in_use, local = _Terminal(sock), threading.RLock(), threading.local()
    plain = pdb.Pdb

    class Debugger(plain):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **keywords: Any) -> None:
            if not args and keywords.get("stdin") is None:
                keywords.update(stdin=terminal, stdout=terminal)
                keywords["skip"] = [*(keywords.get("skip") or ()), _OWN, "threading", "asyncio.*"]
            super().__init__(*args, **keywords)
            self.use_rawinput = False
            self.prompt = f"(Pdb {name}) "

        def interaction(self, *args: Any, **keywords: Any) -> None:
            with in_use:  # one thread at a time talks to the user
                super().interaction(*args, **keywords)

    pdb.Pdb = Debugger  # type: ignore[misc]

    def debugger() -> Any:
        if not hasattr(local, "debugger"):
            local.debugger = Debugger()  # its breakpoints are kept from stop to stop
        return local.debugger

    if "PYTHONBREAKPOINT" not in os.environ:
        sys.breakpointhook = lambda *_args, **_keywords: debugger().set_trace(_caller())

    return lambda function, kind: _stopping(debugger, function, kind)


def _stopping(debugger: Callable[[], Any], function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """Return a method that stops at its first line, and where it fails; this module's own lines are skipped."""
    if kind in ("async", "astream"):

        async def stopped(*args: Any, **keywords: Any) -> Any:
            debugger().set_trace(_caller(0))
            try:
                return await function(*args, **keywords)
            except Exception as failure:
                _look_at(failure, debugger())
                raise

        async def stream(*args: Any, **keywords: Any) -> Any:
            debugger().set_trace(_caller(0))
            try:
                async for item in function(*args, **keywords):
                    yield item
            except Exception as failure:
                _look_at(failure, debugger())
                raise

        return stopped if kind == "async" else stream

    def called(*args: Any, **keywords: Any) -> Any:
        debugger().set_trace(_caller(0))
        try:
            return function(*args, **keywords)
        except Exception as failure:
            _look_at(failure, debugger())
            raise

    def items(*args: Any, **keywords: Any) -> Any:
        debugger().set_trace(_caller(0))
        try:
            yield from function(*args, **keywords)
        except Exception as failure:
            _look_at(failure, debugger())
            raise

    return items if kind == "stream" else called


def _look_at(failure: Exception, debugger: Any) -> None:
    """Show where a method failed, unless the user has ended it."""
    sys.settrace(None)
    if type(failure).__module__ != "bdb":
        debugger.message(f"{type(failure).__name__}: {failure}")
        debugger.reset()
        debugger.interaction(None, failure.__traceback__)


def _caller(above: int = 1) -> Any:
    return sys._getframe(1 + above)  # noqa: SLF001 - its documented name
