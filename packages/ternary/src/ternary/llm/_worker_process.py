"""A worker of `serve`: it reads what to serve from its input, and ends with that or with its parent process."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import time

import uvicorn

from ternary.llm import application
from ternary.llm._connections import configuration

__all__: list[str] = []


EVERY = 1.0
"""Seconds between two looks at whether the process of `serve` is still there."""


def main(parent: str, *places: str) -> None:
    """Serve at the listening sockets with these descriptors until the input ends, or the parent process."""
    settings = pickle.load(sys.stdin.buffer)
    server = uvicorn.Server(configuration(application(**settings), log_level="warning"))

    def leave() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    def leave_with_parent() -> None:
        # A process that the parent has forked may hold the other end of the input open.
        while os.getppid() == int(parent):
            time.sleep(EVERY)
        server.should_exit = True

    for wait in (leave, leave_with_parent):
        threading.Thread(target=wait, daemon=True).start()
    server.run([socket.socket(fileno=int(place)) for place in places])


if __name__ == "__main__":
    main(*sys.argv[1:])
