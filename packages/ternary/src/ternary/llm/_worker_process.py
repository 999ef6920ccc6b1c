"""A worker of `serve`: it reads what to serve from its input, and ends with its input, so that it never outlives it."""

from __future__ import annotations

import pickle
import socket
import sys
import threading

import uvicorn

from ternary.llm import application

__all__: list[str] = []


def main(*places: str) -> None:
    """Serve at the listening sockets with these descriptors until the input ends."""
    settings = pickle.load(sys.stdin.buffer)
    config = uvicorn.Config(application(**settings), log_level="warning", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)

    def leave() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=leave, daemon=True).start()
    server.run([socket.socket(fileno=int(place)) for place in places])


if __name__ == "__main__":
    main(*sys.argv[1:])
