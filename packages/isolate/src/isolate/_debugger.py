"""The host's terminal for the debuggers of its extensions; each asks for lines over a socket of its own."""

from __future__ import annotations

import io
import os
import re
import select
import socket
import sys
import threading

from isolate._worker import debugging

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal:
    """Standard input and output, for one debugger's question at a time.

    Attributes:
        stop_at: The method at whose first line an extension stops; empty for none.
    """

    def __init__(self) -> None:
        self.stop_at = ""
        self._lock = threading.Lock()
        self._typed = b""

    def serve(self, sock: socket.socket, name: str) -> None:
        """Answer a debugger until its process ends; on a thread of its own."""
        threading.Thread(target=self._serve, args=(sock,), daemon=True, name=f"isolate-debugger-{name}").start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while True:
                    kind, text = debugging.receive(sock)
                    if kind == debugging.SHOW:
                        _show(text)
                    else:
                        with self._lock:
                            line = self._ask(text, sock)
                        debugging.send(sock, debugging.LINE if line else debugging.END, line)
            except (OSError, EOFError, ValueError):
                return

    def _ask(self, prompt: str, sock: socket.socket) -> str:
        """Return the next line; empty at the end of the input, or when the process that asks has ended."""
        try:
            fd = sys.stdin.fileno()
        except (AttributeError, ValueError, io.UnsupportedOperation):  # a notebook has its own way to ask
            try:
                return input(prompt) + "\n"
            except (EOFError, RuntimeError):
                return ""
        _show(prompt)
        while b"\n" not in self._typed:
            ready, _, _ = select.select([fd, sock], [], [])
            data = os.read(fd, 4096) if fd in ready else b""
            if not data:
                break
            self._typed += data
        line, end, self._typed = self._typed.partition(b"\n")
        return (line + end).decode("utf-8", "replace")


def printable(text: str) -> str:
    """Return a text of an extension without what could control the terminal."""
    return _CONTROL.sub("\ufffd", text)


def _show(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()


TERMINAL = Terminal()
"""A process has one."""
